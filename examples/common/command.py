"""The command line that watch and phone share."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.common.methods import COMPARED, MAIN, METHODS
from examples.common.report import draw_accuracy, draw_confusion, lengths, tables
from examples.common.runs import Job, run_all
from examples.common.train import LENGTHS, Budget, DataSet
from examples.tables import markdown, put_between, show_table

SAVED = "rcma"


@dataclass(frozen=True)
class Options:
    """Options of a comparison.

    Attributes:
        quick: One fold and one seed of every method (the default).
        full: All folds and seeds of every method.
        varied: Train on windows of half to twice the length, and report the accuracy at each.
        seeds: How many seeds --full takes.
        first_seed: The first of them.
        methods: Which methods to run; also the candidates for the stable form of RCMA.
        out: A folder for runs, pictures and the trained network. Runs that are there are kept.
        readme: A file whose tables the run replaces, between the comments that mark them.
        processes: How many networks to train at a time.
        minutes: Start no more runs after this time, and report those that are there.
        epochs: Passes over the training recordings; None is the example's number.
        budget: The training budget of every method, except epochs.
    """

    quick: bool = False
    full: bool = False
    varied: bool = False
    seeds: int = 3
    first_seed: int = 0
    methods: tuple[str, ...] = COMPARED
    out: Path = Path("results")
    readme: Path | None = None
    processes: int = min(2, os.cpu_count() or 1)
    minutes: float | None = None
    epochs: int | None = None
    budget: tyro.conf.OmitArgPrefixes[tyro.conf.Suppress[Budget]] = field(default_factory=Budget)


def jobs(data: DataSet, options: Options) -> list[Job]:
    """Lists what to train: a run that is cut short has the main methods first."""
    if options.quick and options.full:
        raise SystemExit("choose one of --quick and --full")
    unknown = sorted(set(options.methods) - set(METHODS))
    if unknown:
        raise SystemExit(f"no method {unknown[0]!r}: there are {', '.join(METHODS)}")
    folds = range(len(data.held_out)) if options.full else (0,)
    seeds = range(options.first_seed, options.first_seed + (options.seeds if options.full else 1))
    budget = replace(options.budget, epochs=options.epochs or data.epochs)
    methods = options.methods
    if options.varied:
        budget = replace(budget, shortest=min(LENGTHS.values()), longest=max(LENGTHS.values()))
        methods = tuple(name for name in methods if METHODS[name].any_length)
    main = [name for name in MAIN if name in methods]
    others = [name for name in methods if name not in MAIN]

    def kept(name: str, fold: int, seed: int) -> Path | None:
        first = (name, fold, seed) == (SAVED, 0, options.first_seed)
        return options.out / f"{SAVED}.safetensors" if first and not options.varied else None

    return [
        Job(data, name, fold, seed, budget, kept(name, fold, seed))
        for group in (main, others)
        for seed in seeds
        for fold in folds
        for name in group
    ]


def main(data: DataSet, options: Options) -> None:
    """Trains, tests and reports."""
    console = Console()
    try:
        names = data.load().names
    except FileNotFoundError as missing:
        raise SystemExit(str(missing)) from missing
    options.out.mkdir(parents=True, exist_ok=True)
    plan = jobs(data, options)
    mode = ("full" if options.full else "quick") + ("-varied" if options.varied else "")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as shown:
        task = shown.add_task(f"training, {options.processes} at a time", total=len(plan))
        runs = run_all(
            plan,
            options.out / f"{mode}.json",
            processes=options.processes,
            minutes=options.minutes,
            done=lambda: shown.advance(task),
        )
    if not runs:
        raise SystemExit("no run has been completed")
    made = {"varied": lengths(runs)} if options.varied else tables(runs, names)
    for mark, (title, header, body) in made.items():
        show_table(console, f"{data.title}: {title}", header, body)
        if options.readme is not None:
            put_between(options.readme, mark, markdown(header, body))
    if not options.varied:
        draw_confusion(runs, names, options.out / "confusion.png")
        draw_accuracy(runs, options.out / "accuracy.png")
    console.print(f"results: {options.out}")
