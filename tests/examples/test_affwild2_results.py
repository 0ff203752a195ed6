"""The Aff-Wild2 example's table, pictures and report: what they show, and that nothing is mixed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from examples.affwild2.commands import demo
from examples.affwild2.commands.table import _rows, show
from examples.affwild2.dataset.progress import follow
from examples.affwild2.results.plots import _gaps, plot_bars, plot_correlations, plot_curves
from examples.affwild2.results.report import write_report
from examples.affwild2.results.table import (
    OFFICIAL,
    OTHERS,
    Result,
    Row,
    Table,
    make_table,
    overview,
    pool_tables,
    read_table,
    write_table,
)
from examples.affwild2.training.modalities import NAMES
from examples.affwild2.training.presets import AUTHORS, DEMO, PAPER
from examples.affwild2.training.runs import Run, build
from examples.affwild2.training.trials import encode
from examples.tables import markdown
from tests.support.affwild2 import SMALL, backbones, trials


def _row(method: str, mean: float, **changes: Any) -> Row:  # noqa: ANN401  # fields of Row
    row = Row("x", method, f"{method} & co", "valence", mean, 0.01, (mean,), 0.8, None)
    return replace(row, **changes)


def test_the_overview_has_a_column_per_kind_of_data() -> None:
    rows = (
        _row("face", 0.4, runs=(0.3, 0.5)),
        _row("rcma", 0.3, data="y"),
        _row("rcma", 0.9, folds=OTHERS),
    )
    limits = {"valence": {"achievable": {"V+A+T": 0.83}}}
    header, body = overview(Table(rows, {"y": limits}, {}))
    assert header == ["validation CCC", "valence, x (2 runs)", "valence, y (1 run)"]
    assert body == [
        ["face & co", "0.400", ""],
        ["rcma & co", "", "0.300"],
        ["*ceiling of all three*", "", "0.83"],
    ]


def test_the_readme_shows_the_committed_table() -> None:
    folder = Path(__file__).parents[2] / "examples" / "affwild2"
    shown = markdown(*overview(read_table(folder / "results" / "table.json")))
    assert shown in (folder / "README.md").read_text()


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table = Table((_row("face", 0.4), _row("rcma", 0.3, paper=0.585)), {"x": {}}, {"a": 1})
    write_table(tmp_path / "table.json", table, [])
    assert read_table(tmp_path / "table.json") == table
    assert table.find("x", "rcma", "valence") is table.rows[1]
    assert table.find("y", "rcma", "valence") is None
    with pytest.raises(ValueError, match="no such table"):
        read_table(tmp_path / "other.json")


def test_the_report_holds_everything_in_one_file(tmp_path: Path) -> None:
    rows = (_row("face", 0.4), _row("rcma", 0.3, paper=0.585))
    plot_bars(tmp_path / "bars.png", rows, "title")
    plot_curves(tmp_path / "curves.png", {"a": [{"epoch": 0, "loss": 1.0, "ccc": 0.1}]})
    pictures = [(tmp_path / "bars.png", "bars <&>"), (tmp_path / "curves.png", "curves")]
    report = tmp_path / "report.html"
    table = Table(rows, {}, {"seed": 3407})
    write_report(report, table, pictures, {"seed": 12}, note="only <a> note")
    text = report.read_text()
    for seed in (12, 3407):  # of the data, of the preset: neither hides the other
        assert f'<td>seed</td><td class="value">{seed}</td>' in text
    sources = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'>]{0,30})", text)
    assert len(sources) == 3
    assert all(source.startswith("data:") for source in sources)
    assert not re.search(r"https?://|url\(|@import|<script|<link(?! rel=\"icon\")", text)
    for wanted in (
        "paper, on Aff-Wild2",
        "0.585",
        "face &amp; co",
        "bars &lt;&amp;&gt;",
        "only &lt;a&gt;",
        "torch",
        "prefers-color-scheme:dark",
    ):
        assert wanted in text


def test_the_report_calls_only_generated_data_generated(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [{"x": {}}, {}]
    for ceilings in kinds:
        table = Table((_row("rcma", 0.3),), ceilings, {})
        write_report(tmp_path / "report.html", table, [], {})
        text = (tmp_path / "report.html").read_text()
        assert ("on <b>generated</b> data" in text) == bool(ceilings)
        assert ("neither is a comparison" in text) == (not ceilings)


def test_only_rcma_has_correlation_maps(tmp_path: Path) -> None:
    held = backbones()
    training = encode(trials(), held)
    plot_correlations(
        tmp_path / "c.png", build(Run("rcma-stable", "valence", SMALL), held), training, 30
    )
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="only a network that fuses with RCMA"):
        plot_correlations(
            tmp_path / "d.png", build(Run("jca", "valence", SMALL), held), training, 30
        )


def _result(method: str, fold: int, ccc: float, **changes: Any) -> Result:  # noqa: ANN401  # fields
    return replace(Result("x", method, "valence", 0, fold, ccc, ccc, 0.3, 9, 1.0), **changes)


def test_the_overview_shows_differences_leaders_and_missing_runs() -> None:
    rows = (
        _row("concatenation", 0.5, runs=(0.4, 0.5, 0.6), leads=True),
        _row("jca", 0.4, runs=(0.3, 0.5), gain=-0.05, error=0.02),
        _row("rcma", 0.3, runs=(0.3,), gain=-0.1),
    )
    header, body = overview(Table(rows, {}, {}))
    assert header == ["validation CCC", "valence, x (3 runs)"]
    assert [line[1] for line in body] == [
        "**0.500**",
        "0.400 (-0.050 ± 0.020), 2 runs",
        "0.300 (-0.100), 1 run",
        "",
    ]


@given(
    values=st.dictionaries(
        st.tuples(st.sampled_from(["concatenation", "jca", "rcma"]), st.integers(0, 2)),
        st.lists(st.integers(0, 64).map(lambda n: n / 64), min_size=1, max_size=3),
        min_size=1,
    )
)
def test_differences_are_paired_and_each_data_seed_counts_once(
    values: dict[tuple[str, int], list[float]],
) -> None:
    """Against plain loops over data seeds and seeds of the networks."""
    results = [
        _result(method, 0, ccc, sample=sample, seed=seed)
        for (method, sample), cccs in values.items()
        for seed, ccc in enumerate(cccs)
    ]
    table = make_table(results, {}, DEMO)
    most = max(len(row.runs) for row in table.rows)
    top = max(row.mean for row in table.rows if len(row.runs) == most)
    for row in table.rows:
        means, pairs = [], []
        for sample in range(3):
            mine = values.get((row.method, sample), [])
            base = values.get(("concatenation", sample), [])
            found = [a - b for a, b in zip(mine, base, strict=False)]
            pairs += found
            means += [sum(found) / len(found)] if found else []
        units = pairs if len(means) == 1 else means
        if row.method == "concatenation" or not units:
            assert row.gain is row.error is None
        else:
            assert row.gain == pytest.approx(np.mean(units))
            if len(units) == 1:
                assert row.error is None
            else:
                error = np.std(units, ddof=1) / len(units) ** 0.5
                assert row.error == pytest.approx(error)
    assert any(row.leads and row.mean == top for row in table.rows)


def test_a_method_ties_with_the_best_within_two_standard_errors() -> None:
    """One draw of the best, and three others: ahead on some data, always behind, and one run."""
    runs = {
        "rcma": (0.6, 0.5, 0.7, 0.4),
        "jca": (0.5, 0.6, 0.6, 0.4),  # behind by 0.025, with a standard error of 0.048
        "concatenation": (0.5, 0.4, 0.6, 0.3),  # by 0.1 everywhere
        "face": (0.9,),
    }
    results = [
        _result(method, 0, ccc, sample=sample)
        for method, cccs in runs.items()
        for sample, ccc in enumerate(cccs)
    ]
    table = make_table(results, {}, DEMO)
    assert {row.method for row in table.rows if row.leads} == {"rcma", "jca"}


def test_tables_of_several_data_seeds_are_pooled(tmp_path: Path) -> None:
    paths = {}
    for sample, ccc in ((3, 0.25), (5, 0.75)):
        results = [_result("rcma", 0, ccc), _result("concatenation", 0, 0.5)]
        paths[sample] = tmp_path / f"{sample}.json"
        write_table(paths[sample], make_table(results, {}, DEMO), results)
    table = pool_tables(paths, tmp_path / "all.json", DEMO)
    assert read_table(tmp_path / "all.json").rows == table.rows
    found = {row.method: row for row in table.rows}
    assert found["rcma"].runs == (0.25, 0.75)
    assert found["rcma"].gain == 0
    assert found["rcma"].error == pytest.approx(0.25)
    held = json.loads((tmp_path / "all.json").read_text())["runs"]
    assert [run["sample"] for run in held] == [3, 3, 5, 5]
    with pytest.raises(ValueError, match="no such table"):
        pool_tables({1: tmp_path / "none.json"}, tmp_path / "all.json", DEMO)


def test_the_demo_runs_once_per_data_seed_and_shares_the_backbones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run(out: Path, *, seed: int, backbones: Path | None = None, **_: object) -> Table:
        asked.append((out, seed, backbones))
        results = [_result("rcma", 0, seed / 8), _result("concatenation", 0, 0.5)]
        table = make_table(results, {}, DEMO)
        write_table(out / "table.json", table, results)
        return table

    monkeypatch.setattr(demo, "run_demo", run)
    single = demo.run_demos(tmp_path, (3,))
    assert asked == [(tmp_path, 3, None)]
    assert {len(row.runs) for row in single.rows} == {1}
    asked.clear()
    table = demo.run_demos(tmp_path, (3, 5))
    shared = tmp_path / "backbones.pt"
    assert asked == [(tmp_path / f"data-seed{seed}", seed, shared) for seed in (3, 5)]
    assert {row.method: row.runs for row in table.rows}["rcma"] == (3 / 8, 5 / 8)
    assert read_table(tmp_path / "table.json").rows == table.rows
    assert "3, 5" in (tmp_path / "report.html").read_text()


def test_released_has_a_separate_row_unless_rcma_is_released_already() -> None:
    for preset in (PAPER, AUTHORS, DEMO):
        rows = _rows(preset, NAMES)
        assert len(set(rows)) == len(rows)
        assert set(NAMES) | {"rcma", "rcma-stable-all"} <= set(rows)
        assert ("rcma-released" in rows) == (preset is not AUTHORS)


def test_the_official_split_is_not_mixed_with_other_folds() -> None:
    results = [
        _result("face", fold, ccc, seed=seed)
        for fold, seed, ccc in ((0, 0, 0.1), (0, 1, 0.3), (1, 0, 0.6), (2, 0, 0.8))
    ]
    table = make_table(results, {}, DEMO)
    assert {row.folds: row.runs for row in table.rows} == {OFFICIAL: (0.1, 0.3), OTHERS: (0.6, 0.8)}
    assert [row.mean for row in table.rows] == pytest.approx([0.2, 0.7])
    assert [title for title, _ in table.groups()] == [
        "valence, data: x",
        "valence, data: x, other folds",
    ]
    found = table.find("x", "face", "valence")
    assert found is not None
    assert found.folds == OFFICIAL


def test_only_generated_data_is_called_generated_and_has_ceilings() -> None:
    limits = {"achievable": {"V": 0.6, "V+A+T": 0.8}, "late": {"V+A+T": 0.7}}
    results = [_result("face", 0, 0.5), _result("average", 0, 0.5), _result("rcma", 0, 0.5)]
    table = make_table(results, {"x": {"valence": limits}}, DEMO)
    ceilings = {row.method: row.ceiling for row in table.rows}
    assert ceilings == {"face": 0.6, "average": 0.7, "rcma": 0.8}
    assert next(table.groups())[0] == "valence, generated data: x"
    real = make_table(results, {}, DEMO)
    assert {row.ceiling for row in real.rows} == {None}
    assert next(real.groups())[0] == "valence, data: x"


def test_the_papers_numbers_have_their_own_column() -> None:
    table = make_table([_result("rcma", 0, 0.25), _result("jca", 0, 0.125)], {}, DEMO)
    assert {row.method: row.paper for row in table.rows} == {"rcma": 0.585, "jca": None}
    console = Console(record=True, width=120, quiet=False, file=StringIO())
    show(console, table)
    (line,) = [line for line in console.export_text().splitlines() if "RCMA" in line]
    cells = [cell.strip() for cell in line.strip("│┃ ").split("│")]
    assert cells == ["RCMA as published, joint of the others", "0.250", "", "", "0.585"]


def test_titles_are_whole_and_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Brackets are no markup of the terminal, dollars no formula of the pictures."""
    table = make_table([_result("rcma-stable-T", 0, 0.25, data="[red] $x_$")], {}, DEMO)
    console = Console(record=True, width=60, quiet=False, file=StringIO())
    show(console, table)
    said = " ".join(
        re.sub('[^a-z0-9"=,\\[\\]$]', " ", console.export_text(), flags=re.IGNORECASE).split()
    )
    for word in ("[red]", "$x", "RCMA,", 'form="stable"', "length=300"):
        assert word in said
    assert "0.000" not in said, "a single run has no spread"
    plot_bars(tmp_path / "bars.png", table.rows, "$\\nothing$")


def test_the_authors_preset_is_called_released() -> None:
    (row,) = make_table([_result("rcma", 0, 0.2)], {}, AUTHORS).rows
    assert row.title == "RCMA as released, joint of the others"


@given(kept=st.lists(st.booleans(), min_size=2, max_size=30), fps=st.sampled_from([15.0, 29.97]))
def test_lines_break_exactly_where_frames_were_left_out(kept: list[bool], fps: float) -> None:
    index = np.flatnonzero([True, True, *kept])  # two neighbours give how long a frame is
    gaps = _gaps(index / fps)
    assert gaps.tolist() == [i for i in range(1, len(index)) if index[i] - index[i - 1] > 1]


def test_a_log_gets_a_line_where_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(follow(iter("ab"), "networks to train", 2)) == ["a", "b"]
    assert capsys.readouterr().out == "networks to train: 2\n"
    assert list(follow(iter("ab"), "batches", 2, count=False)) == ["a", "b"]
    assert capsys.readouterr().out == ""


def test_a_log_says_how_long_the_rest_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the pace so far; not more than a line in half a minute."""
    clock = iter([0.0, 0.0, 10.0, 50.0, 55.0, 200.0])
    monkeypatch.setattr("examples.affwild2.dataset.progress.time.monotonic", lambda: next(clock))
    assert list(follow(range(5), "batches", 5, count=False)) == list(range(5))
    assert capsys.readouterr().out.splitlines() == [
        "batches: 2 of 5 after 50 s, about 75 s left",
        "batches: 4 of 5 after 200 s, about 50 s left",
    ]
