"""The watch example: its recordings and folds, and a tiny run from end to end."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.common import command, runs
from examples.common.command import jobs
from examples.common.methods import MAIN, METHODS
from examples.common.network import load_model
from examples.common.recordings import EVERY, SENSORS, WINDOW, cut
from examples.common.train import Budget, confusion
from examples.watch import data
from examples.watch.__main__ import Options
from examples.watch.data import WATCH, load_recordings

COMPARED = Options().methods


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Reads the recordings again in each test: each may have other ones."""
    load_recordings.cache_clear()
    yield
    load_recordings.cache_clear()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package seglearn with a few short recordings of ten people; returns a folder to use."""
    rng = np.random.default_rng(0)
    people = [person for person in range(1, 11) for _ in range(2)]
    content = {
        "X": [rng.normal(size=(EVERY * (2 * WINDOW + 9), 6)) for _ in people],
        "y": np.arange(len(people)) % 7,
        "y_labels": list("ABCDEFG"),
        "subject": np.array(people),
    }
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "watch_dataset.npy", np.array(content), allow_pickle=True)
    spec = ModuleSpec("seglearn", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(data, "find_spec", lambda name: spec)
    return tmp_path


class _Call:
    """Pickles as a call of a function."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("false",)


def test_recordings_that_call_anything_are_refused(tiny: Path) -> None:
    content = np.array({"X": [_Call()]})
    np.save(tiny / "data" / "watch_dataset.npy", content, allow_pickle=True)
    with pytest.raises(pickle.UnpicklingError, match=r"system, which is not admitted"):
        load_recordings()


def test_missing_recordings_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"no package seglearn(.|\n)*pip install"):
        load_recordings()
    with pytest.raises(SystemExit, match="pip install --no-deps seglearn"):
        command.main(WATCH, Options())


def test_a_damaged_package_is_reported_as_such(tiny: Path) -> None:
    (tiny / "data" / "watch_dataset.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"no watch_dataset\.npy in it"):
        load_recordings()


def test_each_recording_is_tested_on_in_one_fold() -> None:
    drawn = load_recordings()
    assert len(drawn.lengths) == 140
    tested = [k for index in range(5) for k in WATCH.fold(drawn, index).test]
    assert sorted(tested) == list(range(140))


def test_a_recording_has_one_exercise() -> None:
    drawn = load_recordings()
    for piece in drawn.labels.split(list(drawn.lengths)):
        assert len(piece.unique()) == 1
    assert sorted(drawn.labels.unique().tolist()) == list(range(len(drawn.names)))


@pytest.mark.slow
def test_quick_runs_from_end_to_end_and_once(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, readme = tiny / "out", tiny / "README.md"
    marks = ("scores", "recalls", "lengths")
    readme.write_text("".join(f"<!-- {mark} -->\n<!-- /{mark} -->\n" for mark in marks))
    options = Options(out=out, processes=1, epochs=1, readme=readme)
    command.main(WATCH, options)
    assert "Exercises of held-out subjects" in capsys.readouterr().out
    for name in COMPARED:
        assert f"| {METHODS[name].title} |" in readme.read_text()
    for picture in ("confusion.png", "accuracy.png"):
        assert (out / picture).stat().st_size > 1000
    done = json.loads((out / "quick.json").read_text())["runs"]
    assert {run["method"] for run in done} == set(COMPARED)
    for run in done:
        assert np.sum(run["confusion"]) == 4 * 3  # windows of the two people's four recordings
        assert (run["half"] is not None) == METHODS[run["method"]].any_length

    def no_work(job: runs.Job) -> None:
        raise AssertionError(f"{job} was there already")

    monkeypatch.setattr(runs, "work", no_work)
    command.main(WATCH, options)

    drawn = load_recordings()
    model, saved = load_model(out / "rcma.safetensors")
    assert saved.names == tuple("ABCDEFG")
    (first,) = (run for run in done if run["method"] == "rcma")
    assert confusion(model, WATCH, drawn, WATCH.fold(drawn, 0)).tolist() == first["confusion"]
    streams = cut(drawn, (0, 1), WINDOW).streams
    state, pieces = None, []
    for k in range(WINDOW):
        piece, state = model.stream({name: x[:, k : k + 1] for name, x in streams.items()}, state)
        pieces.append(piece)
    joined = {name: torch.cat([piece[name] for piece in pieces], dim=1) for name in SENSORS}
    torch.testing.assert_close(model.classify(joined), model(streams), rtol=1e-4, atol=1e-5)


def test_varied_trains_on_many_lengths_and_makes_its_table_only(tiny: Path) -> None:
    out, readme = tiny / "out", tiny / "README.md"
    readme.write_text("<!-- varied -->\n<!-- /varied -->\n")
    methods = ("concatenation", "rcma", "jca")
    options = Options(varied=True, out=out, processes=1, epochs=1, readme=readme, methods=methods)
    command.main(WATCH, options)
    assert [file.name for file in out.iterdir()] == ["quick-varied.json"]
    content = json.loads((out / "quick-varied.json").read_text())
    assert content["budget"]["shortest"] == WINDOW // 2
    assert content["budget"]["longest"] == 2 * WINDOW
    assert {run["method"] for run in content["runs"]} == {"concatenation", "rcma"}
    assert "| RCMA |" in readme.read_text()


def test_time_that_is_over_ends_the_runs(tiny: Path) -> None:
    file = tiny / "quick.json"
    plan = jobs(WATCH, Options(methods=("gyroscope", "concatenation"), epochs=1, out=tiny))
    done = runs.run_all(plan, file, processes=1, minutes=0, done=lambda: None)
    assert done == []
    assert runs.run_all(plan[:1], file, processes=1, minutes=None, done=lambda: None)
    other = [replace(job, budget=Budget(epochs=2)) for job in plan]
    assert runs.run_all(other, file, processes=1, minutes=0, done=lambda: None) == []


def test_wrong_options_are_refused() -> None:
    with pytest.raises(SystemExit, match="choose one of"):
        jobs(WATCH, Options(full=True, quick=True))
    with pytest.raises(SystemExit, match="no method 'rmca': there are accelerometer"):
        jobs(WATCH, Options(methods=("rmca",)))


def test_full_trains_every_method_on_every_fold_and_seed(tmp_path: Path) -> None:
    planned = jobs(WATCH, Options(full=True, first_seed=4, out=tmp_path))
    assert sorted(job.key for job in planned) == sorted(product(COMPARED, range(5), (4, 5, 6)))
    assert [job.key for job in planned if job.save_to is not None] == [("rcma", 0, 4)]
    first = planned[: 15 * len(MAIN)]
    assert {job.method for job in first} == set(MAIN)
