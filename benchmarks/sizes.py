"""Times the default form of RCMA and its alternatives over lengths, batches and widths.

Run: ``python -m benchmarks.sizes [--only NAME ...]``. Writes ``results/sizes-DEVICE.json``; the
report tabulates it. Three modalities of equal widths, and the paper's size. Not every combination:
each size varies around B 12, L 300, width 128, and the corners are added where layers differ most.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.cases import Case, default_case
from benchmarks.layers import RESULTS, measure
from benchmarks.timing import header

# Batch, length and the widths of the modalities.
SIZES: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (1, 60, (32,) * 3),
    (1, 300, (128,) * 3),
    (1, 4800, (32,) * 3),
    (1, 4800, (128,) * 3),
    (12, 60, (128,) * 3),
    (12, 300, (32,) * 3),
    (12, 300, (128,) * 3),
    (12, 300, (512,) * 3),
    (12, 300, (512, 128, 512)),
    (12, 1200, (128,) * 3),
    (32, 60, (32,) * 3),
    (32, 300, (128,) * 3),
)


@dataclass(frozen=True)
class Options:
    """What to run."""

    only: tuple[str, ...] = ()
    """Names of cases, such as b12-l300-d128; the others keep their figures. All by default."""
    device: str = "cpu"
    """Where to run."""
    seconds: float = 3.0
    """How long each direction of a case is measured, at least five rounds."""


def cases() -> list[Case]:
    """A case for each size."""
    return [default_case(name(*size), *size, settings=("float32",), compiled=()) for size in SIZES]


def name(batch: int, length: int, dims: Sequence[int]) -> str:
    widths = "-".join(map(str, dims if len(set(dims)) > 1 else dims[:1]))
    return f"b{batch}-l{length}-d{widths}"


def run(
    chosen: Sequence[Case],
    *,
    device: str = "cpu",
    seconds: float = 3.0,
    least: int = 5,
    folder: Path = RESULTS,
) -> Path:
    """Measures cases, each under a header that says how busy the machine was, and keeps the rest.

    The results are saved after each case, so nothing is lost, and a run can be taken in parts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"sizes-{device}.json"
    kept: dict[str, Any] = json.loads(path.read_text())["cases"] if path.exists() else {}
    for case in chosen:
        about = header(device)
        rows, refused = measure(case, device=device, seconds=seconds, least=least)
        size = {"batch": case.batch, "length": case.length, "dims": case.dims}
        kept[case.name] = {"header": about, **size, "rows": rows, "refused": refused}
        ordered = dict(sorted(kept.items(), key=lambda item: _place(item[1])))
        path.write_text(json.dumps({"cases": ordered}, indent=1) + "\n")
    return path


def _place(case: dict[str, Any]) -> tuple[int, int, int]:
    return case["batch"], case["length"], sum(case["dims"])


def main() -> None:
    """Runs from the command line."""
    options = tyro.cli(Options, description=__doc__)
    chosen = [case for case in cases() if not options.only or case.name in options.only]
    print(run(chosen, device=options.device, seconds=options.seconds))


if __name__ == "__main__":
    main()
