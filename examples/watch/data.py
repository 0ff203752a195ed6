"""The smartwatch recordings that the package seglearn ships."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.common import pickles
from examples.common.recordings import WINDOW, Recordings, averaged
from examples.common.train import DataSet

INSTALL = "python -m pip install --no-deps seglearn==1.2.5"
HELD_OUT = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10))


def find_recordings() -> Path:
    """Finds the file in the installed package, whose code is not imported."""
    spec = find_spec("seglearn")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [Path(folder, "data", "watch_dataset.npy") for folder in folders]
    found = [file for file in files if file.is_file()]
    if not found:
        raise FileNotFoundError(
            "examples.watch: the smartwatch recordings are not installed\n"
            f"  got       {'no package seglearn' if not files else f'no {files[0].name} in it'}\n"
            "  expected  the file watch_dataset.npy that the package seglearn ships\n"
            f"  hint      {INSTALL}"
        )
    return found[0]


def _content(path: Path) -> dict[str, Any]:
    """Reads the dict that the file holds, a pickle behind the header of an array."""
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"examples.watch: {path} is not of version 1.0 of NumPy's format")
        np.lib.format.read_array_header_1_0(file)
        content = pickles.unpickled(file.read(), "examples.watch", pickles.ARRAYS)
    held: dict[str, Any] = content.item()
    return held


@cache
def load_recordings() -> Recordings:
    """Reads the recordings of the installed package."""
    content = _content(find_recordings())
    pieces = [averaged(torch.from_numpy(recording).float()) for recording in content["X"]]
    lengths = [len(piece) for piece in pieces]
    exercises = torch.tensor([int(exercise) for exercise in content["y"]])
    return Recordings(
        torch.cat(pieces),
        exercises.repeat_interleave(torch.tensor(lengths)),
        tuple(lengths),
        tuple(int(person) for person in content["subject"]),
        tuple(content["y_labels"]),
    )


WATCH = DataSet(
    title="Exercises of held-out subjects",
    package="seglearn",
    load=load_recordings,
    held_out=HELD_OUT,
    hop=2 * WINDOW,
    test_hop=WINDOW // 2,
    epochs=15,
)
