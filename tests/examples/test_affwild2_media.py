"""Sound and pictures of known content in the containers that people have."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image

from examples.affwild2.dataset import audio, video
from examples.affwild2.dataset.extract import extract
from examples.affwild2.dataset.features import load_features
from examples.affwild2.dataset.files import DamagedFile
from examples.affwild2.dataset.sound import read_sound

Floats = NDArray[np.float64]


def _tone(rate: int, seconds: float = 1.0) -> Floats:
    return np.asarray(0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate))


def _click(rate: int, at: float, seconds: float) -> Floats:
    sound = np.zeros(round(seconds * rate))
    sound[round(at * rate) : round(at * rate) + rate // 50] = 0.8
    return sound


def _write(
    path: Path,
    channels: Floats,
    rate: int,
    *,
    layout: str = "mono",
    codec: str = "aac",
    form: str = "fltp",
    start: float = 0.0,
    pictures: Sequence[float] = (),
    options: dict[str, str] | None = None,
) -> Path:
    """Writes (channels, n) as a sound track that begins at ``start``, and pictures at times."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, format=form)
        assert isinstance(stream, av.AudioStream)
        screen = None
        if pictures:
            screen = container.add_stream("mpeg4", rate=30)
            screen.width = screen.height = 32
            screen.pix_fmt = "yuv420p"
            screen.codec_context.time_base = Fraction(1, 1000)
        size = 1024
        scaled = channels * (2.0**15 - 1) if form.startswith("s16") else channels
        for i in range(0, channels.shape[1], size):
            part = scaled[:, i : i + size].astype(np.int16 if form.startswith("s16") else "f4")
            if not form.endswith("p"):
                part = part.T.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), form, layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = i + round(start * rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if screen is not None:
            for time in pictures:
                image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
                image.pts, image.time_base = round(1000 * time), Fraction(1, 1000)
                container.mux(screen.encode(image))
            container.mux(screen.encode())
    return path


def _damage(path: Path, start: float, stop: float) -> None:
    """Overwrites the packets between two times."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.pts is None or packet.pos is None or packet.time_base is None:
                continue
            if start <= float(packet.pts * packet.time_base) < stop:
                content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(bytes(content))


def _level(path: Path) -> float:
    middle = audio.read_audio(path)[4000:12000].astype(np.float64) / 2**15
    return float(np.sqrt(2 * (middle**2).mean()))


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
@pytest.mark.parametrize(("layout", "count"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
@pytest.mark.parametrize(
    ("suffix", "codec", "form"),
    [
        (".mp4", "aac", "fltp"),
        (".mkv", "aac", "fltp"),
        (".mkv", "pcm_s16le", "s16"),
        (".mov", "pcm_f32le", "flt"),
    ],
)
def test_one_sound_has_one_level(
    tmp_path: Path, rate: int, layout: str, count: int, suffix: str, codec: str, form: str
) -> None:
    channels = np.tile(_tone(rate), (count, 1))
    path = tmp_path / f"a{suffix}"
    _write(path, channels, rate, layout=layout, codec=codec, form=form)
    assert _level(path) == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_one_sound_has_one_level_in_wav(tmp_path: Path, subtype: str, count: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.tile(_tone(44_100), (count, 1)).T, 44_100, subtype)
    assert _level(path) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("suffix", [".wav", ".mkv"])
def test_a_voice_in_the_centre_is_as_loud_as_in_mono(tmp_path: Path, suffix: str) -> None:
    channels = np.zeros((6, 48_000))
    channels[2] = _tone(48_000)
    channels[3] = 0.1  # the low-frequency channel does not count
    path = tmp_path / f"a{suffix}"
    if suffix == ".wav":
        soundfile.write(path, channels.T, 48_000, "FLOAT")
    else:
        _write(path, channels, 48_000, layout="5.1", codec="pcm_s16le", form="s16")
    assert _level(path) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("layout", ["2.1", "3.0", "4.1", "5.0", "5.1(side)", "6.1", "7.1"])
def test_the_low_frequency_channel_is_known_by_its_name(tmp_path: Path, layout: str) -> None:
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    channels = np.tile(_tone(48_000), (len(names), 1))
    channels[[name == "LFE" for name in names]] = 0.1
    for suffix, codec in ((".mkv", "flac"), (".wav", "pcm_s16le")):
        path = tmp_path / f"a{suffix}"
        _write(path, channels, 48_000, layout=layout, codec=codec, form="s16")
        assert _level(path) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("suffix", "codec", "form"), [(".mp4", "aac", "fltp"), (".mkv", "pcm_s16le", "s16")]
)
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_click_is_heard_where_the_container_says(
    tmp_path: Path, suffix: str, codec: str, form: str, start: float
) -> None:
    sound = _click(48_000, 2.0 - start, 3.0 - start)[None]
    path = tmp_path / f"a{suffix}"
    pictures = np.arange(90) / 30
    _write(path, sound, 48_000, codec=codec, form=form, start=start, pictures=pictures.tolist())
    samples = audio.read_audio(path)
    assert np.flatnonzero(np.abs(samples) > 8000)[0] / 16_000 == pytest.approx(2.0, abs=0.002)
    assert len(samples) / 16_000 == pytest.approx(3.0, abs=0.05)


def test_a_recording_cut_from_a_longer_one_begins_at_zero(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    pictures = (10 + np.arange(30) / 10).tolist()
    sound = _click(16_000, 1.0, 3.0)[None]
    _write(path, sound, 16_000, codec="pcm_s16le", form="s16", start=10.0, pictures=pictures)
    samples = audio.read_audio(path)
    assert np.flatnonzero(np.abs(samples) > 8000)[0] / 16_000 == pytest.approx(1.0, abs=0.002)
    clock = video.read_clock(path)
    assert clock.at(np.array([10]))[0] == pytest.approx(1.0, abs=0.002)


def test_frames_at_varying_times_have_their_own(tmp_path: Path) -> None:
    times = np.concatenate([np.arange(60) / 10, 6 + np.arange(100) / 50])  # 10 fps, then 50
    path = _write(tmp_path / "a.mkv", _tone(16_000)[None], 16_000, pictures=times.tolist())
    clock = video.read_clock(path)
    assert clock.frames == 160
    np.testing.assert_allclose(clock.at(np.arange(160)), times, atol=0.001)
    assert clock.at(np.array([160, 170]))[0] > times[-1]  # a frame more than the video has
    rows = audio.rows_at(1000, clock.at(np.array([60])))
    assert rows[0] == pytest.approx(600, abs=1)


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_a_live_recording_has_the_rate_of_its_frames(tmp_path: Path, suffix: str) -> None:
    """Its header has neither a length nor, if frames come at varying times, a rate."""
    times = np.cumsum(np.random.default_rng(0).choice([0.03, 0.04, 0.07], 60)).round(3)
    times -= times[0]
    path = tmp_path / f"a{suffix}"
    live = {"live": "1"} if suffix == ".mkv" else {}
    _write(path, _tone(16_000)[None], 16_000, pictures=times.tolist(), options=live)
    assert video.probe(path)[1] == video.probe(path, count=False)[1] == 60
    assert video.read_clock(path).fps == pytest.approx(59 / times[-1], rel=0.01)
    got = video.read_clock(path).at(np.arange(60))
    np.testing.assert_allclose(got - got[0], times, atol=0.001)


def test_a_short_gap_in_the_sound_moves_what_follows(tmp_path: Path) -> None:
    """Fragmented mp4 with frames out of order begins with a gap of 46 ms."""
    path, rate = tmp_path / "a.mkv", 48_000
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono", format="s16")
        assert isinstance(stream, av.AudioStream)
        sound = (_click(rate, 1.0, 2.0) * 2**15).astype(np.int16)
        for i in range(0, len(sound), 1024):
            frame = av.AudioFrame.from_ndarray(sound[None, i : i + 1024], "s16", "mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = i + (2192 if i else 0)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    samples = audio.read_audio(path)
    heard = np.flatnonzero(np.abs(samples) > 8000)[0] / 16_000
    assert heard == pytest.approx(1 + 2192 / rate, abs=0.002)


@pytest.mark.parametrize("fps", [15, 24, 30])
def test_even_frames_need_no_times(tmp_path: Path, fps: int) -> None:
    times = (np.arange(60) / fps).round(3).tolist()
    path = _write(tmp_path / "a.mkv", _tone(16_000)[None], 16_000, pictures=times)
    clock = video.read_clock(path)
    assert clock.times is None
    np.testing.assert_allclose(clock.at(np.arange(60)), np.arange(60) / fps, atol=0.002)


def test_rows_after_the_last_patch_repeat_it() -> None:
    times = np.array([0.0, 0.5, 1.036, 1.04, 1.05, 9.0])
    assert audio.rows_at(200, times).tolist() == [0, 50, 104, 104, 104, 104]
    with pytest.raises(ValueError, match="rows_at: a patch has 96 rows, found only 95"):
        audio.rows_at(95, times)


def test_what_can_be_decoded_of_a_sound_is_used(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mkv", _tone(48_000, 10.0)[None], 48_000, codec="flac", form="s16")
    whole = read_sound(path, 16_000)
    assert not whole.missing
    assert not whole.problems
    content = bytearray(path.read_bytes())
    start = round(0.93 * len(content))
    rng = np.random.default_rng(0)
    content[start:] = rng.integers(0, 256, len(content) - start, np.uint8).tobytes()
    path.write_bytes(bytes(content))
    got = read_sound(path, 16_000)
    kept = round(9.0 * 16_000)
    np.testing.assert_array_equal(got.samples[:kept], whole.samples[:kept])


def test_damage_in_the_middle_is_a_hole_of_its_length(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", _tone(48_000, 10.0)[None], 48_000)
    whole = read_sound(path, 16_000)
    _damage(path, 4.0, 5.0)
    got = read_sound(path, 16_000)
    ((start, stop),) = got.missing
    assert start == pytest.approx(4.0, abs=0.06)
    assert stop == pytest.approx(5.0, abs=0.06)
    (line,) = got.problems
    assert line.startswith(f"{path}: ")
    assert "1.0 s of its sound from 4.0 s on cannot be decoded" in line
    assert len(got.samples) == pytest.approx(len(whole.samples), abs=400)
    np.testing.assert_allclose(
        got.samples[6 * 16_000 : 9 * 16_000], whole.samples[6 * 16_000 : 9 * 16_000], atol=400
    )


def test_a_damaged_end_is_missing(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", _tone(48_000, 10.0)[None], 48_000)
    _damage(path, 9.3, 99.0)
    got = read_sound(path, 16_000)
    ((start, stop),) = got.missing
    assert start == pytest.approx(9.3, abs=0.06)
    assert stop == np.inf
    assert "0.7 s of its sound from 9.3 s on cannot be decoded" in got.problems[0]


def _overwrite(path: Path, first: float, last: float) -> None:
    """Overwrites a part of a file, of which nothing can be read then."""
    content = bytearray(path.read_bytes())
    start, stop = (round(share * len(content)) for share in (first, last))
    content[start:stop] = np.random.default_rng(0).bytes(stop - start)
    path.write_bytes(bytes(content))


def _tree(root: Path, rows: int) -> Path:
    """The labels and the crop of one trial; valence is the number of the frame."""
    folder = root / "Train_Set"
    folder.mkdir(parents=True)
    labels = "".join(f"{row / 1000},0\n" for row in range(rows))
    (folder / "video1.txt").write_text(f"valence,arousal\n{labels}")
    (root / "crops/video1").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(root / "crops/video1/00001.png")
    return root


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
@pytest.mark.parametrize("labelled", [True, False])
def test_frames_after_a_damaged_part_keep_their_times(
    tmp_path: Path, suffix: str, labelled: bool
) -> None:
    """With as many labels as frames that can be read, the frames come at varying times."""
    root, rate = tmp_path / "tree", 44_100
    root.mkdir()
    path = root / f"video1{suffix}"
    sound = _click(rate, 1.0, 8.0) + _click(rate, 7.0, 8.0)
    _write(path, sound[None], rate, pictures=(np.arange(240) / 30).tolist())
    _overwrite(path, 0.45, 0.55)
    read = video.read_clock(path).frames
    assert read < 230
    _tree(root, 240 if labelled else read)
    report = extract(root, tmp_path / "out")
    (trial,) = load_features(tmp_path / "out")
    times = trial.shown_at(trial.index)
    assert times[-1] - times[0] == pytest.approx(239 / 30, abs=0.002)
    heard = trial.heard(0, len(trial))
    lines = [line for line in report.problems if str(path) in line]
    if not labelled:
        assert heard.all()
        assert lines == []
        return
    np.testing.assert_allclose(times - times[0], np.arange(240) / 30, atol=0.002)
    assert (~heard).sum() == pytest.approx(240 - read, abs=3)
    assert not heard[round(4.0 * 30)]
    assert [line.startswith(f"{path}: {read} of the 240 frames") for line in lines] == [True, False]
    assert lines[1].endswith("that part of the voice is missing")
    assert extract(root, tmp_path / "out").complete == ("video1",)
    (root / "Train_Set/video1.txt").write_text("valence,arousal\n" + read * "0,0\n")
    extract(root, tmp_path / "out")
    (trial,) = load_features(tmp_path / "out")
    assert trial.heard(0, len(trial)).all(), "the labels changed, and with them the clock"


def test_a_damaged_avi_is_reported(tmp_path: Path) -> None:
    """It counts its frames in the header, and gives no times."""
    path = tmp_path / "video1.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(90):
            noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, "rgb24")))
        container.mux(stream.encode())
    assert video.read_clock(path).lost == 0
    _overwrite(path, 0.5, 0.7)
    lost = video.read_clock(path).lost
    assert lost > 3
    _tree(tmp_path, 90)
    report = extract(tmp_path, tmp_path / "out")
    assert f"{path}: {lost} of its 90 frames cannot be read" in report.problems


def test_labels_long_after_the_end_of_the_sound_have_no_voice(tmp_path: Path) -> None:
    """A frame or two more than the video has are normal; they repeat the last sound."""
    _tree(tmp_path, 150)
    path = tmp_path / "video1.mkv"
    _write(path, _tone(16_000, 3.0)[None], 16_000, pictures=(np.arange(90) / 30).tolist())
    extract(tmp_path, tmp_path / "out")
    (trial,) = load_features(tmp_path / "out")
    assert trial.heard(0, 115).all()
    assert not trial.heard(125, 150).any()


@pytest.mark.parametrize("name", ["{:05d}.png", "{:05d}.bmp", "{:05d}.JPG", "{:04d}.jpg"])
@pytest.mark.parametrize("first", [0, 1])
def test_crops_are_read_by_their_number(tmp_path: Path, name: str, first: int) -> None:
    for frame in (0, 2):
        picture = Image.new("RGB", (112, 112), (60 * (frame + 1), 0, 0))
        picture.save(tmp_path / name.format(frame + first))
    faces = video.read_faces(tmp_path, np.arange(4), first=first)
    assert faces.present.tolist() == [True, False, True, False]
    np.testing.assert_allclose(faces.pixels[:, 5, 5, 0], [60, 0, 180, 0], atol=2)
    assert faces.problems == ()


def test_pictures_of_another_format_are_read_with_one_line(tmp_path: Path) -> None:
    for frame in (1, 2, 3):
        Image.new("RGB", (9, 9), (99, 0, 0)).save(tmp_path / f"{frame:05d}.jpg", "PNG")
    faces = video.read_faces(tmp_path, np.arange(3))
    assert faces.present.all()
    (line,) = faces.problems
    assert line == (
        f"{tmp_path / '00001.jpg'}: is of another format than its name says, as are 2 more of its "
        "folder; they are read"
    )


def test_many_damaged_crops_are_one_line(tmp_path: Path) -> None:
    for frame in (1, 2, 3):
        (tmp_path / f"{frame:05d}.jpg").write_bytes(b"")
    (line,) = video.read_faces(tmp_path, np.arange(3)).problems
    assert line == (
        f"{tmp_path / '00001.jpg'}: is empty, as are 2 more of its folder; those frames are black"
    )


def test_a_video_that_is_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match="cannot be read as video"):
        video.read_clock(tmp_path / "none.mkv")
