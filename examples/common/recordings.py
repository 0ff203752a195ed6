"""Recordings of sensors with a label for each step: normalised, cut into windows, split by person.

Shapes: S steps of all recordings end to end, n windows, L steps of a window, d axes of a sensor.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SENSORS = {"accelerometer": 3, "gyroscope": 3}
EVERY = 4  # samples that one step averages: people are slow, and a run is short
SAMPLE_RATE = 50  # of the recordings, per second
WINDOW = 4 * SAMPLE_RATE // EVERY  # steps of four seconds
UNLABELLED = -1


@dataclass(frozen=True)
class Recordings:
    """All recordings end to end.

    Attributes:
        signal: (S, 6), the accelerometer's three axes, then the gyroscope's.
        labels: (S,), an index into ``names``, or -1 for a step without a label.
        lengths: Steps of each recording.
        people: The subject of each recording.
        names: The classes.
    """

    signal: Tensor
    labels: Tensor
    lengths: tuple[int, ...]
    people: tuple[int, ...]
    names: tuple[str, ...]

    @cached_property
    def starts(self) -> list[int]:
        """The first step of each recording."""
        return [sum(self.lengths[:k]) for k in range(len(self.lengths))]

    def of(self, people: Collection[int]) -> tuple[int, ...]:
        """The recordings of these people."""
        return tuple(k for k, person in enumerate(self.people) if person in people)


@dataclass(frozen=True)
class Fold:
    """A division of the recordings by person.

    Attributes:
        train: Recordings to train on.
        test: Recordings of people who are in none of these.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]


def fold(recordings: Recordings, people: Collection[int], held_out: Collection[int]) -> Fold:
    """Divides the recordings of some people into those of the held-out ones and the rest."""
    trained = set(people) - set(held_out)
    return Fold(recordings.of(trained), recordings.of(set(held_out)))


def averaged(recording: Tensor) -> Tensor:
    """Averages neighbouring samples: (S, d) to (S // EVERY, d)."""
    steps = len(recording) // EVERY
    kept = recording[: steps * EVERY].reshape(steps, EVERY, recording.shape[1])
    return kept.mean(dim=1)


def moments(recordings: Recordings, members: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Computes mean and standard deviation of each of the six axes, (6,) each."""
    pieces = torch.split(recordings.signal, list(recordings.lengths))
    samples = torch.cat([pieces[k] for k in members])
    return samples.mean(dim=0), samples.std(dim=0)


@dataclass(frozen=True)
class Windows:
    """Windows of one length.

    Attributes:
        streams: (n, L, d) of each sensor.
        labels: (n,), those of the middle steps.
    """

    streams: dict[str, Tensor]
    labels: Tensor

    def batches(self, size: int) -> Iterator["Windows"]:
        """Yields the windows, ``size`` at a time."""
        for part in torch.split(torch.arange(len(self.labels)), size):
            streams = {name: stream[part] for name, stream in self.streams.items()}
            yield Windows(streams, self.labels[part])


def middles(
    recordings: Recordings,
    members: tuple[int, ...],
    hop: int,
    *,
    window: int = WINDOW,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Lists the middle steps of the windows of some recordings, (n,), if they have a label.

    Args:
        recordings: All of them.
        members: Those to cut.
        hop: Steps from the start of a window to that of the next.
        window: Steps of a window.
        generator: Draws the start of the first window of each recording, below ``hop``; None
            starts at the first step.
    """
    starts: list[int] = []
    for k in members:
        room = recordings.lengths[k] - window
        first = 0
        if generator is not None and room >= 0:
            first = int(torch.randint(min(hop, room + 1), (), generator=generator))
        starts.extend(recordings.starts[k] + start for start in range(first, room + 1, hop))
    steps = torch.tensor(starts, dtype=torch.long) + window // 2
    return steps[recordings.labels[steps] != UNLABELLED]


def around(recordings: Recordings, steps: Tensor, window: int) -> Windows:
    """Takes the window around each of the steps (n,); each has the label of its step.

    A window that would leave its recording is moved into it.
    """
    ends = torch.tensor(recordings.lengths).cumsum(dim=0)
    recording = torch.searchsorted(ends, steps, right=True)
    lengths = torch.tensor(recordings.lengths)[recording]
    if (lengths < window).any():
        raise ValueError(f"a recording of {lengths.min()} steps has no window of {window}")
    last = ends[recording]
    first = (steps - window // 2).clamp(last - lengths, last - window)
    signal = recordings.signal[first[:, None] + torch.arange(window)]
    parts = torch.split(signal, list(SENSORS.values()), dim=-1)
    return Windows(dict(zip(SENSORS, parts, strict=True)), recordings.labels[steps])


def cut(
    recordings: Recordings, members: tuple[int, ...], hop: int, *, window: int = WINDOW
) -> Windows:
    """Cuts recordings into windows; those without a label in the middle are left out."""
    return around(recordings, middles(recordings, members, hop, window=window), window)
