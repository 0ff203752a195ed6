"""Chooses what to draw of trained runs and of a table; ``plots`` does the drawing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossfuse import RecursiveCrossModalAttention
from examples.affwild2.dataset.features import Features
from examples.affwild2.dataset.files import read_object
from examples.affwild2.results.plots import (
    pick_trial,
    plot_bars,
    plot_correlations,
    plot_curves,
    plot_trial,
    seconds_of,
)
from examples.affwild2.results.sweep import Data, read_encoded, run_folder
from examples.affwild2.results.table import OFFICIAL, Table
from examples.affwild2.training.assemble import Encoded
from examples.affwild2.training.methods import RECOMMENDED, TITLES, title_of
from examples.affwild2.training.presets import Preset
from examples.affwild2.training.runs import LOG, Run, read_log
from examples.affwild2.training.saved import Saved, read_saved
from examples.affwild2.training.trials import TARGETS

Pictures = list[tuple[Path, str]]
SEEN = (RECOMMENDED, "face")  # whose predictions are drawn over a trial's label


def draw_run(saved: Saved, out: Path, folder: Path) -> Pictures:
    """Draws a trained run: its curves, a validation trial, and RCMA's correlations.

    Args:
        saved: The run.
        out: Its folder.
        folder: Where the pictures go.
    """
    title = title_of(saved.run.method, saved.run.preset)
    plot_curves(folder / "curves.png", {title: read_log(out)})
    pictures = [(folder / "curves.png", "Training: the loss, and the validation's concordance.")]
    pictures += _draw_trial([saved], folder)
    if isinstance(saved.model.fusion, RecursiveCrossModalAttention):
        pictures += _draw_correlations(saved, folder)
    return pictures


def draw_table(table: Table, folder: Path) -> Pictures:
    """Draws the bars of a table, one picture per kind of data, target and split."""
    pictures = []
    for title, rows in table.groups():
        kind, target = rows[0].data.replace(" ", "-"), rows[0].target
        split = "" if rows[0].folds == OFFICIAL else "-folds"
        path = folder / f"bars-{kind}-{target}{split}.png"
        plot_bars(path, rows, title)
        pictures.append((path, f"Concordance of each method: {title}."))
    return pictures


def draw_sweep(out: Path, data: Data, table: Table, preset: Preset, folder: Path) -> Pictures:
    """Draws all that a table and the runs behind it can show.

    Args:
        out: Where ``run_table`` wrote.
        data: The kind of data to show runs of.
        table: What it made.
        preset: Of the runs.
        folder: Where the pictures go.
    """
    path = out / "encoded" / f"{data.name}.pt"
    encoded = read_encoded(path)
    runs = [Run(method, "valence", preset) for method in SEEN]
    saved = [read_saved(run_folder(out, data.name, run)) for run in runs]
    pictures = _draw_trial(saved, folder, encoded)
    pictures += draw_table(table, folder)
    pictures += _draw_correlations(saved[0], folder, encoded)
    logs = {}
    for row in table.rows:
        where = run_folder(out, data.name, Run(row.method, "valence", preset))
        if (row.data, row.target) == (data.name, "valence") and (where / LOG).exists():
            logs[row.title] = read_log(where)
    plot_curves(folder / "curves.png", logs)
    pictures.append(
        (folder / "curves.png", "Training: the loss, and the validation's concordance.")
    )
    return pictures


def hidden_frames(features: Path, trial: Features) -> dict[str, NDArray[np.bool_]]:
    """Frames of a trial without a face, and, where the data was generated, with a part hidden."""
    hidden = {"no face": ~trial.face_present}
    root = Path(str(read_object(features / "settings.json").get("root")))
    truth = root / "truth" / f"{trial.name}.npz"
    if truth.exists():
        with np.load(truth) as held:
            for name in ("mouth_hidden", "eyes_hidden"):
                hidden[name.replace("_", " ")] = held[name][trial.index] & trial.face_present
    return hidden


def _draw_trial(saved: Sequence[Saved], folder: Path, encoded: Encoded | None = None) -> Pictures:
    """Draws the predictions of runs of one target over the validation trial that moves most."""
    run, path = saved[0].run, folder / "trial.png"
    predictions = {}
    trials = saved[0].trials("validation", encoded)
    chosen = pick_trial(trials, run.target)
    trial = trials.features[chosen]
    for one in saved:
        seen = trials if one is saved[0] else one.trials("validation", encoded)
        made = one.predict(seen.choose([trial.name]), cpu=True)
        predictions[TITLES[one.run.method]] = made[trial.name]
    plot_trial(
        path,
        trial.labels[:, TARGETS.index(run.target)],
        predictions,
        seconds_of(trials, chosen),
        hidden_frames(saved[0].features, trial),
        f"{run.target}, {trial.name}",
    )
    names = " and ".join(f"\u201c{name}\u201d" for name in predictions)
    caption = (
        f"A validation trial: its label, and what {names} made of it. Shaded where no face was "
    )
    return [(path, f"{caption}found, or a part of it was hidden.")]


def _draw_correlations(saved: Saved, folder: Path, encoded: Encoded | None = None) -> Pictures:
    path = folder / "correlations.png"
    trials = saved.trials("validation", encoded)
    plot_correlations(path, saved.model.cpu(), trials, saved.run.preset.window)
    caption = "RCMA's joint correlations C in the first validation window: down the features of a "
    return [
        (path, f"{caption}modality, across those of its joint; the bar divides the modalities.")
    ]
