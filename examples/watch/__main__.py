"""The command line: ``python -m examples.watch --help``."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from examples.common import command
from examples.watch.data import WATCH


@dataclass(frozen=True)
class Options(command.Options):
    """Recognises exercises from a smartwatch, on held-out subjects."""

    out: Path = Path("watch-results")


if __name__ == "__main__":
    command.main(WATCH, tyro.cli(Options, description=Options.__doc__))
