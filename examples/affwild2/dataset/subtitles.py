"""Reads subtitles, .srt and .vtt: lines with times, and times of words where the file has them.

Times of words come in two forms: ``<00:00:01.440>`` inside a line (WebVTT, as video platforms write
it), and a cue for each word in which ``<u>`` marks it (Whisper's ``--highlight_words``).
"""

import html
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from examples.affwild2.dataset.files import DamagedFile, read_lines

TIME = r"(?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3}"
ARROW = re.compile(rf"\s*({TIME})\s*-->\s*({TIME})")
INLINE = re.compile(rf"<({TIME})>")
MARKED = re.compile(r"<u>(.*?)</u>", re.DOTALL)
MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")
NOT_SAID = re.compile(r"\[[^\]]*\]|\([^)]*\)|[♪♫]")  # [Music], (laughs)


class Line(NamedTuple):
    """Text that is shown from ``start`` to ``end``, in s."""

    start: float
    end: float
    text: str


def read_subtitles(path: Path) -> list[Line]:
    """Reads the lines, or single words, that a file of subtitles gives times for.

    Raises:
        DamagedFile: The file cannot be read, or gives no times.
    """
    cues = list(_cues(read_lines(path)))
    if any(MARKED.search(cue.text) for cue in cues):
        cues = [cue._replace(text=" ".join(MARKED.findall(cue.text))) for cue in cues]
    if any(INLINE.search(cue.text) for cue in cues):
        cues = [part for cue in _without_repeats(cues) for part in _timed(cue)]
    said = [cue._replace(text=_plain(cue.text)) for cue in cues]
    lines = [line for line in said if line.text and line.end > line.start]
    if not lines:
        raise DamagedFile(path, "gives no words with times 'start --> end'")
    return lines


def said_of(text: str) -> str:
    """The text without what describes other sounds."""
    return " ".join(NOT_SAID.sub(" ", text).split())


def _cues(lines: list[str]) -> Iterator[Line]:
    """Finds the lines with an arrow; what follows up to an empty line is the text."""
    starts = [i for i, line in enumerate(lines) if ARROW.match(line)]
    for i, stop in pairwise([*starts, len(lines)]):
        found = ARROW.match(lines[i])
        assert found is not None
        body = lines[i + 1 : stop]
        if "" in body:
            body = body[: body.index("")]
        elif stop < len(lines) and body and body[-1].strip().isdecimal():
            del body[-1]  # the number of the next cue, where no empty line comes before it
        yield Line(_seconds(found[1]), _seconds(found[2]), "\n".join(body))


def _without_repeats(cues: list[Line]) -> Iterator[Line]:
    """Drops the lines that a rolling display shows again in the next cue."""
    shown: set[str] = set()
    for cue in cues:
        lines = cue.text.splitlines()
        new = [line for line in lines if INLINE.search(line) or _plain(line) not in shown]
        shown = {_plain(line) for line in lines}
        yield cue._replace(text="\n".join(new))


def _timed(cue: Line) -> Iterator[Line]:
    """Cuts a cue at the times inside its text."""
    first, *rest = INLINE.split(cue.text)
    starts = [cue.start, *map(_seconds, rest[::2]), cue.end]
    for (start, end), text in zip(pairwise(starts), [first, *rest[1::2]], strict=True):
        yield Line(start, end, text)


def _plain(text: str) -> str:
    return said_of(html.unescape(MARKUP.sub("", text)))


def _seconds(text: str) -> float:
    *hours, minutes, seconds = text.replace(",", ".").split(":")
    return 3600 * float(hours[0] if hours else 0) + 60 * float(minutes) + float(seconds)
