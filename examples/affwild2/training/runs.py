"""What a run is, how far it has come, its network, and its checkpoint on disk."""

import csv
import json
import math
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from examples.affwild2.dataset.files import whole
from examples.affwild2.network.model import AffectNet
from examples.affwild2.training.methods import Method, find_method
from examples.affwild2.training.modalities import own_widths
from examples.affwild2.training.own import Stream
from examples.affwild2.training.presets import Preset
from examples.affwild2.training.trials import Target

CHECKPOINT, BEFORE, LOG, LOCK = "checkpoint.pt", "checkpoint-before.pt", "log.csv", ".lock"
PARTS = {"run", "progress", "model", "best", "optimiser", "plateau"}  # of a checkpoint


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
        own: The user's own features.
        modalities: What the network sees; none means the method's modalities and all own features.
    """

    method: str
    target: Target
    preset: Preset
    fold: int = 0
    seed: int = 0
    shuffled: bool = False
    own: tuple[Stream, ...] = ()
    modalities: tuple[str, ...] = ()

    @property
    def design(self) -> Method:
        """The method, with the modalities that this run sees.

        Raises:
            ValueError: There is no such method or modality, or too few of them to fuse.
        """
        own = tuple(stream.name for stream in self.own)
        method = find_method(self.method, own)
        if len(method.modalities) == 1:
            return method
        known = (*method.modalities, *own)
        for name in self.modalities:
            if name not in known:
                raise ValueError(f"modality {name!r}: there are {', '.join(known)}")
            if self.modalities.count(name) > 1:
                raise ValueError(f"modality {name!r}: is given twice")
        if len(self.modalities) == 1:
            raise ValueError(
                f"method {self.method!r} fuses modalities, and {self.modalities[0]} is only one; "
                f"--method {self.modalities[0]} trains on it alone"
            )
        return replace(method, modalities=self.modalities or known)

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
    own = tuple(Stream(**stream) for stream in held["own"])
    return Run(**{**held, "preset": preset, "own": own, "modalities": tuple(held["modalities"])})


def build(run: Run, backbones: Mapping[str, nn.Module]) -> AffectNet:
    """Builds the network of a run, with the weights that its seed draws."""
    method, preset = run.design, run.preset
    torch.manual_seed(run.seed)
    own = {stream.name: own_widths(preset.backbones, stream.width) for stream in run.own}
    return AffectNet(
        {name: backbones[name] for name in method.modalities},
        {**preset.widths, **own},
        lambda dims: method.fusion(dims, preset),
        lambda dim: _head(dim, preset),
        dropout=preset.tcn_dropout,
        noise=preset.feature_noise,
    )


def read_checkpoint(out: Path) -> dict[str, Any]:
    """Reads the checkpoint of a run, or the one before if the last is damaged, with a warning.

    Raises:
        ValueError: There is none, or both are damaged.
    """
    if not holds_run(out):
        raise ValueError(f"{out}: holds no {CHECKPOINT}; train first")
    try:
        return _read(out / CHECKPOINT)
    except ValueError as damage:
        if not (out / BEFORE).exists():
            raise
        state = _read(out / BEFORE)
        epoch = state["progress"]["epoch"]
        warnings.warn(f"{damage}; {BEFORE}, after epoch {epoch}, is used", stacklevel=2)
        return state


def holds_run(out: Path) -> bool:
    """Whether a folder holds a checkpoint."""
    return (out / CHECKPOINT).exists() or (out / BEFORE).exists()


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # torch's format; each record has its checksum
            wrong = archive.testzip()
        state = None if wrong else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises almost anything on a damaged file
        raise ValueError(f"{path}: cannot be read ({type(error).__name__})") from error
    if wrong:
        raise ValueError(f"{path}: is damaged (the checksum of {wrong} is wrong)")
    if not isinstance(state, dict) or not state.keys() >= PARTS:
        raise ValueError(f"{path}: is no checkpoint of train")
    return state


def claim(out: Path, run: Run, *, resume: bool) -> dict[str, Any] | None:
    """Makes sure that a folder is free for a run, or holds the same one to go on with.

    The same run may ask for more epochs than it was given before.

    Returns:
        The checkpoint to go on from, if there is one.

    Raises:
        ValueError: ``out`` holds another run, or this one and ``resume`` is False.
    """
    if not holds_run(out):
        return None
    if not resume:
        raise ValueError(f"train: {out} holds a run already; --resume goes on with it")
    state = read_checkpoint(out)
    before = run_from(state["run"])
    longer = max(before.preset.epochs, run.preset.epochs)
    if replace(before, preset=replace(before.preset, epochs=longer)) != run:
        raise ValueError(f"train: {out} holds a run with other settings; name a new folder")
    return state


def write_checkpoint(out: Path, state: Mapping[str, Any], log: list[dict[str, float]]) -> None:
    """Writes checkpoint and log; a process that is killed here leaves those of the epoch before.

    Raises:
        OSError: They cannot be written.
    """
    path = out / CHECKPOINT
    with whole(path) as partial:
        try:
            torch.save(dict(state), partial)
        except RuntimeError as error:  # of torch's writer, without the file's name
            raise OSError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from error
        if path.exists():
            path.replace(out / BEFORE)
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
