"""Looks a tree over without decoding it: counts, ranges, units and lengths."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from examples.affwild2.dataset.challenge import read_sample_lengths
from examples.affwild2.dataset.files import DamagedFile
from examples.affwild2.dataset.layout import (
    PARTITIONS,
    Layout,
    Rates,
    Trial,
    read_annotation,
    resolve,
)
from examples.affwild2.dataset.progress import follow
from examples.affwild2.dataset.sources import SHORT
from examples.affwild2.dataset.transcript import read_transcript
from examples.affwild2.dataset.video import last_face, probe

OFFICIAL = {"train": 356, "validation": 76, "test": 162}
SHOWN = 5  # lines of one kind
SECONDS = 25.0  # after which crops and videos are sampled, not all looked at


@dataclass(frozen=True)
class Findings:
    """What ``inspect`` found, one line each.

    Attributes:
        found: How much there is of everything, and where.
        missing: What is not there.
        wrong: What is there and does not fit.
        usable: Trials that ``extract`` would write.
    """

    found: tuple[str, ...]
    missing: tuple[str, ...]
    wrong: tuple[str, ...]
    usable: int


@dataclass
class _Notes:
    """Collects names by what is missing, and lines by what is wrong."""

    missing: dict[str, list[str]] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(default_factory=dict)

    def lack(self, what: str, name: str) -> None:
        names = self.missing.setdefault(what, [])
        if name not in names:
            names.append(name)

    def blame(self, kind: str, lines: Iterable[str]) -> None:
        self.wrong.setdefault(kind, []).extend(lines)


def inspect(root: Path, seconds: float = SECONDS) -> Findings:
    """Reads every label and transcript, and the headers of videos while there is time.

    Args:
        root: A tree of any edition's layout.
        seconds: After this time the remaining videos and crops are not opened, in a line.

    Raises:
        ValueError: ``root`` holds no trials.
    """
    stop = time.monotonic() + seconds
    layout = resolve(root)
    notes = _Notes()
    wanted = _sample(layout, notes)
    clocks: dict[str, tuple[float, int] | None] = {}
    usable, frames, rated, skipped = 0, 0, 0, 0
    values: list[tuple[float, float]] = []
    for trial in follow(layout.trials, "trials to look at", len(layout.trials)):
        if trial.source not in clocks and time.monotonic() < stop:
            clocks[trial.source] = _clock(trial, layout.rates, notes)
            _words(trial, clocks[trial.source], notes)
        clock = clocks.get(trial.source)
        late = time.monotonic() >= stop
        skipped += late
        last = 0 if late else _faces(trial, notes)
        length = clock[1] if clock else wanted.get(trial.name, last)
        if trial.labels is not None:
            try:
                annotation = read_annotation(trial.labels)
            except DamagedFile as error:
                notes.blame("labels", [str(error)])
                continue
            notes.blame("labels", annotation.problems)
            length = len(annotation.values)
            rated += int(annotation.valid.sum())
            kept = annotation.values[annotation.valid]
            values.append((float(kept.min()), float(kept.max())))
            if clock and abs(length - clock[1]) > SHORT * clock[0]:
                line = f"{trial.labels}: labels {length} frames, its video has {clock[1]}"
                notes.blame("lengths", [line])
        if last > length + 1:
            place = trial.labels or trial.video or trial.faces
            notes.blame("lengths", [f"{place}: gives {length} frames; its faces go on to {last}"])
        usable += bool(length) or trial.labels is not None
        frames += length
    return Findings(
        tuple(_found(layout, frames, rated, values, [c for c in clocks.values() if c])),
        (*layout.missing, *_shown(notes.missing)),
        tuple(_wrong(layout, notes, skipped)),
        usable,
    )


def _sample(layout: Layout, notes: _Notes) -> dict[str, int]:
    tests = {trial.name for trial in layout.trials if trial.partition == "test"}
    if not tests:
        return {}
    if layout.sample is None:
        notes.lack(
            "sample of a prediction file", "*_sample.txt with image_location,valence,arousal"
        )
        return {}
    try:
        lengths = read_sample_lengths(layout.sample)
    except DamagedFile as error:
        notes.blame("sample file", [str(error)])
        return {}
    for name in sorted(tests - lengths.keys()):
        notes.lack(f"rows of {layout.sample.name}", name)
    return lengths


def _clock(trial: Trial, rates: Rates, notes: _Notes) -> tuple[float, int] | None:
    """Reads the header of the video, else the table of frame rates."""
    if trial.video is None and trial.sound is None:
        notes.lack("sound", trial.source)
    if trial.video is not None:
        try:
            return probe(trial.video, count=False)
        except DamagedFile as error:
            notes.blame("videos", [str(error)])
    elif trial.source not in rates:
        notes.lack("video or frame rate", trial.source)
    return rates.get(trial.source)


def _words(trial: Trial, clock: tuple[float, int] | None, notes: _Notes) -> None:
    if trial.transcript is None:
        notes.lack("transcript", trial.source)
        return
    problems: list[str] = []
    length = 1000 * clock[1] / clock[0] if clock else np.inf
    try:
        if not read_transcript(trial.transcript, length, problems):
            problems.append(f"{trial.transcript}: holds no words")
    except DamagedFile as error:
        problems.append(str(error))
    notes.blame("transcripts", problems)


def _faces(trial: Trial, notes: _Notes) -> int:
    last = last_face(trial.faces)
    if not last:
        notes.lack("face crops", trial.name)
    return last + 1 - trial.first if last else 0


def _found(
    layout: Layout,
    frames: int,
    rated: int,
    values: Sequence[tuple[float, float]],
    clocks: Sequence[tuple[float, int]],
) -> list[str]:
    counts = {p: sum(trial.partition == p for trial in layout.trials) for p in PARTITIONS}
    named = ", ".join(f"{n} {p} (official: {OFFICIAL[p]})" for p, n in counts.items())
    lines = [f"{len(layout.trials)} trials: {named}"]
    lines.append(f"{frames} frames, {rated} of them with valid labels")
    if values:
        low, high = min(v[0] for v in values), max(v[1] for v in values)
        lines.append(f"valid labels from {low:.3f} to {high:.3f}")
    rates = sorted({round(fps, 2) for fps, _ in clocks})
    for what, paths in (
        ("labels", {t.labels.parent for t in layout.trials if t.labels}),
        ("face crops", {t.faces.parent for t in layout.trials if t.faces.is_dir()}),
        ("videos", {t.video.parent for t in layout.trials if t.video}),
        ("sound files", {t.sound.parent for t in layout.trials if t.sound}),
        ("transcripts", {t.transcript.parent for t in layout.trials if t.transcript}),
    ):
        if paths:
            lines.append(f"{what} in {', '.join(str(path) for path in sorted(paths))}")
    if rates:
        lines.append(f"frames per second: {', '.join(f'{rate:g}' for rate in rates)}")
    if layout.sample is not None:
        lines.append(f"sample of a prediction file: {layout.sample}")
    return lines


def _shown(missing: dict[str, list[str]]) -> list[str]:
    return [
        f"{what}: {', '.join(names[:SHOWN])}"
        + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        for what, names in missing.items()
    ]


def _wrong(layout: Layout, notes: _Notes, skipped: int) -> list[str]:
    lines = list(layout.problems)
    for kind, found in notes.wrong.items():
        lines += found[:SHOWN]
        if len(found) > SHOWN:
            lines.append(f"and {len(found) - SHOWN} more lines about {kind}")
    if skipped:
        lines.append(f"the videos and crops of {skipped} trials were not looked at, to save time")
    return lines
