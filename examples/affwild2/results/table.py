"""The table of results: one row per method, beside the paper's numbers and the data's ceilings."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from examples.affwild2.dataset.files import whole
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

    Mean and spread of the CCC on the official split; the last line is the ceiling.
    """
    rows = [row for row in table.rows if row.folds == OFFICIAL]
    columns = list(dict.fromkeys((row.target, row.data) for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    methods.sort(key=lambda name: list(TITLES).index(name) if name in TITLES else -1)
    body = []
    for method in methods:
        found = [table.find(data, method, target) for target, data in columns]
        title = next(row.title for row in rows if row.method == method)
        body.append([title, *(_describe(row) for row in found)])
    limits = [_ceiling(table.ceilings.get(data), "", target) for target, data in columns]
    body.append(["*ceiling of all three*", *("" if x is None else f"{x:.2f}" for x in limits)])
    return ["validation CCC", *(f"{target}, {data}" for target, data in columns)], body


def _describe(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.mean:.3f}" + (f" ± {row.spread:.3f}" if len(row.runs) > 1 else "")


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


def read_table(path: Path) -> Table:
    """Reads what ``write_table`` wrote."""
    if not path.exists():
        raise ValueError(f"{path}: no such table; run table or demo first")
    try:
        held = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error})") from error
    rows = tuple(Row(**{**row, "runs": tuple(row["runs"])}) for row in held["rows"])
    return Table(rows, held["ceilings"], held["preset"])


def _rows(results: Sequence[Result], limits: Mapping[str, Any], preset: Preset) -> Iterator[Row]:
    groups: dict[tuple[str, Target, str, str], list[float]] = {}
    for result in results:
        folds = OFFICIAL if result.fold == 0 else OTHERS
        key = (result.data, result.target, folds, result.method)
        groups.setdefault(key, []).append(result.ccc)
    order = {name: place for place, name in enumerate(TITLES)}  # own features come first
    for (data, target, folds, method), values in sorted(
        groups.items(), key=lambda item: (item[0][1] != "valence", order.get(item[0][3], -1))
    ):
        yield Row(
            data,
            method,
            title_of(method, preset),
            target,
            statistics.fmean(values),
            statistics.stdev(values) if len(values) > 1 else 0.0,
            tuple(values),
            _ceiling(limits.get(data), method, target),
            PAPER[target].get(method),
            folds,
        )


def _ceiling(limits: Any, method: str, target: Target) -> float | None:  # noqa: ANN401  # JSON
    if limits is None:
        return None
    if method == AVERAGE:
        return float(limits[target]["late"][ALL])
    seen = "face" if method == SHUFFLED else method
    subset = MODALITIES[seen].letter if seen in MODALITIES else ALL
    return float(limits[target]["achievable"][subset])
