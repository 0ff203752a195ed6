"""The command line: ``python -m examples.affwild2 COMMAND --help``."""

from collections.abc import Callable
from typing import Any

import tyro
from rich.console import Console

from examples.affwild2.commands.data import Extract, MakeData
from examples.affwild2.commands.run import Evaluate, Plot, Predict, Train
from examples.affwild2.commands.table import Demo, TableCommand

COMMANDS: dict[str, Callable[..., Any]] = {
    "make-data": MakeData,
    "extract": Extract,
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "table": TableCommand,
    "plot": Plot,
    "demo": Demo,
}


def main() -> None:
    """Runs the command; a user's mistake is one line, not a traceback."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="python -m examples.affwild2",
        description="Aff-Wild2 valence and arousal from faces, voices and words, end to end.",
    )
    try:
        command.run(Console())
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
