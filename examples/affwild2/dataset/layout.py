"""Finds the trials of Aff-Wild2 on disk and reads their labels, in the official layout.

A trial is one person in one video. Expected below the root (both spellings of the annotations)::

    6th ABAW Annotations/VA_Estimation_Challenge/{Train_Set,Validation_Set}/<trial>.txt
    6th_ABAW_Annotations/VA/{train,validate}/<trial>.txt
    cropped_aligned/<trial>/00001.jpg ...
    <any folder>/<video>.mp4 | <video>.avi | <video>.wav
    <any folder>/<video>.csv                   words: start;end;word;confidence in ms
    frame_rates.csv                            video,fps,frames: only where there is no video file
    names_of_videos_in_each_test_set/Valence_Arousal_Estimation_Challenge_test_set_release.txt
    CVPR_6th_ABAW_VA_test_set_sample.txt       image_location,valence,arousal
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)
Partition = Literal["train", "validation", "test"]
PARTITIONS: tuple[Partition, ...] = ("train", "validation", "test")

FACES = "cropped_aligned"
TEST_NAMES = Path(
    "names_of_videos_in_each_test_set/Valence_Arousal_Estimation_Challenge_test_set_release.txt"
)
TEST_SAMPLE = Path("CVPR_6th_ABAW_VA_test_set_sample.txt")
FRAME_RATES = Path("frame_rates.csv")
HEADER = "valence,arousal"
ANNOTATIONS: dict[Partition, tuple[str, ...]] = {
    "train": (
        "6th ABAW Annotations/VA_Estimation_Challenge/Train_Set",
        "6th_ABAW_Annotations/VA/train",
    ),
    "validation": (
        "6th ABAW Annotations/VA_Estimation_Challenge/Validation_Set",
        "6th_ABAW_Annotations/VA/validate",
    ),
}
VIDEO, SOUND, WORDS = (".mp4", ".avi"), (".wav", ".flac"), (".csv",)


class DamagedFile(ValueError):
    """A file of the data set that cannot be used; the message is one line, its path first."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")


@dataclass(frozen=True)
class Trial:
    """One person in one video, and where its files lie.

    Attributes:
        name: Name of the trial: the video's, possibly with ``_left`` or ``_right``.
        partition: Where it belongs.
        source: Name of the video that sound, words and frame rate come from.
        faces: Folder of face crops (it may not exist).
        labels: Annotation file; ``None`` for a test trial.
        video: The video file, if there is one.
        sound: Its sound as a separate file, if there is one.
        transcript: Its words, if there are any.
    """

    name: str
    partition: Partition
    source: str
    faces: Path
    labels: Path | None
    video: Path | None
    sound: Path | None
    transcript: Path | None


@dataclass(frozen=True)
class Layout:
    """What was found below a root: trials in lexicographic order within each partition.

    Attributes:
        root: The folder.
        trials: All trials, train first.
        rates: Frames per second and number of frames of the videos listed in ``frame_rates.csv``.
        problems: One line per thing missing from the tree itself.
    """

    root: Path
    trials: tuple[Trial, ...]
    rates: dict[str, tuple[float, int]]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Annotation:
    """Labels of one trial.

    Attributes:
        values: Valence and arousal of every frame as written, (T, 2).
        valid: Whether both lie in [-1, 1], (T,); -5 means that nobody rated the frame.
        problems: One line about rows that are not numbers.
    """

    values: NDArray[np.float32]
    valid: NDArray[np.bool_]
    problems: tuple[str, ...]


def resolve(root: Path) -> Layout:
    """Finds every trial below ``root``.

    Raises:
        ValueError: ``root`` is no folder, or holds neither annotations nor a test list.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; give the folder that holds {FACES}/")
    media = _index_media(root)
    sources = {path.stem for suffix in (*VIDEO, *SOUND) for path in media.get(suffix, {}).values()}
    problems: list[str] = []
    rates = _read_rates(root / FRAME_RATES, problems)
    sources |= set(rates)
    trials: dict[str, Trial] = {}
    for partition in PARTITIONS:
        for name, labels in _names(root, partition, problems):
            if name in trials:
                kept = trials[name].partition
                problems.append(f"{labels or root / TEST_NAMES}: {name} is in {kept} already")
            else:
                trials[name] = _trial(root, name, partition, labels, sources, media)
    if not trials:
        raise ValueError(
            f"{root}: found no trials; expected {ANNOTATIONS['train'][0]}/*.txt or {TEST_NAMES}"
        )
    return Layout(root, tuple(trials.values()), rates, tuple(problems))


def source_of(trial: str, sources: set[str]) -> str:
    """Strips ``_left`` or ``_right`` where the rest names a video (video10_1_left: video10_1)."""
    if trial in sources:
        return trial
    for suffix in ("_left", "_right"):
        if trial.endswith(suffix) and trial.removesuffix(suffix) in sources:
            return trial.removesuffix(suffix)
    return trial


def read_annotation(path: Path) -> Annotation:
    """Reads one annotation file: the header ``valence,arousal``, then one line per frame.

    Raises:
        DamagedFile: The file is missing, empty or no text, has another header, or no valid frame.
    """
    lines = read_lines(path)
    if lines[0].replace(" ", "").lower() != HEADER:
        raise DamagedFile(path, f"line 1 must be {HEADER!r}, found {lines[0][:40]!r}")
    values = np.array([_pair(line) for line in lines[1:]], np.float32).reshape(-1, 2)
    valid = np.asarray(((values >= -1) & (values <= 1)).all(axis=1))
    if not valid.any():
        raise DamagedFile(path, f"has no valid frame among its {len(values)}")
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    problems = [
        f"{path}: {len(broken)} of {len(values)} lines are not two numbers (the first is line "
        f"{broken[0] + 2}); those frames are left out"
        for _ in broken[:1]
    ]
    return Annotation(values, valid, tuple(problems))


def fit_length(rows: NDArray[Number], length: int) -> NDArray[Number]:
    """Cuts ``rows`` to ``length`` or repeats the last one, (T, ...) -> (length, ...)."""
    if not len(rows):
        raise ValueError("fit_length: there is no row to repeat")
    return rows[np.minimum(np.arange(length), len(rows) - 1)]


def read_lines(path: Path) -> list[str]:
    """Reads a text file without the empty lines at its end.

    Raises:
        DamagedFile: It is missing, empty or no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DamagedFile(path, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DamagedFile(path, "is not a text file") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DamagedFile(path, "is empty")
    return lines


def _names(
    root: Path, partition: Partition, problems: list[str]
) -> Iterator[tuple[str, Path | None]]:
    if partition == "test":
        yield from ((name, None) for name in _test_names(root, problems))
        return
    for folder in ANNOTATIONS[partition]:
        if (root / folder).is_dir():
            paths = sorted((root / folder).glob("[!.]*.txt"))  # no ._name.txt, which some zips hold
            yield from ((path.stem, path) for path in paths)
            return
    problems.append(f"{root / ANNOTATIONS[partition][0]}: no such folder; no {partition} trials")


def _test_names(root: Path, problems: list[str]) -> list[str]:
    try:
        return sorted({line.strip() for line in read_lines(root / TEST_NAMES)} - {""})
    except DamagedFile as error:
        problems.append(f"{error}; no test trials")
        return []


def _trial(
    root: Path,
    name: str,
    partition: Partition,
    labels: Path | None,
    sources: set[str],
    media: dict[str, dict[str, Path]],
) -> Trial:
    source = source_of(name, sources)

    def find(suffixes: tuple[str, ...]) -> Path | None:
        return next((media[s][source] for s in suffixes if source in media.get(s, {})), None)

    return Trial(
        name, partition, source, root / FACES / name, labels, find(VIDEO), find(SOUND), find(WORDS)
    )


def _index_media(root: Path) -> dict[str, dict[str, Path]]:
    """Lists media by suffix and name, without walking through millions of face crops."""
    skipped = {
        FACES,
        "truth",
        *(path.split("/")[0] for group in ANNOTATIONS.values() for path in group),
    }
    found: dict[str, dict[str, Path]] = {}
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and folder.name not in skipped:
            for path in sorted(folder.rglob("*")):
                if path.suffix.lower() in {*VIDEO, *SOUND, *WORDS}:
                    found.setdefault(path.suffix.lower(), {}).setdefault(path.stem, path)
    return found


def _read_rates(path: Path, problems: list[str]) -> dict[str, tuple[float, int]]:
    """Reads ``video,fps,frames``; the file is only there where there are no video files."""
    rates: dict[str, tuple[float, int]] = {}
    try:
        lines = read_lines(path)[1:] if path.exists() else []
    except DamagedFile as error:
        problems.append(str(error))
        return rates
    for number, line in enumerate(lines, start=2):
        video, *rest = line.rsplit(",", 2)
        try:
            fps, frames = float(rest[0]), int(rest[1])
        except (ValueError, IndexError):
            fps, frames = 0.0, 0
        if frames > 0 and 0 < fps < float("inf"):
            rates[video] = (fps, frames)
        else:
            problems.append(
                f"{path}: line {number} must be 'video,fps,frames', found {line[:40]!r}"
            )
    return rates


def _pair(line: str) -> tuple[float, float]:
    """Reads ``-0.024, 0.279``; anything else is not a number."""
    try:
        valence, arousal = line.split(",")
        return float(valence), float(arousal)
    except ValueError:
        return float("nan"), float("nan")
