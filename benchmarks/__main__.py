"""Runs the benchmarks: ``python -m benchmarks [--quick] [--device cuda] [--only NAME ...]``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import tyro
from rich.console import Console

from benchmarks import growth, layers, report, sizes
from benchmarks.cases import all_cases, small_cases

# Each writes a results file of its own, on the CPU.
SCRIPTS = ("checkpoint_memory", "saturation", "streaming", "tuning")


@dataclass(frozen=True)
class Options:
    """What to run."""

    quick: bool = False
    """A rehearsal at small sizes, into runs/benchmarks; its figures mean nothing."""
    device: str = "cpu"
    """Where to run."""
    only: tuple[str, ...] = ()
    """Names of cases, ``sizes``, ``growth`` or a script, into runs/benchmarks; all if none is
    given."""
    seconds: float = 3.0
    """How long each table of a case is measured, at least three rounds."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    tell = Console(highlight=False, soft_wrap=True).print
    folder = Path("runs/benchmarks") if options.quick or options.only else layers.RESULTS
    cases = small_cases() if options.quick else all_cases()
    if options.only:
        cases = [case for case in cases if case.name in options.only]
    if cases:
        seconds, least = (0.05, 2) if options.quick else (options.seconds, 3)
        layers.run(
            cases, device=options.device, seconds=seconds, least=least, folder=folder, tell=tell
        )
    if "sizes" in options.only or not (options.quick or options.only):
        tell("sizes")
        sizes.run(sizes.cases(), device=options.device, seconds=options.seconds, folder=folder)
    if not options.only or "growth" in options.only:
        tell("growth")
        growth.run(device=options.device, quick=options.quick, folder=folder)
    for name in SCRIPTS:
        wanted = name in options.only if options.only else not options.quick
        if wanted and find_spec(f"benchmarks.{name}") is not None:
            tell(name)
            import_module(f"benchmarks.{name}").main()
    tell(f"{report.write(folder, options.device)}")


if __name__ == "__main__":
    main()
