"""Extracts what the trials of a video share: its frame rate, sound and words."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from examples.affwild2.dataset.audio import RATE, decibel_patches, log_mel, read_audio
from examples.affwild2.dataset.features import SOURCES
from examples.affwild2.dataset.files import DamagedFile, whole
from examples.affwild2.dataset.layout import FRAME_RATES, Layout, Trial
from examples.affwild2.dataset.text import BertWords, hash_words, recognise
from examples.affwild2.dataset.transcript import Word, read_transcript, write_transcript
from examples.affwild2.dataset.video import probe

SHORT = 1.0  # seconds that sound, labels and video may differ before it is reported


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract.

    Attributes:
        bert: A local folder or hub name of a BERT for word vectors; without it, hashed words only.
        asr: Recognise speech with pocketsphinx where a video has no transcript.
        decibel: Also write the 44.1 kHz pictures in dB of the paper's text (``decibel.npy``).
        drop_invalid: Leave out the frames without valid labels, closing the gaps.
        align_faces: Which face goes with a kept frame: its own (annotated), or as the authors' code
            reads them, files 1 to T, shifted against the labels after every dropped frame.
    """

    bert: str | None = None
    asr: bool = False
    decibel: bool = False
    drop_invalid: bool = True
    align_faces: Literal["annotated", "authors"] = "annotated"


@dataclass(frozen=True)
class Source:
    """What a video offers besides faces: its rate, sound (rows of log-mel) and words."""

    fps: float | None
    frames: int
    mel_length: int
    words: list[Word] | None
    problems: list[str]


def read_source(
    layout: Layout, trial: Trial, out: Path, bert: BertWords | None, options: ExtractOptions
) -> Source:
    """Extracts sound and words of a trial's video, or reads what is there."""
    folder = out / SOURCES / trial.source
    if not folder.exists():
        with whole(folder) as partial:
            partial.mkdir(parents=True)
            _write_source(partial, layout, trial, bert, options)
    meta = json.loads((folder / "meta.json").read_text())
    transcript = folder / "words.csv"
    words = read_transcript(transcript) if transcript.exists() else None
    return Source(words=words, **meta)


def _write_source(
    folder: Path, layout: Layout, trial: Trial, bert: BertWords | None, options: ExtractOptions
) -> None:
    problems: list[str] = []
    fps, frames = _rate(layout, trial, problems)
    sound = trial.sound or trial.video
    mel_length = 0
    if sound is None:
        problems.append(f"{trial.source}: has no sound file and no video; the voice is absent")
    elif fps is not None:
        mel_length = _write_sound(folder, sound, fps, frames, options, problems)
    length = 1000 * frames / fps if fps else math.inf
    words = _words(trial, length, sound if options.asr and mel_length else None, problems)
    if words is not None:
        write_transcript(folder / "words.csv", words)
        arrays: dict[str, Any] = {"ids": hash_words(words)}
        if bert is not None:
            arrays["vectors"] = bert.embed(words)
        np.savez(folder / "words.npz", **arrays)
    meta = {"fps": fps, "frames": frames, "mel_length": mel_length, "problems": problems}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def _rate(layout: Layout, trial: Trial, problems: list[str]) -> tuple[float | None, int]:
    """Asks the video file, then ``frame_rates.csv``."""
    damage = f"{trial.source}: no file gives its frame rate"
    if trial.video is not None:
        try:
            return probe(trial.video)
        except DamagedFile as error:
            damage = str(error)
            if trial.source in layout.rates:
                problems.append(f"{damage}; its frame rate comes from {FRAME_RATES}")
    if trial.source in layout.rates:
        return layout.rates[trial.source]
    problems.append(f"{damage}; the voice and the words are absent")
    return None, 0


def _write_sound(
    folder: Path,
    sound: Path,
    fps: float,
    frames: int,
    options: ExtractOptions,
    problems: list[str],
) -> int:
    """Writes log-mel rows and returns their number, 0 where the sound cannot be read."""
    try:
        samples = read_audio(sound)
        missing = frames / fps - len(samples) / RATE
        if missing > SHORT:
            problems.append(f"{sound}: ends {missing:.1f} s before the video; its end is repeated")
        mel = log_mel(samples)
        np.save(folder / "mel.npy", mel)
        if options.decibel:
            np.save(folder / "decibel.npy", decibel_patches(read_audio(sound, 44_100), fps))
    except DamagedFile as error:
        problems.append(f"{error}; the voice is absent")
        return 0
    return len(mel)


def _words(
    trial: Trial, length: float, sound: Path | None, problems: list[str]
) -> list[Word] | None:
    """Reads the transcript, or recognises ``sound`` where there is none."""
    if trial.transcript is not None:
        try:
            return read_transcript(trial.transcript, length, problems)
        except DamagedFile as error:
            problems.append(f"{error}; the words are absent")
            return None
    if sound is not None:
        return recognise(read_audio(sound))
    problems.append(f"{trial.source}: has no transcript; the words are absent")
    return None
