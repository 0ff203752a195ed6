"""The command line: ``python -m examples.watch --help``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.tables import markdown, put_between, rich_table
from examples.watch.data import FOLDS, find_recordings, load_recordings
from examples.watch.models import BOTH, METHODS
from examples.watch.report import HEADER, best, draw_accuracy, draw_confusion, lines, row
from examples.watch.results import Job, run_all
from examples.watch.study import CANDIDATES, STUDY_FOLDS, STUDY_SEEDS, depth_table, study_table
from examples.watch.train import Budget, Run

SAVED = "rcma-stable"


@dataclass(frozen=True)
class Options:
    """Recognises exercises from a smartwatch: one sensor, or both fused, on people never seen.

    Attributes:
        quick: One fold and one seed of every method (the default).
        full: Five folds of two people, three seeds of every method.
        study: What `stable` should hold: the candidates, on other seeds than those of --full.
        out: A folder for runs, pictures and the trained network. Runs that are there are kept.
        readme: A file whose table the run replaces, between the comments that mark it.
        processes: How many networks to train at a time.
        budget: What every method gets.
    """

    quick: bool = False
    full: bool = False
    study: bool = False
    out: Path = Path("watch-results")
    readme: Path | None = None
    processes: int = min(2, os.cpu_count() or 1)
    budget: tyro.conf.OmitArgPrefixes[Budget] = field(default_factory=Budget)

    @property
    def mode(self) -> Literal["quick", "full", "study"]:
        """Which of the three was asked for."""
        if self.quick + self.full + self.study > 1:
            raise SystemExit("examples.watch: choose one of --quick, --full and --study")
        return "full" if self.full else "study" if self.study else "quick"


def jobs(options: Options) -> list[Job]:
    """Lists what to train: fold by fold, so that a run cut short holds every method."""
    names, folds, seeds = {
        "quick": (list(METHODS), (0,), (0,)),
        "full": (list(METHODS), tuple(range(FOLDS)), (0, 1, 2)),
        "study": (["concatenation", *CANDIDATES], STUDY_FOLDS, STUDY_SEEDS),
    }[options.mode]
    file = options.out / f"{SAVED}.pt"
    return [
        Job(name, fold, seed, options.budget, _saved_to(file, name, fold, seed))
        for seed in seeds
        for fold in folds
        for name in names
    ]


def _saved_to(file: Path, name: str, fold: int, seed: int) -> Path | None:
    return file if (name, fold, seed) == (SAVED, 0, 0) else None


@contextmanager
def progress(console: Console, title: str, total: int) -> Iterator[Progress]:
    """Shows how many runs are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as shown:
        shown.add_task(title, total=total)
        yield shown


def report(runs: list[Run], options: Options, console: Console) -> None:
    """Prints the table and draws the pictures."""
    titles = {name: method.title for name, method in METHODS.items()}
    table = [row(line) for line in lines(runs, titles)]
    console.print(rich_table("Windows of unseen people named right", HEADER, table))
    single = best(runs, [name for name, method in METHODS.items() if method.sensors != BOTH])
    stable = best(runs, [name for name in METHODS if name.startswith("rcma-stable")])
    names = load_recordings().names
    draw_confusion(runs, (single, stable), titles, names, options.out / "confusion.png")
    draw_accuracy(runs, titles, options.out / "accuracy.png")
    if options.readme is not None:
        put_between(options.readme, options.mode, markdown(HEADER, table))


def report_study(runs: list[Run], options: Options, console: Console) -> None:
    """Prints the table of the candidates."""
    text = study_table(runs)
    console.print(text, soft_wrap=True)
    deep = depth_table()
    console.print(deep, soft_wrap=True)
    if options.readme is not None:
        put_between(options.readme, "study", text)
        put_between(options.readme, "depth", deep)


def main(options: Options) -> None:
    console = Console()
    try:
        find_recordings()
    except FileNotFoundError as missing:
        raise SystemExit(str(missing)) from missing
    options.out.mkdir(parents=True, exist_ok=True)
    plan, file = jobs(options), options.out / f"{options.mode}.json"
    with progress(console, f"training, {options.processes} at a time", len(plan)) as shown:
        task = shown.task_ids[0]
        runs = run_all(plan, file, options.processes, lambda run: shown.advance(task))
    (report_study if options.mode == "study" else report)(runs, options, console)
    console.print(f"runs, pictures and the trained network: {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=Options.__doc__))
