"""Reads words with their times from what speech tools write, and writes our own form.

- ``start;end;word;confidence`` in ms, with or without a header: ours and the authors'. Without one,
  also ``start,end,word`` with commas or tabs, in s.
- Any table (comma, semicolon, tab) whose header names a word, a start and an end or a duration, in
  any order. A unit in the header counts (``start_ms``); else it is seconds, for ``offset`` and
  ``duration`` ticks of 100 ns.
- The JSON of Whisper, WhisperX, whisper.cpp, Vosk and of services that list words, in seconds or in
  the unit that a key names; also several values one after the other.
- Subtitles, .srt and .vtt, see ``subtitles.py``.

Where only lines have times, their words share the time by length, which is reported. A unit that
does not fit the length of the video is replaced by the one that does.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from examples.affwild2.dataset.files import DamagedFile, decode, read_lines
from examples.affwild2.dataset.subtitles import read_subtitles, said_of

FORM = "start;end;word;confidence"
UNITS = {"ms": 1.0, "s": 1000.0, "ticks of 100 ns": 1e-4, "µs": 1e-3, "ns": 1e-6}  # in ms
SHORTEST, LONGEST = 15.0, 5000.0  # ms of the median word
SPARE = 2000.0  # ms that the last word may end after the video
TIMED = {"start", "timestamp", "offsets"}  # keys of a line in JSON that has times
COLUMNS = {
    "word": {"word", "text", "token", "display", "lexical", "punctuatedword"},
    "start": {"start", "begin", "onset", "starttime", "begintime", "from", "startoffset", "offset"},
    "end": {"end", "stop", "endtime", "stoptime", "to", "endoffset", "finish"},
    "duration": {"duration", "dur", "length"},
    "confidence": {"confidence", "conf", "score", "probability", "prob", "p"},
}
SUBTITLES = (".srt", ".vtt")
INSIDE = (  # where JSON holds words or lines
    "segments",
    "transcription",
    "words",
    "word_segments",
    "result",
    "results",
    "chunks",
    "channels",
    "alternatives",
    "items",
    "recognizedPhrases",
    "nBest",
    "monologues",
    "elements",
)
BETWEEN = re.compile(r"[\s,]*")  # two values of JSON
BEST_FIRST = {"alternatives", "nBest"}  # hypotheses
SUFFIXES = {
    "ms": "ms",
    "millis": "ms",
    "msec": "ms",
    "milliseconds": "ms",
    "s": "s",
    "sec": "s",
    "secs": "s",
    "seconds": "s",
    "ticks": "ticks of 100 ns",
    "100ns": "ticks of 100 ns",
    "us": "µs",
    "ns": "ns",
}


@dataclass(frozen=True)
class Word:
    """A word and when it was said, in ms."""

    start: float
    end: float
    text: str
    confidence: float = 1.0


@dataclass(frozen=True)
class _Table:
    """How the rows of a table are read: where each column is, and the unit of its times."""

    delimiter: str
    columns: dict[str, int]
    unit: str
    header: bool


_OURS = _Table(";", {"start": 0, "end": 1, "word": 2, "confidence": 3}, "ms", header=False)


def read_transcript(
    path: Path, length: float = math.inf, problems: list[str] | None = None
) -> list[Word]:
    """Reads the words of a transcript in one of the forms above.

    Args:
        path: A .csv, .tsv, .json, .srt or .vtt file.
        length: Of the video, in ms; the unit of the times is checked against it.
        problems: Receives one line about rows or words that are left out, one about the times, one
            about lines whose words have none.

    Raises:
        DamagedFile: The file cannot be read, or nothing in it is a word with times.
    """
    found: list[str] = [] if problems is None else problems
    if path.suffix.lower() in SUBTITLES:
        words, unit = [Word(*line) for line in read_subtitles(path)], "s"
    elif path.suffix.lower() == ".json":
        words, unit = _read_json(path, found), "s"
    else:
        words, unit = _read_table(path, found)
    lines = sum(len(word.text.split()) > 1 for word in words)
    if lines:
        found.append(
            f"{path}: {lines} of {len(words)} entries are lines, not words; the words of a line "
            "share its time by their length"
        )
    words = [part for word in words for part in _split(word)]
    return _in_ms(path, words, unit, length, found)


def is_transcript(path: Path) -> bool:
    """Whether the header of a table, or the content of a JSON, is that of a transcript."""
    try:
        if path.suffix.lower() in SUBTITLES:
            return bool(read_subtitles(path))
        if path.suffix.lower() == ".json":
            return bool(_read_json(path, []))
        line = read_lines(path)[0]
    except DamagedFile:
        return False
    return _header(line) is not None or _without_header(line) is not None


def write_transcript(path: Path, words: Sequence[Word]) -> None:
    """Writes ``start;end;word;confidence`` in ms."""
    rows = io.StringIO()
    writer = csv.writer(rows, delimiter=";", lineterminator="\n")
    writer.writerow(FORM.split(";"))
    for w in words:
        writer.writerow([f"{w.start:.10g}", f"{w.end:.10g}", w.text, f"{w.confidence:.3f}"])
    path.write_text(rows.getvalue(), encoding="utf-8")


def _read_table(path: Path, problems: list[str]) -> tuple[list[Word], str]:
    lines = read_lines(path)
    table = _header(lines[0]) or _without_header(lines[0]) or _OURS
    body = [(i, line) for i, line in enumerate(lines, start=1) if line.strip()]
    rows = [(i, line, _row(table, line)) for i, line in body[int(table.header) :]]
    words = [word for *_, word in rows if word is not None]
    bad = [(i, line) for i, line, word in rows if word is None]
    form = table.delimiter.join(sorted(table.columns, key=table.columns.__getitem__))
    if bad and not words:
        raise DamagedFile(path, f"line {bad[0][0]} must be {form!r}, found {bad[0][1][:40]!r}")
    if bad:
        problems.append(
            f"{path}: {len(bad)} of {len(rows)} lines are not {form!r} with times (the first is "
            f"line {bad[0][0]}: {bad[0][1][:40]!r}); those words are left out"
        )
    return words, table.unit


def _header(line: str) -> _Table | None:
    """Recognises a header by the names of its columns."""
    for delimiter in (";", ",", "\t", "|"):
        columns: dict[str, int] = {}
        units: list[str] = []
        for i, cell in enumerate(next(csv.reader([line], delimiter=delimiter), [])):
            name, unit = _column(cell)
            for column, names in COLUMNS.items():
                if name in names and column not in columns:
                    columns[column] = i
                    units += [unit] if unit else []
                    if name == "offset":
                        units.append("ticks of 100 ns")
        if columns.keys() >= {"word", "start"} and columns.keys() & {"end", "duration"}:
            ours = "ms" if line.replace(" ", "").startswith("start;end;word") else "s"
            return _Table(delimiter, columns, units[0] if units else ours, header=True)
    return None


def _without_header(line: str) -> _Table | None:
    """Recognises ``start;end;word`` by two numbers and a word."""
    for table in (_OURS, *(replace(_OURS, delimiter=mark, unit="s") for mark in ",\t")):
        cells = next(csv.reader([line], delimiter=table.delimiter), [])
        columns = {name: i for name, i in table.columns.items() if i < len(cells)}
        shorter = replace(table, columns=columns)
        word = _row(shorter, line)
        if word is not None and re.search(r"[^\W\d]", word.text):
            return table if len(columns) == len(table.columns) else shorter
    return None


def _column(cell: str) -> tuple[str, str | None]:
    """Splits ``Start (ms)``, ``start_ms`` or ``startMs`` into the name and the unit."""
    snake = re.sub(r"([a-z])([A-Z])", r"\1 \2", cell.strip())
    *rest, last = re.split(r"[\W_]+", snake.lower().strip(" _)]")) or [""]
    if rest and last in SUFFIXES:
        return "".join(rest), SUFFIXES[last]
    return "".join([*rest, last]), None


def _row(table: _Table, line: str) -> Word | None:
    """Reads one row, ``None`` where it has no word or no times."""
    cells = next(csv.reader([line], delimiter=table.delimiter), [])
    try:
        return _word({name: cells[i].strip() for name, i in table.columns.items()})
    except IndexError:
        return None


def _word(fields: dict[str, Any]) -> Word | None:
    try:
        start = _number(fields["start"])
        end = _number(fields["end"]) if "end" in fields else start + _number(fields["duration"])
        confidence = _number(fields.get("confidence", 1.0) or 1.0)
    except (KeyError, TypeError, ValueError):
        return None
    text = str(fields.get("word", "")).strip()
    if not text or not math.isfinite(start + end) or end < start:
        return None
    return Word(start, end, text, confidence)


def _number(value: str | float) -> float:
    """Reads 1.5, ``1,5``, ``1.5s`` or ``0:00:01.5``."""
    if not isinstance(value, str):
        return float(value)
    seconds = 0.0
    for part in value.replace(",", ".").removesuffix("s").split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _split(line: Word) -> Iterator[Word]:
    """Shares the time of a line among its words, by their length."""
    words = line.text.split()
    letter = (line.end - line.start) / sum(len(word) + 1 for word in words)
    start = line.start
    for word in words[:-1]:
        end = start + letter * (len(word) + 1)
        yield Word(start, end, word, line.confidence)
        start = end
    yield Word(start, line.end, words[-1], line.confidence)


def _read_json(path: Path, problems: list[str]) -> list[Word]:
    try:
        content = list(_values(decode(path.read_bytes())))
    except OSError as error:
        raise DamagedFile(path, f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, f"is no whole JSON ({type(error).__name__})") from error
    entries = [_renamed(entry) for entry in _entries(content)]
    found = [_word(entry) for entry in entries if entry.get("word")]
    words = [word for word in found if word is not None]
    if not words:
        raise DamagedFile(path, "holds no words with times; write it with times of words")
    if len(words) < len(found):
        problems.append(
            f"{path}: {len(found) - len(words)} of {len(found)} words have no times; they are left "
            "out"
        )
    return words


def _values(text: str) -> Iterator[Any]:
    """Reads the JSON values of a text: one, or one after the other."""
    decoder, start, end = json.JSONDecoder(), 0, len(text.rstrip())
    while start < end:
        start += len(BETWEEN.match(text, start)[0])  # type: ignore[index]  # it may match nothing
        value, start = decoder.raw_decode(text, start)
        yield value


def _entries(content: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401  # what JSON holds
    """Finds the words or, where they are not listed, the lines."""
    if isinstance(content, list):
        for part in content:
            yield from _entries(part)
    elif isinstance(content, dict):
        content = _flat(content)
        if isinstance(content.get("word"), str):
            yield content
            return
        tokens = content.get("tokens")
        if isinstance(tokens, list) and tokens and isinstance(tokens[0], dict):
            yield from _joined(tokens)
            return
        for key in INSIDE:
            inside = content.get(key)
            if key in BEST_FIRST and isinstance(inside, list):
                inside = inside[:1]  # the best hypothesis
            if found := list(_entries(inside)):
                yield from found
                return
        if isinstance(text := content.get("text"), str) and content.keys() & TIMED:
            yield {**content, "text": said_of(text)}


def _flat(entry: dict[str, Any]) -> dict[str, Any]:
    """Gives a word the key ``word`` where services nest it, or name it otherwise."""
    hypotheses = entry.get("alternatives")
    if "start_time" in entry and isinstance(hypotheses, list) and hypotheses:
        best = hypotheses[0]
        return {**entry, "word": best.get("content"), "confidence": best.get("confidence")}
    if "ts" in entry:
        times = {"start": entry["ts"], "end": entry.get("end_ts")}
        return {**entry, "word": entry.get("value"), **times}
    return entry


def _joined(tokens: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Joins whisper.cpp's tokens, pieces of words of which the first begins with a space."""
    pieces: list[dict[str, Any]] = []
    for token in [*tokens, {"text": " "}]:
        text = str(token.get("text", ""))
        if text.startswith("[_"):  # [_BEG_]
            continue
        if text.startswith(" ") and pieces:
            first, last = pieces[0].get("offsets", {}), pieces[-1].get("offsets", {})
            yield {
                "word": "".join(str(piece["text"]) for piece in pieces),
                "offsets": {"from": first.get("from"), "to": last.get("to")},
                "p": min(float(piece.get("p", 1.0)) for piece in pieces),
            }
            pieces = []
        pieces.append(token)


def _renamed(entry: dict[str, Any]) -> dict[str, Any]:
    offsets, stamps = entry.get("offsets"), entry.get("timestamp")
    if isinstance(offsets, dict):  # whisper.cpp, in ms
        seconds = {"start": offsets.get("from"), "end": offsets.get("to")}
        numbers = {key: ms for key, ms in seconds.items() if isinstance(ms, int | float)}
        entry = {**entry, **{key: ms / 1000 for key, ms in numbers.items()}}
    elif isinstance(stamps, list) and len(stamps) == 2:  # start and end
        entry = {**entry, "start": stamps[0], "end": stamps[1]}
    made: dict[str, Any] = {}
    for key, value in entry.items():
        name, unit = _column(key.replace("InTicks", "_ticks"))
        for column, names in COLUMNS.items():
            if name in names:
                scaled = unit is not None and isinstance(value, int | float)
                made[column] = value * UNITS[unit or "s"] / 1000 if scaled else value
    return made


def _in_ms(
    path: Path, words: list[Word], unit: str, length: float, problems: list[str]
) -> list[Word]:
    """Converts the times, in the unit of the format if the video's length allows it."""
    if words and math.isfinite(length) and not _fits(words, UNITS[unit], length):
        others = [name for name, scale in UNITS.items() if _fits(words, scale, length)]
        last = max(word.end for word in words) * UNITS[unit] / 1000
        if others:
            problems.append(
                f"{path}: its times would be {last:.6g} s in {unit}, of a video of "
                f"{length / 1000:.1f} s; they are read as {others[0]}"
            )
            unit = others[0]
        elif last > (length + SPARE) / 1000:
            problems.append(
                f"{path}: its last word ends at {last:.1f} s, the video at {length / 1000:.1f} s; "
                "is it another video's?"
            )
    scale = UNITS[unit]
    return [Word(w.start * scale, w.end * scale, w.text, w.confidence) for w in words]


def _fits(words: list[Word], scale: float, length: float) -> bool:
    """Whether words last as long as words do, and end with the video."""
    middle = median(word.end - word.start for word in words) * scale
    last = max(word.end for word in words) * scale
    return SHORTEST <= middle <= LONGEST and last <= length + SPARE
