"""Puts a run together from options, and again from its folder: backbones, trials, network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]  # ships no types
from torch import Tensor, nn

from examples.affwild2.dataset.features import Features, load_features
from examples.affwild2.dataset.folds import make_fold
from examples.affwild2.dataset.layout import Partition
from examples.affwild2.network.model import AffectNet
from examples.affwild2.synthetic.pretrain import build_backbones, load_backbones
from examples.affwild2.training.evaluate import Predictions, predict
from examples.affwild2.training.methods import find_method
from examples.affwild2.training.modalities import MODALITIES, Weights
from examples.affwild2.training.runs import Run, build, claim, read_checkpoint, run_from
from examples.affwild2.training.trials import Trials, encode, shuffle_partners, word_scale

SETUP = "setup.json"
Encoded = Mapping[str, Mapping[str, Tensor]]  # by trial, by modality


@dataclass(frozen=True)
class Prepared:
    """What a run is trained with, and what its network must be built from again.

    Attributes:
        backbones: Of the modalities that the run sees.
        training: Trials to train on.
        validation: Trials to choose the best weights by.
        words_dim: Width of the word vectors.
        scale: Mean and spread of the training trials' word vectors.
    """

    backbones: dict[str, nn.Module]
    training: Trials
    validation: Trials
    words_dim: int
    scale: tuple[float, float]


def prepare(
    run: Run, features: Path, weights: Weights | None = None, encoded: Encoded | None = None
) -> Prepared:
    """Makes backbones and trials of a run.

    Args:
        run: What is to be trained.
        features: What ``extract`` wrote.
        weights: Of the backbones.
        encoded: What the backbones made of the trials before; None computes it here where the
            preset asks for it.
    """
    training, validation = split(features, run.fold)
    dim, scale = words_dim(training), scale_of(run, training)
    torch.manual_seed(run.seed)  # for backbones without weights
    backbones = make_backbones(run, dim, weights)
    own = scale_of(run, validation) if run.preset.norm_stats == "partition" else scale
    return Prepared(
        backbones,
        make_trials(run, training, scale, backbones, encoded),
        make_trials(run, validation, own, backbones, encoded),
        dim,
        scale,
    )


def make_backbones(
    run: Run, words_dim: int, weights: Weights | None = None
) -> dict[str, nn.Module]:
    """Makes the backbones of what a run sees, with their weights if they are given.

    Raises:
        ValueError: The run needs word vectors and the features have none.
    """
    weights = Weights() if weights is None else weights
    if run.preset.backbones == "demo":
        return dict(build_backbones()) if weights.demo is None else load_backbones(weights.demo)
    made: dict[str, nn.Module] = {}
    for name in find_method(run.method).modalities:
        build = MODALITIES[name].encodings["full"].build
        assert build is not None, f"{name} has no published encoder"
        made[name] = build(weights, words_dim)
    return made


def missing_weights(run: Run, weights: Weights) -> list[str]:
    """One line per published backbone of the run that has no weights file."""
    if run.preset.backbones != "full":
        return []
    encodings = [MODALITIES[name].encodings["full"] for name in find_method(run.method).modalities]
    return [
        f"{encoding.title} starts from random weights (no --{encoding.option} FILE): a dry run"
        for encoding in encodings
        if encoding.option is not None and getattr(weights, encoding.option) is None
    ]


def make_accelerator(*, cpu: bool = False, mixed_precision: str = "no") -> Accelerator:
    """Finds the device and the other processes, as torchrun or accelerate started them."""
    torch.backends.cudnn.deterministic = True  # reproducible runs
    torch.backends.cudnn.benchmark = False
    return Accelerator(cpu=cpu, mixed_precision=mixed_precision)


def split(features: Path, fold: int) -> tuple[list[Features], list[Features]]:
    """The training and the validation trials of a fold.

    Raises:
        ValueError: There are none, or the fold does not exist.
    """
    everything = load_features(features)
    held = {trial.name: trial for trial in everything}
    training = [trial.name for trial in _part(everything, "train", features)]
    validation = [trial.name for trial in _part(everything, "validation", features)]
    chosen = make_fold(training, validation, fold)
    return [held[name] for name in chosen.train], [held[name] for name in chosen.validation]


def make_trials(
    run: Run,
    features: list[Features],
    scale: tuple[float, float],
    backbones: Mapping[str, nn.Module],
    encoded: Encoded | None = None,
) -> Trials:
    """Trials as a run sees them; with ``cache``, what the backbones make of them is added."""
    family = run.preset.backbones
    trials = Trials(features, find_method(run.method).modalities, family=family, scale=scale)
    if encoded is not None:
        made = [encoded[trial.name] for trial in features]
        trials = Trials(features, trials.modalities, family=family, scale=scale, encoded=made)
    elif run.preset.cache:
        trials = encode(trials, backbones)
    return shuffle_partners(trials) if run.shuffled else trials


def scale_of(run: Run, features: list[Features]) -> tuple[float, float]:
    """Mean and spread of the word vectors, where a run normalises by them."""
    sees_words = "words" in find_method(run.method).modalities
    wanted = run.preset.backbones == "full" and run.preset.norm_stats != "none" and sees_words
    return word_scale(features) if wanted and words_dim(features) else (0.0, 1.0)


def words_dim(features: list[Features]) -> int:
    """Width of the word vectors, 0 where there are none."""
    return next((t.word_vectors.shape[1] for t in features if t.word_vectors is not None), 0)


def write_setup(
    out: Path, run: Run, features: Path, prepared: Prepared, *, resume: bool = False
) -> None:
    """Writes what is needed to build the run's network again.

    Raises:
        ValueError: The folder holds another run, or this one and ``resume`` is False.
    """
    claim(out, run, resume=resume)
    out.mkdir(parents=True, exist_ok=True)
    held = {
        "run": run.described(),
        "features": str(features.resolve()),
        "words_dim": prepared.words_dim,
        "scale": prepared.scale,
    }
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

    def trials(self, partition: Partition, encoded: Encoded | None = None) -> Trials:
        """The trials of a partition (of the run's fold for train and validation).

        Args:
            partition: Which.
            encoded: What the backbones made of the trials before, if anybody kept it.
        """
        if partition == "test":
            features = _part(load_features(self.features), "test", self.features)
        else:
            features = split(self.features, self.run.fold)[partition == "validation"]
        own = self.run.preset.norm_stats == "partition"
        scale = scale_of(self.run, features) if own else self.scale
        return make_trials(self.run, features, scale, self.backbones, encoded)

    def predict(
        self, trials: Trials, *, without: tuple[str, ...] = (), cpu: bool = False
    ) -> Predictions:
        """Predicts trials, on the GPU if there is one."""
        preset = self.run.preset
        return predict(
            self.model.to("cuda" if torch.cuda.is_available() and not cpu else "cpu"),
            trials,
            size=preset.window,
            hop=preset.hop,
            target=self.run.target,
            batch=preset.batch,
            without=without,
        )


def read_saved(out: Path, features: Path | None = None) -> Saved:
    """Reads a trained run.

    Args:
        out: Its folder.
        features: Where its trials are; None takes those that it was trained with.

    Raises:
        ValueError: The folder holds no trained run.
    """
    state, path = read_checkpoint(out), out / SETUP
    if not path.exists():
        raise ValueError(f"{out}: holds no {SETUP}; train writes one")
    held: dict[str, Any] = json.loads(path.read_text())
    run = run_from(held["run"])
    backbones = make_backbones(run, held["words_dim"])
    model = build(run, backbones)
    model.load_state_dict(state["best"])
    mean, std = held["scale"]
    where = Path(held["features"]) if features is None else features
    return Saved(run, model.eval(), backbones, where, (mean, std))


def _part(everything: list[Features], partition: Partition, where: Path) -> list[Features]:
    wanted = [trial for trial in everything if trial.partition == partition]
    if not wanted:
        raise ValueError(f"{where}: holds no {partition} trials")
    return wanted
