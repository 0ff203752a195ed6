"""Draws what people look at: predictions over time, bars with ceilings, correlations, curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from crossfuse import RecursiveCrossModalAttention
from examples.affwild2.data import Target, Trials
from examples.affwild2.folds import Window
from examples.affwild2.methods import SHUFFLED
from examples.affwild2.model import AffectNet
from examples.affwild2.table import Row

INK, SOFT, OURS, LIMIT = "#22303c", "#9fb1bf", "#c8553d", "#4f7f52"
mpl.use("Agg")


def plot_trial(
    path: Path,
    label: NDArray[np.float32],
    predictions: Mapping[str, Tensor],
    seconds: NDArray[np.float64],
    shaded: Mapping[str, NDArray[np.bool_]],
    title: str,
) -> None:
    """Draws a trial's label and predictions over time, shading frames without (parts of) a face."""
    figure, axes = _figure(10, 3.2)
    fills = ("#d8dee4", "#efe3c8", "#dbe7d3")
    for (name, where), colour in zip(shaded.items(), fills, strict=False):
        axes.fill_between(seconds, -1, 1, where=where.tolist(), color=colour, lw=0, label=name)
    axes.plot(seconds, label, color=INK, lw=1.8, label="label")
    for (name, prediction), colour in zip(predictions.items(), (OURS, "#3f7cac"), strict=False):
        axes.plot(seconds, prediction.numpy(), color=colour, lw=1.2, label=name)
    axes.set(xlabel="seconds", ylim=(-1, 1), xlim=(seconds[0], seconds[-1]), title=title)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=6, frameon=False)
    _save(figure, path)


def plot_bars(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draws the CCC of each method with its spread, every run, and the data's ceilings."""
    figure, axes = _figure(8, 0.6 + 0.36 * len(rows))
    places = np.arange(len(rows))[::-1]
    ours = [row.method.startswith("rcma-stable") and row.method != SHUFFLED for row in rows]
    colours = [OURS if one else SOFT for one in ours]
    means, spreads = [row.mean for row in rows], [row.spread for row in rows]
    axes.barh(places, means, xerr=spreads, color=colours, height=0.62, ecolor=INK, capsize=2)
    for place, row in zip(places, rows, strict=True):
        axes.plot(row.runs, [place] * len(row.runs), "o", ms=3, color=INK)
        if row.ceiling is not None:
            axes.plot([row.ceiling] * 2, [place - 0.4, place + 0.4], color=LIMIT, lw=2)
    axes.plot([], [], color=LIMIT, lw=2, label="ceiling of what it sees")
    axes.plot([], [], "o", ms=3, color=INK, label="one run")
    axes.set_yticks(places, [row.title for row in rows])
    axes.axvline(0, color=INK, lw=0.8)
    axes.set(xlabel="CCC on validation trials", title=title)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=2, frameon=False)
    _save(figure, path)


def plot_correlations(path: Path, model: AffectNet, trials: Trials, size: int) -> None:
    """Draws RCMA's correlation maps C of the first window, per step and modality.

    Raises:
        ValueError: The network's fusion is another one.
    """
    if not isinstance(model.fusion, RecursiveCrossModalAttention):
        raise ValueError("plot: only a network that fuses with RCMA has correlation maps")
    batch = trials.batch([Window(0, 0)], size, "valence")
    with torch.no_grad():
        features = batch.streams
        if trials.encoded is None:
            features = model.backbones(batch.streams, batch.masks)
        attended = model.eval().encoders(features, batch.masks)
        seen = model.fusion.inspect(attended, batch.masks)
    names, steps = list(attended), len(seen.steps)
    figure = Figure(figsize=(3.6 * len(names), 2.6 * steps), layout="constrained")
    grid = figure.subplots(steps, len(names), squeeze=False)
    picture = None
    for k, step in enumerate(seen.steps):
        for column, name in enumerate(names):
            axes = grid[k][column]
            picture = axes.imshow(
                step.correlations[name][0].numpy(), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto"
            )
            axes.set_title(f"step {k + 1}: {name} with the others", fontsize=9)
            axes.set(xlabel="features of the others", ylabel=f"features of the {name}")
    if picture is not None:
        figure.colorbar(picture, ax=grid, shrink=0.8, label="C")
    _save(figure, path)


def plot_curves(path: Path, logs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Draws loss and validation CCC over the epochs."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (name, log) in enumerate(logs.items()):
        epochs, colour = [row["epoch"] + 1 for row in log], mpl.colormaps["tab20"](k % 20)
        left.plot(epochs, [row["loss"] for row in log], label=name, color=colour)
        right.plot(epochs, [row["ccc"] for row in log], color=colour)
    left.set(xlabel="epoch", title="training loss (1 - CCC of a window)")
    right.set(xlabel="epoch", title="CCC on the validation trials")
    for axes in (left, right):
        _plain(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    _save(figure, path)


def seconds_of(trials: Trials, trial: int) -> NDArray[np.float64]:
    """When each kept frame was shown; frames where nobody tells the rate."""
    source = trials.features[trial]
    rate = source.fps if np.isfinite(source.fps) else 1.0
    return np.asarray(source.index / rate, np.float64)


def pick_trial(trials: Trials, target: Target) -> int:
    """The trial whose label moves the most."""
    column = 0 if target == "valence" else 1
    return int(np.argmax([trial.labels[:, column].std() for trial in trials.features]))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
