"""The challenge's test file: what it wants, and how predictions are written."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from examples.affwild2.dataset.files import DamagedFile, read_lines, whole
from examples.affwild2.dataset.layout import HEADER


class SampleRow(NamedTuple):
    """One row of the sample file: where its picture lies, of which trial, and its number from 1."""

    location: str
    trial: str
    frame: int


def read_sample(path: Path) -> list[SampleRow]:
    """Reads which frames the challenge wants, in its order.

    Raises:
        DamagedFile: The file is missing or empty, its header is another one (of another track, or
            quoted), or a row names no picture.
    """
    header, *lines = read_lines(path)
    if header.replace(" ", "").lower() != f"image_location,{HEADER}".replace(" ", ""):
        raise DamagedFile(path, f"line 1 must be 'image_location,{HEADER}', found {header[:40]!r}")
    rows = []
    for number, line in enumerate(lines, start=2):
        location, *values = (part.strip() for part in line.split(","))
        trial, _, picture = location.rpartition("/")
        frame = picture.split(".")[0]
        odd = len(values) != len(HEADER.split(",")) or not set("\"'").isdisjoint(location)
        if odd or not (trial and frame.isdecimal() and int(frame)):
            raise DamagedFile(
                path, f"line {number} must be 'trial/00001.jpg,0,0', found {line[:40]!r}"
            )
        rows.append(SampleRow(location, trial, int(frame)))
    return rows


def read_sample_lengths(path: Path) -> dict[str, int]:
    """Counts the frames that the test file wants of each trial; raises as ``read_sample``."""
    lengths: dict[str, int] = {}
    for row in read_sample(path):
        lengths[row.trial] = max(lengths.get(row.trial, 0), row.frame)
    return lengths


def write_challenge_file(
    path: Path, sample: Path, valence: Mapping[str, Tensor], arousal: Mapping[str, Tensor]
) -> list[str]:
    """Writes the challenge's test file: the rows of the sample file, in its order.

    A prediction that is too short is extended by its last value; a trial without one gets zeros.

    Returns:
        One line per trial without a prediction, or with one that is too short.

    Raises:
        DamagedFile: The sample file cannot be used.
        ValueError: A prediction is not finite, or no trial of the sample file has one.
    """
    wanted = read_sample(sample)
    both = {
        name: (valence[name].tolist(), arousal[name].tolist())
        for name in dict.fromkeys(row.trial for row in wanted)
        if name in valence and name in arousal
    }
    if not both:
        raise ValueError(f"{sample}: no trial of this file has a prediction; is it the right file?")
    for name, pair in both.items():
        if not all(math.isfinite(value) for part in pair for value in part):
            raise ValueError(f"{name}: its predictions are not finite; nothing is written")
    rows = [f"image_location,{HEADER}"]
    for location, trial, frame in wanted:
        v, a = (part[min(frame, len(part)) - 1] for part in both.get(trial, ([0.0], [0.0])))
        rows.append(f"{location},{v:.6f},{a:.6f}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a file")
    with whole(path) as partial:
        partial.write_text("\n".join(rows) + "\n")
    return list(_problems(wanted, {name: len(pair[0]) for name, pair in both.items()}))


def _problems(wanted: list[SampleRow], lengths: Mapping[str, int]) -> Iterator[str]:
    beyond = Counter(row.trial for row in wanted if row.frame > lengths.get(row.trial, 0))
    for name, count in beyond.items():
        if name in lengths:
            yield f"{name}: {count} rows lie beyond its predictions; they repeat the last value"
        else:
            yield f"{name}: has no features; its rows are zeros"
