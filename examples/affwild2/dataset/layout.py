"""Finds the trials of Aff-Wild2 on disk and reads their labels, in any edition's layout.

A trial is one person in one video. Files are found by what they are, anywhere below the root::

    <any folders>/{Train_Set,Validation_Set}/<trial>.txt    header valence,arousal; or train, val
    <any folders>/<trial>/00001.jpg ...                     crops: any picture with a number
    <any folders>/<video>.mp4, .avi, .mkv, .mov, .wav, ...
    <any folders>/<video>.csv, .json, .tsv, .vtt or .srt    words with times, see transcript.py
    <any folders>/*Valence_Arousal*test_set*.txt            names of the test trials, one per line
    <any folders>/*.txt                                     header image_location,valence,arousal
    frame_rates.csv                                         video,fps,frames: where no video is

``ANNOTATIONS``, ``FACES``, ``TEST_NAMES`` and ``TEST_SAMPLE`` are where ``make-data`` puts them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from examples.affwild2.dataset.files import DamagedFile, read_lines
from examples.affwild2.dataset.media import SOUND, VIDEO, index_media, media_of
from examples.affwild2.dataset.scan import Scan, scan

Number = TypeVar("Number", bound=np.generic)
Rates = dict[str, tuple[float, int]]
Partition = Literal["train", "validation", "test"]
PARTITIONS: tuple[Partition, ...] = ("train", "validation", "test")

FACES = "cropped_aligned"
TEST_NAMES = Path(
    "names_of_videos_in_each_test_set/Valence_Arousal_Estimation_Challenge_test_set_release.txt"
)
TEST_SAMPLE = Path("CVPR_6th_ABAW_VA_test_set_sample.txt")
FRAME_RATES = Path("frame_rates.csv")
HEADER = "valence,arousal"
UNRATED = -5.0
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
SETS: dict[Partition, re.Pattern[str]] = {
    "train": re.compile(r"train(ing)?([ _-]?set)?", re.IGNORECASE),
    "validation": re.compile(r"val(id|idate|idation)?([ _-]?set)?", re.IGNORECASE),
}


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
        first: Number of the first frame's crop, 1 or 0.
    """

    name: str
    partition: Partition
    source: str
    faces: Path
    labels: Path | None
    video: Path | None
    sound: Path | None
    transcript: Path | None
    first: int = 1


@dataclass(frozen=True)
class Layout:
    """What was found below a root: trials in lexicographic order within each partition.

    Attributes:
        root: The folder.
        trials: All trials, train first.
        rates: Frames per second and number of frames of the videos listed in ``frame_rates.csv``.
        sample: The challenge's sample of a prediction file, if there is one.
        missing: One line per set of trials that the tree does not have.
        problems: One line per thing in the tree that does not fit.
    """

    root: Path
    trials: tuple[Trial, ...]
    rates: Rates
    sample: Path | None
    missing: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Annotation:
    """Labels of one trial.

    Attributes:
        values: Valence and arousal of every frame as written, (T, 2).
        valid: Whether both lie in [-1, 1], (T,); -5 means that nobody rated the frame.
        problems: Lines about rows that are not numbers or out of range.
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
    found = scan(root)
    problems, missing = list(found.problems), list[str]()
    media = index_media(found, problems)
    rates = _read_rates(root / FRAME_RATES, problems)
    sources = {name for suffix in (*VIDEO, *SOUND) for name in media.get(suffix, {})} | set(rates)
    sample = _find_sample(root, found, problems)
    trials: dict[str, Trial] = {}
    for partition, name, labels in _names(root, found, sample, missing, problems):
        if name in trials:
            kept = trials[name].partition
            problems.append(f"{labels or root / TEST_NAMES}: {name} is in {kept} already")
        else:
            source = source_of(name, sources)
            faces = found.crops.get(name, [root / FACES / name])[0]
            trials[name] = Trial(
                name,
                partition,
                source,
                faces,
                labels,
                *media_of(media, source, problems),
                first=0 if faces.parent in found.from_zero else 1,
            )
    if not trials:
        others = [line for name in ANNOTATIONS for line in _other_annotations(found, name)]
        raise ValueError(
            f"{root}: found no trials; expected {ANNOTATIONS['train'][0]}/*.txt or {TEST_NAMES}, "
            f"below any folder of any edition{''.join(others[:1])}"
        )
    problems += _other_crops(root, found, set(trials))
    problems += [
        f"{folder}: its crops are numbered from 0; number 0 is the first frame"
        for folder in sorted({trial.faces.parent for trial in trials.values() if not trial.first})
    ]
    return Layout(
        root,
        tuple(trials.values()),
        rates,
        sample,
        tuple(missing),
        tuple(dict.fromkeys(problems)),
    )


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
    numbers = np.isfinite(values).all(axis=1)
    outside = np.flatnonzero(numbers & ~valid & (values != UNRATED).all(axis=1))
    broken = np.flatnonzero(~numbers)
    problems = [
        f"{path}: {len(broken)} of {len(values)} lines are not two numbers (the first is line "
        f"{broken[0] + 2}); those frames are left out"
        for _ in broken[:1]
    ]
    problems += [
        f"{path}: {len(outside)} of {len(values)} lines lie outside of [-1, 1] and are not -5 (the "
        f"first is line {row + 2}: {lines[row + 1][:40]!r}); those frames are left out; is it "
        "another scale?"
        for row in outside[:1]
    ]
    if not valid.any():
        hint = f", of which {len(outside)} lie outside of [-1, 1]" if len(outside) else ""
        raise DamagedFile(path, f"has no valid frame among its {len(values)}{hint}")
    return Annotation(values, valid, tuple(problems))


def fit_length(rows: NDArray[Number], length: int) -> NDArray[Number]:
    """Cuts ``rows`` to ``length`` or repeats the last one, (T, ...) -> (length, ...)."""
    if not len(rows):
        raise ValueError("fit_length: there is no row to repeat")
    return rows[np.minimum(np.arange(length), len(rows) - 1)]


def _names(
    root: Path, found: Scan, sample: Path | None, missing: list[str], problems: list[str]
) -> Iterator[tuple[Partition, str, Path | None]]:
    """Lists partition, name and labels of every trial, by name in each partition."""
    sets = _annotation_sets(found, problems)
    for partition in PARTITIONS[:2]:
        if partition not in sets:
            place = root / ANNOTATIONS[partition][0]
            found_instead = "".join(_other_annotations(found, partition))
            missing.append(f"{place}: no such folder; no {partition} trials{found_instead}")
        for path in sets.get(partition, []):
            yield partition, path.stem, path
    for name in _test_names(root, found, sample, missing, problems):
        yield "test", name, None


def _annotation_sets(found: Scan, problems: list[str]) -> dict[Partition, list[Path]]:
    """Finds the two folders of valence and arousal, those of one edition."""
    folders: dict[Path, list[Path]] = {}
    for path in found.files:
        if path.suffix.lower() == ".txt":
            folders.setdefault(path.parent, []).append(path)
    editions: dict[Path, dict[Partition, list[Path]]] = {}
    for folder, paths in folders.items():
        for partition, spelling in SETS.items():
            if spelling.fullmatch(folder.name) and any(map(_is_annotation, paths)):
                editions.setdefault(folder.parent, {})[partition] = paths
    if not editions:
        return {}
    ordered = sorted(editions, key=lambda folder: (len(editions[folder]), _natural(folder)))
    *others, chosen = ordered
    if others:
        problems.append(
            f"{chosen}: its annotations are used; there are others in "
            f"{', '.join(map(str, others))}: move those of the other editions away"
        )
    return editions[chosen]


def _other_annotations(found: Scan, partition: Partition) -> Iterator[str]:
    """Describes a file that lies where an annotation is expected, and begins otherwise."""
    for path in found.files:
        if path.suffix.lower() == ".txt" and SETS[partition].fullmatch(path.parent.name):
            yield f" ({path} begins {_first_line(path)[:40]!r}, not {HEADER!r})"
            return


def _is_annotation(path: Path) -> bool:
    return _first_line(path).replace(" ", "").lower() == HEADER


def _find_sample(root: Path, found: Scan, problems: list[str]) -> Path | None:
    """Finds the sample of a prediction file by its header; predictions have the same one."""
    samples = [
        path
        for path in found.files
        if path.suffix.lower() in {".txt", ".csv"} and _is_sample(_first_line(path))
    ]
    named = [p for p in samples if re.search("sample|example", str(p.relative_to(root)).lower())]
    ordered = sorted(named or samples, key=_natural)
    if len(ordered) > 1:
        problems.append(
            f"{ordered[-1]}: gives the lengths of the test trials; there are other sample files: "
            f"{', '.join(map(str, ordered[:-1]))}"
        )
    return ordered[-1] if ordered else None


def _is_sample(header: str) -> bool:
    words = re.sub(r"[\s\"']", "", header).lower()
    return re.fullmatch(r"image_location[,;]valence[,;]arousal", words) is not None


def _test_names(
    root: Path, found: Scan, sample: Path | None, missing: list[str], problems: list[str]
) -> list[str]:
    """Reads the list of test trials, or takes the trials of the sample file."""
    lists = [
        path
        for path in found.files
        if path.suffix.lower() == ".txt"
        and re.search(r"valence[ _-]?arousal.*test[ _-]?set|va[ _-]test[ _-]set", path.name.lower())
        and not _first_line(path).lower().startswith("image_location")
    ]
    if not lists and sample is not None:
        rows = [line.rpartition("/")[0] for line in read_lines(sample)[1:]]
        return [name for name in sorted(set(rows)) if is_name(name)]
    if not lists:
        missing.append(f"{root / TEST_NAMES}: no such file; no test trials")
        return []
    path = max(lists, key=_natural)
    try:
        names = {line.strip(): number for number, line in enumerate(read_lines(path), start=1)}
    except DamagedFile as error:
        problems.append(f"{error}; no test trials")
        return []
    problems += [
        f"{path}: line {names[name]}, {name[:60]!r}, is a path or hidden, no name; it is left out"
        for name in sorted(set(names) - {""})
        if not is_name(name)
    ]
    return [name for name in sorted(names) if is_name(name)]


def is_name(name: str) -> bool:
    """Whether this can be the name of a trial: of one folder, not hidden, in one line."""
    return bool(name) and not name.startswith(".") and name.isprintable() and not {*name} & {*"/\\"}


def _other_crops(root: Path, found: Scan, trials: set[str]) -> list[str]:
    """One line per pair of folders that hold crops of the same trials."""
    shared: dict[tuple[Path, Path], int] = {}
    for name in trials & found.crops.keys():
        first, *others = found.crops[name]
        for other in others:
            pair = (first.parent, other.parent)
            shared[pair] = shared.get(pair, 0) + 1
    return [
        f"{used}: its crops are used; {other.relative_to(root)} holds {count} of the same trials"
        for (used, other), count in sorted(shared.items())
    ]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 10th after 9th."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in _DIGITS.split(str(path))
    ]


_DIGITS = re.compile(r"(\d+)")


def _first_line(path: Path) -> str:
    """The first line of a text file, nothing where there is none."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.readline(400).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _read_rates(path: Path, problems: list[str]) -> Rates:
    """Reads ``video,fps,frames``; the file is only there where there are no video files."""
    rates: Rates = {}
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
