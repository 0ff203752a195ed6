"""Transcripts as speech tools write them: units, columns, JSON, words without times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.affwild2.dataset.files import DamagedFile
from examples.affwild2.dataset.transcript import (
    Word,
    is_transcript,
    read_transcript,
    write_transcript,
)

LENGTH = 60_000.0  # ms of the video
SAID = [
    Word(1200, 1480, "well", 0.9),
    Word(1480, 1750.5, "hello", 0.75),
    Word(42_000, 42_400, "world", 1.0),
]
words = st.lists(
    st.builds(
        lambda start, length, text: Word(start, start + length, text),
        st.integers(0, 900),
        st.integers(1, 300),
        st.sampled_from(["don't", "Stop.", "so", ";", '"', "a,b"]),
    ),
    min_size=1,
    max_size=9,
)


@given(said=words)
def test_a_transcript_is_read_as_written(
    said: list[Word], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "words.csv"
    write_transcript(path, said)
    assert read_transcript(path) == said


def _rows(header: str, row: str, scale: float) -> str:
    rows = [
        row.format(s=w.start * scale, e=w.end * scale, d=(w.end - w.start) * scale, w=w)
        for w in SAID
    ]
    return "\n".join([header, *rows]) + "\n"


TABLES = {
    "ours": _rows("start;end;word;confidence", "{s};{e};{w.text};{w.confidence}", 1),
    "no header": _rows("", "{s};{e};{w.text};{w.confidence}", 1).lstrip(),
    "seconds": _rows("word,start,end,score", "{w.text},{s:.6f},{e:.6f},{w.confidence}", 1e-3),
    "seconds under our header": _rows(
        "start;end;word;confidence", "{s:.6f};{e:.6f};{w.text};{w.confidence}", 1e-3
    ),
    "milliseconds": _rows("id,start_ms,end_ms,text,conf", "7,{s},{e},{w.text},{w.confidence}", 1),
    "milliseconds without a unit": _rows(
        "word,start,end,score", "{w.text},{s},{e},{w.confidence}", 1
    ),
    "quoted": _rows(
        '"Word","Start (s)","End (s)","Confidence"',
        '"{w.text}","{s:.6f}","{e:.6f}","{w.confidence}"',
        1e-3,
    ),
    "ticks": _rows(
        "Offset,Duration,Word,Confidence", "{s:.0f}0000,{d}e4,{w.text},{w.confidence}", 1
    ),
    "camel": _rows(
        "startTime\tendTime\tword\tconfidence", "{s:.6f}\t{e:.6f}\t{w.text}\t{w.confidence}", 1e-3
    ),
    "decimal commas": _rows(
        "start;end;word;confidence", "{s};{e};{w.text};{w.confidence}", 1
    ).replace(".", ","),
    "blank lines": _rows("start;end;word;confidence", "\n{s};{e};{w.text};{w.confidence}\n", 1)
    + "\n\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_by_its_header_and_its_unit(tmp_path: Path, name: str) -> None:
    path = tmp_path / "words.csv"
    path.write_text(TABLES[name], encoding="utf-8-sig")
    assert is_transcript(path)
    problems: list[str] = []
    read = read_transcript(path, LENGTH, problems)
    assert [w.text for w in read] == [w.text for w in SAID]
    for got, want in zip(read, SAID, strict=True):
        expected = (want.start, want.end, want.confidence)
        assert (got.start, got.end, got.confidence) == pytest.approx(expected)
    unexpected = name in {"seconds under our header", "milliseconds without a unit"}
    assert [" they are read as " in line for line in problems] == [True] * unexpected


def _entry(word: Word, confidence: str) -> dict[str, Any]:
    return {
        "word": f" {word.text}",
        "start": word.start / 1000,
        "end": word.end / 1000,
        confidence: word.confidence,
    }


whisper = [_entry(word, "probability") for word in SAID]
whisperx = [_entry(word, "score") for word in SAID]
segment = {"id": 0, "start": 0, "end": 42.4, "text": "well hello world"}
JSONS: dict[str, Any] = {
    "whisper": {"text": "", "segments": [{**segment, "words": whisper}], "language": "en"},
    "whisperx": {
        "segments": [{**segment, "words": whisperx[:1]}, {**segment, "words": whisperx[1:]}],
        "word_segments": whisperx,
    },
    "vosk": {"result": [_entry(word, "conf") for word in SAID], "text": "well hello world"},
    "list": whisper,
}


@pytest.mark.parametrize("name", JSONS)
def test_a_json_is_read_in_seconds(tmp_path: Path, name: str) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps(JSONS[name]))
    problems: list[str] = []
    read = read_transcript(path, LENGTH, problems)
    assert [w.text for w in read] == [w.text for w in SAID]
    for got, want in zip(read, SAID, strict=True):
        expected = (want.start, want.end, want.confidence)
        assert (got.start, got.end, got.confidence) == pytest.approx(expected)
    assert problems == []


def test_a_word_without_times_is_left_out_alone(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"segments": [{"words": [*whisperx, {"word": "2014."}]}]}))
    problems: list[str] = []
    assert len(read_transcript(path, LENGTH, problems)) == 3
    assert problems == [f"{path}: 1 of 4 words have no times; they are left out"]


@pytest.mark.parametrize("row", ["0;10;", "a;10;word;1", "0,10,word,1", "nan;9;so;1", ";;so;1"])
def test_a_damaged_line_is_left_out_alone(tmp_path: Path, row: str) -> None:
    path = tmp_path / "words.csv"
    path.write_text(f"0;500;so;1\n{row}\n600;800;well;1\n\n")
    problems: list[str] = []
    read = read_transcript(path, problems=problems)
    assert [word.text for word in read] == ["so", "well"]
    (line,) = problems
    assert line.startswith(f"{path}: 1 of 3 lines are not 'start;end;word;confidence'")
    assert line.endswith(f"(the first is line 2: {row!r}); those words are left out")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"hello\n", "line 1 must be 'start;end;word;confidence', found 'hello'"),
        ("a.csv", b"word,start,end\nso,,\n", "line 2 must be 'word,start,end', found 'so,,'"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\xff\xfe\x00", "is not a text file"),
        ("a.json", b'{"segments": [{"wor', "is no whole JSON"),
        ("a.json", b'{"segments": [{"text": "so", "start": 0, "end": 1}]}', "holds no words with"),
    ],
)
def test_a_transcript_without_words_is_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedFile, match=message):
        read_transcript(tmp_path / name)


def test_words_after_the_end_of_the_video_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "words.csv"
    write_transcript(path, SAID)
    problems: list[str] = []
    assert read_transcript(path, 10_000, problems)[0].start == 1200
    assert problems == [
        f"{path}: its last word ends at 42.4 s, the video at 10.0 s; is it another video's?"
    ]


def test_a_table_of_other_features_is_no_transcript(tmp_path: Path) -> None:
    path = tmp_path / "video1.csv"
    path.write_text("frame,timestamp,confidence,AU01_r\n1,0.0,0.98,0.2\n")
    assert not is_transcript(path)
