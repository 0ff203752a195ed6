"""Your own features: a folder with one .npy or .safetensors file per trial, (rows, width).

Shapes: L frames of a window, d features of a row.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.affwild2.dataset.features import Features
from examples.affwild2.dataset.files import DamagedFile
from examples.affwild2.dataset.mapped import Mapped
from examples.affwild2.training.modalities import NAMES

SUFFIXES = (".npy", ".safetensors")
SAMPLED = 64  # rows of a trial that mean and spread are estimated from
LOOKED_AT = 8  # rows of a trial that show whether they are all the same
SLACK = 0.1  # seconds that a file may be shorter or longer than its trial without a line


@dataclass(frozen=True)
class Stream:
    """What a network must know of own features to be built again.

    Attributes:
        name: Name of the modality.
        width: Features of a row.
        rate: Rows per second; None if there is one row per frame of the video.
    """

    name: str
    width: int
    rate: float | None = None


class OwnFeatures:
    """The own features of one modality, for all trials.

    Args:
        name: Name of the modality.
        folder: Holds ``<trial>.npy`` or ``<trial>.safetensors``, (rows, width) each.
        rate: Rows per second; None if row k belongs to the k-th frame of the video.

    Raises:
        ValueError: The name cannot be used, or the folder holds no features.
        DamagedFile: A file is no (rows, width) array of numbers, or the widths differ.
    """

    def __init__(self, name: str, folder: Path, rate: float | None = None) -> None:
        if not re.fullmatch(r"[A-Za-z]\w*", name) or name in NAMES:
            raise ValueError(
                f"--own {name}=...: a name is letters, digits and _, and none of {', '.join(NAMES)}"
            )
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"--own {name}=...@{rate:g}: the rate must be above 0 rows per second")
        if not folder.is_dir():
            raise ValueError(f"--own {name}={folder}: is not a folder")
        self.folder = folder.resolve()
        paths = sorted(path for path in self.folder.iterdir() if path.suffix in SUFFIXES)
        self.arrays: dict[str, Mapped] = {}
        for path in paths:
            if path.stem in self.arrays:
                raise DamagedFile(path, f"there is a second file for trial {path.stem}")
            self.arrays[path.stem] = _check(Mapped(path))
        if not self.arrays:
            raise ValueError(f"--own {name}={folder}: holds no .npy or .safetensors file")
        first, *rest = self.arrays.values()
        for array in rest:
            if array.shape[1] != first.shape[1]:
                raise DamagedFile(
                    array.path,
                    f"has width {array.shape[1]}; {first.path.name} has {first.shape[1]}",
                )
        self.stream = Stream(name, first.shape[1], rate)

    def rows(self, trial: Features, start: int, stop: int) -> NDArray[np.int64]:
        """The row of each frame from start to stop, -1 where there is none, (L,)."""
        index, rate = trial.index[start:stop], self.stream.rate
        array = self.arrays.get(trial.name)
        if array is None or (rate is not None and math.isnan(trial.fps)):
            return np.full(len(index), -1)
        rows = index
        if rate is not None:
            # a row counts from its time until the next; the margin is for times such as 0.1 * 10
            rows = np.floor(trial.shown_at(index) * rate + 1e-6).astype(np.int64)
        return np.where((rows >= 0) & (rows < len(array)), rows, -1)

    def present(self, trial: Features, start: int, stop: int) -> Tensor:
        """Whether each frame from start to stop has a row, (L,)."""
        return torch.from_numpy(self.rows(trial, start, stop) >= 0)

    def read(self, trial: Features, start: int, stop: int) -> Tensor:
        """The features of frames start to stop, zeros where there are none, (L, d)."""
        return torch.from_numpy(self._take(trial, self.rows(trial, start, stop)))

    def problems(self, trials: Sequence[Features]) -> Iterator[str]:
        """One line per trial without features, or with another number of rows than it needs.

        One line about those whose rows are all the same.

        Raises:
            ValueError: No trial has features here.
        """
        name = self.stream.name
        if not any(trial.name in self.arrays for trial in trials):
            raise ValueError(
                f"--own {name}={self.folder}: no file is named after a trial; wanted, for example, "
                f"{trials[0].name}.npy"
            )
        for trial in trials:
            array, rate = self.arrays.get(trial.name), self.stream.rate
            if array is None:
                yield f"{trial.name}: has no {name} in {self.folder}; it is missing there"
            elif rate is not None and math.isnan(trial.fps):
                yield f"{trial.name}: its frame rate is not known; {name} is missing there"
            else:
                yield from self._misfit(trial, array)
        if flat := [trial.name for trial in trials if self._is_flat(trial)]:
            yield (
                f"{len(flat)} of {len(trials)} trials have the same {name} in all frames (the "
                f"first is {flat[0]}); did their extraction fail?"
            )

    def _misfit(self, trial: Features, array: Mapped) -> Iterator[str]:
        """A line if a trial has another number of rows than it needs."""
        rate, rows = self.stream.rate, len(array)
        end = float(trial.shown_at(np.array([trial.frames]))[0])
        wanted = trial.frames if rate is None else end * rate
        slack = 0.5 if rate is None else max(2.0, SLACK * rate)
        if abs(rows - wanted) <= slack:
            return
        less = "fewer; the rest is masked" if rows < wanted else "more; unused"
        for count, what in (
            (len(trial), "frames with labels"),
            (int(trial.face_present.sum()), "frames with a face"),
        ):
            if rate is None and rows == count < wanted:
                less += f" (as many as {what}; frames without need rows, too)"
                break
        yield (
            f"{trial.name}: {array.path.name} of {self.stream.name} has {rows} rows, {wanted:.0f} "
            f"belong to its {trial.frames} frames: {less}"
        )

    def measure(self, trials: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """Mean and spread of each feature over some frames of every trial, (d,) each."""
        taken = [self._sample(trial, SAMPLED) for trial in trials]
        count = sum(map(len, taken))
        if not count:
            raise ValueError(f"--own {self.stream.name}: no training trial has any of it")
        # trial by trial, as float64 copies of all samples would double the memory in use
        mean = np.sum([rows.sum(0, dtype=np.float64) for rows in taken], 0) / count
        spread = np.sqrt(np.sum([np.square(rows - mean).sum(0) for rows in taken], 0) / count)
        spread[spread < 1e-6] = 1.0  # a feature that never moves
        return torch.from_numpy(mean).float(), torch.from_numpy(spread).float()

    def digest(self, trial: Features) -> bytes:
        """What a change of a trial's features would change: their number, and some values."""
        array = self.arrays.get(trial.name)
        return (
            b"" if array is None else repr(array.shape).encode() + self._sample(trial, 3).tobytes()
        )

    def _is_flat(self, trial: Features) -> bool:
        rows = self._sample(trial, LOOKED_AT) if trial.name in self.arrays else np.zeros((0, 1))
        return len(rows) > 1 and not np.ptp(rows, axis=0).any()

    def _sample(self, trial: Features, count: int) -> NDArray[np.float32]:
        rows = self.rows(trial, 0, len(trial))
        rows = rows[rows >= 0]
        return self._take(trial, rows[:: max(1, len(rows) // count)][:count])

    def _take(self, trial: Features, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        made = np.zeros((len(rows), self.stream.width), np.float32)
        known = rows >= 0
        if known.any():
            array, wanted = self.arrays[trial.name], rows[known]
            first = int(wanted.min())
            if array.path.suffix == ".npy":
                made[known] = array[wanted]
            else:
                made[known] = array[first : int(wanted.max()) + 1][wanted - first]
        if not np.isfinite(made).all():
            row = int(rows[~np.isfinite(made).all(1)][0])
            raise DamagedFile(self.arrays[trial.name].path, f"row {row} is not finite")
        return made


class Standardise(nn.Module):
    """Brings own features to mean 0 and spread 1, as measured on training trials.

    Args:
        width: Features of a row.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dim = width
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def forward(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.spread


class OwnRows:
    """The standardised own features of one trial, (T, d), read when they are indexed.

    A ``cache`` of them would hold the whole folder in memory.

    Args:
        own: The features of one modality.
        trial: Whose rows.
        standardise: Brings them to mean 0 and spread 1, on the CPU.
        length: Rows to deliver, from the first again after the last; ``None`` means T.
    """

    def __init__(
        self, own: OwnFeatures, trial: Features, standardise: nn.Module, length: int | None = None
    ) -> None:
        self.own, self.trial = own, trial
        self.length = len(trial) if length is None else length
        self.standardise = standardise

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: slice) -> Tensor:
        wanted = torch.arange(self.length)[key] % len(self.trial)
        if not len(wanted):
            return torch.zeros(0, self.own.stream.width)
        first = int(wanted.min())
        read = self.own.read(self.trial, first, int(wanted.max()) + 1)
        rows: Tensor = self.standardise(read[wanted - first])
        return rows

    def repeat(self, length: int) -> "OwnRows":
        """The same rows, cut or repeated to another length."""
        return OwnRows(self.own, self.trial, self.standardise, length)


def read_own(texts: Sequence[str]) -> tuple[OwnFeatures, ...]:
    """Reads ``NAME=FOLDER`` or ``NAME=FOLDER@RATE``.

    Raises:
        ValueError: A text has another form, or two have one name.
    """
    made: dict[str, OwnFeatures] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        folder, at, rate = rest.rpartition("@")
        if not equals or not rest:
            raise ValueError(f"--own {text}: must be NAME=FOLDER or NAME=FOLDER@RATE")
        if not at or not re.fullmatch(r"-?\d+(\.\d*)?", rate):  # an @ within the folder's name
            folder, rate = rest, ""
        if name in made:
            raise ValueError(f"--own {name}=...: is given twice")
        made[name] = OwnFeatures(name, Path(folder), float(rate) if rate else None)
    return tuple(made.values())


def _check(array: Mapped) -> Mapped:
    if len(array.shape) != 2 or not array.shape[1] or array.dtype.kind not in "fiu":
        raise DamagedFile(
            array.path,
            f"must be numbers of shape (rows, width), found {array.dtype} of shape {array.shape}",
        )
    return array
