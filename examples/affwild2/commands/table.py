"""The commands that train every method: on features at hand, or from synthetic data to a report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Lines

from examples.affwild2.commands.demo import run_demos
from examples.affwild2.dataset.files import hold
from examples.affwild2.results.sweep import Plan, describe, run_table
from examples.affwild2.results.table import Result, Table, overview
from examples.affwild2.synthetic.generate import Size
from examples.affwild2.synthetic.pretrain import save_backbones, train_backbones
from examples.affwild2.training.methods import AVERAGE, METHODS, RELEASED, SHUFFLED
from examples.affwild2.training.modalities import NAMES, Weights
from examples.affwild2.training.own import read_own
from examples.affwild2.training.presets import PRESETS, Changes, Preset
from examples.affwild2.training.runs import LOCK
from examples.affwild2.training.trials import TARGETS, Target
from examples.tables import markdown, put_between


@dataclass(frozen=True)
class TableCommand:
    """Trains every method over seeds and folds on one set of features; writes table.json.

    The folds other than 0 have their own rows: their scores are not those of the official split.

    Attributes:
        features: What extract wrote, from real or from generated data.
        out: Where runs and table.json go; a table that was stopped goes on.
        name: What the table calls the data.
        preset: The numbers of every run.
        methods: Rows; none means all that the preset allows.
        own: Your own features, as for train: NAME=FOLDER or NAME=FOLDER@RATE.
        modalities: What the fusions see, of face, voice, words and own names; none means all.
        targets: Columns.
        seeds: One run each.
        folds: One run each; 0 is the official split.
        processes: Runs at the same time.
        cpu: Use no GPU.
        changes: What differs from the preset.
        weights: Of the backbones; the demo's are made where they are not there.
    """

    features: Path
    out: Path
    name: str = "data"
    preset: Literal["paper", "authors", "demo"] = "demo"
    methods: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    targets: tuple[Target, ...] = TARGETS
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: tuple[int, ...] = (0,)
    processes: int = 2
    cpu: bool = False
    changes: tyro.conf.OmitArgPrefixes[Changes] = field(default_factory=Changes)
    weights: tyro.conf.OmitArgPrefixes[Weights] = field(default_factory=Weights)

    def run(self, console: Console) -> None:
        preset = self.changes.apply(PRESETS[self.preset])
        own = read_own(self.own)
        names = tuple(one.stream.name for one in own)
        seen = self.modalities or (*NAMES, *names)
        rows = _rows(preset, seen)
        for name in self.methods:
            if name not in rows:
                raise ValueError(f"method {name!r}: there are {', '.join(rows)}")
        if AVERAGE in self.methods and not set(seen) <= set(self.methods):
            raise ValueError(f"table: {AVERAGE} needs {', '.join(seen)} too")
        with hold(self.out / LOCK, "table"):
            weights = self._demo_weights() if preset.backbones == "demo" else self.weights
            data = describe(self.features, self.name)
            plan = Plan(
                self.name,
                self.methods or rows,
                self.targets,
                self.seeds,
                self.folds,
                self.modalities,
            )
            table = run_table(
                [data],
                self.out,
                [plan],
                preset,
                weights,
                processes=self.processes,
                cpu=self.cpu,
                own=own,
                report=lambda result: show_result(console, result),
            )
        show(console, table)
        console.print(f"wrote {self.out / 'table.json'}", markup=False, soft_wrap=True)

    def _demo_weights(self) -> Weights:
        """The demo's backbones, made if they are not there."""
        path = self.weights.demo or self.out / "backbones.pt"
        if not path.exists():
            save_backbones(path, train_backbones())
        return Weights(demo=path)


@dataclass(frozen=True)
class Demo:
    """Makes data, trains networks, and writes table.json, pictures and report.html.

    Attributes:
        out: Where everything goes; a run that was stopped goes on.
        size: tiny looks at the machinery only; small takes minutes and is worth reading.
        all: Train every method on every kind of data, which takes long.
        data_seeds: One set of data each; the runs on several are pooled in one table.
        processes: Of one thread each.
        readme: A README whose table is to be brought up to date.
    """

    out: Path = Path("runs/affwild2")
    size: Size = "small"
    all: bool = False
    data_seeds: tuple[int, ...] = (0,)
    processes: int = 2
    readme: Path | None = None

    def run(self, console: Console) -> None:
        with hold(self.out / LOCK, "demo"):
            table = run_demos(
                self.out,
                self.data_seeds,
                size=self.size,
                everything=self.all,
                processes=self.processes,
                report=lambda result: show_result(console, result),
            )
        show(console, table)
        if self.readme is not None:
            put_between(self.readme, "table", markdown(*overview(table)))
        files = f"{self.out / 'report.html'} and {self.out / 'table.json'}"
        console.print(f"wrote {files}", markup=False, soft_wrap=True)


def _rows(preset: Preset, seen: tuple[str, ...]) -> tuple[str, ...]:
    """The methods that can be compared: each modality alone, the fusions, the controls."""
    controls = (AVERAGE, SHUFFLED) if preset.cache else (AVERAGE,)
    twice = (RELEASED,) if preset.form == "released" else ()  # there, rcma is the same
    return (*seen, *(name for name in METHODS if name not in (*NAMES, *twice)), *controls)


def show_result(console: Console, result: Result) -> None:
    """Prints what one run reached, for a log as for a terminal."""
    console.print(
        f"{result.data}: {result.method}, {result.target}, fold {result.fold}, seed {result.seed}: "
        f"CCC {result.ccc:.3f} ({result.epochs} epochs, {result.seconds:.0f} s)",
        markup=False,
        highlight=False,
    )


def show(console: Console, table: Table) -> None:
    """Prints a table; the paper's numbers have their own column."""
    for title, rows in table.groups():
        lines = Lines(title=escape(title))
        for column in ("method", "CCC", "spread", "ceiling", "paper, on Aff-Wild2"):
            left = column == "method"
            lines.add_column(column, justify="left" if left else "right", overflow="fold")
        for row in rows:
            ceiling = "" if row.ceiling is None else f"{row.ceiling:.2f}"
            paper = "" if row.paper is None else f"{row.paper:.3f}"
            spread = f"{row.spread:.3f}" if len(row.runs) > 1 else ""
            lines.add_row(escape(row.title), f"{row.mean:.3f}", spread, ceiling, paper)
        console.print(lines)
    held_out = table.preset.get("select")
    console.print(
        "Each network's epoch is the best on "
        + (
            f"every {held_out}th training trial, held out of training."
            if held_out
            else "the trials that are reported, so the scores are optimistic."
        ),
        highlight=False,
    )
