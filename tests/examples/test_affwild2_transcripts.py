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
    "clock": _rows(
        "begin,end,word,confidence", "0:00:{s:.6f},00:{e:.6f},{w.text},{w.confidence}", 1e-3
    ),
    "no header, commas": _rows("", "{s:.6f},{e:.6f},{w.text},{w.confidence}", 1e-3).lstrip(),
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


def _pieces(word: Word, *texts: str) -> list[dict[str, Any]]:
    step = (word.end - word.start) / len(texts)
    starts = [word.start + step * i for i in range(len(texts))]
    return [
        {"text": text, "offsets": {"from": start, "to": start + step}, "p": word.confidence}
        for text, start in zip(texts, starts, strict=True)
    ]


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
    "whisper.cpp": {
        "transcription": [
            {
                "timestamps": {"from": "00:00:01,200", "to": "00:00:42,400"},
                "offsets": {"from": 1200, "to": 42_400},
                "text": " well hello world",
                "tokens": [
                    {"text": "[_BEG_]", "offsets": {"from": 0, "to": 0}, "id": 50363, "p": 1},
                    *_pieces(SAID[0], " we", "ll"),
                    *_pieces(SAID[1], " hello"),
                    *_pieces(SAID[2], " w", "or", "ld"),
                ],
            }
        ]
    },
    "whisper.cpp, a word a line": {
        "transcription": [
            {"offsets": {"from": w.start, "to": w.end}, "text": f" {w.text}", "p": w.confidence}
            for w in SAID
        ]
    },
    "chunks": {
        "text": "",
        "chunks": [
            {"text": w.text, "timestamp": [w.start / 1000, w.end / 1000], "score": w.confidence}
            for w in SAID
        ],
    },
    "hypotheses": {
        "results": {
            "channels": [{"alternatives": [{"words": whisperx}, {"words": whisperx[:1]}]}],
        }
    },
}


SERVICES: dict[str, Any] = {
    "items": {
        "results": {
            "items": [
                *(
                    {
                        "start_time": str(w.start / 1000),
                        "end_time": str(w.end / 1000),
                        "alternatives": [{"content": w.text, "confidence": str(w.confidence)}],
                    }
                    for w in SAID
                ),
                {"type": "punctuation", "alternatives": [{"content": "."}]},
            ]
        }
    },
    "elements": {
        "monologues": [
            {
                "elements": [
                    {
                        "value": w.text,
                        "ts": w.start / 1000,
                        "end_ts": w.end / 1000,
                        "confidence": w.confidence,
                    },
                    {"type": "punct", "value": " "},
                ]
            }
            for w in SAID
        ]
    },
    "ticks": {
        "recognizedPhrases": [
            {
                "nBest": [
                    {
                        "words": [
                            {
                                "word": w.text,
                                "offsetInTicks": w.start * 1e4,
                                "durationInTicks": (w.end - w.start) * 1e4,
                                "confidence": w.confidence,
                            }
                        ]
                    },
                    {"words": whisper},
                ]
            }
            for w in SAID
        ]
    },
}
JSONS |= SERVICES


@pytest.mark.parametrize("between", ["\n", ",\n", "\n\n"])
def test_values_of_json_one_after_the_other_are_read(tmp_path: Path, between: str) -> None:
    """As recognisers write a stream of results."""
    path = tmp_path / "words.json"
    path.write_text(between.join(json.dumps({"result": [entry]}) for entry in whisper) + "\n")
    read = read_transcript(path, LENGTH)
    assert [w.text for w in read] == [w.text for w in SAID]
    assert [w.start for w in read] == pytest.approx([w.start for w in SAID])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_words_with_accents_are_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "words.csv"
    path.write_text("start;end;word;confidence\n0;500;être;1\n", encoding=encoding)
    assert [word.text for word in read_transcript(path)] == ["être"]


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


@pytest.mark.parametrize(
    "row", ["0;10;", "a;10;word;1", "0,10,word,1", "nan;9;so;1", ";;so;1", "9;8;so;1"]
)
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
        ("a.json", b'{"segments": [{"text": "so"}]}', "holds no words with times"),
        ("a.json", b'{"segments": [{"text": "[Music]", "start": 0, "end": 1}]}', "holds no words"),
        ("a.srt", b"1\n\nso\n", "gives no words with times 'start --> end'"),
        ("a.vtt", b"WEBVTT\n\n00:01.000 --> 00:02.000\n[Music]\n", "gives no words with times"),
    ],
)
def test_a_transcript_without_words_is_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedFile, match=message):
        read_transcript(tmp_path / name)


def _stamp(ms: float, point: str = ",") -> str:
    hours, rest = divmod(round(ms), 3_600_000)
    return f"{hours:02}:{rest // 60_000:02}:{rest // 1000 % 60:02}{point}{rest % 1000:03}"


def _cue(word: Word, text: str, point: str = ",") -> str:
    return f"{_stamp(word.start, point)} --> {_stamp(word.end, point)} align:start\n{text}\n"


WHOLE = [Word(round(w.start), round(w.end), w.text) for w in SAID]
SUBTITLES = {
    "a.srt": "\n".join(f"{i}\n{_cue(w, f'<i>{w.text}</i>')}" for i, w in enumerate(WHOLE, 1)),
    "no empty lines.srt": "".join(f"{i}\n{_cue(w, w.text)}" for i, w in enumerate(WHOLE, 1)),
    "windows.srt": "\n".join(f"{i}\n{_cue(w, w.text)}" for i, w in enumerate(WHOLE, 1)).replace(
        "\n", "\r\n"
    ),
    "a.vtt": "WEBVTT Kind: captions\n\nNOTE made\nby hand\n\n"
    + "\n".join(_cue(w, f"<v Ann>{w.text}", ".") for w in WHOLE),
    "without hours.vtt": "WEBVTT\n\n"
    + "\n".join(_cue(w, w.text, ".").replace("00:00:", "00:") for w in WHOLE),
    "highlighted.srt": "\n".join(
        f"{i}\n{_cue(w, f'well hello <u>{w.text}</u> world')}\n{i}\n"
        + _cue(Word(w.end, w.end + 50, ""), "well hello world")
        for i, w in enumerate(WHOLE, 1)
    ),
    "inline.vtt": "WEBVTT\n\n"
    + _cue(
        Word(WHOLE[0].start, WHOLE[1].end, ""),
        f" \nwell<{_stamp(WHOLE[1].start, '.')}><c> hello</c>",
        ".",
    )
    + "\n"
    + _cue(Word(WHOLE[1].end, WHOLE[1].end + 10, ""), "well hello\n ", ".")
    + "\n"
    + _cue(WHOLE[2], "well hello\nworld", "."),
}


@pytest.mark.parametrize("name", SUBTITLES)
def test_subtitles_are_read_at_the_times_of_words(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(SUBTITLES[name], encoding="utf-8-sig", newline="")
    problems: list[str] = []
    assert is_transcript(path)
    read = read_transcript(path, LENGTH, problems)
    assert [w.text for w in read] == [w.text for w in WHOLE]
    for got, want in zip(read, WHOLE, strict=True):
        assert (got.start, got.end) == pytest.approx((want.start, want.end))
    assert problems == []


lines = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=7)


@given(texts=st.lists(lines, min_size=1, max_size=4))
def test_the_words_of_a_line_share_its_time(
    texts: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In order, without gaps, the longer the word the longer its time; the file says so."""
    path = tmp_path_factory.getbasetemp() / "lines.srt"
    cues = [Word(1000 * i, 1000 * i + 900, " ".join(text)) for i, text in enumerate(texts, 1)]
    path.write_text("\n".join(_cue(cue, cue.text) for cue in cues))
    problems: list[str] = []
    read = read_transcript(path, LENGTH, problems)
    assert [word.text for word in read] == [word for text in texts for word in text]
    for cue, text in zip(cues, texts, strict=True):
        inside = [word for word in read if cue.start <= word.start < cue.end]
        assert len(inside) == len(text)
        ends = [cue.start, *(word.end for word in inside)]
        assert ends == pytest.approx([*(word.start for word in inside), cue.end])
        shares = [(word.end - word.start) / (len(word.text) + 1) for word in inside]
        assert shares == pytest.approx([shares[0]] * len(shares))
    many = sum(len(text) > 1 for text in texts)
    wanted = f"{path}: {many} of {len(texts)} entries are lines, not words; the words of a line "
    assert [line.startswith(wanted) for line in problems] == [True] * bool(many)


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
