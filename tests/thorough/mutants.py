"""Mutation testing of some files: `python -m tests.thorough.mutants src/crossfuse/gate.py`.

The tree is copied, and the copy of a file gets one small fault at a time. A fault is killed if a
test fails on it, or takes many times as long. Hypothesis draws the same inputs for each fault, and
shrinks none. What was found is a line of the record; a later run goes on with the other faults,
unless the file has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import torch
import torch._dynamo.testing  # seconds, which the forks need not spend
from hypothesis import HealthCheck, Phase, settings

from tests.thorough.faults import Fault, faults
from tests.thorough.forks import OUTPUT, Found, Search, in_fork

COPIED = ("src", "tests", "examples", "conftest.py", "pyproject.toml", "README.md")
INPUTS = 12  # that Hypothesis draws for each law
EQUATIONS = ("*/test_functional", "*/test_bad_input_*", "*/test_reference")
NEAREST = {  # tests of files that have no test file of their name
    "_cross": (*EQUATIONS, "*/test_cross"),
    "_cross_modal": (*EQUATIONS, "*/test_cross_modal_transformer*"),
    "_jca": (*EQUATIONS, "*/test_joint*"),
    "_leader_follower": (*EQUATIONS, "*/test_leader_follower"),
    "_masks": ("*/test_recursive_masks", "*/test_joint", "*/test_missing", "*/test_pooling"),
    "_pooling": (*EQUATIONS, "*/test_pooling"),
    "_products": (*EQUATIONS, "*/test_joint", "*/test_recursive"),
    "_rcma": (*EQUATIONS, "*/test_recursive"),
    "_rcma_released": (*EQUATIONS, "*/test_recursive"),
    "_rcma_stable": (
        *EQUATIONS,
        "*/test_stable*",
        "*/test_recursive",
        "*/test_recursive_precision",
    ),
    "_recursive_step": ("*/test_recursive*", "*/test_stable*", "*/test_reference"),
    "_released_step": ("*/test_recursive*", "*/test_reference"),
    "_stable_step": ("*/test_stable*", "*/test_recursive*", "*/test_reference"),
    "_temporal_block": ("*/test_temporal*",),
}


def main() -> int:
    """Runs the tests of files on their faults in a drawn order; returns 1 if one survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.thorough.mutants", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="files of src/crossfuse")
    parser.add_argument("--tests", nargs="*", help="default: the tests with the names of the files")
    parser.add_argument("--sample", type=int, help="how many faults, drawn; default: all")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the order")
    parser.add_argument("--faults", type=int, nargs="*", help="repeats the faults of these numbers")
    parser.add_argument("--record", type=Path, default=Path("runs/mutants.jsonl"))
    parser.add_argument("--seconds", type=float, default=300.0, help="starts no fault after these")
    parser.add_argument("--verbose", action="store_true", help="show which test kills each fault")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Shrinking is most of the time of a test that fails.
    settings.register_profile(
        "mutants",
        deadline=None,
        max_examples=INPUTS,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    files = [file.resolve().relative_to(Path.cwd()) for file in arguments.files]
    tests = arguments.tests or list(dict.fromkeys(test for file in files for test in _tests(file)))
    every = {(str(fault.file), fault.number): fault for file in files for fault in faults(file)}
    record = _Record(arguments.record, files)
    order = random.Random(arguments.seed).sample(list(every.values()), len(every))
    drawn = [fault for fault in order if (str(fault.file), fault.number) not in record.found]
    if arguments.faults is not None:
        drawn = [fault for fault in order if fault.number in arguments.faults]
    _say(f"{len(every)} faults, {len(drawn)} to run; {' '.join(tests)}")
    record.add(_search(files, tests, drawn[: arguments.sample], arguments.seconds))
    for key, killer in sorted(record.found.items()):
        if killer is None or arguments.verbose:
            _say(f"{killer or 'survived'}: {every[key]}")
    for file in map(str, files):
        killers = [killer for (place, _), killer in record.found.items() if place == file]
        possible = sum(place == file for place, _ in every)
        killed = sum(killer is not None for killer in killers)
        _say(f"{file}: {killed} of {len(killers)} faults killed, {possible} possible")
    return int(None in record.found.values())


class _Record:
    """What was found before and now, in a file with a line for each fault of a state of a file."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path, self.found = path.resolve(), Found()
        self.states = {str(file): sha256(file.read_bytes()).hexdigest()[:12] for file in files}
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            file, state, number, killer = json.loads(line)
            if self.states.get(file) == state:
                self.found[file, number] = killer

    def add(self, found: Found) -> None:
        """Keeps what was found now."""
        self.found.update(found)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as record:
            for (file, number), killer in found.items():
                record.write(json.dumps([file, self.states[file], number, killer]) + "\n")


def _search(files: list[Path], tests: list[str], drawn: list[Fault], seconds: float) -> Found:
    """Which test kills each fault, of those that the time is enough for."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            _copy(Path(name), Path(folder) / name)
        before = Path.cwd()
        os.chdir(folder)
        search = Search(files, tests, start + seconds)
        learnt = in_fork(lambda: search.fast(drawn))
        if learnt is None or not learnt[1].seconds:
            raise SystemExit(f"the tests do not run: {OUTPUT.read_text()[-2000:]}")
        found, search.learnt, search.kills = learnt
        for test in sorted(search.learnt.failed):
            _say(f"left out, fails without a fault: {test}")
        for fault in drawn:
            if (str(fault.file), fault.number) not in found and time.monotonic() < search.end:
                found[str(fault.file), fault.number] = search.slow(fault)
        os.chdir(before)
    _say(f"{len(search.learnt.seconds)} tests, {time.monotonic() - start:.0f} s")
    return found


def _tests(file: Path) -> list[str]:
    """The doctests of the file, and the test files nearest to it or else of all layers."""
    names = NEAREST.get(file.stem, (f"*/test_{file.stem.strip('_')}*",))
    near = sorted({path for name in names for path in Path("tests").glob(f"{name}.py")})
    return [str(file), *map(str, near or [Path("tests/layers"), Path("tests/functional")])]


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    else:
        shutil.copy(source, target)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
