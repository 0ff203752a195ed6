"""Walks a tree of data once, without reading the millions of face crops in it.

A folder of crops is known by its numbered pictures and is not read further than the first few.
"""

import os
import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
PEEK = 32  # entries that decide whether a folder holds crops
NUMBER = re.compile(r"\d+$")


@dataclass
class Scan:
    """What lies below a root.

    Attributes:
        files: All files except crops and hidden ones, sorted.
        crops: The folders of crops by their name, which is a trial's.
        from_zero: Folders of such folders in which any crop has the number 0.
        problems: One line per folder that cannot be read.
    """

    files: list[Path] = field(default_factory=list)
    crops: dict[str, list[Path]] = field(default_factory=dict)
    from_zero: set[Path] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def scan(root: Path) -> Scan:
    """Lists what lies below ``root``, through links to other disks, each folder once."""
    found = Scan()
    seen: set[str] = set()
    folders = [root]
    while folders:
        folder = folders.pop()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                first = [entry.name for entry in islice(entries, PEEK)]
                if folder != root and _holds_crops(first):
                    found.crops.setdefault(folder.name, []).append(folder)
                    if _has_zero(folder, first):
                        found.from_zero.add(folder.parent)
                    continue
                names = sorted([*first, *(entry.name for entry in entries)])
        except OSError as error:
            found.problems.append(f"{folder}: cannot be read ({error.strerror})")
            continue
        for path in (folder / name for name in names if _is_wanted(name)):
            (folders if path.is_dir() else found.files).append(path)
    found.files.sort()
    for same in found.crops.values():
        same.sort(key=lambda path: ("aligned" not in str(path.relative_to(root)).lower(), path))
    return found


def crop_number(name: str) -> int | None:
    """Returns the number that a crop's name ends with, ``None`` for any other file."""
    stem, dot, suffix = name.rpartition(".")
    digits = NUMBER.search(stem)
    if name.startswith(".") or digits is None or f"{dot}{suffix}".lower() not in PICTURES:
        return None
    return int(digits.group())


def _holds_crops(names: list[str]) -> bool:
    """More numbered pictures than anything else, among the first entries."""
    return 2 * sum(crop_number(name) is not None for name in names) > len(names)


def _has_zero(folder: Path, names: list[str]) -> bool:
    """Whether the crop with the number 0 is there, by the pattern of another one's name."""
    name = next(name for name in names if crop_number(name) is not None)
    stem, _, suffix = name.rpartition(".")
    zero = NUMBER.sub(lambda digits: "0" * len(digits.group()), stem)
    return (folder / f"{zero}.{suffix}").exists()


def _is_wanted(name: str) -> bool:
    """Neither hidden nor what one system's zip files add."""
    return not name.startswith(".") and name != "__MACOSX"
