"""Tables and pictures of what the runs gave."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.watch.train import Run

mpl.use("agg")


@dataclass(frozen=True)
class Line:
    """One line of a table, in percent.

    Attributes:
        title: Of the method.
        mean: Accuracy over folds and seeds.
        over_seeds: Standard deviation, over the seeds, of the mean over the folds.
        over_folds: Standard deviation, over the folds, of the mean over the seeds.
        runs: How many there are.
    """

    title: str
    mean: float
    over_seeds: float
    over_folds: float
    runs: int


def lines(runs: Sequence[Run], titles: Mapping[str, str]) -> list[Line]:
    """Summarises the runs, one line for each title that has any."""

    def summary(title: str, mine: Sequence[Run]) -> Line:
        return Line(
            title,
            100 * fmean(run.accuracy for run in mine),
            100 * pstdev(_means(mine, lambda run: run.seed)),
            100 * pstdev(_means(mine, lambda run: run.fold)),
            len(mine),
        )

    grouped = {name: [run for run in runs if run.method == name] for name in titles}
    return [summary(titles[name], mine) for name, mine in grouped.items() if mine]


def _means(runs: Sequence[Run], key: Callable[[Run], int]) -> list[float]:
    groups = sorted({key(run) for run in runs})
    return [fmean(run.accuracy for run in runs if key(run) == group) for group in groups]


HEADER = ("method", "accuracy %", "± seeds", "± people", "runs")


def row(line: Line) -> tuple[str, ...]:
    """A line in the columns of the header."""
    numbers = (line.mean, line.over_seeds, line.over_folds)
    return (line.title, *(f"{x:.1f}" for x in numbers), str(line.runs))


def best(runs: Sequence[Run], methods: Sequence[str]) -> str:
    """Names the method with the highest mean accuracy."""
    known = [name for name in methods if any(run.method == name for run in runs)]
    return max(known, key=lambda name: fmean(run.accuracy for run in runs if run.method == name))


def draw_confusion(
    runs: Sequence[Run],
    methods: Sequence[str],
    titles: Mapping[str, str],
    names: Sequence[str],
    file: Path,
) -> None:
    """Draws, side by side, what windows of each exercise were named as, in percent."""
    figure = Figure(figsize=(5.2 * len(methods), 4.8), layout="constrained")
    for axes, method in zip(
        figure.subplots(1, len(methods), squeeze=False)[0], methods, strict=True
    ):
        counts = np.sum([run.confusion for run in runs if run.method == method], axis=0)
        _confusion(axes, 100 * counts / counts.sum(axis=1, keepdims=True).clip(1), names)
        share = 100 * counts.trace() / counts.sum()
        axes.set_title(f"{titles[method]}: {share:.1f} % of the windows right")
    figure.savefig(file, dpi=120)


def _confusion(axes: Axes, share: np.ndarray, names: Sequence[str]) -> None:
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("named as")
    axes.set_ylabel("exercise")
    for row, column in np.ndindex(share.shape):
        colour = "white" if share[row, column] > 50 else "black"
        text = f"{share[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)


def draw_accuracy(runs: Sequence[Run], titles: Mapping[str, str], file: Path) -> None:
    """Draws each method's mean accuracy, and a dot per run in the colour of its people."""
    table = lines(runs, titles)
    figure = Figure(figsize=(8, 0.55 * len(table) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = {line.title: len(table) - k for k, line in enumerate(table)}
    axes.barh(
        list(places.values()),
        [line.mean for line in table],
        color="#c6d4e6",
        tick_label=list(places),
    )
    shift = {fold: 0.12 * k for k, fold in enumerate(sorted({run.fold for run in runs}))}
    middle = max(shift.values()) / 2
    for fold, by in shift.items():
        mine = [run for run in runs if run.fold == fold and run.method in titles]
        heights = [places[titles[run.method]] + middle - by for run in mine]
        axes.scatter(
            [100 * run.accuracy for run in mine],
            heights,
            s=12,
            label=f"{2 * fold + 1}, {2 * fold + 2}",
        )
    for line in table:
        axes.text(1, places[line.title], f"{line.mean:.1f}", va="center")
    axes.set_xlim(0, 100)
    axes.set_xlabel("windows of unseen people named right, %")
    axes.legend(title="people held out", fontsize=8, loc="lower left", bbox_to_anchor=(1.0, 0.0))
    figure.savefig(file, dpi=120)
