"""The table of results: one row per method, beside the paper's numbers and the data's ceilings."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from examples.affwild2.dataset.files import read_object, whole
from examples.affwild2.training.methods import (
    AVERAGE,
    SHUFFLED,
    TITLES,
    title_of,
)
from examples.affwild2.training.modalities import MODALITIES
from examples.affwild2.training.presets import Preset
from examples.affwild2.training.trials import TARGETS, Target

# Quoted from the paper (v1), measured on Aff-Wild2: the fusion is its best fold, the single
# modality is itself quoted there. The rows of its table that are not listed here have no number in
# our sources.
PAPER: dict[Target, dict[str, float]] = {
    "valence": {"face": 0.405, "rcma": 0.585},
    "arousal": {"face": 0.635, "rcma": 0.659},
}
ALL = "+".join(modality.letter for modality in MODALITIES.values())  # as the ceilings call them
OFFICIAL, OTHERS = "official split", "other folds"
BASELINE = "concatenation"
TIED = 2  # standard errors of the difference from the best within which a method ties with it


@dataclass(frozen=True)
class Result:
    """What one run reached on its validation trials."""

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
    sample: int = 0  # the seed of generated data


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
        folds: The official split, or all other folds together; the two are never mixed.
        gain: Mean difference to concatenation, paired by data seed, fold and seed.
        error: Its standard error: over the data seeds, or over the pairs if there is one data seed.
        leads: Whether it has the best mean, or ties with what has.
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
    folds: str = OFFICIAL
    gain: float | None = None
    error: float | None = None
    leads: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is what the library recommends, rather than a rival or a control."""
        return self.method.startswith("rcma-stable") and self.method != SHUFFLED


@dataclass(frozen=True)
class Table:
    """All rows, and the ceilings behind them.

    Attributes:
        rows: One per kind of data, target, folds and method.
        ceilings: Of each kind of generated data; real data has none.
        preset: The numbers of all runs.
    """

    rows: tuple[Row, ...]
    ceilings: dict[str, Any]
    preset: dict[str, Any]

    def groups(self) -> Iterator[tuple[str, list[Row]]]:
        """The rows of one table, and a title for them."""
        for data in dict.fromkeys(row.data for row in self.rows):
            kind = f"generated data: {data}" if data in self.ceilings else f"data: {data}"
            for target in TARGETS:
                for folds in (OFFICIAL, OTHERS):
                    key = (data, target, folds)
                    rows = [r for r in self.rows if (r.data, r.target, r.folds) == key]
                    more = "" if folds == OFFICIAL else f", {folds}"
                    if rows:
                        yield f"{target}, {kind}{more}", rows

    def find(self, data: str, method: str, target: Target) -> Row | None:
        """The row of a method on the official split."""
        for row in self.rows:
            if (row.data, row.method, row.target, row.folds) == (data, method, target, OFFICIAL):
                return row
        return None


def overview(table: Table) -> tuple[list[str], list[list[str]]]:
    """The whole table at a glance: a line per method, a column per kind of data and target.

    Mean CCC on the official split and, in brackets, the difference to concatenation with its
    standard error; the best, and what ties with it, in bold. The last line is the ceiling.
    """
    rows = [row for row in table.rows if row.folds == OFFICIAL]
    columns = list(dict.fromkeys((row.target, row.data) for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    methods.sort(key=lambda name: list(TITLES).index(name) if name in TITLES else -1)
    most = {
        column: max(len(row.runs) for row in rows if (row.target, row.data) == column)
        for column in columns
    }
    body = []
    for method in methods:
        found = [table.find(data, method, target) for target, data in columns]
        title = next(row.title for row in rows if row.method == method)
        pairs = zip(found, columns, strict=True)
        body.append([title, *(_describe(row, most[column]) for row, column in pairs)])
    limits = [_ceiling(table.ceilings.get(data), "", target) for target, data in columns]
    body.append(["*ceiling of all three*", *("" if x is None else f"{x:.2f}" for x in limits)])
    heads = [f"{target}, {data} ({_runs(most[target, data])})" for target, data in columns]
    return ["validation CCC", *heads], body


def _describe(row: Row | None, most: int) -> str:
    if row is None:
        return ""
    text = f"**{row.mean:.3f}**" if row.leads else f"{row.mean:.3f}"
    if row.gain is not None:
        error = "" if row.error is None else f" ± {row.error:.3f}"
        text += f" ({row.gain:+.3f}{error})"
    return text if len(row.runs) == most else f"{text}, {_runs(len(row.runs))}"


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def make_table(results: Sequence[Result], limits: Mapping[str, Any], preset: Preset) -> Table:
    """Tabulates results.

    Args:
        results: One per run.
        limits: What ``ceilings`` says, by the name of the data.
        preset: The numbers of all runs.
    """
    rows = tuple(_rows(results, limits, preset))
    return Table(rows, dict(limits), asdict(preset))


def write_table(path: Path, table: Table, results: Sequence[Result]) -> None:
    """Writes the table and every run behind it."""
    held = {**asdict(table), "runs": [asdict(result) for result in results]}
    with whole(path) as partial:
        partial.write_text(json.dumps(held, indent=1) + "\n")


def pool_tables(paths: Mapping[int, Path], path: Path, preset: Preset) -> Table:
    """Makes one table of those of several data seeds, and writes it.

    Args:
        paths: The tables, by the seed of their data.
        path: Where the common one goes.
        preset: Of all runs.
    """
    held = {sample: _read(one) for sample, one in paths.items()}
    results = [
        Result(**{**run, "sample": sample}) for sample, one in held.items() for run in one["runs"]
    ]
    limits = {kind: limit for one in held.values() for kind, limit in one["ceilings"].items()}
    table = make_table(results, limits, preset)
    write_table(path, table, results)
    return table


def read_table(path: Path) -> Table:
    """Reads what ``write_table`` wrote."""
    held = _read(path)
    rows = tuple(Row(**{**row, "runs": tuple(row["runs"])}) for row in held["rows"])
    return Table(rows, held["ceilings"], held["preset"])


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path}: no such table; run table or demo first")
    return read_object(path)


def _rows(results: Sequence[Result], limits: Mapping[str, Any], preset: Preset) -> Iterator[Row]:
    groups: dict[tuple[str, Target, str, str], list[Result]] = {}
    for result in results:
        folds = OFFICIAL if result.fold == 0 else OTHERS
        key = (result.data, result.target, folds, result.method)
        groups.setdefault(key, []).append(result)
    best: dict[tuple[str, Target, str], list[Result]] = {}
    for key, runs in groups.items():
        place = key[:3]
        if place not in best or _rank(runs) > _rank(best[place]):
            best[place] = runs
    order = {name: place for place, name in enumerate(TITLES)}  # own features come first
    for (data, target, folds, method), runs in sorted(
        groups.items(), key=lambda item: (item[0][1] != "valence", order.get(item[0][3], -1))
    ):
        values = tuple(run.ccc for run in runs)
        leader = best[data, target, folds]
        gain, error = _difference(runs, groups.get((data, target, folds, BASELINE), []))
        behind, spread = _difference(runs, leader)
        level = behind is not None and spread is not None and behind + TIED * spread >= 0
        yield Row(
            data,
            method,
            title_of(method, preset),
            target,
            statistics.fmean(values),
            statistics.stdev(values) if len(values) > 1 else 0.0,
            values,
            _ceiling(limits.get(data), method, target),
            PAPER[target].get(method),
            folds,
            None if method == BASELINE else gain,
            None if method == BASELINE else error,
            runs is leader or level,
        )


def _rank(runs: Sequence[Result]) -> tuple[int, float]:
    """The best of a column has the highest mean among the methods with the most runs."""
    return len(runs), statistics.fmean(run.ccc for run in runs)


def _difference(
    mine: Sequence[Result], other: Sequence[Result]
) -> tuple[float | None, float | None]:
    """The paired difference and its standard error; None for what too few pairs leave open.

    Runs on the same data are not independent: of several data seeds each counts once.
    """
    theirs = {(run.sample, run.fold, run.seed): run.ccc for run in other}
    found: dict[int, list[float]] = {}
    for run in mine:
        key = (run.sample, run.fold, run.seed)
        if key in theirs:
            found.setdefault(run.sample, []).append(run.ccc - theirs[key])
    single = len(found) == 1
    units = [x for part in found.values() for x in (part if single else [statistics.fmean(part)])]
    if not units:
        return None, None
    error = statistics.stdev(units) / math.sqrt(len(units)) if len(units) > 1 else None
    return statistics.fmean(units), error


def _ceiling(limits: Any, method: str, target: Target) -> float | None:  # noqa: ANN401  # JSON
    if limits is None:
        return None
    if method == AVERAGE:
        return float(limits[target]["late"][ALL])
    seen = "face" if method == SHUFFLED else method
    subset = MODALITIES[seen].letter if seen in MODALITIES else ALL
    return float(limits[target]["achievable"][subset])
