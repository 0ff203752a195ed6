"""Runs commands of the Aff-Wild2 example on eight trials of features with two own streams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.affwild2.__main__ import main
from tests.support.affwild2_official import write_trial

PARTITIONS = ("train",) * 5 + ("validation", "test", "test")
LENGTHS = (40, 33, 52, 47, 60, 45, 38, 20)
NAMES = [f"video{i:05d}" for i in range(len(LENGTHS))]
SAMPLE = "image_location,valence,arousal\nvideo00006/00001.jpg,0,0\n"


def write_corpus(root: Path) -> Path:
    """Writes ``features``, own features in ``mae`` and ``clip``, and ``sample.txt``."""
    rng = np.random.default_rng(0)
    for name, partition, length in zip(NAMES, PARTITIONS, LENGTHS, strict=True):
        write_trial(root / "features", name, partition, length, 0)
        for own, width in (("mae", 3), ("clip", 2)):
            (root / own).mkdir(exist_ok=True)
            np.save(root / own / f"{name}.npy", rng.integers(-9, 9, (length, width)) / 4)
    (root / "sample.txt").write_text(SAMPLE)
    return root


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """Runs a command; returns its one line if it fails, nothing if it does not."""
    monkeypatch.setattr("sys.argv", ["affwild2", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        said = str(ended.code)
        assert "\n" not in said
        assert not said.isdecimal()
        return said
    return ""


def train(monkeypatch: pytest.MonkeyPatch, root: Path, *more: object, out: str = "run") -> str:
    """Trains on both own streams for an epoch; returns as ``run``."""
    return run(
        monkeypatch,
        "train",
        *("--features", root / "features", "--out", root / out, "--preset", "demo", "--cpu"),
        *("--own", f"mae={root / 'mae'}", f"clip={root / 'clip'}", "--modalities", "mae", "clip"),
        *("--method", "concatenation", "--epochs", 1, *more),
    )
