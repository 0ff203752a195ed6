"""Extracts what the trials of a video share: its frame rate, sound and words."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from examples.affwild2.dataset.audio import RATE, decibel_patches, log_mel, read_audio
from examples.affwild2.dataset.features import SOURCES
from examples.affwild2.dataset.files import DamagedFile, read_lines, stamp, whole
from examples.affwild2.dataset.layout import FRAME_RATES, Rates, Trial
from examples.affwild2.dataset.sound import HOLE, read_sound
from examples.affwild2.dataset.text import BertWords, hash_words, recognise
from examples.affwild2.dataset.transcript import Word, read_transcript, write_transcript
from examples.affwild2.dataset.video import Clock, read_clock

SHORT = 1.0  # seconds that sound, labels and video may differ before it is reported
FOREVER = 1e9  # s
FEW = 2  # frames that a video may lack before it is reported


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract.

    Attributes:
        bert: A local folder or hub name of a BERT for word vectors; without it, hashed words only.
        asr: Recognise speech with pocketsphinx where a video has no transcript.
        decibel: Also write the 44.1 kHz pictures in dB of the paper's text (decibel.npy).
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
    """What a video offers besides faces: its clock, sound (rows of log-mel) and words.

    Attributes:
        clock: When its frames are shown; ``None`` if no file says.
        mel_length: Rows of log-mel, 0 without sound.
        missing: From when to when nothing is known of the sound, in s.
        words: ``None`` without a transcript.
        problems: One line each.
        inputs: The files that all this comes from, by which a changed one is known.
    """

    clock: Clock | None
    mel_length: int
    missing: list[tuple[float, float]]
    words: list[Word] | None
    problems: list[str]
    inputs: dict[str, Any]


def read_source(
    rates: Rates,
    trials: Sequence[Trial],
    lengths: Mapping[str, int],
    out: Path,
    bert: BertWords | None,
    options: ExtractOptions,
) -> Source:
    """Extracts sound and words of a video, or reads what is there and up to date.

    Args:
        rates: Frame rate and number of frames, if no video has them.
        trials: Those of the video.
        lengths: Frames of trials without labels.
        out: Where the features go.
        bert: Computes word vectors; ``None`` for none.
        options: What to extract.
    """
    trial = trials[0]
    folder = out / SOURCES / trial.source
    inputs: dict[str, Any] = dict(stamp(trial.video, trial.sound, trial.transcript))
    if trial.source in rates:
        inputs[str(FRAME_RATES)] = list(rates[trial.source])
    meta = read_meta(folder)
    labels = stamp(*map(Path, meta.get("labels", {})))
    if meta.get("inputs") != inputs or meta.get("labels") != labels:
        with whole(folder) as partial:
            partial.mkdir(parents=True)
            _write_source(partial, rates, trials, lengths, bert, options, inputs)
    meta = read_meta(folder)
    transcript, times = folder / "words.csv", folder / "times.npy"
    clock = None
    if meta["fps"] is not None:
        clock = Clock(meta["fps"], meta["frames"], np.load(times) if times.exists() else None)
    return Source(
        clock,
        meta["mel_length"],
        [(start, end) for start, end in meta["missing"]],
        read_transcript(transcript) if transcript.exists() else None,
        meta["problems"],
        inputs,
    )


def read_meta(folder: Path) -> dict[str, Any]:
    """Reads what is written beside extracted arrays, nothing where there is none."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _write_source(
    folder: Path,
    rates: Rates,
    trials: Sequence[Trial],
    lengths: Mapping[str, int],
    bert: BertWords | None,
    options: ExtractOptions,
    inputs: dict[str, Any],
) -> None:
    trial, problems = trials[0], list[str]()
    labels, gaps = list[Path](), list[tuple[float, float]]()
    clock = _clock(rates, trial, problems)
    if clock is not None and clock.gaps():
        labels = [one.labels for one in trials if one.labels is not None]
        clock, gaps = _filled(clock, trials, lengths, problems)
    if clock is not None and clock.times is not None:
        np.save(folder / "times.npy", clock.times)
    sound = trial.sound or trial.video
    mel_length, missing = 0, list[tuple[float, float]]()
    if sound is None:
        problems.append(f"{trial.source}: has no sound file and no video; the voice is absent")
    elif clock is not None:
        mel_length, missing = _write_sound(folder, sound, clock, gaps, options, problems)
    length = math.inf if clock is None else 1000 * clock.frames / clock.fps
    words = _words(trial, length, sound if options.asr and mel_length else None, problems)
    if words is not None:
        write_transcript(folder / "words.csv", words)
        arrays: dict[str, Any] = {"ids": hash_words(words)}
        if bert is not None:
            arrays["vectors"] = bert.embed(words)
        np.savez(folder / "words.npz", **arrays)
    meta = {
        "fps": None if clock is None else clock.fps,
        "frames": 0 if clock is None else clock.frames,
        "mel_length": mel_length,
        "missing": missing,
        "problems": problems,
        "inputs": inputs,
        "labels": stamp(*labels),  # those that the clock depends on
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def _clock(rates: Rates, trial: Trial, problems: list[str]) -> Clock | None:
    """Asks the video file, then ``frame_rates.csv``."""
    damage = f"{trial.source}: no file gives its frame rate"
    if trial.video is not None:
        try:
            clock = read_clock(trial.video)
            if clock.lost > FEW:
                problems.append(
                    f"{trial.video}: {clock.lost} of its {clock.frames + clock.lost} frames cannot "
                    "be read"
                )
            return clock
        except DamagedFile as error:
            damage = str(error)
            if trial.source in rates:
                problems.append(f"{damage}; its frame rate comes from {FRAME_RATES}")
    if trial.source in rates:
        return Clock(*rates[trial.source], None)
    problems.append(f"{damage}; the voice and the words are absent")
    return None


def _filled(
    clock: Clock, trials: Sequence[Trial], lengths: Mapping[str, int], problems: list[str]
) -> tuple[Clock, list[tuple[float, float]]]:
    """Gives a video with damaged parts the frames that it lacks, if its trials have them.

    Returns:
        The clock, and where these frames are; nowhere if the frames come at varying times.
    """
    for trial in trials:
        frames = _count(trial, lengths)
        if frames and (filled := clock.filled(frames)) is not clock:
            gaps = clock.gaps()
            problems.append(
                f"{trial.video}: {clock.frames} of the {frames} frames of {trial.name} can be "
                f"read; those after {gaps[0][0]:.1f} s keep their times"
            )
            return filled, gaps
    return clock, []


def _count(trial: Trial, lengths: Mapping[str, int]) -> int:
    """Frames of a trial by its labels or the sample file, 0 if neither gives them."""
    try:
        return len(read_lines(trial.labels)) - 1 if trial.labels else lengths.get(trial.name, 0)
    except DamagedFile:
        return 0


def _write_sound(
    folder: Path,
    path: Path,
    clock: Clock,
    gaps: Sequence[tuple[float, float]],
    options: ExtractOptions,
    problems: list[str],
) -> tuple[int, list[tuple[float, float]]]:
    """Writes log-mel rows; returns their number, 0 without sound, and what is missing of it."""
    try:
        sound = read_sound(path, RATE)
        problems += sound.problems
        missing, end = list(sound.missing), len(sound.samples) / RATE
        torn = [
            (start, stop)
            for start, stop in sound.pauses
            if stop - start > HOLE and any(start < b and a < stop for a, b in gaps)
        ]
        if torn:
            missing += torn
            lost = sum(stop - start for start, stop in torn)
            problems.append(
                f"{path}: {lost:.1f} s of its sound from {torn[0][0]:.1f} s on are absent, as are "
                "the frames there; that part of the voice is missing"
            )
        last = float(clock.at(np.array([clock.frames]))[0])
        if last - end > SHORT:
            problems.append(
                f"{path}: ends {last - end:.1f} s before the video; "
                "the rest of the voice is missing"
            )
            missing.append((end, FOREVER))
        else:
            missing.append((end + SHORT, FOREVER))
        mel = log_mel(sound.samples)
        np.save(folder / "mel.npy", mel)
        if options.decibel:
            np.save(folder / "decibel.npy", decibel_patches(read_audio(path, 44_100), clock.fps))
    except DamagedFile as error:
        problems.append(f"{error}; the voice is absent")
        return 0, []
    return len(mel), [(start, min(stop, FOREVER)) for start, stop in missing]


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
