"""Every law of the tests on fresh examples: `python -m tests.thorough.laws --seconds 600`.

The laws are the tests that Hypothesis draws inputs for: of layers in every option of their tables,
of equations, losses, windows, poolings, batches and clocks. Each run takes one file with a seed of
its own, and draws hundreds of inputs for each of its laws. A case is one drawn input on which one
law was checked. Each run is one line of the record; a later search goes on with the next seeds, and
`--seeds 17 --file tests/functional/test_align.py` repeats one.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDERS = ("tests/functional", "tests/layers")


class _Cases:
    """Keeps the laws of the collected tests, and counts the inputs on which they are checked."""

    def __init__(self) -> None:
        self.count, self.failed = 0, list[str]()
        self.laws: set[int] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leaves out what draws nothing, and counts the calls of the rest."""
        items[:] = [item for item in items if hasattr(getattr(item, "obj", None), "hypothesis")]
        for item in items:
            drawn = item.obj.hypothesis  # type: ignore[attr-defined]  # of a function
            if id(drawn) not in self.laws:  # parametrized ones share it
                self.laws.add(id(drawn))
                drawn.inner_test = self._counted(drawn.inner_test)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps the names of those that fail."""
        if report.failed:
            self.failed.append(report.nodeid)

    def _counted(self, law: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(law)
        def counted(*args: object, **options: object) -> None:
            self.count += 1
            law(*args, **options)

        return counted


def main() -> int:
    """Runs until the time is over; returns 1 if a law failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.thorough.laws", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="starts no file after these")
    parser.add_argument("--seeds", type=int, nargs="*", help="these seeds only, in every file")
    parser.add_argument("--file", action="append", help="default: all with laws")
    parser.add_argument("--record", type=Path, default=Path("runs/laws.jsonl"))
    arguments = parser.parse_args()
    os.environ["HYPOTHESIS_PROFILE"] = "thorough"
    files = arguments.file or [
        str(path)
        for folder in FOLDERS
        for path in sorted(Path(folder).glob("test_*.py"))
        if "@given" in path.read_text()
    ]
    arguments.record.parent.mkdir(parents=True, exist_ok=True)
    done = _recorded(arguments.record)
    seeds = arguments.seeds
    plan = [(file, seed) for seed in seeds for file in files] if seeds is not None else None
    start, cases, failed = time.monotonic(), 0, list[str]()
    while plan if plan is not None else time.monotonic() - start < arguments.seconds:
        file, seed = plan.pop(0) if plan is not None else _next(files, done)
        found = _run(file, seed)
        done.add((file, seed))
        cases, failed = cases + found.count, failed + found.failed
        with arguments.record.open("a") as record:
            line = {"file": file, "seed": seed, "cases": found.count, "failed": found.failed}
            record.write(json.dumps(line) + "\n")
    took = time.monotonic() - start
    sys.stdout.write(f"{cases} cases in {took:.0f} s, {len(failed)} laws failed: {failed}\n")
    return int(bool(failed))


def _run(file: str, seed: int) -> _Cases:
    """Checks the laws of one file on examples of one seed."""
    found = _Cases()
    options = ["-q", "--no-header", "-m", "not slow", "-p", "no:cacheprovider", "--tb=short"]
    code = pytest.main([file, f"--hypothesis-seed={seed}", *options], plugins=[found])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and not found.failed:
        found.failed.append(f"{file} (exit code {code})")
    return found


def _next(files: list[str], done: set[tuple[str, int]]) -> tuple[str, int]:
    """The next file in turn, with the first seed that it has not had."""
    seeds = {file: max((s for f, s in done if f == file), default=-1) + 1 for file in files}
    return min(((file, seeds[file]) for file in files), key=lambda pair: pair[1])


def _recorded(record: Path) -> set[tuple[str, int]]:
    """The files and seeds that were run before."""
    lines = record.read_text().splitlines() if record.exists() else []
    return {(line["file"], line["seed"]) for line in map(json.loads, lines)}


if __name__ == "__main__":
    sys.exit(main())
