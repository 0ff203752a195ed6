"""The command line: ``python -m examples.which_fusion --help``."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from examples.tables import markdown, put_between, show_table
from examples.which_fusion.methods import COMPARED, METHODS, applicable
from examples.which_fusion.report import LEGEND, draw, tables
from examples.which_fusion.results import run_all
from examples.which_fusion.streams import RELATIONS, Relation
from examples.which_fusion.train import BEST, SINGLES, Budget, Job

EVERY = (BEST, SINGLES, *COMPARED)


@dataclass(frozen=True)
class Options:
    """Compares fusion methods on synthetic streams, relation by relation, under one budget.

    Attributes:
        seeds: How many seeds; each draws other streams.
        first_seed: The first of them.
        relations: Which relations to run.
        methods: Which methods to run; also the candidates for the stable form of RCMA.
        out: A folder for the results and the picture. Runs that are there are kept.
        quick: One seed, a third of the windows, no long ones: a smoke run, not a result.
        readme: A file whose tables the run replaces, between the comments that mark them.
        processes: How many networks to train at a time.
        minutes: Start no more runs after this time, and report those that are there.
        budget: The training budget of every method.
    """

    seeds: int = 3
    first_seed: int = 0
    relations: tuple[str, ...] = tuple(RELATIONS)
    methods: tuple[str, ...] = EVERY
    out: Path = Path("which-fusion-results")
    quick: bool = False
    readme: Path | None = None
    processes: int = min(2, os.cpu_count() or 1)
    minutes: float | None = None
    budget: tyro.conf.OmitArgPrefixes[Budget] = field(default_factory=Budget)


def _applies(method: str, relation: Relation) -> bool:
    if method == SINGLES:
        return not relation.narrow
    return method == BEST or applicable(METHODS[method], relation)


def jobs(options: Options) -> list[Job]:
    """Lists what to train."""
    budget = Budget(windows=1200, tested=100) if options.quick else options.budget
    count = 1 if options.quick else options.seeds
    for kind, given, known in (
        ("method", options.methods, (BEST, SINGLES, *METHODS)),
        ("relation", options.relations, tuple(RELATIONS)),
    ):
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise SystemExit(f"no {kind} {unknown[0]!r}: there are {', '.join(known)}")
    return [
        Job(name, method, seed, budget)
        for seed in range(options.first_seed, options.first_seed + count)
        for name, relation in RELATIONS.items()
        if name in options.relations
        for method in options.methods
        if not (options.quick and relation.narrow) and _applies(method, relation)
    ]


def main(options: Options) -> None:
    console = Console()
    options.out.mkdir(parents=True, exist_ok=True)
    plan = jobs(options)
    columns = (TextColumn("training"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as shown:
        task = shown.add_task("training", total=len(plan))
        file = options.out / "runs.json"
        runs = run_all(plan, options.processes, file, lambda: shown.advance(task), options.minutes)
    draw(runs, options.out / "which_fusion.png")
    for mark, (header, body) in tables(runs).items():
        if body:
            show_table(console, "Concordance on new windows", header, body, LEGEND)
        if options.readme is not None:
            put_between(options.readme, mark, f"{markdown(header, body)}\n\n{LEGEND}.")
    console.print(f"results and picture: {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=Options.__doc__))
