"""Cuts trials into batches of windows, of raw frames or of features that backbones made before.

Shapes: B windows, S frames of a window, T frames of a trial, d features.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.affwild2.dataset.features import Features
from examples.affwild2.dataset.folds import Window
from examples.affwild2.training.modalities import MODALITIES, Cut, Encoding, Family
from examples.affwild2.training.own import OwnFeatures, OwnRows

Target = Literal["valence", "arousal"]
TARGETS: tuple[Target, ...] = ("valence", "arousal")
CHUNK = 128  # frames that a backbone sees at once


@dataclass(frozen=True)
class Batch:
    """Windows, ready for the network.

    Attributes:
        streams: What each backbone takes, or its features, (B, S, ...).
        masks: Which frames each modality has, (B, S) each; a row of False where it is missing.
        labels: The target, (B, S).
        valid: Which labels count, (B, S).
        padding: Which frames lie beyond the end of the trial, (B, S).
    """

    streams: dict[str, Tensor]
    masks: dict[str, Tensor]
    labels: Tensor
    valid: Tensor
    padding: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            {name: x.to(device) for name, x in self.streams.items()},
            {name: x.to(device) for name, x in self.masks.items()},
            self.labels.to(device),
            self.valid.to(device),
            self.padding.to(device),
        )


@dataclass(frozen=True)
class Trials:
    """Trials to cut windows from.

    Attributes:
        features: What ``extract`` wrote.
        modalities: Those to deliver.
        family: Whose encoders the frames are read for.
        scale: Mean and standard deviation that word vectors are normalised by.
        encoded: Features of each trial, (T, d), where backbones have been run before; own features
            stay on disk.
        own: The user's own features, by the name of their modality.
        partners: Trials that all modalities but the first come from (``shuffle_partners``).
    """

    features: Sequence[Features]
    modalities: tuple[str, ...]
    family: Family = "demo"
    scale: tuple[float, float] = (0.0, 1.0)
    encoded: Sequence[Mapping[str, Tensor | OwnRows]] | None = None
    own: Mapping[str, OwnFeatures] = field(default_factory=dict)
    partners: Sequence[Features] | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(trial) for trial in self.features]

    def _encoding(self, modality: str) -> Encoding:
        return MODALITIES[modality].encodings[self.family]

    def choose(self, names: Sequence[str]) -> "Trials":
        """Keeps the trials with these names, in this order."""
        where = {trial.name: i for i, trial in enumerate(self.features)}
        kept = [where[name] for name in names]
        encoded = None if self.encoded is None else [self.encoded[i] for i in kept]
        partners = None if self.partners is None else [self.partners[i] for i in kept]
        features = [self.features[i] for i in kept]
        return replace(self, features=features, encoded=encoded, partners=partners)

    def see(self, modalities: tuple[str, ...]) -> "Trials":
        """Delivers only these modalities."""
        return replace(self, modalities=modalities)

    def frames(
        self, trial: int, start: int, stop: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """What the modalities are from one frame to another, (L, ...) each.

        Args:
            trial: Its number.
            start: First frame.
            stop: The frame after the last.
            generator: Draws how faces are cropped and mirrored; None takes the middle.

        Raises:
            ValueError: A number is not finite.
        """
        source = self.features[trial]
        if self.encoded is not None:
            streams = {name: self.encoded[trial][name][start:stop] for name in self.modalities}
        else:
            cut = Cut(source, start, stop, generator, self.scale)
            streams = {
                name: self.own[name].read(source, start, stop)
                if name in self.own
                else self._encoding(name).read(cut)
                for name in self.modalities
            }
        for name, stream in streams.items():
            if not bool(torch.isfinite(stream).all()):
                row = int((~torch.isfinite(stream.flatten(1))).any(1).nonzero()[0])
                raise ValueError(
                    f"{source.name}: its {name} features are not finite at frame "
                    f"{int(source.index[start + row]) + 1}; extract or mend them first"
                )
        return streams

    def present(self, trial: int, modality: str, start: int, stop: int) -> Tensor:
        """Whether a trial has anything of a modality, frame by frame from start to stop, (L,)."""
        if self.partners is not None and modality != self.modalities[0]:
            partner = self.partners[trial]
            whole = self._present(partner, modality, 0, len(partner))
            return whole[torch.arange(start, stop) % len(partner)]
        return self._present(self.features[trial], modality, start, stop)

    def _present(self, source: Features, modality: str, start: int, stop: int) -> Tensor:
        if modality in self.own:
            return self.own[modality].present(source, start, stop)
        present = torch.full((stop - start,), MODALITIES[modality].is_present(source))
        return present & torch.from_numpy(MODALITIES[modality].reach(source, start, stop))

    def batch(
        self,
        windows: Sequence[Window],
        size: int,
        target: Target,
        generators: Sequence[torch.Generator | None] | None = None,
    ) -> Batch:
        """Cuts windows of ``size`` frames; what lies beyond a trial's end is zero."""
        cuts = []
        for i, (trial, start) in enumerate(windows):
            source = self.features[trial]
            stop = min(start + size, len(source))
            streams = self.frames(trial, start, stop, generators[i] if generators else None)
            inside = torch.arange(size) < stop - start
            cuts.append(
                Batch(
                    {name: _padded(x, size) for name, x in streams.items()},
                    {
                        name: _padded(self.present(trial, name, start, stop), size)
                        for name in self.modalities
                    },
                    _padded(
                        torch.from_numpy(source.labels[start:stop, TARGETS.index(target)]), size
                    ),
                    _padded(torch.from_numpy(source.valid[start:stop]), size),
                    ~inside,
                )
            )
        return Batch(
            {name: torch.stack([cut.streams[name] for cut in cuts]) for name in self.modalities},
            {name: torch.stack([cut.masks[name] for cut in cuts]) for name in self.modalities},
            torch.stack([cut.labels for cut in cuts]),
            torch.stack([cut.valid for cut in cuts]),
            torch.stack([cut.padding for cut in cuts]),
        )


def encode(trials: Trials, backbones: Mapping[str, nn.Module]) -> Trials:
    """Runs frozen backbones over whole trials once, so that windows are cut from their features."""
    ours = trials.see(tuple(name for name in trials.modalities if name not in trials.own))
    own = {name: trials.own[name] for name in trials.modalities if name in trials.own}
    # copies: the network's move to its device
    standardise = {name: copy.deepcopy(backbones[name]).eval() for name in own}
    encoded: list[dict[str, Tensor | OwnRows]] = []
    with torch.no_grad():
        for i, length in enumerate(trials.lengths):
            parts = [
                {name: backbones[name].eval()(x) for name, x in frames.items()}
                for start in range(0, length if ours.modalities else 0, CHUNK)
                for frames in [ours.frames(i, start, min(start + CHUNK, length))]
            ]
            rows = {
                name: OwnRows(one, trials.features[i], standardise[name])
                for name, one in own.items()
            }
            made = {name: torch.cat([part[name] for part in parts]) for name in ours.modalities}
            encoded.append({**made, **rows})
    return replace(trials, encoded=encoded)


def shuffle_partners(trials: Trials) -> Trials:
    """Gives every trial's first modality the others of the next trial (repeated or cut to fit).

    Raises:
        ValueError: The trials have not been encoded.
    """
    if trials.encoded is None:
        raise ValueError("shuffling partners needs a preset with cache=True")
    first, count = trials.modalities[0], len(trials.features)
    mixed: list[dict[str, Tensor | OwnRows]] = []
    for i, length in enumerate(trials.lengths):
        own, other = trials.encoded[i], trials.encoded[(i + 1) % count]
        mixed.append(
            {name: own[name] if name == first else _repeat(x, length) for name, x in other.items()}
        )
    partners = [trials.features[(i + 1) % count] for i in range(count)]
    return replace(trials, encoded=mixed, partners=partners)


def word_scale(features: Sequence[Features]) -> tuple[float, float]:
    """Mean and standard deviation of all entries of the word vectors, zeros included.

    Every word counts once for each of its frames: it is read once, not frame by frame.
    """
    count, total, squares = 0, 0.0, 0.0
    for trial in features:
        words = trial.word_vectors
        assert words is not None, "asked of trials with word vectors alone"
        spoken = trial.word_index[trial.word_index >= 0]
        frames = np.bincount(spoken, minlength=len(words)).astype(np.float64)
        count += len(trial) * words.shape[1]
        total += float(frames @ words.sum(1, dtype=np.float64))
        squares += float(frames @ np.square(words, dtype=np.float64).sum(1))
    mean = total / max(count, 1)
    return mean, max(squares / max(count, 1) - mean**2, 1e-12) ** 0.5


def _repeat(rows: Tensor | OwnRows, length: int) -> Tensor | OwnRows:
    """Cuts or repeats rows to another length."""
    if isinstance(rows, OwnRows):
        return rows.repeat(length)
    return rows[torch.arange(length) % len(rows)]


def _padded(x: Tensor, size: int) -> Tensor:
    """Appends zeros along the first axis."""
    return functional.pad(x, [0] * (2 * x.ndim - 1) + [size - len(x)])
