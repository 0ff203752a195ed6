"""The command ``check``: what is found, what is missing, what looks wrong."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from examples.affwild2.commands.check import Check
from examples.affwild2.dataset.inspect import inspect

TRAIN, VALIDATION = "VA_Estimation_Challenge/Train_Set", "VA_Estimation_Challenge/Validation_Set"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two trials of 60 frames at 30 fps with crops, words and sound, and one to predict."""
    root = tmp_path / "data [x]"  # the terminal must not take this for markup
    for path, text in {
        f"{TRAIN}/video1.txt": "valence,arousal\n" + "0.1,-0.2\n" * 50 + "-5,-5\n" * 10,
        f"{VALIDATION}/video2.txt": "valence,arousal\n" + "0.75,0.5\n" * 60,
        "names_of_videos_in_each_test_set/Valence_Arousal_test_set.txt": "video3\n",
        "a_sample.txt": "image_location,valence,arousal\nvideo3/00060.jpg,0,0\n",
        "frame_rates.csv": "video,fps,frames\nvideo1,30,60\nvideo2,30,60\nvideo3,30,60\n",
        **{f"sound/video{i}.wav": "sound" for i in (1, 2, 3)},
        **{f"words/video{i}.csv": "word,start,end\nso,0.5,0.75\n" for i in (1, 2, 3)},
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for i in (1, 2, 3):
        (root / f"crops/video{i}").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / f"crops/video{i}/00060.jpg")
    return root


def _has(lines: tuple[str, ...], *parts: str) -> bool:
    return any(all(part in line for part in parts) for line in lines)


def test_a_whole_tree_has_counts_and_nothing_wrong(root: Path) -> None:
    report = inspect(root)
    assert report.missing == report.wrong == ()
    assert report.usable == 3
    counts = "3 trials: 1 train (official: 356), 1 validation (official: 76), 1 test"
    assert report.found[0].startswith(counts)
    assert report.found[1] == "180 frames, 110 of them with valid labels"
    assert report.found[2] == "valid labels from -0.200 to 0.750"
    for place in (TRAIN, "crops", "words", "sound", "a_sample.txt"):
        assert _has(report.found, str(root / place)), place
    assert "frames per second: 30" in report.found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("crops/video2", "face crops: video2"),
        ("words/video2.csv", "transcript: video2"),
        ("sound/video2.wav", "sound: video2"),
        ("a_sample.txt", "sample of a prediction file: *_sample.txt"),
    ],
)
def test_what_is_missing_is_named(root: Path, path: str, line: str) -> None:
    if (root / path).is_dir():
        shutil.rmtree(root / path)
    else:
        (root / path).unlink()
    report = inspect(root)
    assert len(report.missing) == 1
    assert report.missing[0].startswith(line)


def test_sets_that_are_absent_are_missing_and_not_wrong(root: Path) -> None:
    shutil.rmtree(root / TRAIN)
    shutil.rmtree(root / "names_of_videos_in_each_test_set")
    (root / "a_sample.txt").unlink()
    report = inspect(root)
    assert _has(report.missing, "no such folder; no train trials")
    assert _has(report.missing, "no such file; no test trials")
    assert report.wrong == ()


@pytest.mark.parametrize(
    ("path", "text", "parts"),
    [
        (
            f"{TRAIN}/video1.txt",
            "valence,arousal\n0,0\n" + "340,-20\n" * 59,
            ("59 of 60", "[-1, 1]"),
        ),
        (f"{TRAIN}/video1.txt", "valence,arousal\n" + "340,-20\n" * 60, ("has no valid frame",)),
        (f"{TRAIN}/video1.txt", "valence,arousal\n" + "0,0\n" * 200, ("labels 200 frames", "60")),
        (
            f"{TRAIN}/video1.txt",
            "valence,arousal\n" + "0,0\n" * 40,
            ("gives 40 frames; its faces go on to 60",),
        ),
        ("words/video1.csv", "start;end;word;confidence\n0.1;0.4;so;1\n", ("read as s",)),
        ("words/video1.csv", "word,start,end\nso,100,100.3\n", ("last word ends at 100.3 s",)),
        ("words/video1.csv", "hello\n", ("must be 'start;end;word;confidence'",)),
        ("a_sample.txt", "image_location,valence,arousal\nvideo3,0,0\n", ("line 2 must be",)),
        ("video1.mp4", "no video", ("cannot be read as video",)),
    ],
)
def test_what_looks_wrong_is_one_line(
    root: Path, path: str, text: str, parts: tuple[str, ...]
) -> None:
    (root / path).write_text(text)
    report = inspect(root)
    assert len(report.wrong) == 1
    assert _has(report.wrong, path, *parts), report.wrong


def test_many_lines_of_one_kind_are_counted(root: Path) -> None:
    for i in range(20):
        (root / f"{TRAIN}/other{i:02}.txt").write_text("valence,arousal\n9,9\n0,0\n")
    report = inspect(root)
    assert _has(report.wrong, "and 15 more lines about labels")
    assert _has(report.missing, "face crops: other00, other01, ", " and 15 more")


def test_when_the_time_is_over_the_rest_is_counted(root: Path) -> None:
    report = inspect(root, seconds=0.0)
    assert _has(report.wrong, "the videos and crops of 3 trials were not looked at")
    assert report.usable == 3


def test_the_command_prints_names_as_they_are(root: Path) -> None:
    (root / "words/video2.csv").unlink()
    console = Console(file=io.StringIO(), record=True, width=40)
    Check(root).run(console)
    said = console.export_text()
    assert f"labels in {root / TRAIN}" in said
    assert "missing: \n  transcript: video2\n" in said
    assert "looks wrong: nothing" in said


def test_a_tree_without_a_usable_trial_fails(root: Path) -> None:
    shutil.rmtree(root / "names_of_videos_in_each_test_set")
    (root / "a_sample.txt").unlink()
    for path in (f"{TRAIN}/video1.txt", f"{VALIDATION}/video2.txt"):
        (root / path).write_text("valence,arousal\n-5,-5\n")
    with pytest.raises(ValueError, match=r"check: no trial below .* can be used"):
        Check(root).run(Console(file=io.StringIO()))
