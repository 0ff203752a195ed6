"""Tables and a picture of what the runs gave.

The spread of a method is the standard deviation of its concordance over the seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import matplotlib as mpl
from matplotlib.figure import Figure

from examples.which_fusion.methods import METHODS, TITLES
from examples.which_fusion.streams import RELATIONS
from examples.which_fusion.train import Run

mpl.use("agg")

BEST = "best"
BEHIND, AHEAD = "▼", "★"
LEGEND = (
    f"{AHEAD} the best, or behind it by no more than the spread; "
    f"{BEHIND} behind concatenation by more than the spread; — does not apply"
)
NARROW = ("rcma-stable-any", "rcma-stable-any-all", "rcma-stable")  # judged against the others


@dataclass(frozen=True)
class Cell:
    """What a method reached on a relation.

    Attributes:
        mean: Of its concordance over the seeds.
        spread: Standard deviation over the seeds; 0 for a single one.
        mark: What the legend says, or nothing.
    """

    mean: float
    spread: float
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.spread:.3f} {self.mark}".rstrip()


def summary(values: Sequence[float]) -> Cell:
    """Summarises one value per seed."""
    return Cell(fmean(values), stdev(values) if len(values) > 1 else 0.0)


def cells(runs: Sequence[Run]) -> dict[tuple[str, str], Cell]:
    """Summarises the runs by relation and method, and marks who leads and who loses."""
    grouped: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        grouped.setdefault((run.relation, run.method), []).append(run.agreement)
    plain = {key: summary(values) for key, values in grouped.items()}
    return {key: marked(cell, key, plain) for key, cell in plain.items()}


def marked(cell: Cell, key: tuple[str, str], table: dict[tuple[str, str], Cell]) -> Cell:
    """Marks a cell; the spread of a comparison is the larger of the two methods'."""
    relation, method = key
    rivals = {name: c for (r, name), c in table.items() if r == relation and name != BEST}
    if method == BEST or len(rivals) < 2:
        return cell

    def behind(other: Cell) -> bool:
        return other.mean - cell.mean > max(other.spread, cell.spread)

    leads = not behind(max(rivals.values(), key=lambda other: other.mean))
    loses = "concatenation" in rivals and behind(rivals["concatenation"])
    return Cell(cell.mean, cell.spread, AHEAD if leads else BEHIND if loses else "")


def rows(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Makes the header and the rows of the table: a method each, a relation a column."""
    table = cells(runs)
    relations = [name for name in RELATIONS if any(run.relation == name for run in runs)]
    titles = {BEST: "best attainable", **TITLES}
    methods = [name for name in titles if any(run.method == name for run in runs)]
    body = [
        [titles[m], *(str(table[r, m]) if (r, m) in table else "—" for r in relations)]
        for m in methods
    ]
    return ["method", *(RELATIONS[name].title for name in relations)], body


def verdicts(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Sets forms of stable RCMA against the best of all methods that are no RCMA."""
    header = ["relation", "best of the others", *(TITLES[name] for name in NARROW)]
    table, body = cells(runs), []
    for relation, about in RELATIONS.items():
        known = {m: c for (r, m), c in table.items() if r == relation and m in TITLES}
        others = {m: c for m, c in known.items() if not m.startswith("rcma")}
        if not others or any(name not in known for name in NARROW):
            continue
        rival = max(others, key=lambda name: others[name].mean)
        ahead = [_ahead(runs, relation, name, rival) for name in NARROW]
        body.append([about.title, f"{TITLES[rival]} {others[rival].mean:.3f}", *ahead])
    return header, body


def _ahead(runs: Sequence[Run], relation: str, method: str, rival: str) -> str:
    """The difference of two methods over the seeds, which both saw the same windows."""
    both = [
        {run.seed: run.agreement for run in runs if (run.relation, run.method) == (relation, name)}
        for name in (method, rival)
    ]
    difference = summary([both[0][seed] - both[1][seed] for seed in both[0]])
    return f"{difference.mean:+.3f} ± {difference.spread:.3f}"


def draw(runs: Sequence[Run], file: Path) -> None:
    """Draws a dot for each run, a panel for each relation, and a line at the best attainable."""
    relations = [name for name in RELATIONS if any(run.relation == name for run in runs)]
    methods = [name for name in TITLES if any(run.method == name for run in runs)]
    places = {name: len(methods) - k for k, name in enumerate(methods)}
    size = (3 + 2.4 * len(relations), 1.2 + 0.27 * len(methods))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(relations), sharey=True, sharex=True, squeeze=False)[0]
    for axes, relation in zip(panels, relations, strict=True):
        mine = [run for run in runs if run.relation == relation]
        best = [run.agreement for run in mine if run.method == BEST]
        axes.axvline(fmean(best), color="black", lw=1, ls="--")
        for run in mine:
            if run.method != BEST:
                colour = "C3" if run.method.startswith("rcma") else "C0"
                known = run.method in METHODS
                axes.plot(
                    run.agreement, places[run.method], "o" if known else ".", color=colour, ms=4
                )
        axes.set_title(RELATIONS[relation].title.replace(", ", ",\n", 1), fontsize=9)
        axes.grid(axis="x", alpha=0.3)
        axes.set_ylim(0.3, len(methods) + 0.7)
    panels[0].set_yticks(list(places.values()), [TITLES[name] for name in methods], fontsize=8)
    figure.supxlabel(
        "concordance with the hidden signal on new windows (red: RCMA; dashed: best attainable)",
        fontsize=9,
    )
    figure.savefig(file, dpi=120)
