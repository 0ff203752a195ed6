"""The smartwatch recordings that the package seglearn ships: read, normalised, cut into windows.

Shapes: S samples of all recordings end to end, n windows, L steps of a window, d features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SAMPLE_RATE = 50  # of the recordings, a second
EVERY = 4  # samples that one step averages: the movements are slow, and a run is short
WINDOW = 4 * SAMPLE_RATE // EVERY  # steps of four seconds
SENSORS = {"accelerometer": 3, "gyroscope": 3}
FOLDS = 5
INSTALL = "python -m pip install --no-deps seglearn==1.2.5"


@dataclass(frozen=True)
class Recordings:
    """All recordings end to end.

    Attributes:
        signal: (S, 6), the accelerometer's three axes, then the gyroscope's.
        lengths: Samples of each recording.
        people: Who made each recording.
        exercises: Which exercise it is, an index into ``names``.
        names: The exercises.
    """

    signal: Tensor
    lengths: tuple[int, ...]
    people: tuple[int, ...]
    exercises: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def starts(self) -> list[int]:
        """The first sample of each recording."""
        return [0, *np.cumsum(self.lengths)[:-1].tolist()]

    def of(self, people: set[int]) -> list[int]:
        """The recordings that these people made."""
        return [k for k, person in enumerate(self.people) if person in people]


@dataclass(frozen=True)
class Fold:
    """A division of the recordings, by person.

    Attributes:
        train: Recordings to learn from.
        test: Recordings of people who are in none of these.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]


def find_recordings() -> Path:
    """Finds the file inside the installed package, whose code is not imported."""
    spec = find_spec("seglearn")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [Path(folder, "data", "watch_dataset.npy") for folder in folders]
    found = [file for file in files if file.is_file()]
    if not found:
        raise FileNotFoundError(
            "examples.watch: the smartwatch recordings are not here\n"
            f"  got       {'no package seglearn' if not files else f'no {files[0].name} in it'}\n"
            "  expected  the file watch_dataset.npy that the package seglearn ships\n"
            f"  hint      {INSTALL}"
        )
    return found[0]


def load_recordings(file: Path | None = None) -> Recordings:
    """Reads the recordings.

    Args:
        file: Where they are; None finds them in the installed package seglearn.
    """
    # The file is a pickled dict, so it is as trustworthy as the package that ships it.
    content = np.load(file or find_recordings(), allow_pickle=True).item()
    pieces = [averaged(torch.from_numpy(recording).float()) for recording in content["X"]]
    return Recordings(
        torch.cat(pieces),
        tuple(len(piece) for piece in pieces),
        tuple(int(person) for person in content["subject"]),
        tuple(int(exercise) for exercise in content["y"]),
        tuple(content["y_labels"]),
    )


def averaged(recording: Tensor) -> Tensor:
    """Averages neighbouring samples: (S, d) in, (S // EVERY, d) out."""
    steps = len(recording) // EVERY
    kept = recording[: steps * EVERY].reshape(steps, EVERY, recording.shape[1])
    return kept.mean(dim=1)


def fold(recordings: Recordings, index: int) -> Fold:
    """Keeps two people for testing: fold k of five tests on the k-th pair."""
    people = sorted(set(recordings.people))
    held_out = set(people[2 * index : 2 * index + 2])
    return Fold(
        tuple(recordings.of(set(people) - held_out)),
        tuple(recordings.of(held_out)),
    )


def moments(recordings: Recordings, members: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Measures mean and standard deviation of each of the six axes, (6,) each."""
    pieces = torch.split(recordings.signal, list(recordings.lengths))
    samples = torch.cat([pieces[k] for k in members])
    return samples.mean(dim=0), samples.std(dim=0)


@dataclass(frozen=True)
class Windows:
    """Windows of four seconds.

    Attributes:
        streams: (n, L, 3) for each sensor.
        exercises: (n,).
    """

    streams: dict[str, Tensor]
    exercises: Tensor

    def batches(self, size: int, generator: torch.Generator) -> Iterator["Windows"]:
        """Yields the windows in a random order."""
        order = torch.randperm(len(self.exercises), generator=generator)
        for part in torch.split(order, size):
            streams = {name: stream[part] for name, stream in self.streams.items()}
            yield Windows(streams, self.exercises[part])


def cut(
    recordings: Recordings,
    members: tuple[int, ...],
    hop: int,
    generator: torch.Generator | None = None,
) -> Windows:
    """Cuts recordings into windows.

    Args:
        recordings: All of them.
        members: Those to cut.
        hop: Steps from the start of a window to that of the next.
        generator: Draws where the first window of each recording starts, below ``hop``; None
            starts at the first sample.
    """
    starts: list[int] = []
    exercises: list[int] = []
    for k in members:
        room = recordings.lengths[k] - WINDOW
        first = 0
        if generator is not None:
            first = int(torch.randint(min(hop, room + 1), (), generator=generator))
        inside = range(first, room + 1, hop)
        starts.extend(recordings.starts[k] + start for start in inside)
        exercises.extend([recordings.exercises[k]] * len(inside))
    steps = torch.tensor(starts)[:, None] + torch.arange(WINDOW)
    parts = torch.split(recordings.signal[steps], list(SENSORS.values()), dim=-1)
    return Windows(dict(zip(SENSORS, parts, strict=True)), torch.tensor(exercises))
