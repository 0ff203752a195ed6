"""The command line: ``python -m examples.phone --help``."""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from examples.common import command
from examples.phone.data import CHOOSING, PHONE


@dataclass(frozen=True)
class Options(command.Options):
    """Recognises activities and postural transitions from a phone, on held-out subjects.

    Attributes:
        choosing: Take the people 1-15, on whom the stable form of RCMA was chosen.
    """

    choosing: bool = False
    out: Path = Path("phone-results")


if __name__ == "__main__":
    options = tyro.cli(Options)
    command.main(replace(PHONE, held_out=CHOOSING) if options.choosing else PHONE, options)
