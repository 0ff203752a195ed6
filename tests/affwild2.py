"""Generated trees for the tests of the Aff-Wild2 example, made once per run."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.affwild2.generate import make_data


def tree(factory: pytest.TempPathFactory, *, mp4: bool = False) -> Path:
    """Returns the tiny tree of seed 0, with wav files or as mp4; nobody may change it."""
    root = factory.getbasetemp() / ("affwild2-mp4" if mp4 else "affwild2-wav")
    if not root.exists():
        make_data(root, size="tiny", seed=0, mp4=mp4)
    return root
