"""Makes data in the official layout, with known truth, to run the example without the real data.

Faces, voices and words show noisy cues of a hidden valence and arousal (``latents.py``); each is
blind at times. What real trees have is in it: missing crops, -5 rows, two people in one video (the
first is heard), trials shorter than a window, labels one frame longer than the video, a test set
whose labels lie only in ``truth/``.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from examples.affwild2.dataset.layout import (
    ANNOTATIONS,
    FACES,
    FRAME_RATES,
    HEADER,
    PARTITIONS,
    TEST_NAMES,
    TEST_SAMPLE,
    Partition,
)
from examples.affwild2.dataset.progress import follow
from examples.affwild2.dataset.transcript import write_transcript
from examples.affwild2.synthetic import latents
from examples.affwild2.synthetic.faces import SIZE, draw_faces
from examples.affwild2.synthetic.latents import FPS, Bools, Latents, Switches
from examples.affwild2.synthetic.lexicon import Vocabulary, content_words
from examples.affwild2.synthetic.speech import draw_words
from examples.affwild2.synthetic.voice import RATE, draw_syllables, draw_voice

VERSION = 1
Size = Literal["tiny", "small"]
COUNTS: dict[Size, dict[Partition, int]] = {
    "tiny": {"train": 6, "validation": 2, "test": 2},
    "small": {"train": 24, "validation": 6, "test": 6},
}


@dataclass(frozen=True)
class _Plan:
    """One trial to make, the ``rank``-th of its partition.

    ``heard`` says whether the sound and the words of the video are this person's.
    """

    name: str
    source: str
    partition: Partition
    rank: int
    frames: int
    heard: bool
    stream: np.random.SeedSequence


@dataclass(frozen=True)
class _Video:
    """What a video shows, person by person, and how it sounds."""

    source: str
    pictures: list[list[Image.Image | None]]
    voice: NDArray[np.int16]


def make_data(
    out: Path,
    *,
    size: Size = "tiny",
    seed: int = 0,
    switches: Switches | None = None,
    mp4: bool = False,
    lexicon: str = "own",
) -> None:
    """Writes a whole tree; the same arguments give the same labels, pixels and samples.

    Args:
        out: A folder that is empty or does not exist yet.
        size: ``tiny`` (10 trials of 8 to 22 s) or ``small`` (36 trials of 30 s).
        seed: Of everything.
        switches: Sarcasm and idiosyncrasy; ``None`` means 0.25 and 0.5.
        mp4: Videos with sound instead of wav files and a table of frame rates.
        lexicon: ``own``, or ``vader`` where vaderSentiment is installed.

    Raises:
        ValueError: ``out`` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"make-data: {out} is not empty; name a new folder")
    switches = Switches() if switches is None else switches
    content = content_words(lexicon)
    plans = _plan(size, seed)
    counts: dict[str, int] = {}
    sources = list(dict.fromkeys(plan.source for plan in plans))
    for source in follow(sources, "videos to make", len(sources)):
        people = [plan for plan in plans if plan.source == source]
        video = _make_video(out, people, switches, content)
        (_write_mp4 if mp4 else _write_wav)(out, video)
        counts[source] = len(video.pictures[0])
    if not mp4:
        _write_rates(out, counts)
    _write_test_lists(out, [plan for plan in plans if plan.partition == "test"])
    _write_manifest(out, {"size": size, "seed": seed, "lexicon": lexicon, **asdict(switches)})


def _plan(size: Size, seed: int) -> list[_Plan]:
    counts = COUNTS[size]
    lengths, *streams = np.random.SeedSequence(seed).spawn(1 + sum(counts.values()))
    rng = np.random.Generator(np.random.PCG64(lengths))
    plans: list[_Plan] = []
    for partition in PARTITIONS:
        two = partition != "test"
        for i in range(counts[partition]):
            left = counts[partition] - i
            frames = plans[-1].frames if two and left == 1 else _length(size, partition, i, rng)
            source, name = _names(len(plans) + 1, partition, left if two else 0)
            stream = streams[len(plans)]
            plans.append(_Plan(name, source, partition, i, frames, not (two and left == 1), stream))
    return plans


def _names(number: int, partition: Partition, left: int) -> tuple[str, str]:
    """Names a video and its trial; the last two of train and validation share a video.

    The real data does it in two ways: ``_left`` and ``_right``, or plain and ``_right``.
    """
    if left not in {1, 2}:
        return f"video{number}", f"video{number}"
    number += left - 2
    if partition == "train":
        return f"video{number}", f"video{number}_{'left' if left == 2 else 'right'}"
    return f"{number}-15-112x112", f"{number}-15-112x112{'_right' if left == 1 else ''}"


def _length(size: Size, partition: Partition, i: int, rng: np.random.Generator) -> int:
    """Frames of a trial: some are shorter than a window of 300, some just longer."""
    drawn = int(rng.integers(120, 331))
    if size == "small":
        return {0: 200, 1: 301, 2: 501}.get(i, 450) if partition == "train" else 450
    return {0: 160, 1: 320}.get(i, drawn) if partition == "train" else drawn


def _make_video(out: Path, people: list[_Plan], switches: Switches, content: Vocabulary) -> _Video:
    pictures: list[list[Image.Image | None]] = []
    voice = np.zeros(0, np.int16)
    for plan in people:
        random = [np.random.Generator(np.random.PCG64(s)) for s in plan.stream.spawn(5)]
        trial = latents.simulate(plan.frames, switches, random[0])
        syllables = draw_syllables(trial)
        pictures.append(list(draw_faces(trial, syllables.opening, random[1])))
        _write_faces(out / FACES / plan.name, pictures[-1])
        if plan.heard:
            voice = draw_voice(trial, syllables, random[2])
            path = out / "transcripts" / f"{plan.source}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_transcript(path, draw_words(trial, content, random[3]))
        _write_labels(out, plan, trial, random[4])
    if _is_uneven(people[0]):
        pictures = [part[:-1] for part in pictures]
        voice = voice[: -RATE // 2]
    return _Video(people[0].source, pictures, voice)


def _is_uneven(plan: _Plan) -> bool:
    """Whether the labels (or the test list) have one frame more than the video."""
    return (plan.partition, plan.rank) in {("train", 2), ("test", 0)}


def _write_faces(folder: Path, pictures: list[Image.Image | None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures, start=1):
        if picture is not None:
            picture.save(folder / f"{number:05d}.jpg", quality=90)


def _write_labels(out: Path, plan: _Plan, trial: Latents, rng: np.random.Generator) -> None:
    labels = trial.labels.copy()
    labels[_bursts(plan, rng)] = -5
    (out / "truth").mkdir(parents=True, exist_ok=True)
    truth: dict[str, Any] = {f"cue_{name}": values for name, values in trial.cues.items()}
    truth |= {key: value for key, value in vars(trial).items() if key != "cues"}
    np.savez_compressed(out / "truth" / f"{plan.name}.npz", heard=plan.heard, **truth)
    if plan.partition != "test":
        path = out / ANNOTATIONS[plan.partition][0] / f"{plan.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{v:.3f},{a:.3f}" if v >= -1 else "-5,-5" for v, a in labels]
        path.write_text("\n".join([HEADER, *rows]) + "\n")


def _bursts(plan: _Plan, rng: np.random.Generator) -> Bools:
    """Frames that nobody rated: a fifth of the trials begins so, a fifth has such a gap."""
    unrated = np.zeros(plan.frames, bool)
    chance, length = rng.random(2), (rng.uniform(0.3, 2, 2) * FPS).astype(int)
    if chance[0] < 0.2 or plan.rank == 0:
        unrated[: length[0]] = True
    if chance[1] < 0.2 or plan.rank == 1:
        start = int(rng.integers(plan.frames // 4, plan.frames // 2))
        unrated[start : start + length[1]] = True
    return unrated


def _write_wav(out: Path, video: _Video) -> None:
    path = out / "audio" / f"{video.source}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, video.voice, RATE, subtype="PCM_16")


def _write_mp4(out: Path, video: _Video) -> None:
    """Writes MPEG-4 pictures, people next to each other, and AAC sound."""
    path = out / "videos" / f"{video.source}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=round(FPS))
        pictures.width, pictures.height = SIZE * len(video.pictures), SIZE
        pictures.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=RATE, layout="mono")
        for row in zip(*video.pictures, strict=True):
            joined = np.concatenate([_pixels(picture) for picture in row], axis=1)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(joined, format="rgb24")))
        container.mux(pictures.encode())
        frame = av.AudioFrame.from_ndarray(video.voice[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(sound.encode(frame))
        container.mux(sound.encode())


def _pixels(picture: Image.Image | None) -> NDArray[np.uint8]:
    return np.full((SIZE, SIZE, 3), 110, np.uint8) if picture is None else np.asarray(picture)


def _write_rates(out: Path, videos: dict[str, int]) -> None:
    rows = [f"{source},{FPS:g},{frames}" for source, frames in videos.items()]
    (out / FRAME_RATES).write_text("\n".join(["video,fps,frames", *rows]) + "\n")


def _write_test_lists(out: Path, plans: list[_Plan]) -> None:
    (out / TEST_NAMES).parent.mkdir(parents=True, exist_ok=True)
    (out / TEST_NAMES).write_text("".join(f"{plan.name}\n" for plan in plans))
    rows = [f"{p.name}/{i + 1:05d}.jpg,0,0" for p in plans for i in range(p.frames)]
    (out / TEST_SAMPLE).write_text("\n".join([f"image_location,{HEADER}", *rows]) + "\n")


def _write_manifest(out: Path, settings: dict[str, object]) -> None:
    labels = sorted(
        path for group in ANNOTATIONS.values() for path in (out / group[0]).glob("*.txt")
    )
    sums = {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in labels}
    manifest = {"version": VERSION, **settings, "sha256": sums}
    (out / "MANIFEST.json").write_text(json.dumps(manifest, indent=2) + "\n")
