"""Turns a tree of the official layout into features on disk, one folder per trial and per video.

Every folder is written under another name and renamed when it is whole, so a run that was stopped
goes on where it was, and what changed below the root since is read again. Damage is reported in one
line per file. A trial whose labels cannot be trusted is left out; missing or damaged faces are
black, a missing voice or transcript is an absent modality.
"""

import json
import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from examples.affwild2.dataset.audio import MISSING, patch_rows, rows_at
from examples.affwild2.dataset.challenge import read_sample_lengths
from examples.affwild2.dataset.features import TRIALS
from examples.affwild2.dataset.files import DamagedFile, hold, read_object, stamp, whole
from examples.affwild2.dataset.layout import (
    TEST_SAMPLE,
    Layout,
    Rates,
    Trial,
    read_annotation,
    resolve,
)
from examples.affwild2.dataset.progress import follow
from examples.affwild2.dataset.sources import (
    SHORT,
    ExtractOptions,
    Source,
    read_meta,
    read_source,
)
from examples.affwild2.dataset.text import BertWords, align
from examples.affwild2.dataset.video import last_face, read_faces
from examples.affwild2.dataset.workers import start_worker


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        written: Trials written now.
        complete: Trials that were there already, of unchanged files.
        left_out: Trials that could not be used.
        problems: One line per file or trial, those of earlier runs included.
    """

    written: tuple[str, ...]
    complete: tuple[str, ...]
    left_out: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """The trials of one video, for one process."""

    trials: tuple[Trial, ...]
    rates: Rates
    lengths: dict[str, int]
    out: Path
    options: ExtractOptions


def extract(
    root: Path,
    out: Path,
    options: ExtractOptions | None = None,
    *,
    workers: int = 1,
    part: int = 1,
    parts: int = 1,
) -> Report:
    """Extracts all trials below ``root`` into ``out``; skips what is complete and unchanged.

    Args:
        root: A tree of the official layout.
        out: Where the features go.
        options: What to extract; ``None`` means the defaults.
        workers: Processes to use.
        part: Which share of the videos to extract, from 1.
        parts: How many shares there are, one per host.

    Raises:
        ValueError: ``root`` holds no trials, ``out`` was made with other options or is in use, or
            there is no such part.
    """
    if workers < 1 or not 1 <= part <= parts:
        raise ValueError(
            f"extract: workers must be 1 or more and part 1 to parts, found {workers} workers, "
            f"part {part} of {parts}"
        )
    options = ExtractOptions() if options is None else options
    layout = resolve(root)
    share = "" if parts == 1 else f"-{part}-of-{parts}"
    with hold(out / f".extract{share}.lock", "extract"):
        _claim(out, {"root": str(root.resolve()), **asdict(options)})
        problems = [*layout.missing, *layout.problems]
        jobs = _jobs(layout, out, options, problems)[part - 1 :: parts]
        found = [
            outcome
            for outcomes in follow(_run(jobs, workers), "videos to extract", len(jobs))
            for outcome in outcomes
        ]
        problems += [line for outcome in found for line in outcome.problems]
        problems = list(dict.fromkeys(problems))  # two people share a video
        with whole(out / f"problems{share}.txt") as partial:
            partial.write_text("".join(f"{line}\n" for line in problems))
    written, complete, left_out = (
        tuple(outcome.trial for outcome in found if outcome.what == what)
        for what in ("written", "complete", "left out")
    )
    return Report(written, complete, left_out, tuple(problems))


@dataclass(frozen=True)
class Outcome:
    """What became of a trial, and the lines about it."""

    trial: str
    what: Literal["written", "complete", "left out"]
    problems: tuple[str, ...]


def _jobs(layout: Layout, out: Path, options: ExtractOptions, problems: list[str]) -> list[Job]:
    """Groups trials by their video, whose sound and words they share."""
    lengths = _sample_lengths(layout, problems)
    groups: dict[str, list[Trial]] = {}
    for trial in layout.trials:
        groups.setdefault(trial.source, []).append(trial)
    return [
        Job(
            tuple(trials),
            {source: layout.rates[source]} if source in layout.rates else {},
            {t.name: lengths[t.name] for t in trials if t.name in lengths},
            out,
            options,
        )
        for source, trials in groups.items()
    ]


def _run(jobs: list[Job], workers: int) -> Iterator[list[Outcome]]:
    """Runs the jobs here or in processes, one after the other handed on."""
    if workers == 1 or len(jobs) < 2:
        yield from map(_extract_video, jobs)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
    )
    try:
        yield from pool.map(_extract_video, jobs)
    except BrokenProcessPool as error:
        raise ValueError(
            "extract: a worker process was ended (no memory?); run it again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _extract_video(job: Job) -> list[Outcome]:
    return [_extract_trial(job, trial) for trial in job.trials]


def _extract_trial(job: Job, trial: Trial) -> Outcome:
    folder = job.out / TRIALS / trial.name
    try:
        bert = _bert(job.options.bert) if job.options.bert else None
        source = read_source(job.rates, job.trials, job.lengths, job.out, bert, job.options)
        meta = read_meta(folder)
        damaged = [Path(path) for path in meta.get("damaged", [])]
        if meta and meta.get("inputs") == _inputs(job, trial, source, damaged):
            return Outcome(trial.name, "complete", tuple(meta["problems"]))
        _write_trial(folder, trial, source, job)
    except DamagedFile as error:
        if folder.exists():
            shutil.rmtree(folder)  # its files have been damaged since
        return Outcome(trial.name, "left out", (f"{error}; trial {trial.name} is left out",))
    return Outcome(trial.name, "written", tuple(read_meta(folder)["problems"]))


@cache
def _bert(model: str) -> BertWords:
    return BertWords(model)


def _inputs(job: Job, trial: Trial, source: Source, damaged: Sequence[Path]) -> dict[str, Any]:
    """What a trial was made from; crops are known by their folder and by what was damaged."""
    return {
        **source.inputs,
        **stamp(trial.labels, trial.faces, *damaged),
        "partition": trial.partition,
        "first": trial.first,
        "wanted": job.lengths.get(trial.name, 0),
    }


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Remembers how the folder is made, so that one folder never mixes two ways."""
    path = out / "settings.json"
    if path.exists():
        found = read_object(path)
        other = [key for key, value in settings.items() if found.get(key) != value]
        if other:
            raise ValueError(
                f"extract: {out} was made with another {' and '.join(other)} "
                f"({', '.join(repr(found.get(key)) for key in other)}); name a new folder"
            )
    with whole(path) as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n")


def _sample_lengths(layout: Layout, problems: list[str]) -> dict[str, int]:
    if not any(trial.partition == "test" for trial in layout.trials):
        return {}
    try:
        return read_sample_lengths(layout.sample or layout.root / TEST_SAMPLE)
    except DamagedFile as error:
        problems.append(f"{error}; test trials have as many frames as their videos")
        return {}


def _write_trial(folder: Path, trial: Trial, source: Source, job: Job) -> None:
    problems = list(source.problems)
    labels, valid = _labels(trial, source, job.lengths, problems)
    index = np.flatnonzero(valid) if job.options.drop_invalid else np.arange(len(valid))
    wanted = np.arange(len(index)) if job.options.align_faces == "authors" else index
    faces = read_faces(trial.faces, np.arange(len(valid)), first=trial.first)
    problems += faces.problems
    mel_rows, word_index = _align(source, index, len(valid))
    inputs = _inputs(job, trial, source, faces.damaged)
    with whole(folder) as partial:
        partial.mkdir(parents=True)
        np.save(partial / "faces.npy", faces.pixels[wanted])
        np.savez(
            partial / "frames.npz",
            index=index,
            labels=labels[index],
            valid=valid[index],
            face_present=faces.present[wanted],
            mel_rows=mel_rows,
            word_index=word_index,
        )
        meta = {
            "partition": trial.partition,
            "source": trial.source,
            "fps": source.clock and source.clock.fps,
            "frames": len(valid),
            "sound": source.mel_length > 0,
            "problems": problems,
            "damaged": [str(path) for path in faces.damaged],
            "inputs": inputs,
        }
        (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def _align(
    source: Source, index: NDArray[np.int64], frames: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Finds the patch (-1: missing) and the word (-1: none) of every kept frame, by its time."""
    rows = np.zeros(len(index), np.int64)
    words = np.full(len(index), -1, np.int32)
    clock = source.clock
    if clock is None:
        return rows, words
    times = clock.at(index)
    if source.mel_length and clock.times is None:
        rows = patch_rows(source.mel_length, clock.fps, frames)[index]
    elif source.mel_length:
        rows = rows_at(source.mel_length, times)
    for start, end in source.missing:
        rows[(start <= times) & (times < end)] = MISSING
    if source.words:
        words = align(source.words, times * 1000)
    return rows, words


def _labels(
    trial: Trial, source: Source, lengths: dict[str, int], problems: list[str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Labels (zeros where invalid) and validity of every frame; the label file rules the length."""
    if trial.labels is not None:
        annotation = read_annotation(trial.labels)
        reports = [
            *annotation.problems,
            *_disagreement(trial.labels, len(annotation.values), source),
        ]
        if reports:
            problems.append(
                "; ".join([reports[0], *(t.removeprefix(f"{trial.labels}: ") for t in reports[1:])])
            )
        return np.where(annotation.valid[:, None], annotation.values, 0.0), annotation.valid
    counted = 0 if source.clock is None else source.clock.frames
    last = last_face(trial.faces) + 1 - trial.first if last_face(trial.faces) else 0
    frames = counted or lengths.get(trial.name, 0) or last
    if not frames:
        raise DamagedFile(trial.faces, "holds no face, and no other file gives its length")
    return np.zeros((frames, 2), np.float32), np.ones(frames, bool)


def _disagreement(labels: Path, rows: int, source: Source) -> list[str]:
    """Reports labels that are much shorter or longer than the video; a frame or two is normal."""
    clock = source.clock
    if clock is None or abs(rows - clock.frames) <= SHORT * clock.fps:
        return []
    return [f"{labels}: labels {rows} frames, its video has {clock.frames}; the labels rule"]
