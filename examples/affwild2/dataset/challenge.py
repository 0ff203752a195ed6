"""The challenge's test file: what it wants, and how predictions are written."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from examples.affwild2.dataset.files import DamagedFile, read_lines
from examples.affwild2.dataset.layout import HEADER


class SampleRow(NamedTuple):
    """One row of the sample file: where its picture lies, of which trial, and its number from 1."""

    location: str
    trial: str
    frame: int


def read_sample(path: Path) -> list[SampleRow]:
    """Reads which frames the challenge wants, in its order.

    Raises:
        DamagedFile: The file is missing or empty, its header is another one, or a row names no
            picture.
    """
    header, *lines = read_lines(path)
    if not header.replace(" ", "").startswith("image_location"):
        raise DamagedFile(path, f"line 1 must be 'image_location,{HEADER}', found {header[:40]!r}")
    rows = []
    for number, line in enumerate(lines, start=2):
        location = line.split(",")[0].strip()
        trial, _, picture = location.rpartition("/")
        frame = picture.split(".")[0]
        if not (trial and frame.isdecimal() and int(frame)):
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
        The names of the trials without a prediction.

    Raises:
        DamagedFile: The sample file cannot be used.
    """
    wanted = read_sample(sample)
    both = {
        name: (valence[name].tolist(), arousal[name].tolist())
        for name in dict.fromkeys(row.trial for row in wanted)
        if name in valence and name in arousal
    }
    rows = [f"image_location,{HEADER}"]
    for location, trial, frame in wanted:
        v, a = (part[min(frame, len(part)) - 1] for part in both.get(trial, ([0.0], [0.0])))
        rows.append(f"{location},{v:.6f},{a:.6f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    return [name for name in dict.fromkeys(row.trial for row in wanted) if name not in both]
