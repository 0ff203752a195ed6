"""Runs everything on generated data: make-data, extract, table, pictures, report.

The small demo makes four kinds of data, with both riddles, with one, and with none, so that the
table shows which fusion is for what.
"""

import csv
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from examples.affwild2.data import Target, Trials
from examples.affwild2.evaluate import predict
from examples.affwild2.extract import extract
from examples.affwild2.generate import Size, make_data
from examples.affwild2.latents import Switches
from examples.affwild2.methods import AVERAGE, MODALITIES, SHUFFLED, SINGLE, TITLES
from examples.affwild2.plots import (
    pick_trial,
    plot_bars,
    plot_correlations,
    plot_curves,
    plot_trial,
    seconds_of,
)
from examples.affwild2.presets import DEMO, Preset
from examples.affwild2.pretrain import load_backbones, save_backbones, train_backbones
from examples.affwild2.report import write_report
from examples.affwild2.table import Data, Plan, Table, _encoded, run_folder, run_table
from examples.affwild2.train import LOG, Run, load_run

BOTH = "both riddles"
KINDS = {
    BOTH: Switches(0.25, 0.5),
    "idiosyncrasy": Switches(0.0, 0.5),
    "sarcasm": Switches(0.25, 0.0),
    "no riddle": Switches(0.0, 0.0),
}
FUSIONS = (
    "concatenation",
    "leader-follower",
    "cross-attention",
    "jca",
    "jca-stable",
    "rcma",
    "rcma-all",
    "rcma-stable",
    "rcma-stable-all",
    "rcma-stable-T",
)
FEW = (*SINGLE, AVERAGE, "concatenation", "jca-stable", "rcma", "rcma-stable")


def make_kind(out: Path, kind: str, size: Size, seed: int, switches: Switches) -> Data:
    """Makes one kind of data and extracts it, unless it is there."""
    folder = out / "data" / kind.replace(" ", "-")
    features = folder / "features"
    if not (folder / "tree" / "MANIFEST.json").exists():
        make_data(folder / "tree", size=size, seed=seed, switches=switches)
    extract(folder / "tree", features)
    return Data(kind, features, switches)


def run_demo(out: Path, *, size: Size = "small", seed: int = 0, processes: int = 2) -> Table:
    """Makes data, trains all methods, writes ``table.json``, pictures and ``report.html``.

    Args:
        out: Where everything goes; a run that was stopped goes on.
        size: tiny (about a minute, for a look at the machinery) or small.
        seed: Of the data; the networks have seeds of their own.
        processes: Of one thread each.
    """
    kinds = KINDS if size == "small" else {BOTH: KINDS[BOTH]}
    preset = DEMO if size == "small" else replace(DEMO, epochs=2)
    seeds = (0, 1, 2) if size == "small" else (0,)
    backbones = out / "backbones.pt"
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        made = [
            pool.submit(make_kind, out, kind, size, seed, switches)
            for kind, switches in kinds.items()
        ]
        if not backbones.exists():
            save_backbones(backbones, pool.submit(train_backbones, seed + 1).result())
        data = [one.result() for one in made]
    plans = [
        Plan(BOTH, (*SINGLE, AVERAGE, *FUSIONS, SHUFFLED), seeds=seeds),
        *(Plan(kind, FEW, seeds=seeds[:2]) for kind in list(kinds)[1:]),
        Plan(BOTH, (*SINGLE, AVERAGE, *FUSIONS), ("arousal",), seeds=seeds[:1]),
    ]
    table = run_table(data, out, plans, preset, backbones, processes=processes)
    pictures = draw(out, data[0], table, preset, backbones)
    settings = {
        "size": size,
        "seed": seed,
        "kinds of data": {k: asdict(v) for k, v in kinds.items()},
    }
    note = "Tiny: two epochs on six trials exercise the machinery; the numbers mean nothing."
    write_report(
        out / "report.html", table, pictures, settings, note=note if size == "tiny" else None
    )
    return table


def draw(
    out: Path, data: Data, table: Table, preset: Preset, backbones: Path
) -> list[tuple[Path, str]]:
    """Draws all pictures of a table's runs; returns them with what is to be seen."""
    folder = out / "pictures"
    validation = _encoded(data.features, data.name, 0, out, backbones)[1]
    run, rival = (Run(m, "valence", preset) for m in ("rcma-stable", "face"))
    pictures = [
        (
            _trial_picture(folder, out, data, (run, rival), validation, backbones),
            "A validation trial: its label, RCMA and the face alone. Shaded where no face was "
            "found, or a part of it was hidden.",
        )
    ]
    for kind in dict.fromkeys(row.data for row in table.rows):
        for target in ("valence", "arousal"):
            rows = [row for row in table.rows if (row.data, row.target) == (kind, target)]
            if rows:
                path = folder / f"bars-{kind.replace(' ', '-')}-{target}.png"
                plot_bars(path, rows, f"{target}, data: {kind}")
                pictures.append((path, f"Concordance, {target}, data: {kind}."))
    model = load_run(run_folder(out, data.name, run), run, load_backbones(backbones))
    path = folder / "correlations.png"
    plot_correlations(path, model, validation.see(MODALITIES), preset.window)
    pictures.append((path, "RCMA's joint correlations C of one window, before and after a step."))
    path = folder / "curves.png"
    plot_curves(path, _logs(out, data.name, preset, table))
    pictures.append((path, "Training: the loss, and the concordance on the validation trials."))
    return pictures


def _trial_picture(
    folder: Path,
    out: Path,
    data: Data,
    runs: Sequence[Run],
    validation: Trials,
    backbones: Path,
) -> Path:
    target: Target = "valence"
    chosen = pick_trial(validation, target)
    trial = validation.features[chosen]
    one = validation.choose([trial.name])
    predictions = {}
    for run in runs:
        model = load_run(run_folder(out, data.name, run), run, load_backbones(backbones))
        seen = one.see(("face",) if run.method == "face" else MODALITIES)
        made = predict(model, seen, size=run.preset.window, hop=run.preset.hop, target=target)
        predictions[TITLES[run.method]] = made[trial.name]
    shaded = {"no face": ~trial.face_present}
    truth = data.features.parent / "tree" / "truth" / f"{trial.name}.npz"
    if truth.exists():
        with np.load(truth) as held:
            for name in ("mouth_hidden", "eyes_hidden"):
                shaded[name.replace("_", " ")] = held[name][trial.index] & trial.face_present
    path = folder / "trial.png"
    plot_trial(
        path,
        trial.labels[:, 0],
        predictions,
        seconds_of(validation, chosen),
        shaded,
        f"valence, {trial.name}",
    )
    return path


def _logs(out: Path, data: str, preset: Preset, table: Table) -> dict[str, list[dict[str, float]]]:
    logs = {}
    for row in table.rows:
        run = Run(row.method, "valence", preset)
        path = run_folder(out, data, run) / LOG
        if row.data == data and row.target == "valence" and path.exists():
            with path.open() as file:
                logs[row.title] = [
                    {key: float(value) for key, value in line.items()}
                    for line in csv.DictReader(file)
                ]
    return logs
