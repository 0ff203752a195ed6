"""The commands that make data and turn a tree into features."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console

from examples.affwild2.dataset.extract import extract
from examples.affwild2.dataset.files import named
from examples.affwild2.dataset.sources import ExtractOptions
from examples.affwild2.synthetic.generate import Size, make_data
from examples.affwild2.synthetic.latents import Switches


@dataclass(frozen=True)
class MakeData:
    """Makes data in the official layout: faces, voices and words that show a hidden feeling.

    Attributes:
        out: A folder that is empty or does not exist yet.
        size: tiny (10 trials of 8 to 22 s) or small (36 trials of 30 s).
        seed: Of everything.
        switches: What makes fusion more than adding up.
        mp4: Videos with sound instead of wav files and a table of frame rates.
        lexicon: own, or vader where vaderSentiment is installed.
    """

    out: Path
    size: Size = "small"
    seed: int = 0
    switches: tyro.conf.OmitArgPrefixes[Switches] = field(default_factory=Switches)
    mp4: bool = False
    lexicon: str = "own"

    def run(self, console: Console) -> None:
        with named(self.out):
            make_data(
                self.out,
                size=self.size,
                seed=self.seed,
                switches=self.switches,
                mp4=self.mp4,
                lexicon=self.lexicon,
            )
        console.print(f"wrote {self.out}", markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Extract:
    """Turns a tree of the official layout into features on disk; goes on where it was stopped.

    Attributes:
        root: The folder that holds cropped_aligned/ and the annotations.
        out: Where the features go.
        workers: Processes to use.
        part: Which share of the videos, from 1; for several hosts on one shared folder.
        parts: How many shares there are.
        extraction: What to extract.
    """

    root: Path
    out: Path
    workers: int = 1
    part: int = 1
    parts: int = 1
    extraction: tyro.conf.OmitArgPrefixes[ExtractOptions] = field(default_factory=ExtractOptions)

    def run(self, console: Console) -> None:
        report = extract(
            self.root,
            self.out,
            self.extraction,
            workers=self.workers,
            part=self.part,
            parts=self.parts,
        )
        for line in report.problems:
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print(
            f"{len(report.written)} trials written, {len(report.complete)} there already, "
            f"{len(report.left_out)} left out, {len(report.problems)} problems"
        )
