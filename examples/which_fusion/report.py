"""Tables and a picture of the results.

The spread of a method is the standard deviation of its concordance over the seeds.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import TypeAlias

import matplotlib as mpl
from matplotlib.figure import Figure

from examples.which_fusion.methods import METHODS, TITLES
from examples.which_fusion.streams import RELATIONS
from examples.which_fusion.train import BEST, Run

mpl.use("agg")

BASELINE = "concatenation"
TIMED = "sign"  # the relation whose training times the table lists
LENGTHS = ("sign-30", "sign", "sign-300", "sign-3000")
BEHIND, AHEAD = "▼", "bold"
LEGEND = (
    f"Bold: the best, or behind it by no more than the spread; {BEHIND} behind concatenation by "
    "more than the spread; no ±: a single run; — not run or not applicable"
)
Table: TypeAlias = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Cell:
    """The result of a method on a relation.

    Attributes:
        mean: Of its concordance over the seeds.
        spread: Standard deviation over the seeds; None for a single one.
        runs: How many seeds there are.
        mark: AHEAD, BEHIND or nothing.
    """

    mean: float
    spread: float | None
    runs: int
    mark: str = ""

    def __str__(self) -> str:
        text = f"{self.mean:.3f}" if self.spread is None else f"{self.mean:.3f} ± {self.spread:.3f}"
        return f"**{text}**" if self.mark == AHEAD else f"{text} {self.mark}".rstrip()


def summary(values: Sequence[float]) -> Cell:
    """Summarises one value per seed."""
    return Cell(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def cells(runs: Sequence[Run]) -> dict[tuple[str, str], Cell]:
    """Summarises the runs by relation and method, and marks the best and those that lose."""
    grouped: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        grouped.setdefault((run.relation, run.method), []).append(run.agreement)
    plain = {key: summary(values) for key, values in grouped.items()}
    return {key: marked(cell, key, plain) for key, cell in plain.items()}


def marked(cell: Cell, key: tuple[str, str], table: dict[tuple[str, str], Cell]) -> Cell:
    """Marks a cell; the spread of a comparison is the larger of the two methods'.

    A single run has no spread, so it is neither marked nor compared with.
    """
    relation, method = key
    rivals = {
        name: other
        for (about, name), other in table.items()
        if about == relation and name != BEST and other.spread is not None
    }
    if method not in rivals or len(rivals) < 2:
        return cell

    def behind(other: Cell) -> bool:
        return other.mean - cell.mean > max(other.spread or 0, cell.spread or 0)

    leads = not behind(max(rivals.values(), key=lambda other: other.mean))
    loses = BASELINE in rivals and behind(rivals[BASELINE])
    return replace(cell, mark=AHEAD if leads else BEHIND if loses else "")


def tables(runs: Sequence[Run]) -> dict[str, Table]:
    """Makes the tables of the README, by their marks."""
    known = [name for name in RELATIONS if any(run.relation == name for run in runs)]
    wide = [name for name in known if not RELATIONS[name].narrow]
    main = {run.method for run in runs if RELATIONS[run.relation].narrow}
    header, body = _rows(runs, wide, TITLES)
    return {
        "table": ([*header, "parameters", f"s, {RELATIONS[TIMED].title}"], _sized(runs, body)),
        "lengths": _rows(runs, [name for name in LENGTHS if name in known], main),
    }


def _rows(runs: Sequence[Run], relations: Sequence[str], methods: Collection[str]) -> Table:
    """A method each, a relation a column."""
    table = cells(runs)
    titles = {BEST: "best attainable", **TITLES}
    shown = [m for m in titles if m in (BEST, *methods) and any((r, m) in table for r in relations)]
    body = [
        [titles[m], *(str(table[r, m]) if (r, m) in table else "—" for r in relations)]
        for m in shown
    ]
    return ["method", *(RELATIONS[name].title for name in relations)], body


def _sized(runs: Sequence[Run], body: list[list[str]]) -> list[list[str]]:
    """Adds the parameters of the fusion, and the processor time of training and testing."""
    names = {method.title: name for name, method in METHODS.items()}
    sized = []
    for row in body:
        mine = [run for run in runs if run.method == names.get(row[0])]
        times = [run.seconds for run in mine if run.relation == TIMED]
        sizes = {run.parameters for run in mine if not RELATIONS[run.relation].narrow}
        size = f"{max(sizes):,}" if sizes else "—"
        sized.append([*row, size, f"{median(times):.1f}" if times else "—"])
    return sized


def draw(runs: Sequence[Run], file: Path) -> None:
    """Draws a dot for each run, a panel for each relation, and a line at the best attainable."""
    relations = [name for name in RELATIONS if any(run.relation == name for run in runs)]
    methods = [name for name in TITLES if any(run.method == name for run in runs)]
    places = {name: len(methods) - k for k, name in enumerate(methods)}
    size = (3 + 1.9 * len(relations), 1.2 + 0.27 * len(methods))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(relations), sharey=True, sharex=True, squeeze=False)[0]
    for axes, relation in zip(panels, relations, strict=True):
        mine = [run for run in runs if run.relation == relation]
        best = [run.agreement for run in mine if run.method == BEST]
        if best:
            axes.axvline(fmean(best), color="black", lw=1, ls="--")
        for run in mine:
            if run.method != BEST:
                colour = "C3" if run.method.startswith("rcma") else "C0"
                shape = "o" if run.method in METHODS else "."
                axes.plot(run.agreement, places[run.method], shape, color=colour, ms=4)
        axes.set_title(RELATIONS[relation].title.replace(", ", ",\n", 1), fontsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_ylim(0.3, len(methods) + 0.7)
    panels[0].set_yticks(list(places.values()), [TITLES[name] for name in methods], fontsize=8)
    figure.supxlabel(
        "concordance with the hidden signal on new windows (red: RCMA; dashed: best attainable)",
        fontsize=9,
    )
    figure.savefig(file, dpi=90)
