"""Trees as people have them: editions, folders, links, several candidates, names that are paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from examples.affwild2.dataset import challenge, layout
from examples.affwild2.dataset.files import DamagedFile
from examples.affwild2.dataset.scan import crop_number, scan

LABELS = "valence,arousal\n0.1,-0.2\n"
SETS = ("Train_Set", "Validation_Set")


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _crops(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names or ("00001.jpg",):
        Image.new("RGB", (4, 4), (99, 0, 0)).save(folder / name)


def _partitions(root: Path) -> dict[str, str]:
    return {trial.name: trial.partition for trial in layout.resolve(root).trials}


@pytest.mark.parametrize(
    "place",
    [
        "3rd ABAW Annotations/VA_Estimation_Challenge",
        "5th_ABAW_Annotations/VA_Estimation_Challenge",
        "10th ABAW Annotations/VA_Estimation_Challenge",
        "Third ABAW Annotations/VA_Set",
        "ABAW Annotations/VA_Estimation_Challenge",
        "VA_Estimation_Challenge",
        "downloads/labels",
        ".",
    ],
)
def test_annotations_are_found_by_their_two_sets(tmp_path: Path, place: str) -> None:
    for i, folder in enumerate(SETS):
        _write(tmp_path / place / folder / f"video{i}.txt", LABELS)
        other = tmp_path / "ABAW" / "EXPR_Recognition_Challenge" / folder / f"video{i}.txt"
        _write(other, "Neutral,Anger\n1\n")
    assert _partitions(tmp_path) == {"video0": "train", "video1": "validation"}


def test_two_editions_are_reported_and_the_later_one_read(tmp_path: Path) -> None:
    for edition in ("6th", "10th"):
        for folder in SETS:
            place = tmp_path / f"{edition} ABAW Annotations" / folder
            _write(place / f"{edition}_{folder}.txt", LABELS)
    found = layout.resolve(tmp_path)
    assert [trial.name for trial in found.trials] == ["10th_Train_Set", "10th_Validation_Set"]
    (line,) = [line for line in found.problems if "annotations are used" in line]
    assert line.startswith(str(tmp_path / "10th ABAW Annotations"))
    assert str(tmp_path / "6th ABAW Annotations") in line


@pytest.mark.parametrize(
    "place",
    [
        "CVPR_5th_ABAW_VA_test_set_sample.txt",
        "prediction_files_format/CVPR_8th_ABAW_VA_test_set_sample.txt",
        "test_set_examples/ICCV_9th_ABAW_VA_test_set_example.txt",
        "any/VA_example.txt",
    ],
)
def test_a_sample_file_is_found_by_its_header(tmp_path: Path, place: str) -> None:
    sample = _write(tmp_path / place, "image_location,valence,arousal\nvideo9/00001.jpg,0,0\n")
    _write(
        sample.with_name("EXPR_sample.txt"), "image_location,Neutral,Anger\nvideo8/00001.jpg,0\n"
    )
    _write(tmp_path / "predictions.txt", "image_location,valence,arousal\nvideo7/00001.jpg,0,0\n")
    assert layout.resolve(tmp_path).sample == sample
    assert _partitions(tmp_path) == {"video9": "test"}  # no other list: the sample names them


def test_two_sample_files_are_reported(tmp_path: Path) -> None:
    for name in ("5th_sample.txt", "8th_sample.txt"):
        _write(tmp_path / name, "image_location,valence,arousal\nvideo9/00001.jpg,0,0\n")
    found = layout.resolve(tmp_path)
    assert found.sample == tmp_path / "8th_sample.txt"
    assert any("there are other sample files: " in line for line in found.problems)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _write(tmp_path / "VA_Estimation_Challenge/Train_Set/video1.txt", LABELS)
    return tmp_path


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov", ".MP4", ".webm"])
@pytest.mark.parametrize("place", ["", "videos/batch1", "link"])
def test_videos_are_found_anywhere(root: Path, suffix: str, place: str) -> None:
    disk = root.parent / f"{root.name}-disk"
    disk.mkdir()
    (root / "link").symlink_to(disk)
    (disk / "back").symlink_to(root)  # a circle of links ends
    path = _write(root / place / f"video1{suffix}", "pictures")
    (trial,) = layout.resolve(root).trials
    assert trial.video is not None
    assert trial.video.samefile(path)


def test_two_videos_of_one_name_are_reported(root: Path) -> None:
    first = _write(root / "batch1/video1.mp4", "one")
    second = _write(root / "batch2/video1.mp4", "another")
    found = layout.resolve(root)
    assert found.trials[0].video == first
    assert f"{first}: is used; another file has its name: {second}" in found.problems


def test_crops_are_found_in_any_folder(root: Path) -> None:
    _write(root / "VA_Estimation_Challenge/Train_Set/video2.txt", LABELS)
    _crops(root / "cropped_aligned/video1")
    _crops(root / "cropped_aligned_new_50_vids/video2", "00001.png")
    assert [trial.faces for trial in layout.resolve(root).trials] == [
        root / "cropped_aligned/video1",
        root / "cropped_aligned_new_50_vids/video2",
    ]


def test_aligned_crops_go_before_others_with_one_line(root: Path) -> None:
    _write(root / "VA_Estimation_Challenge/Train_Set/video2.txt", LABELS)
    for name in ("video1", "video2"):
        _crops(root / "a_cropped" / name)
        _crops(root / "cropped_aligned" / name)
    found = layout.resolve(root)
    assert found.trials[0].faces == root / "cropped_aligned/video1"
    expected = (
        f"{root / 'cropped_aligned'}: its crops are used; a_cropped holds 2 of the same trials"
    )
    assert [line for line in found.problems if "its crops" in line] == [expected]


def test_crops_are_not_listed_one_by_one(tmp_path: Path) -> None:
    _crops(tmp_path / "faces/video1", *(f"{i:05d}.jpg" for i in range(99)))
    found = scan(tmp_path)
    assert found.files == []
    assert found.crops == {"video1": [tmp_path / "faces/video1"]}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("00012.jpg", 12),
        ("0012.PNG", 12),
        ("frame_det_00_000012.bmp", 12),
        ("a.jpg", None),
        ("._00012.jpg", None),
        ("00012.txt", None),
        ("00012", None),
    ],
)
def test_a_crop_is_a_picture_with_a_number(name: str, number: int | None) -> None:
    assert crop_number(name) == number


def test_a_transcript_is_chosen_by_its_content(root: Path) -> None:
    _write(root / "audio_features/video1.csv", "frameTime,F0,loudness\n0.0,120,0.1\n")
    _write(root / "openface/video1.csv", "frame,face_id,timestamp,confidence\n1,0,0.0,0.9\n")
    _write(root / "openface/video1.json", '{"pose": [1, 2]}')
    words = _write(root / "words/video1.csv", "word,start,end\nso,0.1,0.3\n")
    (trial,) = layout.resolve(root).trials
    assert trial.transcript == words


@pytest.mark.parametrize(
    "name",
    ["video1.json", "video1.mp4.json", "video1.wav.csv", "video1.en.csv", "video1.pt-BR.tsv"],
)
def test_a_transcript_may_bear_the_name_of_its_sound(root: Path, name: str) -> None:
    path = _write(root / name, "start;end;word;confidence\n0;1;so;1\n")
    (trial,) = layout.resolve(root).trials
    assert trial.transcript == path


def test_a_transcript_without_a_language_goes_first(root: Path) -> None:
    path = _write(root / "video1.srt", "1\n00:00:00,000 --> 00:00:01,000\nso\n")
    _write(root / "video1.en.csv", "start;end;word;confidence\n0;1;so;1\n")
    found = layout.resolve(root)
    assert found.trials[0].transcript == path
    assert [line.startswith(f"{path}: is used; ") for line in found.problems] == [True]


@pytest.mark.parametrize(
    "first", ["Neutral,Anger", "arousal,valence", "valence;arousal", "0.1,0.2"]
)
def test_a_set_of_other_annotations_is_named(tmp_path: Path, first: str) -> None:
    path = _write(tmp_path / "EXPR/Train_Set/video1.txt", f"{first}\n1\n")
    said = f"({path} begins {first!r}, not 'valence,arousal')"
    with pytest.raises(ValueError, match="found no trials") as refused:
        layout.resolve(tmp_path)
    assert str(refused.value).endswith(said)
    _write(tmp_path / "VA/Validation_Set/video2.txt", LABELS)
    assert layout.resolve(tmp_path).missing[0].endswith(f"no train trials {said}")


@pytest.mark.parametrize("name", ["../x", "/abs/x", "batch1/x", ".hidden", "..", "a\\b", "a\tb"])
def test_a_name_that_is_a_path_is_left_out_in_a_line(root: Path, name: str) -> None:
    names = _write(root / layout.TEST_NAMES, f"video7\n{name}\nvideo8\n")
    found = layout.resolve(root)
    assert [t.name for t in found.trials if t.partition == "test"] == ["video7", "video8"]
    (line,) = [line for line in found.problems if "it is left out" in line]
    assert line == f"{names}: line 2, {name!r}, is a path or hidden, no name; it is left out"


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_hidden_files_and_folders_are_not_read(root: Path, make: Callable[[Path], None]) -> None:
    make(root / "VA_Estimation_Challenge/Train_Set/._video1.txt")
    make(root / "__MACOSX")
    make(root / ".cache")
    assert _partitions(root) == {"video1": "train"}


@pytest.mark.parametrize(
    "header",
    [
        "image_location,Neutral,Anger",
        "image_location;valence;arousal",
        '"image_location","valence","arousal"',
        "image_location,arousal,valence",
        "image_location",
    ],
)
def test_a_sample_of_another_form_is_refused(tmp_path: Path, header: str) -> None:
    path = _write(tmp_path / "sample.txt", f"{header}\nvideo1/00001.jpg,0,0\n")
    with pytest.raises(DamagedFile, match="line 1 must be 'image_location,valence,arousal'"):
        challenge.read_sample(path)
