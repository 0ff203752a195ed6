"""The command line: ``python -m examples.which_fusion --help``."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from examples.tables import markdown, put_between, rich_table
from examples.which_fusion.methods import METHODS, applicable
from examples.which_fusion.report import LEGEND, draw, rows, verdicts
from examples.which_fusion.results import run_all
from examples.which_fusion.streams import RELATIONS
from examples.which_fusion.train import SINGLES, Budget, Job


@dataclass(frozen=True)
class Options:
    """Which fusion for which relation between the streams? Made-up streams, one budget for all.

    Attributes:
        seeds: How many; each draws other streams.
        first_seed: The first of them.
        out: A folder for the results and the picture.
        quick: One seed, a third of the windows: a look, not a result.
        readme: A file whose tables the run replaces, between the comments that mark them.
        processes: How many networks to train at a time.
        budget: What every method gets.
    """

    seeds: int = 3
    first_seed: int = 0
    out: Path = Path("which-fusion-results")
    quick: bool = False
    readme: Path | None = None
    processes: int = min(2, os.cpu_count() or 1)
    budget: tyro.conf.OmitArgPrefixes[Budget] = field(default_factory=Budget)


def jobs(options: Options) -> list[Job]:
    """Lists what to train."""
    budget = Budget(windows=1200, tested=100) if options.quick else options.budget
    count = 1 if options.quick else options.seeds
    return [
        Job(name, method, seed, budget)
        for seed in range(options.first_seed, options.first_seed + count)
        for name, relation in RELATIONS.items()
        for method in (SINGLES, *METHODS)
        if method == SINGLES or applicable(METHODS[method], relation)
    ]


def main(options: Options) -> None:
    console = Console()
    options.out.mkdir(parents=True, exist_ok=True)
    plan = jobs(options)
    columns = (TextColumn("training"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as shown:
        task = shown.add_task("training", total=len(plan))
        file = options.out / "runs.json"
        runs = run_all(plan, options.processes, file, lambda: shown.advance(task))
    draw(runs, options.out / "which_fusion.png")
    console.print(rich_table("Concordance on new windows", *rows(runs), LEGEND))
    console.print(rich_table("Stable RCMA less the best of the others", *verdicts(runs)))
    if options.readme is not None:
        put_between(options.readme, "table", f"{markdown(*rows(runs))}\n\n{LEGEND}.")
        put_between(options.readme, "verdict", markdown(*verdicts(runs)))
    console.print(f"results and picture: {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=Options.__doc__))
