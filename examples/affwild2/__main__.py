"""The command line: ``python -m examples.affwild2 COMMAND --help``."""

import sys
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

STOPPED = 130  # exit status after an interrupt

try:
    import torch
    import tyro
    from rich.console import Console

    from examples.affwild2.commands.check import Check
    from examples.affwild2.commands.data import Extract, MakeData
    from examples.affwild2.commands.run import Evaluate, Plot, Predict, Train
    from examples.affwild2.commands.table import Demo, TableCommand
except KeyboardInterrupt as error:  # these imports take seconds
    raise SystemExit(STOPPED) from error

COMMANDS: dict[str, Callable[..., Any]] = {
    "make-data": MakeData,
    "check": Check,
    "extract": Extract,
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "table": TableCommand,
    "plot": Plot,
    "demo": Demo,
}
# Of the user, of files and disks, and of what reads them; anything else is our mistake.
ENDS = (
    ValueError,
    OSError,
    EOFError,
    MemoryError,
    torch.OutOfMemoryError,
    zipfile.BadZipFile,
    BrokenProcessPool,
)


def main() -> None:
    """Runs the command; what a user, a file, a disk or an interrupt ends is one line.

    Exit status: 0, 1 after an error, 130 after an interrupt; 2 for options that do not exist.
    """
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="python -m examples.affwild2",
        description="Aff-Wild2 valence and arousal from faces, voices and words, end to end.",
    )
    console = Console()
    # "once": a damaged checkpoint is reported once, however often it is read
    warnings.simplefilter("once", UserWarning)
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"
    try:
        command.run(console)
    except KeyboardInterrupt as error:
        print("stopped; the same command, with --resume for train, goes on", file=sys.stderr)
        raise SystemExit(STOPPED) from error
    except ENDS as error:
        raise SystemExit(describe(error)) from error


def describe(error: BaseException) -> str:
    """The one line that a user reads of an error, with the file if there is one."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, BrokenProcessPool):
        return "a worker process ended early (out of memory, or killed); the same command goes on"
    said = " ".join(str(error).split()) or type(error).__name__
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"


if __name__ == "__main__":
    main()
