"""Draws the measured pictures of the documentation: ``python -m docs.charts``.

Every number comes from the layers themselves or from a results file in the repository, which its
own script writes. A picture whose results are not there is not drawn.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import matplotlib as mpl
import torch
from docs.diagrams import FOLDER, THEMES, Theme
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

import crossfuse

ROOT = Path(__file__).parents[1]
WATCH = ROOT / "examples" / "watch" / "results" / "full.json"
GROWTH = ROOT / "benchmarks" / "results" / "growth_of_features.json"
WIDTH = 128  # features of each modality where the sizes are counted

LAYERS: dict[str, Callable[[list[int], int], nn.Module]] = {
    "RCMA": lambda dims, length: crossfuse.RecursiveCrossModalAttention(dims, length),
    "RCMA, length=None": lambda dims, _: crossfuse.RecursiveCrossModalAttention(dims, None),
    "JCA": lambda dims, length: crossfuse.JointCrossAttention(dims, length),
    "cross-attention": lambda dims, _: crossfuse.CrossAttention(dims),
    "leader-follower": lambda dims, _: crossfuse.LeaderFollowerAttention(dims, leader=0),
    "concatenation": lambda dims, _: crossfuse.ConcatFusion(dims, sum(dims)),
}
MARKS = ("o-", "o--", "s-", "^-", "v-", "x-")


def parameters(layer: Callable[[list[int], int], nn.Module], count: int, length: int) -> int:
    """Counts a layer's parameters without allocating them."""
    with torch.device("meta"):
        module = layer([WIDTH] * count, length)
    return sum(parameter.numel() for parameter in module.parameters())


def draw_parameters(figure: Figure) -> None:
    """How the number of parameters grows with the length and with the modalities."""
    by_length, by_count = figure.subplots(2, 1, sharey=True)
    lengths, counts = [75, 150, 300, 600, 1200], [2, 3, 4, 6, 8, 12]
    for (name, layer), mark in zip(LAYERS.items(), MARKS, strict=True):
        sizes = [parameters(layer, 3, length) / 1e6 for length in lengths]
        by_length.plot(lengths, sizes, mark, label=name, markersize=4)
        sizes = [parameters(layer, count, 300) / 1e6 for count in counts]
        by_count.plot(counts, sizes, mark, markersize=4)
    by_length.set(xscale="log", yscale="log", xlabel="length L (3 modalities)")
    by_length.set(xticks=lengths, xticklabels=lengths)
    figure.supylabel("million parameters", fontsize=10)
    by_count.set(xlabel="modalities N (L = 300)")
    by_length.minorticks_off()
    figure.legend(loc="outside upper center", ncols=2, frameon=False)


def draw_growth(figure: Figure) -> None:
    """How large features become from step to step, before any training."""
    forms = json.loads(GROWTH.read_text())["forms"]
    titles = {
        "printed": "as printed",
        "stable": "stable=True",
        "stable, O drawn": "stable=True, O not zero",
    }
    size, saturation = figure.subplots(2, 1, sharex=True)
    for (form, rows), mark in zip(forms.items(), MARKS, strict=False):
        steps = [row["step"] for row in rows]
        label = titles.get(form, form)
        size.plot(steps, [row["norm"] for row in rows], mark, label=label, markersize=4)
        saturation.plot(steps, [100 * row["saturated"] for row in rows], mark, markersize=4)
    size.set(yscale="log", title="size of the features (RMS)")
    saturation.set(xlabel="after step", title="% of C saturated (beyond ±0.99)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)


def draw_watch(figure: Figure) -> None:
    """Accuracy on people never seen, for every method of the watch example."""
    from examples.watch.models import METHODS

    runs: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in json.loads(WATCH.read_text())["runs"]:
        runs[run["method"]][run["seed"]].append(100 * run["accuracy"])
    axes = figure.subplots()
    ranked = dict(sorted(runs.items(), key=_mean, reverse=True))
    for row, seeds in enumerate(ranked.values()):
        means = [fmean(folds) for folds in seeds.values()]
        _interval(axes, row, fmean(means), pstdev(means) if len(means) > 1 else 0.0)
    names = [METHODS[method].title for method in ranked]
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="accuracy, %")
    axes.invert_yaxis()


def _mean(entry: tuple[str, dict[int, list[float]]]) -> float:
    return fmean(value for folds in entry[1].values() for value in folds)


def _interval(axes: Axes, row: int, mean: float, spread: float) -> None:
    axes.errorbar(mean, row, xerr=spread, fmt="o", capsize=3, color="C0")
    axes.annotate(f"{mean:.1f}", (mean, row), (0, 6), textcoords="offset points", ha="center")


# The function that draws, the file it reads (None for none), and the height.
CHARTS: dict[str, tuple[Callable[[Figure], None], Path | None, float]] = {
    "parameters": (draw_parameters, None, 6.4),
    "growth": (draw_growth, GROWTH, 5.6),
    "watch-accuracy": (draw_watch, WATCH, 3.6),
}


def settings(theme: Theme) -> dict[Any, Any]:
    """Matplotlib's settings for a theme; files are the same on every run."""
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.ink)
    return ink | {
        "svg.hashsalt": "crossfuse",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.edgecolor": theme.faint,
        "axes.facecolor": "none",
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": theme.faint,
        "grid.alpha": 0.25,
        "savefig.transparent": True,
    }


def main() -> None:
    """Draws what there are results for."""
    FOLDER.mkdir(exist_ok=True)
    for name, (draw, results, height) in CHARTS.items():
        if results is not None and not results.is_file():
            continue
        for theme in THEMES:
            with mpl.rc_context(settings(theme)):
                figure = Figure(figsize=(5.0, height), layout="constrained")
                draw(figure)
                figure.savefig(FOLDER / f"{name}{theme.suffix}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
