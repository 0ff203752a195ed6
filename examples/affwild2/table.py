"""Trains every method over seeds and folds, and tabulates (the paper's Table 1, on other data).

For others: ``run_table(data, out, plan, ...) -> Table``; ``table.json`` holds the same.
"""

import json
import multiprocessing
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from examples.affwild2.ceilings import ceilings
from examples.affwild2.data import Target, Trials, encode, shuffle_partners
from examples.affwild2.evaluate import predict, score
from examples.affwild2.features import load_features
from examples.affwild2.folds import make_fold
from examples.affwild2.latents import Switches
from examples.affwild2.methods import AVERAGE, MODALITIES, SHUFFLED, SINGLE, TITLES, find_method
from examples.affwild2.presets import Preset
from examples.affwild2.pretrain import load_backbones
from examples.affwild2.train import Run, load_run, train

# Quoted from the paper (v1), measured on Aff-Wild2. The single modality is itself quoted there; the
# rows of its table that are not listed here have no number in our sources.
PAPER: dict[Target, dict[str, float]] = {
    "valence": {"face": 0.405, "rcma": 0.585},
    "arousal": {"face": 0.635, "rcma": 0.659},
}
SUBSETS = {"face": "V", "voice": "A", "words": "T"}  # as the ceilings call them
BAR_SINGLE, BAR_FUSION = 0.05, 0.03  # how far RCMA must be ahead, in valence


@dataclass(frozen=True)
class Data:
    """One generated tree after ``extract``.

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
class Result:
    """What one run reached on its validation trials, and on the test trials if they have truth."""

    data: str
    method: str
    target: Target
    seed: int
    fold: int
    ccc: float
    pearson: float
    rmse: float
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """One line of the table: a method on one kind of data, for one target.

    Attributes:
        data: Kind of data.
        method: Its key.
        title: What people read.
        target: valence or arousal.
        mean: CCC over the runs.
        spread: Their standard deviation.
        runs: CCC of each.
        ceiling: The correlation that nobody can beat who sees the same modalities.
        paper: The paper's number, on Aff-Wild2: another data set, not to be compared.
    """

    data: str
    method: str
    title: str
    target: Target
    mean: float
    spread: float
    runs: tuple[float, ...]
    ceiling: float | None
    paper: float | None


@dataclass(frozen=True)
class Table:
    """All rows, the ceilings behind them, and what they say about the claim."""

    rows: tuple[Row, ...]
    verdicts: tuple[str, ...]
    ceilings: dict[str, Any]
    preset: dict[str, Any]

    def find(self, data: str, method: str, target: Target) -> Row | None:
        for row in self.rows:
            if (row.data, row.method, row.target) == (data, method, target):
                return row
        return None


def load_trials(features: Path, fold: int) -> tuple[Trials, Trials]:
    """The training and validation trials of a fold, all modalities."""
    everything = load_features(features)
    names = {
        part: [trial.name for trial in everything if trial.partition == part]
        for part in ("train", "validation")
    }
    if not names["train"] or not names["validation"]:
        raise ValueError(f"{features}: needs training and validation trials")
    chosen = make_fold(names["train"], names["validation"], fold)
    trials = Trials(everything, MODALITIES)
    return trials.choose(chosen.train), trials.choose(chosen.validation)


def run_folder(out: Path, data: str, run: Run) -> Path:
    """Where a run of the table lies."""
    method = SHUFFLED if run.shuffled else run.method
    return out / "runs" / data / f"{method}-{run.target}-fold{run.fold}-seed{run.seed}"


def run_table(
    data: Sequence[Data],
    out: Path,
    plans: Sequence[Plan],
    preset: Preset,
    backbones: Path,
    *,
    processes: int = 1,
    ceiling_trials: int = 60,
) -> Table:
    """Trains what is not trained yet and writes ``table.json``.

    Args:
        data: Kinds of data.
        out: Where runs and table go.
        plans: What to train.
        preset: The numbers.
        backbones: What ``pretrain`` saved.
        processes: Runs at the same time, one thread each.
        ceiling_trials: Trials that the ceilings are estimated from.
    """
    torch.set_num_threads(1)
    folders = {one.name: one.features for one in data}
    jobs = [(folders[plan.data], plan.data, run) for plan in plans for run in _runs(plan, preset)]
    for features, name, fold in dict.fromkeys((f, n, run.fold) for f, n, run in jobs):
        _encoded(features, name, fold, out, backbones)
    arguments = [(features, name, run, out, backbones) for features, name, run in jobs]
    results: list[Result] = []
    if processes == 1:
        results = [_work(job) for job in track(arguments, "table", transient=True)]
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
            found = pool.map(_work, arguments)
            results = list(track(found, "table", total=len(arguments), transient=True))
    results += _averages(data, out, plans, preset, backbones)
    limits = {
        one.name: ceilings(ceiling_trials, switches=one.switches)
        for one in data
        if one.switches is not None
    }
    rows = tuple(_rows(results, limits))
    table = Table(rows, tuple(verdicts(rows)), limits, asdict(preset))
    write_table(out / "table.json", table, results)
    return table


def write_table(path: Path, table: Table, results: Sequence[Result]) -> None:
    """Writes the table and every run behind it."""
    held = {**asdict(table), "runs": [asdict(result) for result in results]}
    path.write_text(json.dumps(held, indent=1) + "\n")


def read_table(path: Path) -> Table:
    """Reads what ``write_table`` wrote."""
    if not path.exists():
        raise ValueError(f"{path}: no such table; run table or demo first")
    held = json.loads(path.read_text())
    rows = tuple(Row(**{**row, "runs": tuple(row["runs"])}) for row in held["rows"])
    return Table(rows, tuple(held["verdicts"]), held["ceilings"], held["preset"])


def verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """Says, per kind of data, how far RCMA is ahead in valence, or behind."""
    for data in dict.fromkeys(row.data for row in rows):
        means = {
            row.method: row.mean for row in rows if (row.data, row.target) == (data, "valence")
        }
        ours = means.get("rcma-stable")
        single = max((means[name] for name in SINGLE if name in means), default=None)
        if ours is None:
            continue
        rivals = [("the best single modality", single, BAR_SINGLE)]
        rivals += [
            (TITLES[name], means.get(name), BAR_FUSION) for name in ("concatenation", AVERAGE)
        ]
        rivals += [(TITLES[name], means.get(name), 0.0) for name in ("rcma", SHUFFLED)]
        for title, theirs, bar in rivals:
            if theirs is not None:
                gain = ours - theirs
                judged = "as asked" if gain >= bar else f"short of {bar:+.2f}"
                yield f"{data}: RCMA (stable) against {title}: {gain:+.3f} valence CCC, {judged}"


def _runs(plan: Plan, preset: Preset) -> Iterator[Run]:
    for target in plan.targets:
        for method in plan.methods:
            for fold in plan.folds:
                for seed in plan.seeds:
                    if method == SHUFFLED:
                        yield Run("rcma-stable", target, preset, fold, seed, shuffled=True)
                    elif method != AVERAGE:
                        yield Run(method, target, preset, fold, seed)


def _encoded(features: Path, name: str, fold: int, out: Path, backbones: Path) -> list[Trials]:
    """Trials of a fold with the features of the frozen backbones, computed once and kept."""
    path = out / "encoded" / f"{name}.pt"
    trials = load_trials(features, fold)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = _encode(features, load_backbones(backbones))
        torch.save(made, path)
    held: Mapping[str, dict[str, Tensor]] = torch.load(path, weights_only=True)
    return [
        Trials(part.features, MODALITIES, encoded=[held[t.name] for t in part.features])
        for part in trials
    ]


def _encode(features: Path, backbones: Mapping[str, nn.Module]) -> dict[str, Mapping[str, Tensor]]:
    trials = encode(Trials(load_features(features), MODALITIES), backbones)
    assert trials.encoded is not None
    return {t.name: x for t, x in zip(trials.features, trials.encoded, strict=True)}


def _work(job: tuple[Path, str, Run, Path, Path]) -> Result:
    """Trains one run, in a process of its own, or reads what it reached before."""
    features, name, run, out, backbones = job
    torch.set_num_threads(1)
    training, validation = _view(run, _encoded(features, name, run.fold, out, backbones))
    progress = train(
        run,
        run_folder(out, name, run),
        load_backbones(backbones),
        training,
        validation,
        resume=True,
    )
    best = progress.log[progress.best_epoch]
    return Result(
        name,
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


def _view(run: Run, trials: Sequence[Trials]) -> list[Trials]:
    seen = [part.see(find_method(run.method).modalities) for part in trials]
    return [shuffle_partners(part) for part in seen] if run.shuffled else seen


def _averages(
    data: Sequence[Data], out: Path, plans: Sequence[Plan], preset: Preset, backbones: Path
) -> list[Result]:
    """The mean of the three networks that see one modality each; nothing is trained."""
    found = []
    for plan in (plan for plan in plans if AVERAGE in plan.methods):
        features = next(one.features for one in data if one.name == plan.data)
        for target in plan.targets:
            for fold in plan.folds:
                validation = _encoded(features, plan.data, fold, out, backbones)[1]
                for seed in plan.seeds:
                    parts = []
                    for method in SINGLE:
                        run = Run(method, target, preset, fold, seed)
                        folder = run_folder(out, plan.data, run)
                        model = load_run(folder, run, load_backbones(backbones))
                        view = validation.see((method,))
                        parts.append(
                            predict(model, view, size=preset.window, hop=preset.hop, target=target)
                        )
                    mean = {name: sum(p[name] for p in parts) / len(parts) for name in parts[0]}
                    scores = score(
                        {name: torch.as_tensor(x) for name, x in mean.items()}, validation, target
                    )
                    found.append(
                        Result(
                            plan.data, AVERAGE, target, seed, fold,
                            scores.ccc, scores.pearson, scores.rmse, 0, 0.0,
                        )
                    )  # fmt: skip
    return found


def _rows(results: Sequence[Result], limits: Mapping[str, Any]) -> Iterator[Row]:
    groups: dict[tuple[str, Target, str], list[float]] = {}
    for result in results:
        groups.setdefault((result.data, result.target, result.method), []).append(result.ccc)
    order = {name: place for place, name in enumerate(TITLES)}
    for (data, target, method), values in sorted(
        groups.items(), key=lambda item: (item[0][1] != "valence", order[item[0][2]])
    ):
        yield Row(
            data,
            method,
            TITLES[method],
            target,
            statistics.fmean(values),
            statistics.stdev(values) if len(values) > 1 else 0.0,
            tuple(values),
            _ceiling(limits.get(data), method, target),
            PAPER[target].get(method),
        )


def _ceiling(limits: Any, method: str, target: Target) -> float | None:  # noqa: ANN401  # JSON
    if limits is None:
        return None
    if method == AVERAGE:
        return float(limits[target]["late"]["V+A+T"])
    subset = SUBSETS.get(method, "V" if method == SHUFFLED else "V+A+T")
    return float(limits[target]["achievable"][subset])
