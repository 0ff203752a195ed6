"""Draws what people look at: predictions over time, bars with ceilings, correlations, curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from crossfuse import RecursiveCrossModalAttention
from examples.affwild2.dataset.folds import Window
from examples.affwild2.network.model import AffectNet
from examples.affwild2.results.table import Row
from examples.affwild2.training.trials import Target, Trials

INK, SOFT, OURS, LIMIT = "#22303c", "#9fb1bf", "#c8553d", "#4f7f52"
WIDE, DOTS = 10, 120  # inches, and dots in each
mpl.use("Agg")
_as_written = mpl.rc_context({"text.parse_math": False})  # a "$" in a name is no formula


@_as_written
def plot_trial(
    path: Path,
    label: NDArray[np.float32],
    predictions: Mapping[str, Tensor],
    seconds: NDArray[np.float64],
    shaded: Mapping[str, NDArray[np.bool_]],
    title: str,
) -> None:
    """Draws a trial's label and predictions over time, shading frames without (parts of) a face.

    Where frames were left out, because nobody rated them, the lines are broken.
    """
    figure, axes = _figure(WIDE, 3.4)
    cuts = _gaps(seconds)
    time = np.insert(seconds, cuts, np.nan)
    fills = ("#d8dee4", "#efe3c8", "#dbe7d3")
    for (name, where), colour in zip(shaded.items(), fills, strict=False):
        if where.any():
            seen = np.insert(where, cuts, False).tolist()
            axes.fill_between(time, -1, 1, where=seen, color=colour, lw=0, label=name, step="mid")
    axes.plot(time, np.insert(label, cuts, np.nan), color=INK, lw=1.8, label="label")
    for (name, prediction), colour in zip(predictions.items(), (OURS, "#3f7cac"), strict=False):
        broken = np.insert(prediction.numpy(), cuts, np.nan)
        axes.plot(time, broken, color=colour, lw=1.2, label=name)
    axes.set(xlabel="seconds", ylim=(-1, 1), xlim=(seconds[0], seconds[-1]), title=title)
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    _save(figure, path)


@_as_written
def plot_bars(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draws the CCC of each method with its spread, every run, and the data's ceilings."""
    figure, axes = _figure(WIDE, 1.4 + 0.32 * len(rows))
    places = np.arange(len(rows))[::-1]
    colours = [OURS if row.ours else SOFT for row in rows]
    means = [row.mean for row in rows]
    spreads = [row.spread if len(row.runs) > 1 else np.nan for row in rows]  # one has none
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
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    _save(figure, path)


@_as_written
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
    names, count = list(attended), len(seen.recursions)
    figure = Figure(figsize=(WIDE, 2.6 * count), layout="constrained")
    grid = figure.subplots(count, len(names), squeeze=False)
    picture = None
    for k, recursion in enumerate(seen.recursions):
        for column, name in enumerate(names):
            axes = grid[k][column]
            # In the stable form C has heads, whose features do not meet: the blocks of a diagonal.
            heads = recursion.correlations[name][0]
            whole = torch.block_diag(*heads) if heads.ndim == 3 else heads
            picture = axes.imshow(whole.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
            joint = [n for n in sorted(names) if model.fusion.joint == "all" or n != name]
            widths = [attended[other].shape[-1] for other in joint] if heads.ndim == 2 else []
            for edge in np.cumsum(widths)[:-1]:
                axes.axvline(edge - 0.5, color=INK, lw=1)
            axes.set_title(f"recursion {k + 1}, {name}", fontsize=10)
            axes.set(xlabel=" | ".join(joint), ylabel=name, xticks=[], yticks=[])
    if picture is not None:
        figure.colorbar(picture, ax=grid, shrink=0.8, label="C")
    _save(figure, path)


@_as_written
def plot_curves(path: Path, logs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Draws loss and validation CCC over the epochs."""
    figure = Figure(figsize=(WIDE, 3.6 + 0.11 * len(logs)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (name, log) in enumerate(logs.items()):
        epochs, colour = [row["epoch"] + 1 for row in log], mpl.colormaps["tab20"](k % 20)
        left.plot(epochs, [row["loss"] for row in log], label=name, color=colour)
        right.plot(epochs, [row["ccc"] for row in log], color=colour)
    left.set(xlabel="epoch", title="training loss (1 - CCC of a window)")
    right.set(xlabel="epoch", title="CCC on the validation trials")
    for axes in (left, right):
        _plain(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    _save(figure, path)


def seconds_of(trials: Trials, trial: int) -> NDArray[np.float64]:
    """When each kept frame was shown; frame numbers if the rate is unknown."""
    source = trials.features[trial]
    rate = source.fps if np.isfinite(source.fps) else 1.0
    return np.asarray(source.index / rate, np.float64)


def pick_trial(trials: Trials, target: Target) -> int:
    """The trial whose label moves the most."""
    column = 0 if target == "valence" else 1
    return int(np.argmax([trial.labels[:, column].std() for trial in trials.features]))


def _gaps(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where frames were left out: the numbers of the frames after each gap."""
    steps = np.diff(seconds)
    return np.flatnonzero(steps > 1.5 * steps.min(initial=np.inf)) + 1


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS)
