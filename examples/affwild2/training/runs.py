"""What a run is, how far it has come, its network, and its checkpoint on disk."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from examples.affwild2.dataset.files import whole
from examples.affwild2.network.model import AffectNet
from examples.affwild2.training.methods import find_method
from examples.affwild2.training.presets import Preset
from examples.affwild2.training.trials import Target

CHECKPOINT, LOG = "checkpoint.pt", "log.csv"


@dataclass(frozen=True)
class Run:
    """What is trained.

    Attributes:
        method: A row of the table.
        target: valence or arousal: one network each.
        preset: All numbers.
        fold: 0 for the official split.
        seed: Of weights, order and dropout.
        shuffled: Whether faces go with another trial's voice and words.
    """

    method: str
    target: Target
    preset: Preset
    fold: int = 0
    seed: int = 0
    shuffled: bool = False

    def described(self) -> dict[str, Any]:
        """The run as plain values, as JSON would hold them."""
        return cast(dict[str, Any], json.loads(json.dumps(asdict(self))))


@dataclass
class Progress:
    """How far a run has come; a checkpoint holds it.

    Attributes:
        epoch: Epochs done.
        stage: Groups of backbone layers that are free.
        stage_epoch: Epochs done in this stage.
        best: The best validation CCC.
        best_epoch: When it was reached.
        bad: Epochs in this stage since the best, or since the stage began.
        done: Whether the run is over.
        log: One row per epoch.
    """

    epoch: int = 0
    stage: int = 0
    stage_epoch: int = 0
    best: float = -math.inf
    best_epoch: int = -1
    bad: int = 0
    done: bool = False
    log: list[dict[str, float]] = field(default_factory=list)


def run_from(held: Mapping[str, Any]) -> Run:
    """Reads a run from JSON."""
    widths = {name: tuple(blocks) for name, blocks in held["preset"]["widths"].items()}
    preset = Preset(**{**held["preset"], "widths": widths})
    return Run(**{**held, "preset": preset})


def build(run: Run, backbones: Mapping[str, nn.Module]) -> AffectNet:
    """Builds the network of a run, with the weights that its seed draws."""
    method, preset = find_method(run.method), run.preset
    torch.manual_seed(run.seed)
    return AffectNet(
        {name: backbones[name] for name in method.modalities},
        preset.widths,
        lambda dims: method.fusion(dims, preset),
        lambda dim: _head(dim, preset),
        dropout=preset.tcn_dropout,
        noise=preset.feature_noise,
    )


def read_checkpoint(out: Path) -> dict[str, Any]:
    """Reads the checkpoint of a run.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    path = out / CHECKPOINT
    if not path.exists():
        raise ValueError(f"{out}: holds no {CHECKPOINT}; train first")
    try:
        return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises almost anything on a damaged file
        raise ValueError(f"{path}: cannot be read ({type(error).__name__})") from error


def claim(out: Path, run: Run, *, resume: bool) -> dict[str, Any] | None:
    """Makes sure that a folder is free for a run, or holds the same one to go on with.

    Returns:
        The checkpoint to go on from, if there is one.

    Raises:
        ValueError: ``out`` holds another run, or this one and ``resume`` is False.
    """
    if not (out / CHECKPOINT).exists():
        return None
    if not resume:
        raise ValueError(f"train: {out} holds a run already; --resume goes on with it")
    state = read_checkpoint(out)
    if state["run"] != run.described():
        raise ValueError(f"train: {out} holds a run with other settings; name a new folder")
    return state


def write_checkpoint(out: Path, state: Mapping[str, Any], log: list[dict[str, float]]) -> None:
    """Writes checkpoint and log; whoever is killed here leaves those of the epoch before."""
    with whole(out / CHECKPOINT) as partial:
        torch.save(dict(state), partial)
    with whole(out / LOG) as partial, partial.open("w", newline="") as file:
        if log:
            writer = csv.DictWriter(file, list(log[0]))
            writer.writeheader()
            writer.writerows(log)


def read_log(out: Path) -> list[dict[str, float]]:
    """Reads one row per epoch."""
    with (out / LOG).open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _head(dim: int, preset: Preset) -> nn.Module:
    if preset.head_width is None:
        return nn.Sequential(nn.Dropout(preset.head_dropout), nn.Linear(dim, 1))
    return nn.Sequential(
        nn.Dropout(preset.head_dropout),
        nn.Linear(dim, preset.head_width),
        nn.LeakyReLU(),
        nn.Dropout(preset.head_dropout),
        nn.Linear(preset.head_width, 1),
    )
