"""Puts a run together from options: backbones and trials."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]  # ships no types
from torch import Tensor, nn

from examples.affwild2.dataset.features import Features, load_features
from examples.affwild2.dataset.folds import make_fold
from examples.affwild2.dataset.layout import Partition
from examples.affwild2.synthetic.pretrain import build_backbones, load_backbones
from examples.affwild2.training.modalities import MODALITIES, Weights
from examples.affwild2.training.own import OwnFeatures, Standardise
from examples.affwild2.training.runs import Run
from examples.affwild2.training.trials import Trials, encode, shuffle_partners, word_scale

Encoded = Mapping[str, Mapping[str, Tensor]]  # by trial, by modality


@dataclass(frozen=True)
class Prepared:
    """What a run is trained with, and what its network must be built from again.

    Attributes:
        backbones: Of the modalities that the run sees.
        training: Trials to train on.
        selection: Trials to choose the best weights by.
        validation: Trials to report on; the same as ``selection`` unless the preset says otherwise.
        words_dim: Width of the word vectors.
        scale: Mean and spread of the training trials' word vectors.
        identity: Digest of the features of both.
        trained: Names of the trials to train on, those of ``selection`` included if they are held
            out of training.
        problems: One line per trial with features that are absent, too few or too many.
    """

    backbones: dict[str, nn.Module]
    training: Trials
    selection: Trials
    validation: Trials
    words_dim: int
    scale: tuple[float, float]
    identity: str
    trained: tuple[str, ...]
    problems: tuple[str, ...] = ()


def prepare(
    run: Run,
    features: Path,
    weights: Weights | None = None,
    encoded: Encoded | None = None,
    own: Sequence[OwnFeatures] = (),
) -> Prepared:
    """Makes backbones and trials of a run.

    Args:
        run: What is to be trained.
        features: What ``extract`` wrote.
        weights: Of the backbones.
        encoded: What the backbones made of the trials before; None computes it here where the
            preset asks for it.
        own: The user's own features, those of ``run.own``.

    Raises:
        ValueError: The features do not fit the run.
    """
    training, validation = split(features, run.fold)
    seen = [one for one in own if one.stream.name in run.design.modalities]
    problems = list(find_problems(run, [*training, *validation], seen))
    dim, scale = words_dim(training), scale_of(run, training)
    torch.manual_seed(run.seed)  # for backbones without weights
    backbones = make_backbones(run, dim, weights)
    for one in seen:
        backbones[one.stream.name] = measured = Standardise(one.stream.width)
        measured.mean, measured.spread = one.measure(training)
    other = scale_of(run, validation) if run.preset.norm_stats == "partition" else scale
    reported = make_trials(run, validation, other, backbones, encoded, own)
    trials, selection = make_trials(run, training, scale, backbones, encoded, own), reported
    if run.preset.select:
        names = [trial.name for trial in training]
        held = names[run.preset.select - 1 :: run.preset.select]
        if not held:
            raise ValueError(f"train: {len(names)} training trials, too few to hold one out")
        selection = trials.choose(held)
        trials = trials.choose([name for name in names if name not in held])
    return Prepared(
        backbones,
        trials,
        selection,
        reported,
        dim,
        scale,
        identify([*training, *validation], own),
        tuple(trial.name for trial in training),
        tuple(problems),
    )


def find_problems(
    run: Run, trials: Sequence[Features], own: Sequence[OwnFeatures]
) -> Iterator[str]:
    """One line per trial and modality whose features are absent, too few or too many.

    One line per modality of ours that trials do not have at all, since ``extract`` names them.
    """
    for one in own:
        yield from one.problems(trials)
    ours = [name for name in run.design.modalities if name in MODALITIES]
    for name in ours:
        if absent := sum(not MODALITIES[name].is_present(trial) for trial in trials):
            yield f"{absent} of {len(trials)} trials have no {name}; it is missing there"
    for trial in trials:
        for name in ours:
            modality = MODALITIES[name]
            short = int((~modality.reach(trial, 0, len(trial))).sum())
            if short and modality.is_present(trial):
                yield f"{trial.name}: {short} of {len(trial)} frames have no {name}; masked"


def identify(trials: Sequence[Features], own: Sequence[OwnFeatures] = ()) -> str:
    """Digest of trials: frames, labels, sizes of all features, and some of their values.

    A run is trained, scored and resumed on the same features; others have another digest.
    """
    digest = hashlib.sha256()
    for trial in sorted(trials, key=lambda trial: trial.name):
        digest.update(f"{trial.name} {trial.partition} {trial.frames} {trial.fps}".encode())
        for values in (trial.index, trial.labels, trial.valid, trial.mel_rows, trial.word_index):
            digest.update(np.ascontiguousarray(values).tobytes())
        if trial.times is not None:
            digest.update(trial.times.tobytes())
        for some in (trial.faces, trial.mel, trial.word_ids, trial.word_vectors):
            if some is not None:
                digest.update(repr(some.shape).encode())
                digest.update(np.array(some[:: max(1, len(some) // 2)]).tobytes())
        for one in own:
            digest.update(one.stream.name.encode() + one.digest(trial))
    return digest.hexdigest()


def make_backbones(
    run: Run, words_dim: int, weights: Weights | None = None
) -> dict[str, nn.Module]:
    """Makes the backbones of what a run sees, with their weights if they are given.

    Raises:
        ValueError: The run needs word vectors and the features have none.
    """
    weights = Weights() if weights is None else weights
    made: dict[str, nn.Module] = {one.name: Standardise(one.width) for one in run.own}
    ours = [name for name in run.design.modalities if name not in made]
    if run.preset.backbones == "demo":
        return made | dict(
            build_backbones() if weights.demo is None else load_backbones(weights.demo)
        )
    for name in ours:
        build = MODALITIES[name].encodings["full"].build
        assert build is not None, f"{name} has no published encoder"
        made[name] = build(weights, words_dim)
    return made


def missing_weights(run: Run, weights: Weights) -> list[str]:
    """One line per published backbone of the run that has no weights file."""
    if run.preset.backbones != "full":
        return []
    ours = [name for name in run.design.modalities if name in MODALITIES]
    encodings = [MODALITIES[name].encodings["full"] for name in ours]
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
    training = [trial.name for trial in part_of(everything, "train", features)]
    validation = [trial.name for trial in part_of(everything, "validation", features)]
    chosen = make_fold(training, validation, fold)
    return [held[name] for name in chosen.train], [held[name] for name in chosen.validation]


def make_trials(
    run: Run,
    features: list[Features],
    scale: tuple[float, float],
    backbones: Mapping[str, nn.Module],
    encoded: Encoded | None = None,
    own: Sequence[OwnFeatures] = (),
) -> Trials:
    """Trials as a run sees them; with ``cache``, what the backbones make of them is added."""
    seen, family = run.design.modalities, run.preset.backbones
    held = {one.stream.name: one for one in own if one.stream.name in seen}
    trials = Trials(features, seen, family=family, scale=scale, own=held)
    if encoded is not None:
        more = encode(trials.see(tuple(held)), backbones).encoded
        assert more is not None
        made = [{**encoded[t.name], **rows} for t, rows in zip(features, more, strict=True)]
        trials = replace(trials, encoded=made)
    elif run.preset.cache:
        trials = encode(trials, backbones)
    return shuffle_partners(trials) if run.shuffled else trials


def scale_of(run: Run, features: list[Features]) -> tuple[float, float]:
    """Mean and spread of the word vectors, where a run normalises by them."""
    sees_words = "words" in run.design.modalities
    wanted = run.preset.backbones == "full" and run.preset.norm_stats != "none" and sees_words
    return word_scale(features) if wanted and words_dim(features) else (0.0, 1.0)


def words_dim(features: list[Features]) -> int:
    """Width of the word vectors, 0 where there are none."""
    return next((t.word_vectors.shape[1] for t in features if t.word_vectors is not None), 0)


def part_of(everything: list[Features], partition: Partition, where: Path) -> list[Features]:
    wanted = [trial for trial in everything if trial.partition == partition]
    if not wanted:
        raise ValueError(f"{where}: holds no {partition} trials")
    return wanted
