"""Trains every method over seeds and folds and tabulates (the paper's Table 1, on any data)."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from examples.affwild2.dataset.features import load_features
from examples.affwild2.dataset.files import read_object, whole
from examples.affwild2.dataset.progress import follow
from examples.affwild2.dataset.workers import start_worker
from examples.affwild2.results.table import Result, Table, make_table, write_table
from examples.affwild2.synthetic.ceilings import Table as Ceilings
from examples.affwild2.synthetic.ceilings import ceilings
from examples.affwild2.synthetic.latents import Switches
from examples.affwild2.synthetic.pretrain import load_backbones
from examples.affwild2.training.assemble import Encoded, identify, make_accelerator, prepare
from examples.affwild2.training.evaluate import score
from examples.affwild2.training.methods import AVERAGE, RECOMMENDED, SHUFFLED
from examples.affwild2.training.modalities import NAMES, Weights
from examples.affwild2.training.own import OwnFeatures, Stream
from examples.affwild2.training.presets import Preset
from examples.affwild2.training.runs import Run
from examples.affwild2.training.saved import read_saved, write_setup
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
        modalities: What the fusions see; none means all.
    """

    data: str
    methods: tuple[str, ...]
    targets: tuple[Target, ...] = ("valence",)
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: tuple[int, ...] = (0,)
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Job:
    """One run, and the features of frozen backbones that it can share with others."""

    data: Data
    run: Run
    out: Path
    weights: Weights
    encoded: Path | None
    cpu: bool
    own: tuple[OwnFeatures, ...]


def describe(features: Path, name: str) -> Data:
    """Looks up whether features come from a generated tree, and how that was made."""
    root = Path(str(read_object(features / "settings.json").get("root")))
    manifest = root / "MANIFEST.json"
    if not manifest.exists():
        return Data(name, features)
    held = read_object(manifest)
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
    own: tuple[OwnFeatures, ...] = (),
    report: Callable[[Result], None] | None = None,
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
        own: The user's own features, of every run.
        report: Called with what each run reached, as soon as it is over.
    """
    torch.set_num_threads(1)
    by_name = {one.name: one for one in data}
    shared = {
        one.name: _encode_once(one, out, weights) if preset.cache else None
        for one in data
        if any(plan.data == one.name for plan in plans)
    }
    streams = tuple(one.stream for one in own)
    jobs = [
        _Job(by_name[plan.data], run, out, weights, shared[plan.data], cpu, own)
        for plan in plans
        for run in _runs(plan, preset, streams)
    ]
    results = _map(_work, jobs, processes, "networks to train", report)
    for plan in plans:
        results += _averages(plan, preset, out, shared[plan.data], streams)
    generated = [one for one in data if one.switches is not None]
    limits = _map(partial(_limits, ceiling_trials), generated, processes, "ceilings to compute")
    table = make_table(results, {d.name: x for d, x in zip(generated, limits, strict=True)}, preset)
    write_table(out / "table.json", table, results)
    return table


def _runs(plan: Plan, preset: Preset, own: tuple[Stream, ...]) -> Iterator[Run]:
    for target in plan.targets:
        for method in plan.methods:
            for fold in plan.folds:
                for seed in plan.seeds:
                    if method != AVERAGE:
                        yield Run(
                            RECOMMENDED if method == SHUFFLED else method,
                            target,
                            preset,
                            fold,
                            seed,
                            shuffled=method == SHUFFLED,
                            own=own,
                            modalities=plan.modalities,
                        )


def _encode_once(data: Data, out: Path, weights: Weights) -> Path:
    """Computes what the demo's frozen backbones make of all trials, once, and keeps it.

    Raises:
        ValueError: It was computed from other features.
    """
    path, trials = out / "encoded" / f"{data.name}.pt", Trials(load_features(data.features), NAMES)
    identity = identify(trials.features)
    if not path.exists():
        if weights.demo is None:
            raise ValueError("table: the demo preset needs --demo backbones.pt, which demo makes")
        encoded = encode(trials, load_backbones(weights.demo)).encoded
        assert encoded is not None
        held = {t.name: x for t, x in zip(trials.features, encoded, strict=True)}
        with whole(path) as partial:
            torch.save({"identity": identity, "encoded": held}, partial)
    elif _load_tensors(path)["identity"] != identity:
        raise ValueError(
            f"table: the features in {data.features} are not those that {out} was begun with; name "
            "a new folder"
        )
    return path


def read_encoded(path: Path | None) -> Encoded | None:
    """Reads what the frozen backbones made of all trials, if it was kept."""
    return None if path is None or not path.exists() else _load_tensors(path)["encoded"]


def _load_tensors(path: Path) -> Any:  # noqa: ANN401  # a dictionary of two kinds of values
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # torch.load raises almost anything on a damaged file
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}); delete it") from error


def _map(
    function: Callable[[Item], Made],
    items: Sequence[Item],
    processes: int,
    title: str,
    report: Callable[[Made], None] | None = None,
) -> list[Made]:
    """Applies a function to all items, in several processes where that helps."""
    processes, made = min(processes, len(items)), []
    with ExitStack() as stack:
        found: Iterable[Made] = map(function, items)
        if processes > 1:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(processes, mp_context=spawn, initializer=start_worker)
            found = stack.enter_context(pool).map(function, items)
        for one in follow(found, title, len(items)):
            made.append(one)
            if report is not None:
                report(one)
    return made


def _limits(trials: int, data: Data) -> Ceilings:
    return ceilings(trials, switches=data.switches)


def _work(job: _Job) -> Result:
    """Trains one run, in its own process, or reads what it reached before."""
    torch.set_num_threads(1)
    run, folder = job.run, run_folder(job.out, job.data.name, job.run)
    held = read_encoded(job.encoded)
    made = prepare(run, job.data.features, job.weights, held, job.own)
    write_setup(folder, run, job.data.features, made, resume=True, own=job.own)
    progress = train(
        run,
        folder,
        made.backbones,
        made.training,
        made.selection,
        accelerator=make_accelerator(cpu=job.cpu),
        resume=True,
    )
    saved = read_saved(folder)
    trials = saved.trials("validation", held)
    scores = score(saved.predict(trials, cpu=job.cpu), trials, run.target)
    return Result(
        job.data.name,
        SHUFFLED if run.shuffled else run.method,
        run.target,
        run.seed,
        run.fold,
        scores.ccc,
        scores.pearson,
        scores.rmse,
        progress.epoch,
        sum(row["seconds"] for row in progress.log),
    )


def _averages(
    plan: Plan, preset: Preset, out: Path, encoded: Path | None, own: tuple[Stream, ...]
) -> Iterator[Result]:
    """The mean of the networks that see one modality each; nothing is trained."""
    if AVERAGE not in plan.methods:
        return
    held = read_encoded(encoded)
    single = plan.modalities or (*NAMES, *(stream.name for stream in own))
    for target in plan.targets:
        for fold in plan.folds:
            for seed in plan.seeds:
                runs = [Run(name, target, preset, fold, seed) for name in single]
                saved = [read_saved(run_folder(out, plan.data, run)) for run in runs]
                trials = [one.trials("validation", held) for one in saved]
                parts = [one.predict(seen) for one, seen in zip(saved, trials, strict=True)]
                mean = {
                    name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]
                }
                scores = score(mean, trials[0], target)
                reached = (scores.ccc, scores.pearson, scores.rmse)
                yield Result(plan.data, AVERAGE, target, seed, fold, *reached, 0, 0.0)
