"""Puts a run together from options, and again from its folder: backbones, trials, network."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]  # ships no types
from accelerate.utils import (  # type: ignore[import-untyped]  # ships no types
    DistributedDataParallelKwargs,
)
from torch import Tensor, nn

from examples.affwild2.backbones import IR50, VGGish, load_ir50, load_vggish
from examples.affwild2.data import Trials, encode, word_scale
from examples.affwild2.features import Features, load_features
from examples.affwild2.folds import make_fold
from examples.affwild2.layout import Partition
from examples.affwild2.methods import find_method
from examples.affwild2.model import AffectNet
from examples.affwild2.presets import Preset
from examples.affwild2.pretrain import build_backbones, load_backbones
from examples.affwild2.train import Run, build, read_checkpoint

SETUP = "setup.json"


@dataclass(frozen=True)
class Weights:
    """Files with weights of backbones.

    Attributes:
        ir50: res50_ir_0.887.pth; without it IR-50 starts from random weights, frozen: a dry run.
        vggish: vggish-10086976.pth; the same.
        demo: What ``demo`` saved as backbones.pt, for the demo preset.
    """

    ir50: Path | None = None
    vggish: Path | None = None
    demo: Path | None = None


class Vectors(nn.Module):
    """Word vectors that were computed before: they pass as they are."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors


def make_backbones(
    preset: Preset, words_dim: int, weights: Weights | None = None
) -> dict[str, nn.Module]:
    """Makes the backbones of a preset, with their weights if they are given."""
    weights = Weights() if weights is None else weights
    if preset.backbones == "demo":
        return dict(build_backbones()) if weights.demo is None else load_backbones(weights.demo)
    return {
        "face": IR50() if weights.ir50 is None else load_ir50(weights.ir50),
        "voice": VGGish() if weights.vggish is None else load_vggish(weights.vggish),
        "words": Vectors(words_dim),
    }


def make_accelerator(*, cpu: bool = False, mixed_precision: str = "no") -> Accelerator:
    """Finds the device and the other processes, as torchrun or accelerate started them."""
    sparing = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=cpu, mixed_precision=mixed_precision, kwargs_handlers=[sparing])


def split(features: Path, fold: int) -> tuple[list[Features], list[Features]]:
    """The training and the validation trials of a fold.

    Raises:
        ValueError: There are none, or the fold does not exist.
    """
    held = {
        trial.name: trial for part in ("train", "validation") for trial in _part(features, part)
    }
    names = {
        part: [name for name, trial in held.items() if trial.partition == part]
        for part in ("train", "validation")
    }
    chosen = make_fold(names["train"], names["validation"], fold)
    return [held[name] for name in chosen.train], [held[name] for name in chosen.validation]


def make_trials(
    run: Run,
    features: list[Features],
    scale: tuple[float, float],
    backbones: Mapping[str, nn.Module],
) -> Trials:
    """Trials as a run sees them; with ``cache``, their features are computed here, once."""
    bert = run.preset.backbones == "full"
    modalities = find_method(run.method).modalities
    trials = Trials(features, modalities, bert=bert, scale=scale)
    return encode(trials, backbones) if run.preset.cache else trials


def scale_of(run: Run, features: list[Features]) -> tuple[float, float]:
    """Mean and spread of the word vectors, where a run normalises by them."""
    sees_words = "words" in find_method(run.method).modalities
    wanted = run.preset.backbones == "full" and run.preset.norm_stats != "none" and sees_words
    return word_scale(features) if wanted else (0.0, 1.0)


def words_dim(features: list[Features]) -> int:
    """Width of the word vectors, 0 where there are none."""
    return next((t.word_vectors.shape[1] for t in features if t.word_vectors is not None), 0)


def write_setup(out: Path, run: Run, features: Path, dim: int, scale: tuple[float, float]) -> None:
    """Writes what is needed to build the run's network again."""
    out.mkdir(parents=True, exist_ok=True)
    held = {"run": asdict(run), "features": str(features), "words_dim": dim, "scale": scale}
    (out / SETUP).write_text(json.dumps(held, indent=1) + "\n")


@dataclass(frozen=True)
class Saved:
    """A trained run, read back.

    Attributes:
        run: What it is.
        model: Its best weights.
        backbones: Those of the model.
        features: Where its trials were.
        scale: Of the word vectors.
    """

    run: Run
    model: AffectNet
    backbones: dict[str, nn.Module]
    features: Path
    scale: tuple[float, float]

    def trials(self, partition: Partition) -> Trials:
        """The trials of a partition (of the run's fold for train and validation)."""
        if partition == "test":
            features = _part(self.features, "test")
        else:
            features = split(self.features, self.run.fold)[partition == "validation"]
        own = self.run.preset.norm_stats == "partition"
        scale = scale_of(self.run, features) if own else self.scale
        return make_trials(self.run, features, scale, self.backbones)


def read_saved(out: Path, features: Path | None = None) -> Saved:
    """Reads a trained run.

    Raises:
        ValueError: The folder holds no trained run.
    """
    state, path = read_checkpoint(out), out / SETUP
    if not path.exists():
        raise ValueError(f"{out}: holds no {SETUP}; runs of a table have none, train one by itself")
    held = json.loads(path.read_text())
    run = run_from(held["run"])
    backbones = make_backbones(run.preset, held["words_dim"])
    model = build(run, backbones)
    model.load_state_dict(state["best"])
    mean, std = held["scale"]
    where = Path(held["features"]) if features is None else features
    return Saved(run, model.eval(), backbones, where, (mean, std))


def run_from(held: Mapping[str, Any]) -> Run:
    """Reads a run from JSON."""
    preset = Preset(**{**held["preset"], "widths": tuple(map(tuple, held["preset"]["widths"]))})
    return Run(**{**held, "preset": preset})


def _part(features: Path, partition: str) -> list[Features]:
    wanted: list[Features] = [t for t in load_features(features) if t.partition == partition]
    if not wanted:
        raise ValueError(f"{features}: holds no {partition} trials")
    return wanted


def on_device(model: AffectNet, *, cpu: bool) -> AffectNet:
    """Moves a network to the GPU if there is one."""
    return model.to("cuda" if torch.cuda.is_available() and not cpu else "cpu")
