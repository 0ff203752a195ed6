"""Tables and pictures of the runs.

A difference is paired: each run is compared with the other method's run of the same fold and seed.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isnan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.common.methods import BASELINE, METHODS
from examples.common.recordings import WINDOW
from examples.common.train import Run

mpl.use("agg")

Score: TypeAlias = Callable[[Run], float | None]
Grouped: TypeAlias = Mapping[str, Sequence[Run]]
Table: TypeAlias = tuple[str, Sequence[str], list[list[str]]]
SCORES: dict[str, Score] = {
    "accuracy %": lambda run: run.accuracy,
    "balanced %": lambda run: run.balanced,
}
TIED = 2  # standard errors of the difference from the best within which a method ties with it


class Difference(NamedTuple):
    """A paired difference: mean and standard error over the runs that both methods have."""

    mean: float
    error: float | None  # None for a single pair, which has no spread

    def __str__(self) -> str:
        spread = "" if self.error is None else f" ± {100 * self.error:.1f}"
        return f"{100 * self.mean:+.1f}{spread}"


def difference(mine: Sequence[Run], other: Sequence[Run], score: Score) -> Difference | None:
    """Computes the paired difference; None without a pair of runs that both have the score."""
    theirs = {(run.fold, run.seed): score(run) for run in other}
    found = [
        mine_ - their
        for run in mine
        if (mine_ := score(run)) is not None
        and (their := theirs.get((run.fold, run.seed))) is not None
    ]
    if not found:
        return None
    error = stdev(found) / sqrt(len(found)) if len(found) > 1 else None
    return Difference(fmean(found), error)


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Groups the runs by method, in the order of METHODS."""
    known = {run.method for run in runs}
    return {name: [run for run in runs if run.method == name] for name in METHODS if name in known}


def leaders(table: Grouped, score: Score) -> set[str]:
    """The best method and those that tie with it.

    The best has the highest mean among the methods with the most runs.
    """
    most = max(len(mine) for mine in table.values())
    means = {
        name: fmean(float(score(run) or 0) for run in mine)
        for name, mine in table.items()
        if len(mine) == most
    }
    best = max(means, key=lambda name: means[name])
    return {
        name
        for name, mine in table.items()
        if name == best
        or (
            (found := difference(mine, table[best], score)) is not None
            and found.error is not None
            and found.mean + TIED * found.error >= 0
        )
    }


def tables(runs: Sequence[Run], names: Sequence[str]) -> dict[str, Table]:
    """Makes the tables of a README, by their marks."""
    table = grouped(runs)
    return {
        "scores": ("accuracy", *_scores(table)),
        "recalls": ("recall of each class, %", *_recalls(table, names)),
        "lengths": lengths(runs),
    }


def lengths(runs: Sequence[Run]) -> Table:
    """Makes the table of other lengths: the loss of accuracy, less that of concatenation."""
    table, steps = grouped(runs), (WINDOW // 2, WINDOW, 2 * WINDOW)
    header = [
        "method",
        *(f"{number} steps, %" for number in steps),
        *(f"Δ loss, {number} steps" for number in (steps[0], steps[2])),
        "runs",
    ]
    at: list[Score] = [lambda run: run.half, lambda run: run.accuracy, lambda run: run.twice]
    losses: list[Score] = [
        lambda run: None if run.half is None else run.accuracy - run.half,
        lambda run: None if run.twice is None else run.accuracy - run.twice,
    ]
    body = []
    for name, mine in table.items():
        if mine[0].half is None:
            continue
        cells = [_cell(table, name, score, set()) for score in at]
        against = [
            "—" if name == BASELINE else str(difference(mine, table.get(BASELINE, ()), loss))
            for loss in losses
        ]
        body.append([METHODS[name].title, *cells, *against, str(len(mine))])
    return "accuracy at other lengths", header, body


def _cell(table: Grouped, name: str, score: Score, leading: set[str]) -> str:
    text = f"{100 * fmean(float(score(run) or 0) for run in table[name]):.1f}"
    return f"**{text}**" if name in leading else text


def _scores(table: Grouped) -> tuple[list[str], list[list[str]]]:
    leading = {title: leaders(table, score) for title, score in SCORES.items()}
    deltas = [f"Δ {title}" for title in SCORES]
    header = ["method", *SCORES, *deltas, "parameters", "ms per step", "runs"]
    body = []
    for name, mine in table.items():
        cells = [_cell(table, name, score, leading[title]) for title, score in SCORES.items()]
        against = [
            "—" if name == BASELINE else str(difference(mine, table.get(BASELINE, ()), score))
            for score in SCORES.values()
        ]
        size, time = f"{mine[0].parameters:,}", f"{min(run.step_ms for run in mine):.0f}"
        body.append([METHODS[name].title, *cells, *against, size, time, str(len(mine))])
    return header, body


def _recalls(table: Grouped, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    body = []
    for name, mine in table.items():
        means = []
        for k in range(len(names)):
            known = [run.recalls[k] for run in mine if not isnan(run.recalls[k])]
            means.append(f"{100 * fmean(known):.0f}" if known else "—")
        body.append([METHODS[name].title, *means])
    return ["method", *names], body


def draw_confusion(runs: Sequence[Run], names: Sequence[str], file: Path) -> None:
    """Draws the confusion of concatenation and of the best fusion, in percent of each class."""
    table = grouped(runs)
    means = {name: fmean(run.balanced for run in mine) for name, mine in table.items()}
    best = max(means, key=lambda name: means[name])
    shown = [name for name in table if name in (BASELINE, best)]
    size = 1.6 + 0.52 * len(names)
    figure = Figure(figsize=(size * len(shown), size), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, name in zip(panels, shown, strict=True):
        counts = np.sum([run.confusion for run in table[name]], axis=0)
        _confusion(axes, 100 * counts / counts.sum(axis=1, keepdims=True).clip(1), names)
        axes.set_title(f"{METHODS[name].title}: mean recall {100 * means[name]:.1f} %")
    figure.savefig(file, dpi=90)


def _confusion(axes: Axes, share: np.ndarray, names: Sequence[str]) -> None:
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("prediction")
    axes.set_ylabel("class")
    for row, column in np.ndindex(share.shape):
        colour = "white" if share[row, column] > 50 else "black"
        text = f"{share[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)


def draw_accuracy(runs: Sequence[Run], file: Path) -> None:
    """Draws each method's mean balanced accuracy, and a dot per run in the colour of its fold."""
    table = grouped(runs)
    figure = Figure(figsize=(8, 0.4 * len(table) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, mine in enumerate(table.values()):
        mean = 100 * fmean(run.balanced for run in mine)
        axes.barh(place, mean, color="#c6d4e6")
        axes.text(1, place, f"{mean:.1f}", va="center")
        for run in mine:
            axes.plot(100 * run.balanced, place, ".", color=f"C{run.fold}")
    axes.set_yticks(range(len(table)), [METHODS[name].title for name in table])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("balanced accuracy, % (a dot for each run; colour: held-out subjects)")
    figure.savefig(file, dpi=90)
