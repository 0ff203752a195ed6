"""The command that looks a tree over before anything is extracted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from examples.affwild2.dataset.inspect import inspect


@dataclass(frozen=True)
class Check:
    """Says what was found below a folder, what is missing and what looks wrong; writes nothing.

    Attributes:
        root: The folder that holds the data.
    """

    root: Annotated[Path, tyro.conf.Positional]

    def run(self, console: Console) -> None:
        report = inspect(self.root)
        for title, lines, style in (
            ("found", report.found, "default"),
            ("missing", report.missing, "yellow"),
            ("looks wrong", report.wrong, "yellow"),
        ):
            console.print(f"{title}: {'' if lines else 'nothing'}", markup=False, highlight=False)
            for line in lines:
                console.print(
                    f"  {line}", style=style, markup=False, highlight=False, soft_wrap=True
                )
        if not report.usable:
            raise ValueError(f"check: no trial below {self.root} can be used")
