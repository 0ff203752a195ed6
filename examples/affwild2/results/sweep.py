"""Trains every method over seeds and folds and tabulates (the paper's Table 1, on any data)."""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from examples.affwild2.dataset.features import load_features
from examples.affwild2.dataset.files import whole
from examples.affwild2.dataset.progress import follow
from examples.affwild2.results.table import Result, Table, make_table, write_table
from examples.affwild2.synthetic.ceilings import Table as Ceilings
from examples.affwild2.synthetic.ceilings import ceilings
from examples.affwild2.synthetic.latents import Switches
from examples.affwild2.synthetic.pretrain import load_backbones
from examples.affwild2.training.assemble import (
    Encoded,
    make_accelerator,
    prepare,
    read_saved,
    write_setup,
)
from examples.affwild2.training.evaluate import score
from examples.affwild2.training.methods import AVERAGE, RECOMMENDED, SHUFFLED, SINGLE
from examples.affwild2.training.modalities import NAMES, Weights
from examples.affwild2.training.presets import Preset
from examples.affwild2.training.runs import Run
from examples.affwild2.training.train import train
from examples.affwild2.training.trials import Target, Trials, encode

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Data:
    """A tree after ``extract``.

    Attributes:
        name: What the table calls it.
        features: The folder.
        switches: How it was made; None for real data, which has no ceilings.
    """

    name: str
    features: Path
    switches: Switches | None = None


@dataclass(frozen=True)
class Plan:
    """What to train on one kind of data.

    Attributes:
        data: Its name.
        methods: Rows.
        targets: Columns.
        seeds: One run each.
        folds: One run each; 0 is the official split.
    """

    data: str
    methods: tuple[str, ...]
    targets: tuple[Target, ...] = ("valence",)
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class _Job:
    """One run, and the features of frozen backbones that it can share with others."""

    data: Data
    run: Run
    out: Path
    weights: Weights
    encoded: Path | None
    cpu: bool


def describe(features: Path, name: str) -> Data:
    """Looks up whether features come from a generated tree, and how that was made."""
    root = Path(json.loads((features / "settings.json").read_text())["root"])
    manifest = root / "MANIFEST.json"
    if not manifest.exists():
        return Data(name, features)
    held = json.loads(manifest.read_text())
    return Data(name, features, Switches(held["sarcasm"], held["idiosyncrasy"]))


def run_folder(out: Path, data: str, run: Run) -> Path:
    """Where a run of the table lies."""
    method = SHUFFLED if run.shuffled else run.method
    return out / "runs" / data / f"{method}-{run.target}-fold{run.fold}-seed{run.seed}"


def run_table(
    data: Sequence[Data],
    out: Path,
    plans: Sequence[Plan],
    preset: Preset,
    weights: Weights,
    *,
    processes: int = 1,
    cpu: bool = True,
    ceiling_trials: int = 40,
) -> Table:
    """Trains what is not trained yet and writes ``table.json``.

    Args:
        data: Kinds of data.
        out: Where runs and table go.
        plans: What to train.
        preset: The numbers.
        weights: Of the backbones.
        processes: Runs at the same time, one thread each.
        cpu: Use no GPU.
        ceiling_trials: Trials that the ceilings are estimated from.
    """
    torch.set_num_threads(1)
    by_name = {one.name: one for one in data}
    shared = {
        one.name: _encode_once(one, out, weights) if preset.cache else None
        for one in data
        if any(plan.data == one.name for plan in plans)
    }
    jobs = [
        _Job(by_name[plan.data], run, out, weights, shared[plan.data], cpu)
        for plan in plans
        for run in _runs(plan, preset)
    ]
    results = _map(_work, jobs, processes, "networks to train")
    for plan in plans:
        results += _averages(plan, preset, out, shared[plan.data])
    generated = [one for one in data if one.switches is not None]
    limits = _map(partial(_limits, ceiling_trials), generated, processes, "ceilings to compute")
    table = make_table(results, {d.name: x for d, x in zip(generated, limits, strict=True)}, preset)
    write_table(out / "table.json", table, results)
    return table


def _runs(plan: Plan, preset: Preset) -> Iterator[Run]:
    for target in plan.targets:
        for method in plan.methods:
            for fold in plan.folds:
                for seed in plan.seeds:
                    if method == SHUFFLED:
                        yield Run(RECOMMENDED, target, preset, fold, seed, shuffled=True)
                    elif method != AVERAGE:
                        yield Run(method, target, preset, fold, seed)


def _encode_once(data: Data, out: Path, weights: Weights) -> Path:
    """Computes what the demo's frozen backbones make of all trials, once, and keeps it."""
    path = out / "encoded" / f"{data.name}.pt"
    if not path.exists():
        if weights.demo is None:
            raise ValueError("table: the demo preset needs --demo backbones.pt, which demo makes")
        trials = Trials(load_features(data.features), NAMES)
        encoded = encode(trials, load_backbones(weights.demo)).encoded
        assert encoded is not None
        with whole(path) as partial:
            torch.save({t.name: x for t, x in zip(trials.features, encoded, strict=True)}, partial)
    return path


def _map(
    function: Callable[[Item], Made], items: Sequence[Item], processes: int, title: str
) -> list[Made]:
    """Applies a function to all items, in several processes where that helps."""
    processes = min(processes, len(items))
    if processes <= 1:
        return [function(item) for item in follow(items, title, len(items))]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        found = pool.map(function, items)
        return list(follow(found, title, len(items)))


def _limits(trials: int, data: Data) -> Ceilings:
    return ceilings(trials, switches=data.switches)


def _work(job: _Job) -> Result:
    """Trains one run, in its own process, or reads what it reached before."""
    torch.set_num_threads(1)
    run, folder = job.run, run_folder(job.out, job.data.name, job.run)
    held: Encoded | None = None
    if job.encoded is not None:
        held = torch.load(job.encoded, weights_only=True)
    made = prepare(run, job.data.features, job.weights, held)
    write_setup(folder, run, job.data.features, made, resume=True)
    progress = train(
        run,
        folder,
        made.backbones,
        made.training,
        made.validation,
        accelerator=make_accelerator(cpu=job.cpu),
        resume=True,
    )
    best = progress.log[progress.best_epoch]
    return Result(
        job.data.name,
        SHUFFLED if run.shuffled else run.method,
        run.target,
        run.seed,
        run.fold,
        progress.best,
        best["pearson"],
        best["rmse"],
        progress.epoch,
        sum(row["seconds"] for row in progress.log),
    )


def _averages(plan: Plan, preset: Preset, out: Path, encoded: Path | None) -> Iterator[Result]:
    """The mean of the three networks that see one modality each; nothing is trained."""
    if AVERAGE not in plan.methods:
        return
    held: Encoded | None = None if encoded is None else torch.load(encoded, weights_only=True)
    for target in plan.targets:
        for fold in plan.folds:
            for seed in plan.seeds:
                runs = [Run(method, target, preset, fold, seed) for method in SINGLE]
                saved = [read_saved(run_folder(out, plan.data, run)) for run in runs]
                trials = [one.trials("validation", held) for one in saved]
                parts = [one.predict(seen) for one, seen in zip(saved, trials, strict=True)]
                mean = {
                    name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]
                }
                scores = score(mean, trials[0], target)
                reached = (scores.ccc, scores.pearson, scores.rmse)
                yield Result(plan.data, AVERAGE, target, seed, fold, *reached, 0, 0.0)
