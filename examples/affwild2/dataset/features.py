"""Reads back what ``extract`` wrote: one ``Features`` per trial, big arrays mapped, not loaded.

Shapes: T kept frames of a trial, N log-mel rows and n words of its video.
"""

import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from examples.affwild2.dataset.audio import BANDS, MISSING, PATCH, gather_patches
from examples.affwild2.dataset.files import DamagedFile
from examples.affwild2.dataset.layout import PARTITIONS, Partition
from examples.affwild2.dataset.mapped import Mapped
from examples.affwild2.dataset.text import gather_words
from examples.affwild2.dataset.video import Clock

TRIALS, SOURCES = "trials", "videos"


@dataclass(frozen=True)
class Features:
    """One trial, ready to be cut into windows.

    Attributes:
        name: Of the trial.
        partition: Where it belongs.
        source: The video that sound and words come from.
        fps: Video frames per second; NaN if no file gives it (then there is no sound, no words).
        frames: Frames of the whole trial, dropped ones included.
        index: Kept frames, counted from 0, (T,).
        labels: Valence and arousal, zeros where there are none, (T, 2).
        valid: Whether the labels count, (T,).
        faces: RGB, black where there is no face, (T, 48, 48, 3).
        face_present: Whether there is one, (T,).
        mel: Log-mel rows of the video, (N, 64); ``None`` without sound.
        mel_rows: Where each frame's patch begins, -1 where the sound is missing, (T,).
        word_ids: Hashed words of the video, (n,); ``None`` without a transcript.
        word_vectors: BERT vectors of the words, (n, d), none of them without a transcript; ``None``
            if they were not asked for.
        word_index: The word of each frame, -1 for none, (T,).
        times: When each frame of the video is shown, in s; ``None``: frame i at i / fps.
    """

    name: str
    partition: Partition
    source: str
    fps: float
    frames: int
    index: NDArray[np.int64]
    labels: NDArray[np.float32]
    valid: NDArray[np.bool_]
    faces: NDArray[np.uint8]
    face_present: NDArray[np.bool_]
    mel: NDArray[np.float32] | None
    mel_rows: NDArray[np.int64]
    word_ids: NDArray[np.int64] | None
    word_vectors: NDArray[np.float32] | None
    word_index: NDArray[np.int32]
    times: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def patches(self, start: int, stop: int) -> NDArray[np.float32]:
        """Log-mel patches of frames start to stop, (L, 96, 64); zeros without sound."""
        rows, heard = self.mel_rows[start:stop], self.heard(start, stop)
        patches = np.zeros((len(rows), PATCH, BANDS), np.float32)
        if self.mel is not None:
            patches[heard] = gather_patches(self.mel, rows[heard])
        return patches

    def heard(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether anything is known of the sound at frames start to stop, (L,)."""
        rows = self.mel_rows[start:stop]
        length = 0 if self.mel is None else len(self.mel)
        known: NDArray[np.bool_] = (rows != MISSING) & (rows + PATCH <= length)
        return known

    def shown_at(self, frames: NDArray[np.int64]) -> NDArray[np.float64]:
        """Times of frames of the video, counted from 0, in s; NaN if its rate is not known."""
        return Clock(self.fps, self.frames, self.times).at(frames)

    def hashed(self, start: int, stop: int) -> NDArray[np.int64]:
        """Hashed words of frames start to stop, 0 for none, (L,)."""
        index = self.word_index[start:stop]
        if self.word_ids is None:
            return np.zeros(len(index), np.int64)
        return np.append(self.word_ids, 0)[index]

    def text(self, start: int, stop: int) -> NDArray[np.float32]:
        """Word vectors of frames start to stop, zeros for none, (L, d).

        Raises:
            ValueError: The features were extracted without BERT.
        """
        if self.word_vectors is None:
            raise ValueError(f"{self.name}: has no word vectors; run extract with --bert MODEL")
        return gather_words(self.word_vectors, self.word_index[start:stop])


def load_features(out: Path, partition: Partition | None = None) -> list[Features]:
    """Reads the trials that ``extract`` completed, by name.

    Args:
        out: The folder given to ``extract``.
        partition: Only these; ``None`` means all.

    Raises:
        ValueError: There is none.
    """
    folders = sorted(path.parent for path in (out / TRIALS).glob("[!.]*/meta.json"))
    trials = _with_vectors([_load(out, folder) for folder in folders])
    chosen = [trial for trial in trials if partition in {None, trial.partition}]
    if not chosen:
        raise ValueError(f"{out}: holds no {partition or ''} features; run extract first")
    return chosen


def _with_vectors(trials: list[Features]) -> list[Features]:
    """Gives trials without a transcript no words of the width that the others' vectors have."""
    widths = [t.word_vectors.shape[1] for t in trials if t.word_vectors is not None]
    if not widths:
        return trials
    none = np.zeros((0, widths[0]), np.float32)
    return [t if t.word_vectors is not None else replace(t, word_vectors=none) for t in trials]


def _load(out: Path, folder: Path) -> Features:
    try:
        return _checked(folder, _read(out, folder))
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DamagedFile):
            raise
        said = f"{type(error).__name__}: {error}"
        raise DamagedFile(folder, f"cannot be read ({said}); extract it again") from error


def _read(out: Path, folder: Path) -> Features:
    meta = json.loads((folder / "meta.json").read_text())
    source = out / SOURCES / meta["source"]
    words = _arrays(source / "words.npz") if (source / "words.npz").exists() else {}
    times = source / "times.npy"
    return Features(
        name=folder.name,
        partition=meta["partition"],
        source=meta["source"],
        fps=float("nan") if meta["fps"] is None else meta["fps"],
        frames=meta["frames"],
        # a Mapped is read by rows as an array is
        faces=cast(NDArray[np.uint8], Mapped(folder / "faces.npy")),
        mel=cast(NDArray[np.float32], Mapped(source / "mel.npy")) if meta["sound"] else None,
        word_ids=words.get("ids"),
        word_vectors=words.get("vectors"),
        times=np.load(times) if times.exists() else None,
        **_arrays(folder / "frames.npz"),
    )


def _checked(folder: Path, trial: Features) -> Features:
    """Returns the trial if its arrays belong together and its labels are labels.

    Raises:
        DamagedFile: They do not, or they are not.
    """
    for name in ("labels", "valid", "face_present", "mel_rows", "word_index"):
        if len(getattr(trial, name)) != len(trial):
            found = len(getattr(trial, name))
            raise DamagedFile(
                folder, f"has {len(trial)} frames and {found} of {name}; extract it again"
            )
    words = 0 if trial.word_ids is None else len(trial.word_ids)
    if trial.word_ids is not None and trial.word_index.max(initial=-1) >= words:
        raise DamagedFile(folder, f"has frames with other words than the {words} of its video")
    if trial.partition not in PARTITIONS:
        raise DamagedFile(folder, f"is of no partition, found {trial.partition!r}")
    rated = trial.labels[trial.valid]
    if not len(rated) or not (np.abs(rated) <= 1).all():
        what = "labels outside of [-1, 1] that count" if len(rated) else "no label that counts"
        raise DamagedFile(folder, f"has {what}; extract it again")
    return trial


def _arrays(path: Path) -> dict[str, Any]:
    with path.open("rb") as file, np.load(file) as held:  # np.load leaves a damaged file open
        return dict(held)
