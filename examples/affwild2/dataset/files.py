"""Reads text files in one line of trouble, and writes whole files or none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives another name to write to, and renames it when the block ends well."""
    partial = path.with_name(f".{path.name}.partial")
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    yield partial
    partial.replace(path)


class DamagedFile(ValueError):
    """A file of the data set that cannot be used; the message is one line, its path first."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")


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
