"""The modalities: one record each of how a stream is read, encoded and named.

A new encoder is a module in ``network/backbones.py`` and an ``Encoding`` here.

Shapes: L frames of a window, d features of a frame.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.affwild2.dataset.features import Features
from examples.affwild2.dataset.video import crop, to_unit
from examples.affwild2.network.backbones import IR50, Vectors, VGGish, load_ir50, load_vggish

Name = Literal["face", "voice", "words"]
Family = Literal["full", "demo"]  # the published encoders, or the demo's small ones


@dataclass(frozen=True)
class Cut:
    """What is read of a trial: frames ``start`` to ``stop``.

    Attributes:
        trial: The trial.
        start: First frame.
        stop: The frame after the last.
        generator: For augmentation; ``None`` for none.
        scale: Mean and standard deviation for the normalisation of word vectors.
    """

    trial: Features
    start: int
    stop: int
    generator: torch.Generator | None = None
    scale: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Weights:
    """Files with weights of backbones.

    Attributes:
        ir50: res50_ir_0.887.pth; without it IR-50 starts from random weights, frozen: a dry run.
        vggish: vggish-10086976.pth; the same.
        demo: What demo saved as backbones.pt, for the demo preset.
    """

    ir50: Path | None = None
    vggish: Path | None = None
    demo: Path | None = None


@dataclass(frozen=True)
class Encoding:
    """How a modality becomes one feature vector per frame.

    Attributes:
        read: Reads the backbone's input, (L, ...).
        widths: Output channels of the TCN's blocks.
        build: Builds the backbone from the weight files and the width of the word vectors (0 if
            there are none); ``None`` if the demo trains it (``synthetic/pretrain.py``).
        title: Name of the published network whose weights ``option`` gives.
        option: Field of ``Weights``; ``None`` if the backbone has no weights.
    """

    read: Callable[[Cut], Tensor]
    widths: tuple[int, ...]
    build: Callable[[Weights, int], nn.Module] | None = None
    title: str = ""
    option: str | None = None


@dataclass(frozen=True)
class Modality:
    """One stream.

    Attributes:
        is_present: Whether a trial has anything of it.
        reach: Which frames from one to another the file of the features reaches, (L,).
        letter: Its name in the ceilings' subsets.
        encodings: The published encoder and the demo's.
    """

    is_present: Callable[[Features], bool]
    reach: Callable[[Features, int, int], NDArray[np.bool_]]
    letter: str
    encodings: dict[Family, Encoding]


def _faces(cut: Cut) -> Tensor:
    found = np.array(cut.trial.faces[cut.start : cut.stop])
    pixels = np.zeros((cut.stop - cut.start, *found.shape[1:]), found.dtype)
    pixels[: len(found)] = found  # a file that is too short; its frames are masked
    return to_unit(crop(torch.from_numpy(pixels), cut.generator))


def _heard(trial: Features, start: int, stop: int) -> NDArray[np.bool_]:
    return trial.heard(start, stop)


def _patches(cut: Cut) -> Tensor:
    return torch.from_numpy(cut.trial.patches(cut.start, cut.stop))


def _vectors(cut: Cut) -> Tensor:
    mean, std = cut.scale
    return (torch.from_numpy(cut.trial.text(cut.start, cut.stop)) - mean) / std


def _hashed(cut: Cut) -> Tensor:
    return torch.from_numpy(cut.trial.hashed(cut.start, cut.stop))


def _build_ir50(weights: Weights, words_dim: int) -> nn.Module:
    return IR50() if weights.ir50 is None else load_ir50(weights.ir50)


def _build_vggish(weights: Weights, words_dim: int) -> nn.Module:
    return VGGish() if weights.vggish is None else load_vggish(weights.vggish)


def _build_vectors(weights: Weights, words_dim: int) -> nn.Module:
    if not words_dim:
        raise ValueError("these features have no word vectors; run extract with --bert MODEL")
    return Vectors(words_dim)


MODALITIES: dict[str, Modality] = {
    "face": Modality(
        is_present=lambda trial: bool(trial.face_present.any()),
        reach=lambda trial, start, stop: np.arange(start, stop) < len(trial.faces),
        letter="V",
        encodings={
            "full": Encoding(_faces, (512,) * 4, _build_ir50, "IR-50", "ir50"),
            "demo": Encoding(_faces, (16,) * 3),
        },
    ),
    "voice": Modality(
        is_present=lambda trial: trial.mel is not None,
        reach=_heard,
        letter="A",
        encodings={
            "full": Encoding(_patches, (128,) * 4, _build_vggish, "VGGish", "vggish"),
            "demo": Encoding(_patches, (16,) * 3),
        },
    ),
    "words": Modality(
        is_present=lambda trial: trial.word_ids is not None,
        reach=lambda trial, start, stop: np.ones(stop - start, bool),
        letter="T",
        encodings={
            "full": Encoding(_vectors, (512,) * 4, _build_vectors),
            "demo": Encoding(_hashed, (16,) * 3),
        },
    ),
}
NAMES = tuple(MODALITIES)


def own_widths(family: Family, width: int) -> tuple[int, ...]:
    """Output channels of the TCN's blocks for own features: the rule that ours follow, too."""
    return (min(width, 512),) * 4 if family == "full" else (16,) * 3


def tcn_widths(family: Family) -> dict[str, tuple[int, ...]]:
    """Output channels of each modality's TCN blocks."""
    return {name: modality.encodings[family].widths for name, modality in MODALITIES.items()}
