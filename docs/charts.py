"""Draws the measured pictures of the documentation: ``python -m docs.charts``.

Every number comes from the layers themselves or from a results file in the repository, which its
own script writes. A picture whose results are not there is not drawn.
"""

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import torch
from cycler import cycler
from docs.diagrams import FOLDER, THEMES, Theme
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

import crossfuse

ROOT = Path(__file__).parents[1]
WATCH = ROOT / "examples" / "watch" / "results" / "full.json"
PHONE = ROOT / "examples" / "phone" / "results" / "full.json"
WHICH = ROOT / "examples" / "which_fusion" / "results" / "runs.json"
AFFWILD2 = ROOT / "examples" / "affwild2" / "results" / "table.json"
GROWTH = ROOT / "benchmarks" / "results" / "saturation.json"
LAYER_TIMES = ROOT / "benchmarks" / "results" / "layers-cpu.json"
WIDTH = 128  # features of each modality where the sizes are counted

LAYERS: dict[str, Callable[[list[int], int], nn.Module]] = {
    "RCMA": lambda dims, length: crossfuse.RecursiveCrossModalAttention(dims, length),
    "RCMA, length=None": lambda dims, _: crossfuse.RecursiveCrossModalAttention(dims),
    "JCA": lambda dims, length: crossfuse.JointCrossAttention(dims, length),
    "cross-attention": lambda dims, _: crossfuse.CrossAttention(dims),
    "leader-follower": lambda dims, _: crossfuse.LeaderFollowerAttention(dims, leader=0),
    "concatenation": lambda dims, _: crossfuse.ConcatFusion(dims, sum(dims)),
}
# The default colours of lines are too dark for a dark page.
BRIGHT = ("#6cb2ff", "#ffb057", "#72d48f", "#ff7f78", "#c9a6ff", "#cfa892", "#ff9fd6", "#9aa3b2")
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
        "paper": "as published",
        "stable": "stable",
        "stable, O drawn": "stable, O not zero",
    }
    size, saturation = figure.subplots(2, 1, sharex=True)
    for (form, rows), mark in zip(forms.items(), MARKS, strict=False):
        steps = [row["recursion"] for row in rows]
        label = titles.get(form, form)
        size.plot(steps, [row["norm"] for row in rows], mark, label=label, markersize=4)
        saturation.plot(steps, [100 * row["saturated"] for row in rows], mark, markersize=4)
    size.set(yscale="log", title="size of the features (RMS)")
    saturation.set(xlabel="after step", title="% of C saturated (beyond ±0.99)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)


def draw_watch(figure: Figure) -> None:
    """Gain over concatenation on held-out subjects, for every method of the watch example."""
    _draw_gains(figure, WATCH)


def draw_phone(figure: Figure) -> None:
    """The same for the phone example."""
    _draw_gains(figure, PHONE)


def _draw_gains(figure: Figure, file: Path) -> None:
    """Draws paired differences of balanced accuracy and their standard errors."""
    from examples.common.methods import BASELINE, METHODS
    from examples.common.report import difference, grouped
    from examples.common.runs import read_runs

    table = grouped(read_runs(file))
    found = {
        METHODS[name].title: difference(mine, table[BASELINE], lambda run: run.balanced)
        for name, mine in table.items()
        if name != BASELINE
    }
    gains = {title: gain for title, gain in found.items() if gain is not None}
    ranked = sorted(gains, key=lambda title: gains[title].mean, reverse=True)
    axes = figure.subplots()
    for row, title in enumerate(ranked):
        _interval(axes, row, 100 * gains[title].mean, 100 * (gains[title].error or 0), sign="+")
    axes.axvline(0, color="C7", linewidth=1)
    axes.set(yticks=range(len(ranked)), yticklabels=ranked)
    figure.supxlabel("balanced accuracy less that of concatenation, points", fontsize=10)
    axes.invert_yaxis()


# The rows and columns of the picture, by the names in the results file.
FUSIONS = {
    "best": "best attainable",
    "average": "mean of three predictions",
    "concatenation": "concatenation",
    "early": "early fusion, one TCN",
    "lmf": "low-rank fusion (LMF)",
    "pairwise": "pairwise MultiheadAttention",
    "self": "encoder layer, concatenated",
    "tokens": "modality tokens per step",
    "transformer": "CrossModalTransformer",
    "leader": "LeaderFollower",
    "cross": "CrossAttention",
    "jca": "JCA",
    "rcma-paper": "RCMA, paper's form",
    "rcma": "RCMA",
    "transformer-unaligned": "CrossModalTransformer,\nown lengths",
    "rcma-unaligned": "RCMA, own lengths",
}
RELATED = {
    "same": "same\nevery-\nwhere",
    "sign": "sign\nper\nwindow",
    "negated": "sign\nflips,\nwith cue",
    "missing": "strong\nstream\nmissing",
    "lengths": "sign,\nown\nlengths",
    "slow": "sign,\nslow\nstreams",
}


def draw_which(figure: Figure) -> None:
    """Concordance of each fusion with a signal hidden by each relation, as a table of shades."""
    from examples.which_fusion.report import AHEAD, BEHIND, cells
    from examples.which_fusion.train import Run

    table = cells([Run(**run) for run in json.loads(WHICH.read_text())["runs"]])
    axes = figure.subplots()
    fusions = [name for name in FUSIONS if any(method == name for _, method in table)]
    for row, fusion in enumerate(fusions):
        for column, relation in enumerate(RELATED):
            cell = table.get((relation, fusion))
            if cell is None:
                axes.text(column, row, "–", ha="center", va="center")
                continue
            share = cell.mean / table[relation, "best"].mean
            shade = Rectangle((column - 0.5, row - 0.5), 1, 1, alpha=0.55 * max(share, 0) ** 3)
            shade.set(facecolor="C0" if fusion != "best" else "C7", linewidth=0)
            axes.add_patch(shade)
            weight = "bold" if cell.mark == AHEAD else "normal"
            style = "italic" if cell.mark == BEHIND else "normal"
            text = f"{cell.mean:.2f}"
            axes.text(column, row, text, ha="center", va="center", weight=weight, style=style)
    axes.set(xlim=(-0.5, len(RELATED) - 0.5), ylim=(len(fusions) - 0.5, -0.5))
    axes.set(xticks=range(len(RELATED)), xticklabels=RELATED.values())
    axes.set(yticks=range(len(fusions)), yticklabels=[FUSIONS[name] for name in fusions])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def draw_affwild2(figure: Figure) -> None:
    """How far each fusion is ahead of concatenation on the Aff-Wild2 demo's data."""
    shown = [
        row
        for row in json.loads(AFFWILD2.read_text())["rows"]
        if (row["data"], row["target"]) == ("both confounders", "valence")
        and row["error"] is not None  # one data set has none
    ]
    shown.sort(key=lambda row: float(row["gain"]), reverse=True)
    axes = figure.subplots()
    for place, row in enumerate(shown):
        _interval(axes, place, row["gain"], row["error"], digits=2, sign="+")
    axes.axvline(0, color="C7", linewidth=1)
    axes.set(yticks=range(len(shown)), yticklabels=[fill(row["title"], 28) for row in shown])
    axes.tick_params(axis="y", labelsize=9)
    figure.supxlabel("CCC of valence less that of concatenation", fontsize=10)
    axes.invert_yaxis()


def draw_speed(figure: Figure) -> None:
    """A training step at the paper's sizes, beside others that fuse the same streams."""
    data = json.loads(LAYER_TIMES.read_text())["rows"]
    rows = [
        row
        for row in data
        if (row["case"], row["dtype"], row["precision"], row["direction"])
        == ("rcma-paper", "float32", "highest", "forward+backward")
        and row["impl"] != "matrix products"
    ]
    rows.sort(key=lambda row: float(row["median_s"]))
    axes = figure.subplots()
    times = [1e3 * row["median_s"] for row in rows]
    ours = ["C0" if row["impl"] == "crossfuse" else "C7" for row in rows]
    spreads = [1e3 * row["spread_s"] for row in rows]
    bars = axes.barh(range(len(rows)), times, xerr=spreads, color=ours, ecolor="C7", height=0.6)
    axes.bar_label(bars, fmt=" %.0f", padding=4)
    names = [_implementation(row) for row in rows]
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="ms, forward and backward")
    axes.margins(x=0.12)
    axes.invert_yaxis()


def _implementation(row: dict[str, Any]) -> str:
    ours = {"crossfuse": "RCMA, paper's form", "transcription": "the same, transcribed"}
    name = ours.get(row["impl"], row["impl"])
    return f"{name}{', compiled' if row['compiled'] else ''}"


def _interval(
    axes: Axes, row: int, mean: float, spread: float, *, digits: int = 1, sign: str = ""
) -> None:
    axes.errorbar(mean, row, xerr=spread, fmt="o", capsize=3, color="C0")
    axes.annotate(
        f"{mean:{sign}.{digits}f}", (mean, row), (0, 6), textcoords="offset points", ha="center"
    )


# The function that draws, the file it reads (None for none), and the height.
CHARTS: dict[str, tuple[Callable[[Figure], None], Path | None, float]] = {
    "parameters": (draw_parameters, None, 6.4),
    "growth": (draw_growth, GROWTH, 5.6),
    "watch-accuracy": (draw_watch, WATCH, 5.2),
    "phone-accuracy": (draw_phone, PHONE, 5.2),
    "which-fusion": (draw_which, WHICH, 4.6),
    "affwild2-valence": (draw_affwild2, AFFWILD2, 3.6),
    "speed": (draw_speed, LAYER_TIMES, 2.8),
}


def settings(theme: Theme) -> dict[Any, Any]:
    """Matplotlib's settings for a theme; files are the same on every run."""
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.ink)
    lines = {"axes.prop_cycle": cycler(color=BRIGHT)} if theme.suffix else {}
    return (
        ink
        | lines
        | {
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
    )


def main(folder: Path = FOLDER) -> None:
    """Draws what there are results for."""
    folder.mkdir(exist_ok=True)
    for name, (draw, results, height) in CHARTS.items():
        if results is not None and not results.is_file():
            continue
        for theme in THEMES:
            with mpl.rc_context(settings(theme)):
                figure = Figure(figsize=(5.0, height), layout="constrained")
                draw(figure)
                figure.savefig(folder / f"{name}{theme.suffix}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
