"""From a tree of the official layout to features: sound, faces, words, damage, resuming."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from examples.affwild2.commands.data import Extract
from examples.affwild2.dataset import audio, layout, text, transcript, video
from examples.affwild2.dataset.extract import Report, extract
from examples.affwild2.dataset.features import Features, load_features
from examples.affwild2.dataset.files import DamagedFile, hold
from examples.affwild2.dataset.sources import ExtractOptions
from examples.affwild2.dataset.transcript import Word
from tests.support import affwild2

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: affwild2.tree(tmp_path_factory, mp4=mp4)
        for name, mp4 in (("wav", False), ("mp4", True))
    }


@pytest.fixture(scope="module")
def extracted(trees: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features") / "out"
    report = extract(trees["wav"], out)
    assert report.problems == report.left_out == report.complete == ()
    assert len(report.written) == 10
    return out


def _by_name(out: Path) -> dict[str, Features]:
    return {trial.name: trial for trial in load_features(out)}


# Sound


def _mel(hertz: float) -> float:
    return float(1127 * np.log(1 + hertz / 700))


def _naive_log_mel(samples: NDArray[np.int16], chosen: list[int]) -> NDArray[np.float64]:
    """The naive twin: frame by frame, band by band, triangle by triangle."""
    sound = [s / 32768 for s in samples.tolist()]
    sound += [sound[-1]] * 16_000
    edges = [_mel(125) + (_mel(7500) - _mel(125)) * k / 65 for k in range(66)]
    rows = []
    for frame in chosen:
        part = np.zeros(512)
        for n in range(400):
            part[n] = sound[160 * frame + n] * (0.5 - 0.5 * np.cos(2 * np.pi * n / 400))
        magnitude = np.abs(np.fft.fft(part))[:257]
        row = []
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for k in range(1, 257):
                at = _mel(k * 16_000 / 512)
                weight = min((at - low) / (middle - low), (high - at) / (high - middle))
                total += max(0.0, weight) * magnitude[k]
            row.append(np.log(total + 0.01))
        rows.append(row)
    return np.array(rows)


def test_log_mel_is_the_definition() -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, 700).astype(np.int16)
    got = audio.log_mel(samples)
    assert got.shape == (1 + (16_700 - 400) // 160, 64)
    chosen = [0, 1, 2, 4, 101]
    np.testing.assert_allclose(got[chosen], _naive_log_mel(samples, chosen), atol=1e-4)


def test_log_mel_does_not_see_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(1).integers(-9000, 9000, 20_000).astype(np.int16)
    whole = audio.log_mel(samples)
    monkeypatch.setattr(audio, "BLOCK", 7)
    np.testing.assert_allclose(audio.log_mel(samples), whole, atol=1e-5)


def test_no_samples_have_no_log_mel() -> None:
    with pytest.raises(ValueError, match="log_mel: found no samples"):
        audio.log_mel(np.zeros(0, np.int16))


@given(
    extra=st.integers(0, 500),
    fps=st.sampled_from([7.5, 15.0, 24.0, 25.0, 30.0, 29.97, 60.0]),
    frames=st.integers(1, 200),
)
def test_patches_begin_at_the_time_of_their_frame(extra: int, fps: float, frames: int) -> None:
    rows = audio.patch_rows(96 + extra, fps, frames)
    patches = 1 + int(extra // (100 / fps))
    expected = [round(i * (100 / fps)) for i in range(patches)]
    expected += [expected[-1]] * frames  # the last whole patch is repeated
    assert rows.tolist() == expected[:frames]
    assert rows.max() + 96 <= 96 + extra
    mel = np.arange(64.0 * (96 + extra), dtype=np.float32).reshape(-1, 64)
    np.testing.assert_array_equal(
        audio.gather_patches(mel, rows)[-1], mel[rows[-1] : rows[-1] + 96]
    )


@pytest.mark.parametrize("fps", [0.0, -15.0, float("nan"), float("inf")])
def test_a_frame_rate_is_a_positive_number(fps: float) -> None:
    with pytest.raises(ValueError, match="patch_rows: fps must be a positive number, found"):
        audio.patch_rows(200, fps, 3)


def test_a_patch_needs_its_rows() -> None:
    with pytest.raises(ValueError, match="a patch has 96 rows, found only 95"):
        audio.patch_rows(95, 15, 3)


def test_decibel_patches_have_the_papers_size_and_find_a_tone() -> None:
    time = np.arange(2 * 47_040 + 9) / 44_100
    samples = (8000 * np.sin(2 * np.pi * 1000 * time)).astype(np.int16)
    patches = audio.decibel_patches(samples)
    assert patches.shape == (3, 64, 107)  # the last one holds nine samples and silence
    middles = np.linspace(0, _mel(22_050), 66)[1:-1]
    assert patches[0, :, 50].argmax() == np.abs(middles - _mel(1000)).argmin()
    decibel = patches[0] * 19.895 - 14.8
    assert decibel.max() - decibel.min() == pytest.approx(80, abs=1e-3)
    one_unit = audio.decibel_patches(samples // 10)[0].max() - patches[0].max()
    assert one_unit * 19.895 == pytest.approx(-20, abs=0.05)


@pytest.mark.parametrize(("other", "share"), [(0.0, 1.0), (0.2, 0.6), (-1.0, 0.0)])
def test_sound_is_mixed_to_mono_and_resampled(tmp_path: Path, other: float, share: float) -> None:
    """A channel without any sound does not count."""
    time = np.arange(8000) / 8000
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, other * tone], 1), 8000)
    got = audio.read_audio(tmp_path / "tone.wav")
    assert got.dtype == np.int16
    assert len(got) == 16_000
    expected = share * 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(got[500:-500] / 2**15, expected[500:-500], atol=2e-3)


def test_samples_of_16_bits_are_read_as_they_are(tmp_path: Path) -> None:
    samples = np.array([0, 1, -1, 32767, -32768, 12345], np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="PCM_16")
    np.testing.assert_array_equal(audio.read_audio(tmp_path / "a.wav"), samples)


@pytest.mark.parametrize("name", ["a.wav", "a.mp4"])
@pytest.mark.parametrize("content", [b"", b"no sound at all", None])
def test_a_damaged_sound_is_one_line(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DamagedFile, match="cannot be read as sound") as caught:
        audio.read_audio(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_sound_without_samples_is_one_line(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16_000)
    with pytest.raises(DamagedFile, match="has a sound track without samples"):
        audio.read_audio(tmp_path / "a.wav")


# Faces


def test_faces_are_resized_in_order_and_absent_ones_are_black(tmp_path: Path) -> None:
    for number in (1, 3, 4):
        Image.new("RGB", (112, 112), (60 * number, 0, 0)).save(tmp_path / f"{number:05d}.jpg")
    faces = video.read_faces(tmp_path, np.array([3, 1, 0, 9]))
    assert faces.pixels.shape == (4, 48, 48, 3)
    assert faces.present.tolist() == [True, False, True, False]
    assert faces.problems == ()
    np.testing.assert_allclose(faces.pixels[:, 5, 5, 0], [240, 0, 60, 0], atol=2)
    assert (video.to_unit(torch.from_numpy(faces.pixels))[1] == -1).all()
    assert video.last_face(tmp_path) == 4


@given(seed=seeds)
def test_a_crop_is_the_same_window_of_every_frame(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    frame = torch.stack([rows, columns, torch.zeros_like(rows)], -1).to(torch.uint8)
    faces = torch.stack([frame, frame])
    got = video.crop(faces, generator)
    assert got.shape == (2, 40, 40, 3)
    torch.testing.assert_close(got[0], got[1])
    top, left, right = int(got[0, 0, 0, 0]), int(got[0, 0, 0, 1]), int(got[0, 0, -1, 1])
    assert 0 <= top <= 8
    assert 0 <= min(left, right) <= 8
    assert abs(left - right) == 39
    middle = video.crop(faces)
    torch.testing.assert_close(middle, faces[:, 4:44, 4:44])
    assert video.to_unit(middle).shape == (2, 3, 40, 40)


def test_bytes_become_the_unit_range() -> None:
    values = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 3)
    expected = torch.tensor([-1.0, -0.6, 1.0]).reshape(3, 1, 1)
    torch.testing.assert_close(video.to_unit(values), expected)


@pytest.mark.parametrize("content", [b"", b"no video"])
def test_a_damaged_video_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="cannot be read as video"):
        video.probe(path)


def test_a_video_without_pictures_is_one_line(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 16_000)
    with pytest.raises(DamagedFile, match="has no pictures"):
        video.probe(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_video_without_sound_has_a_rate(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(7):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert video.probe(path) == (24.0, 7)
    with pytest.raises(DamagedFile, match="has no sound track"):
        audio.read_audio(path)


# Words

words = st.lists(
    st.builds(
        lambda start, length, text: Word(start, start + length, text),
        st.integers(0, 900),
        st.integers(1, 300),
        st.sampled_from(["don't", "Stop.", "so", "wonderful", "!"]),
    ),
    max_size=9,
)


@given(said=words)
def test_a_frame_takes_the_first_word_said_at_its_time(said: list[Word]) -> None:
    times = np.arange(0, 1300, 50.0)
    index = text.align(said, times)
    for t, got in zip(times, index, strict=True):
        fits = [i for i, word in enumerate(said) if word.start < t <= word.end]
        assert got == (fits[0] if fits else -1)


@given(said=words, size=st.integers(1, 200))
def test_sentences_cut_words_without_losing_any(said: list[Word], size: int) -> None:
    said = sorted(said, key=lambda word: word.start)
    cuts = list(text.sentences(said, [size] * len(said)))
    assert [i for cut in cuts for i in range(cut.start, cut.stop)] == list(range(len(said)))
    for cut in cuts:
        assert (cut.stop - cut.start) * size <= text.MAX_PIECES or cut.stop - cut.start == 1
        assert all(word.text not in {"Stop.", "!"} for word in said[cut.start : cut.stop - 1])


def test_a_hash_ignores_case_and_punctuation() -> None:
    said = [Word(0, 1, t) for t in ("Great", "great!", "great", "don't", "!", "awful")]
    ids = text.hash_words(said, 1000)
    assert ids[0] == ids[1] == ids[2] != ids[5]
    assert ids[4] == 0
    assert ids.max() <= 1000
    assert (ids[[0, 3, 5]] > 0).all()


def test_bert_words_are_the_sum_of_four_layers_averaged_over_pieces() -> None:
    from transformers import AutoModel, AutoTokenizer

    said = [
        Word(i, i + 1, t)
        for i, t in enumerate(["I", "don't", "like", "unfathomable", "noise", ".", "So"])
    ]
    bert = text.BertWords(affwild2.bert())
    got = bert.embed(said)
    assert got.shape == (7, 384)
    tokenizer = AutoTokenizer.from_pretrained(affwild2.bert())
    model = AutoModel.from_pretrained(affwild2.bert()).eval()
    with torch.inference_mode():
        tokens = tokenizer("I don't like unfathomable noise.", return_tensors="pt")
        states = model(**tokens, output_hidden_states=True).hidden_states
    pieces = tokenizer.convert_ids_to_tokens(tokens["input_ids"][0].tolist())
    summed = (states[-1] + states[-2] + states[-3] + states[-4])[0].numpy()
    apostrophe = pieces.index("'")
    np.testing.assert_allclose(got[0], summed[1], atol=1e-4)
    expected = summed[apostrophe - 1 : apostrophe + 2].mean(0)
    np.testing.assert_allclose(got[1], expected, atol=1e-4)
    start, stop = pieces.index("like") + 1, pieces.index("noise")
    assert stop - start > 1
    np.testing.assert_allclose(got[3], summed[start:stop].mean(0), atol=1e-4)
    np.testing.assert_allclose(bert.embed(said[:6]), got[:6], atol=1e-4)  # sentences do not mix


def test_a_folder_without_a_bert_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=f"extract: --bert {tmp_path} is neither a folder with a"):
        text.BertWords(str(tmp_path))


@pytest.mark.parametrize(
    ("package", "option", "use"),
    [
        ("transformers", "--bert", lambda: text.BertWords("any")),
        ("pocketsphinx", "--asr", lambda: text.recognise(np.zeros(9, np.int16))),
    ],
)
def test_an_option_says_which_package_it_needs(
    monkeypatch: pytest.MonkeyPatch, package: str, option: str, use: Callable[[], object]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"extract: {option} needs 'pip install {package}'"):
        use()


def test_recognised_words_lie_in_the_sound(trees: dict[str, Path]) -> None:
    pytest.importorskip("pocketsphinx")
    samples = audio.read_audio(next((trees["wav"] / "audio").glob("*.wav")))[: 3 * 16_000]
    for word in text.recognise(samples):
        assert 0 <= word.start < word.end <= 3000
        assert word.text
        assert word.text[0] not in "<["
        assert "(" not in word.text
        assert 0 <= word.confidence <= 1


# The whole


def test_features_hold_what_the_tree_holds(trees: dict[str, Path], extracted: Path) -> None:
    trials = _by_name(extracted)
    for trial in layout.resolve(trees["wav"]).trials:
        got = trials[trial.name]
        assert (got.partition, got.source, got.fps) == (trial.partition, trial.source, 15.0)
        length = len(got)
        if trial.labels is not None:
            annotation = layout.read_annotation(trial.labels)
            assert got.frames == len(annotation.values)
            np.testing.assert_array_equal(got.index, np.flatnonzero(annotation.valid))
            np.testing.assert_array_equal(got.labels, annotation.values[got.index])
        else:
            assert got.frames == length
            assert (got.labels == 0).all()
        shapes = (got.labels, got.valid, got.face_present, got.mel_rows, got.word_index)
        assert {len(array) for array in shapes} == {length}
        assert got.faces.shape == (length, 48, 48, 3)
        frame = int(np.flatnonzero(got.face_present)[7])
        with Image.open(trial.faces / f"{got.index[frame] + 1:05d}.jpg") as picture:
            expected = np.asarray(picture.resize((48, 48)))
        np.testing.assert_array_equal(got.faces[frame], expected)
        assert not got.faces[~got.face_present].any()


def test_windows_of_features_follow_their_frames(trees: dict[str, Path], extracted: Path) -> None:
    for trial in load_features(extracted, "train"):
        mel = audio.log_mel(audio.read_audio(trees["wav"] / "audio" / f"{trial.source}.wav"))
        patches, hashed = trial.patches(20, 50), trial.hashed(20, 50)
        assert patches.shape == (30, 96, 64)
        row = min(round(int(trial.index[20]) * 100 / 15), 10**9)
        np.testing.assert_array_equal(patches[0], mel[row : row + 96])
        said = transcript.read_transcript(trees["wav"] / "transcripts" / f"{trial.source}.csv")
        for i, frame in enumerate(trial.index[20:50]):
            t = frame / 15 * 1000
            fits = [word for word in said if word.start < t <= word.end]
            assert hashed[i] == (text.hash_words(fits[:1])[0] if fits else 0)
        with pytest.raises(ValueError, match="has no word vectors; run extract with --bert MODEL"):
            trial.text(0, 3)


def test_two_people_share_sound_and_words(extracted: Path) -> None:
    trials = _by_name(extracted)
    left, right = trials["video5_left"], trials["video5_right"]
    assert left.mel is not None
    assert right.mel is not None
    np.testing.assert_array_equal(left.mel, right.mel)
    assert left.source == right.source == "video5"
    assert not np.array_equal(left.faces[:9], right.faces[:9])


def test_mp4_in_features_out(trees: dict[str, Path], extracted: Path, tmp_path: Path) -> None:
    report = extract(trees["mp4"], tmp_path / "out")
    assert report.problems == report.left_out == ()
    assert not list(trees["mp4"].rglob("*.wav"))
    assert not (trees["mp4"] / layout.FRAME_RATES).exists()
    expected = _by_name(extracted)
    for name, got in _by_name(tmp_path / "out").items():
        want = expected[name]
        assert (got.fps, got.frames) == (15.0, want.frames)
        np.testing.assert_array_equal(got.index, want.index)
        np.testing.assert_array_equal(got.faces, want.faces)
        np.testing.assert_array_equal(got.word_index, want.word_index)
        assert got.mel is not None
        assert want.mel is not None
        rows = min(len(got.mel), len(want.mel)) - 110
        lags = range(-9, 10)
        level = want.mel[10 : rows - 10].mean(1)
        match = [np.corrcoef(level, got.mel[10 + k : rows - 10 + k].mean(1))[0, 1] for k in lags]
        assert abs(lags[int(np.argmax(match))]) <= 1, "the sound track is shifted"
        assert max(match) > 0.9


def test_a_run_goes_on_where_it_was_stopped(trees: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(trees["wav"], out)
    before = {p: p.read_bytes() for p in out.rglob("*.npy")}
    shutil.rmtree(out / "trials" / "video2")
    shutil.rmtree(out / "videos" / "video2")
    (out / "trials" / ".video2.partial").mkdir()
    (out / "trials" / ".video2.partial" / "faces.npy").write_bytes(b"half")
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.npy") if "video2" not in str(p)}
    report = extract(trees["wav"], out)
    assert report.written == ("video2",)
    assert len(report.complete) == 9
    assert {p: p.read_bytes() for p in out.rglob("*.npy")} == before
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert not list(out.rglob("*.partial"))


def test_other_options_need_another_folder(trees: dict[str, Path], extracted: Path) -> None:
    message = r"was made with another drop_invalid \(True\); name a new folder"
    with pytest.raises(ValueError, match=message):
        extract(trees["wav"], extracted, ExtractOptions(drop_invalid=False))


def test_features_are_asked_for_in_the_right_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no train features; run extract first"):
        load_features(tmp_path, "train")


@pytest.fixture
def one_trial(trees: dict[str, Path], tmp_path: Path) -> Path:
    """The tree of ``video2`` alone, which has a gap of -5."""
    root = tmp_path / "one"
    labels = Path(layout.ANNOTATIONS["train"][0]) / "video2.txt"
    parts: list[str | Path] = [
        labels,
        "audio/video2.wav",
        "transcripts/video2.csv",
        layout.FRAME_RATES,
    ]
    for part in parts:
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(trees["wav"] / part, root / part)
    shutil.copytree(trees["wav"] / "cropped_aligned/video2", root / "cropped_aligned/video2")
    return root


def test_the_authors_face_alignment_is_shifted_by_the_gap(one_trial: Path, tmp_path: Path) -> None:
    extract(one_trial, tmp_path / "right")
    extract(one_trial, tmp_path / "theirs", ExtractOptions(align_faces="authors"))
    extract(one_trial, tmp_path / "all", ExtractOptions(drop_invalid=False))
    (right,), (theirs,), (whole,) = (
        load_features(tmp_path / name) for name in ("right", "theirs", "all")
    )
    assert len(right) == len(theirs) < len(whole) == whole.frames
    np.testing.assert_array_equal(theirs.faces, whole.faces[: len(theirs)])
    np.testing.assert_array_equal(right.faces, whole.faces[whole.valid])
    np.testing.assert_array_equal(right.labels, whole.labels[whole.valid])
    assert (whole.labels[~whole.valid] == 0).all()
    assert not np.array_equal(right.faces, theirs.faces)


def test_word_vectors_follow_the_frames(one_trial: Path, tmp_path: Path) -> None:
    options = ExtractOptions(bert=affwild2.bert(), decibel=True)
    extract(one_trial, tmp_path / "out", options)
    (trial,) = load_features(tmp_path / "out")
    said = transcript.read_transcript(one_trial / "transcripts/video2.csv")
    vectors = text.BertWords(affwild2.bert()).embed(said)
    got = trial.text(0, len(trial))
    assert got.shape == (len(trial), 384)
    for i, word in enumerate(trial.word_index):
        expected = vectors[word] if word >= 0 else np.zeros(384)
        np.testing.assert_allclose(got[i], expected, atol=1e-4)
    decibel = np.load(tmp_path / "out/videos/video2/decibel.npy")
    assert decibel.shape[1] == 64
    assert len(decibel) == 320 // 32


def test_speech_is_recognised_where_there_is_no_transcript(one_trial: Path, tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    (one_trial / "transcripts/video2.csv").unlink()
    samples = audio.read_audio(one_trial / "audio/video2.wav")[: 2 * 16_000]
    soundfile.write(one_trial / "audio/video2.wav", samples, 16_000)
    report = extract(one_trial, tmp_path / "out", ExtractOptions(asr=True))
    (found,) = _describe(report)
    assert found.endswith(
        "audio/video2.wav: ends 19.3 s before the video; the rest of the voice is missing"
    )
    (trial,) = load_features(tmp_path / "out")
    assert trial.word_ids is not None
    assert len(trial.word_ids) == len(text.recognise(samples))


def _describe(report: Report) -> list[str]:
    """The problems of ``one_trial``, which has neither validation nor test."""
    absent = ("no test trials", "no validation trials")
    return [problem for problem in report.problems if not problem.endswith(absent)]


def _replace(path: str, content: bytes | None) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        (root / path).unlink()
        if content is not None:
            (root / path).write_bytes(content)

    return damage


def _truncate(path: str, share: float = 0.4) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        content = (root / path).read_bytes()
        (root / path).write_bytes(content[: int(share * len(content))])

    return damage


def _empty(folder: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for path in (root / folder).iterdir():
            path.unlink()

    return damage


LABELS = f"{layout.ANNOTATIONS['train'][0]}/video2.txt"
FACE = "cropped_aligned/video2/00040.jpg"
DAMAGES: dict[str, tuple[Callable[[Path], None], str, set[str]]] = {
    # what is done, the one line that reports it, what is absent afterwards
    "empty face": (_replace(FACE, b""), f"{FACE}: is empty; the frame is black", {"face"}),
    "cut face": (_truncate(FACE), f"{FACE}: is no whole picture", {"face"}),
    "png face": (
        _replace(FACE, b"\x89PNG\r\n\x1a\n"),
        f"{FACE}: is no whole picture (cannot identify image file); the frame is black",
        {"face"},
    ),
    "no faces": (
        lambda root: shutil.rmtree(root / "cropped_aligned/video2"),
        "cropped_aligned/video2: no such folder; every face is black",
        {"faces"},
    ),
    "no sound": (
        _replace("audio/video2.wav", None),
        "video2: has no sound file and no video; the voice is absent",
        {"sound"},
    ),
    "empty sound": (
        _replace("audio/video2.wav", b""),
        "audio/video2.wav: cannot be read as sound",
        {"sound"},
    ),
    "no face of many": (
        _empty("cropped_aligned/video2"),
        "cropped_aligned/video2: holds no 00001.jpg or later; every face is black",
        {"faces"},
    ),
    "cut sound": (
        _truncate("audio/video2.wav", 0.5),
        "audio/video2.wav: ends 10.7 s before the video; the rest of the voice is missing",
        set(),
    ),
    "empty transcript": (
        _replace("transcripts/video2.csv", b""),
        "transcripts/video2.csv: is empty; the words are absent",
        {"words"},
    ),
    "cut transcript": (
        _replace("transcripts/video2.csv", b"0;2000;so;1\n2000;2500;the"),
        "1 of 2 lines are not 'start;end;word;confidence' with times (the first is line 2: "
        "'2000;2500;the'); those words are left out",
        set(),
    ),
    "no transcript": (
        _replace("transcripts/video2.csv", None),
        "video2: has no transcript; the words are absent",
        {"words"},
    ),
    "damaged transcript": (
        _replace("transcripts/video2.csv", b"hello\n"),
        "transcripts/video2.csv: line 1 must be 'start;end;word;confidence', found 'hello'; the",
        {"words"},
    ),
    "no rate": (
        _replace("frame_rates.csv", None),
        "video2: no file gives its frame rate; the voice and the words are absent",
        {"sound", "words"},
    ),
    "nan labels": (
        _replace(LABELS, b"valence,arousal\n" + b"0.1,0.2\n" * 100 + b"nan,0.1\n0.2\n"),
        f"{LABELS}: 2 of 102 lines are not two numbers (the first is line 102); those frames are "
        "left out; labels 102 frames, its video has 320; the labels rule",
        set(),
    ),
    "short labels": (
        _replace(LABELS, b"valence,arousal\n" + b"0.1,0.2\n" * 300),
        f"{LABELS}: labels 300 frames, its video has 320; the labels rule",
        set(),
    ),
    "long labels": (
        _replace(LABELS, b"valence,arousal\n" + b"0.1,0.2\n" * 336),
        f"{LABELS}: labels 336 frames, its video has 320; the labels rule",
        set(),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line_and_the_rest_is_used(
    name: str, one_trial: Path, tmp_path: Path
) -> None:
    damage, line, absent = DAMAGES[name]
    damage(one_trial)
    report = extract(one_trial, tmp_path / "out")
    found = _describe(report)
    assert len(found) == 1, found
    assert line in found[0]
    assert "\n" not in found[0]
    (trial,) = load_features(tmp_path / "out")
    assert (trial.mel is None) == ("sound" in absent)
    assert (trial.word_index.max() < 0) == ("words" in absent)
    frame = int(np.flatnonzero(trial.index == 39)[0])
    assert trial.face_present[frame] == (not absent & {"face", "faces"})
    assert trial.faces[frame].any() == trial.face_present[frame]
    assert trial.face_present.any() == ("faces" not in absent)
    assert trial.patches(0, 5).shape == (5, 96, 64)
    assert trial.hashed(0, 5).shape == (5,)
    assert report == extract_again(one_trial, tmp_path / "out", report)


def extract_again(root: Path, out: Path, first: Report) -> Report:
    """Runs again; what was written is complete now, and the problems are reported again."""
    again = extract(root, out)
    assert (again.written, again.complete) == ((), first.written)
    return Report(again.complete, (), again.left_out, again.problems)


@pytest.mark.parametrize("content", [b"", b"frame,label\n0,0\n", b"valence,arousal\n-5,-5\n"])
def test_a_trial_without_labels_is_left_out_and_the_others_used(
    content: bytes, one_trial: Path, tmp_path: Path
) -> None:
    other = (one_trial / LABELS).with_name("video1.txt")
    other.write_bytes(content)
    report = extract(one_trial, tmp_path / "out")
    assert report.left_out == ("video1",)
    assert report.written == ("video2",)
    (line,) = [problem for problem in report.problems if "video1" in problem]
    assert line.startswith(f"{other}: ")
    assert line.endswith("; trial video1 is left out")
    assert (tmp_path / "out/problems.txt").read_text().splitlines() == list(report.problems)


def test_a_truncated_video_is_one_line(trees: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(trees["mp4"], root)
    path = root / "videos/video2.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    report = extract(root, tmp_path / "out")
    (line,) = report.problems
    assert line.startswith(f"{path}: cannot be read as video")
    assert line.endswith("; the voice and the words are absent")
    assert len(report.written) == 10
    assert _by_name(tmp_path / "out")["video2"].mel is None


def test_a_test_trial_without_any_length_is_left_out(tmp_path: Path) -> None:
    names = tmp_path / "tree" / layout.TEST_NAMES
    names.parent.mkdir(parents=True)
    names.write_text("video1\nvideo2\n")
    faces = tmp_path / "tree/cropped_aligned/video2"
    faces.mkdir(parents=True)
    Image.new("RGB", (112, 112)).save(faces / "00003.jpg")
    report = extract(tmp_path / "tree", tmp_path / "out")
    assert report.left_out == ("video1",)
    assert any("holds no face, and no other file gives its length" in p for p in report.problems)
    (trial,) = load_features(tmp_path / "out", "test")
    assert len(trial) == 3


def test_the_command_prints_every_problem(one_trial: Path, tmp_path: Path) -> None:
    (one_trial / FACE).write_bytes(b"")
    console = Console(record=True, width=400, quiet=False, file=(tmp_path / "log").open("w"))
    Extract(one_trial, tmp_path / "out").run(console)
    console.file.close()
    said = console.export_text()
    assert f"{FACE}: is empty; the frame is black" in said
    assert "1 trials written, 0 there already, 0 left out, 3 problems" in said


def _touch_later(path: Path, content: str) -> None:
    """Rewrites a file with the same length or not, at another time."""
    path.write_text(content)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_what_was_mended_is_read_again(one_trial: Path, tmp_path: Path) -> None:
    out, words = tmp_path / "out", one_trial / "transcripts/video2.csv"
    words.write_text("start;end;word;confidence\n0;9000;so;1\n")
    (one_trial / FACE).write_bytes(b"")
    assert extract(one_trial, out).written == ("video2",)
    assert extract(one_trial, out).complete == ("video2",)

    _touch_later(words, "start;end;word;confidence\n0;9000;no;1\n")
    assert extract(one_trial, out).written == ("video2",)
    (trial,) = load_features(out)
    assert trial.hashed(5, 6)[0] == text.hash_words([Word(0, 1, "no")])[0]

    labels = one_trial / LABELS
    _touch_later(labels, labels.read_text().replace("-5,-5", "0.5,0.5"))
    assert extract(one_trial, out).written == ("video2",)
    assert len(load_features(out)[0]) == 320

    Image.new("RGB", (9, 9), (200, 0, 0)).save(one_trial / FACE)  # in place
    assert extract(one_trial, out).written == ("video2",)
    assert load_features(out)[0].face_present[39]

    _touch_later(labels, "valence,arousal\n")
    assert extract(one_trial, out).left_out == ("video2",)
    with pytest.raises(ValueError, match="holds no  features; run extract first"):
        load_features(out)


def test_workers_and_parts_write_the_same(
    trees: dict[str, Path], extracted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = extract(trees["wav"], out, workers=2, part=1, parts=2)
    second = extract(trees["wav"], out, part=2, parts=2)
    assert {*first.written} | {*second.written} == {*_by_name(extracted)}
    assert not {*first.written} & {*second.written}
    assert first.problems == second.problems == ()
    for path in extracted.rglob("*.np[yz]"):
        assert (out / path.relative_to(extracted)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("workers", "part", "parts"), [(0, 1, 1), (1, 0, 1), (1, 3, 2)])
def test_there_is_no_such_part(tmp_path: Path, workers: int, part: int, parts: int) -> None:
    with pytest.raises(ValueError, match=f"found {workers} workers, part {part} of {parts}"):
        extract(tmp_path, tmp_path / "out", workers=workers, part=part, parts=parts)


def test_a_second_run_into_the_same_folder_is_refused(one_trial: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    message = f"extract: {out} is in use by process {os.getpid()} on "
    with hold(out / ".extract.lock", "extract"), pytest.raises(ValueError, match=message):
        extract(one_trial, out)
    assert extract(one_trial, out).written == ("video2",)


def test_the_rest_of_a_voice_that_ends_early_is_missing(one_trial: Path, tmp_path: Path) -> None:
    path = one_trial / "audio/video2.wav"
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[: 10 * rate], rate)
    extract(one_trial, tmp_path / "out")
    (trial,) = load_features(tmp_path / "out")
    assert trial.heard(0, len(trial)).tolist() == (trial.index < 150).tolist()
    patches = trial.patches(0, len(trial))
    assert not patches[trial.index >= 150].any()
    assert patches[trial.index < 150].any()


@pytest.mark.parametrize("official", [320, 321, 330])
def test_a_frame_after_the_video_takes_the_last_sound(
    one_trial: Path, tmp_path: Path, official: int
) -> None:
    (one_trial / LABELS).write_text("valence,arousal\n" + "0.1,0.2\n" * official)
    path = one_trial / "audio/video2.wav"
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[: round(320 / 15 * rate)], rate)
    report = extract(one_trial, tmp_path / "out")
    assert _describe(report) == []
    (trial,) = load_features(tmp_path / "out")
    assert len(trial) == official
    mel = audio.log_mel(audio.read_audio(path))
    last = round((len(mel) - 96) // (100 / 15) * (100 / 15))
    for frame in range(320, official):
        np.testing.assert_array_equal(trial.patches(frame, frame + 1)[0], mel[last : last + 96])


def test_frames_of_varying_times_take_their_own_words_and_sound(
    one_trial: Path, tmp_path: Path
) -> None:
    times = np.concatenate([np.arange(160) / 10, 16 + np.arange(160) / 50])
    with av.open(str(one_trial / "video2.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    words = "start;end;word;confidence\n15900;16300;yes;1\n"
    (one_trial / "transcripts/video2.csv").write_text(words)
    report = extract(one_trial, tmp_path / "out", ExtractOptions(drop_invalid=False))
    assert _describe(report) == []
    (trial,) = load_features(tmp_path / "out")
    np.testing.assert_allclose(trial.shown_at(trial.index), times, atol=0.001)
    said = [t for t, i in zip(times, trial.word_index, strict=True) if i == 0]
    assert said == [t for t in times if 15.9 < t <= 16.3]
    assert abs(trial.mel_rows - np.minimum(times * 100, trial.mel_rows.max())).max() <= 1
