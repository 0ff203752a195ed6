"""The command line: ``python -m examples.phone --help``."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from examples.common import command
from examples.phone.data import PHONE


@dataclass(frozen=True)
class Options(command.Options):
    """Recognises activities and postural transitions from a phone, on held-out subjects."""

    out: Path = Path("phone-results")


if __name__ == "__main__":
    command.main(PHONE, tyro.cli(Options, description=Options.__doc__))
