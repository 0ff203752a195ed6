"""Turns a tree of the official layout into features on disk, one folder per trial and per video.

Every folder is written under another name and renamed when it is whole, so a run that was stopped
goes on where it was; to redo a trial after its files were fixed, delete its folders under
``trials/`` and ``videos/``. Damage is reported in one line per file. A trial whose labels cannot be
trusted is left out; missing or damaged faces are black, a missing voice or transcript is an absent
modality.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.affwild2.dataset.audio import patch_rows
from examples.affwild2.dataset.challenge import read_sample_lengths
from examples.affwild2.dataset.features import TRIALS
from examples.affwild2.dataset.files import DamagedFile, whole
from examples.affwild2.dataset.layout import TEST_SAMPLE, Layout, Trial, read_annotation, resolve
from examples.affwild2.dataset.progress import follow
from examples.affwild2.dataset.sources import SHORT, ExtractOptions, Source, read_source
from examples.affwild2.dataset.text import BertWords, align
from examples.affwild2.dataset.video import last_face, read_faces


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        written: Trials written now.
        complete: Trials that were there already.
        left_out: Trials that could not be used.
        problems: One line per file or trial, those of earlier runs included.
    """

    written: tuple[str, ...]
    complete: tuple[str, ...]
    left_out: tuple[str, ...]
    problems: tuple[str, ...]


def extract(root: Path, out: Path, options: ExtractOptions | None = None) -> Report:
    """Extracts all trials below ``root`` into ``out``; skips what is complete.

    Args:
        root: A tree of the official layout.
        out: Where the features go.
        options: What to extract; ``None`` means the defaults.

    Raises:
        ValueError: ``root`` holds no trials, or ``out`` was made with other options.
    """
    options = ExtractOptions() if options is None else options
    layout = resolve(root)
    _claim(out, {"root": str(root.resolve()), **asdict(options)})
    bert = BertWords(options.bert) if options.bert else None
    problems = list(layout.problems)
    lengths = _sample_lengths(layout, problems)
    written: list[str] = []
    complete: list[str] = []
    left_out: list[str] = []
    for trial in follow(layout.trials, "trials to extract", len(layout.trials)):
        folder = out / TRIALS / trial.name
        try:
            if folder.exists():
                complete.append(trial.name)
            else:
                source = read_source(layout, trial, out, bert, options)
                _write_trial(folder, trial, source, lengths, options)
                written.append(trial.name)
        except DamagedFile as error:
            left_out.append(trial.name)
            problems.append(f"{error}; trial {trial.name} is left out")
            continue
        problems += json.loads((folder / "meta.json").read_text())["problems"]
    problems = list(dict.fromkeys(problems))  # two people share a video
    (out / "problems.txt").write_text("".join(f"{line}\n" for line in problems))
    return Report(tuple(written), tuple(complete), tuple(left_out), tuple(problems))


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Remembers how the folder is made, so that one folder never mixes two ways."""
    path = out / "settings.json"
    if path.exists():
        found = json.loads(path.read_text())
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


def _write_trial(
    folder: Path, trial: Trial, source: Source, lengths: dict[str, int], options: ExtractOptions
) -> None:
    problems = list(source.problems)
    labels, valid = _labels(trial, source, lengths, problems)
    index = np.flatnonzero(valid) if options.drop_invalid else np.arange(len(valid))
    wanted = np.arange(len(index)) if options.align_faces == "authors" else index
    faces = read_faces(trial.faces, np.arange(len(valid)))
    problems += faces.problems
    mel_rows = np.zeros(len(index), np.int64)
    word_index = np.full(len(index), -1, np.int32)
    if source.fps is not None and source.mel_length:
        mel_rows = patch_rows(source.mel_length, source.fps, len(valid))[index]
    if source.fps is not None and source.words:
        word_index = align(source.words, index / source.fps * 1000)
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
            "fps": source.fps,
            "frames": len(valid),
            "sound": source.mel_length > 0,
            "problems": problems,
        }
        (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


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
    frames = source.frames or lengths.get(trial.name, 0) or last_face(trial.faces)
    if not frames:
        raise DamagedFile(trial.faces, "holds no face, and no other file gives its length")
    return np.zeros((frames, 2), np.float32), np.ones(frames, bool)


def _disagreement(labels: Path, rows: int, source: Source) -> list[str]:
    """Reports labels that are much shorter or longer than the video; a frame or two is normal."""
    if source.fps is None or abs(rows - source.frames) <= SHORT * source.fps:
        return []
    return [f"{labels}: labels {rows} frames, its video has {source.frames}; the labels rule"]
