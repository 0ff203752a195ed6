"""Reads text files in one line of trouble, and writes whole files or none."""

import codecs
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CONTROL = set(range(32)) - set(b"\t\n\r\f")  # bytes that no text has


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives another name to write to, and renames it when the block ends well.

    Raises:
        OSError: As the block raises it, with the file's name; nothing is left of what was written.
    """
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with named(path):
            yield partial
    except BaseException:
        with suppress(OSError):
            _remove(partial)
        raise
    if path.is_dir():
        shutil.rmtree(path)  # the new one is whole: a run that is stopped here writes it again
    partial.replace(path)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Gives an error of the disk that names no file this one.

    Raises:
        OSError: As the block raises it.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        if error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        reason = f"{error}; is the disk full?"  # numpy gives none
        raise OSError(f"{path}: cannot be written ({reason})") from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def hold(path: Path, who: str) -> Iterator[None]:
    """Holds a lock file, so that no second run writes into the same folder.

    Raises:
        ValueError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(
                f"{who}: {path.parent} is in use by {file.read().strip() or 'another process'}; "
                "wait for it, or name a new folder"
            ) from error
        with named(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        yield


def stamp(*paths: Path | None) -> dict[str, list[int]]:
    """Size and time of change of files and folders, by which a changed one is known."""
    found = {path: path.stat() for path in paths if path is not None and path.exists()}
    return {
        str(path): [0 if path.is_dir() else status.st_size, status.st_mtime_ns]
        for path, status in found.items()
    }


class DamagedFile(ValueError):
    """A file of the data set that cannot be used; the message is one line, its path first."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")


def decode(content: bytes) -> str:
    """Decodes UTF-8, or what spreadsheets write: UTF-16 with its mark, or the Western code page.

    Raises:
        UnicodeDecodeError: It is no text.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        if set(content) & CONTROL:
            raise
        return content.decode("cp1252")


def read_lines(path: Path) -> list[str]:
    """Reads a text file without the empty lines at its end.

    Raises:
        DamagedFile: It is missing, empty or no text.
    """
    try:
        lines = decode(path.read_bytes()).splitlines()
    except OSError as error:
        raise DamagedFile(path, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DamagedFile(path, "is not a text file") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DamagedFile(path, "is empty")
    return lines


def read_object(path: Path) -> dict[str, Any]:
    """Reads an object of JSON.

    Raises:
        DamagedFile: It cannot be read, or is no object.
    """
    try:
        held = json.loads(path.read_text())
    except OSError as error:
        raise DamagedFile(path, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DamagedFile(path, f"is damaged ({error})") from error
    if not isinstance(held, dict):
        raise DamagedFile(path, "is damaged (it holds no object)")
    return held
