"""The watch example: folds and windows by their laws, and a tiny run from end to end."""

from __future__ import annotations

import json
from importlib.machinery import ModuleSpec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.watch import data, results
from examples.watch.__main__ import Options, jobs, main
from examples.watch.data import WINDOW, Recordings, averaged, cut, fold, load_recordings, moments
from examples.watch.models import METHODS, WatchNet, load_model
from examples.watch.results import Job, work
from examples.watch.study import depth_table, study_table
from examples.watch.train import Budget


@st.composite
def recordings(draw: st.DrawFn) -> Recordings:
    """Recordings of ten people whose samples are all different, each at least a window long."""
    people = draw(st.permutations([k for k in range(10) for _ in range(draw(st.integers(1, 2)))]))
    lengths = [WINDOW + draw(st.integers(0, 2 * WINDOW)) for _ in people]
    signal = torch.arange(6 * sum(lengths), dtype=torch.float32).reshape(-1, 6)
    exercises = tuple(draw(st.integers(0, 6)) for _ in people)
    return Recordings(signal, tuple(lengths), tuple(people), exercises, tuple("ABCDEFG"))


@given(drawn=recordings())
def test_nobody_is_on_both_sides_of_a_fold(drawn: Recordings) -> None:
    for index in range(data.FOLDS):
        parts = fold(drawn, index)
        trained, tested = ({drawn.people[k] for k in side} for side in (parts.train, parts.test))
        assert not trained & tested
        assert len(tested) == 2
        assert sorted(parts.train + parts.test) == list(range(len(drawn.people)))


@given(drawn=recordings())
def test_each_recording_is_tested_on_in_one_fold(drawn: Recordings) -> None:
    tested = [k for index in range(data.FOLDS) for k in fold(drawn, index).test]
    assert sorted(tested) == list(range(len(drawn.people)))


@given(drawn=recordings(), hop=st.integers(1, 2 * WINDOW), seed=st.none() | st.integers(0, 99))
def test_windows_lie_inside_one_recording(drawn: Recordings, hop: int, seed: int | None) -> None:
    members = tuple(range(0, len(drawn.people), 2))
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    windows = cut(drawn, members, hop, generator)
    whole = torch.cat(list(windows.streams.values()), dim=-1)
    ends = np.cumsum(drawn.lengths)
    seen = set()
    for window, exercise in zip(whole, windows.exercises.tolist(), strict=True):
        first = int(window[0, 0]) // 6
        assert torch.equal(window, drawn.signal[first : first + WINDOW])
        member = int(np.searchsorted(ends, first, side="right"))
        assert first + WINDOW <= ends[member]
        assert exercise == drawn.exercises[member]
        seen.add(member)
    assert seen == set(members)


@given(samples=st.integers(1, 40))
def test_averaging_keeps_the_mean_of_whole_groups(samples: int) -> None:
    recording = torch.arange(6.0 * samples).reshape(samples, 6)
    steps = averaged(recording)
    kept = samples - samples % data.EVERY
    assert len(steps) * data.EVERY == kept
    if kept:
        torch.testing.assert_close(steps.mean(dim=0), recording[:kept].mean(dim=0))


def test_missing_recordings_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"no package seglearn(.|\n)*pip install"):
        load_recordings()
    with pytest.raises(SystemExit, match="pip install --no-deps seglearn"):
        main(Options())


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package seglearn with a few short recordings of ten people; returns a folder to use."""
    rng = np.random.default_rng(0)
    people = [person for person in range(1, 11) for _ in range(2)]
    content = {
        "X": [rng.normal(size=(data.EVERY * (WINDOW + 9), 6)) for _ in people],
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


def test_a_damaged_package_is_told_apart(tiny: Path) -> None:
    (tiny / "data" / "watch_dataset.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"no watch_dataset\.npy in it"):
        load_recordings()


def test_moments_normalise_the_people_trained_on(tiny: Path) -> None:
    drawn = load_recordings()
    members = fold(drawn, 0).train
    mean, std = moments(drawn, members)
    samples = torch.cat([torch.split(drawn.signal, list(drawn.lengths))[k] for k in members])
    torch.testing.assert_close(((samples - mean) / std).std(dim=0), torch.ones(6))


@pytest.mark.slow
def test_quick_runs_from_end_to_end_and_once(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tiny / "out"
    options = Options(out=out, processes=1, budget=Budget(epochs=1))
    main(options)
    printed = capsys.readouterr().out
    for method in METHODS.values():
        assert method.title in printed
    for picture in ("confusion.png", "accuracy.png"):
        assert (out / picture).stat().st_size > 1000
    runs = json.loads((out / "quick.json").read_text())["runs"]
    assert {run["method"] for run in runs} == set(METHODS)
    assert all(np.sum(run["confusion"]) > 0 for run in runs)

    def no_work(job: results.Job) -> None:
        raise AssertionError(f"{job} was there already")

    monkeypatch.setattr(results, "work", no_work)
    main(options)

    model, saved = load_model(out / "rcma-stable.pt")
    assert saved.names == tuple("ABCDEFG")
    streams = cut(load_recordings(), (0, 1), WINDOW).streams
    state, pieces = None, []
    for k in range(WINDOW):
        piece, state = model.stream({name: x[:, k : k + 1] for name, x in streams.items()}, state)
        pieces.append(piece)
    joined = {name: torch.cat([piece[name] for piece in pieces], dim=1) for name in streams}
    torch.testing.assert_close(model.classify(joined), model(streams), rtol=1e-4, atol=1e-5)


def test_one_mode_at_a_time() -> None:
    with pytest.raises(SystemExit, match="choose one of"):
        _ = Options(full=True, study=True).mode


@pytest.mark.parametrize("name", sorted(METHODS))
def test_masked_steps_do_not_count(name: str) -> None:
    model = WatchNet(METHODS[name], 7, dropout=0.2).eval()
    streams = {sensor: torch.randn(3, WINDOW, 3) for sensor in data.SENSORS}
    mask = torch.arange(WINDOW).expand(3, -1) < 30
    with torch.no_grad():
        features = model.encode(streams)
        short = {sensor: x[:, :30] for sensor, x in features.items()}
        torch.testing.assert_close(
            model.classify(features, mask), model.classify(short), rtol=1e-4, atol=1e-5
        )


def test_full_trains_every_method_on_every_fold_and_seed(tmp_path: Path) -> None:
    planned = jobs(Options(full=True, out=tmp_path))
    keys = [(job.method, job.fold, job.seed) for job in planned]
    assert sorted(keys) == sorted(product(METHODS, range(data.FOLDS), range(3)))
    assert [job.method for job in planned if job.save_to is not None] == ["rcma-stable"]


def test_the_study_keeps_to_its_own_seeds(tmp_path: Path) -> None:
    studied = {job.seed for job in jobs(Options(study=True, out=tmp_path))}
    assert not studied & {job.seed for job in jobs(Options(full=True, out=tmp_path))}


def test_the_table_of_the_study_shows_what_was_run(tiny: Path) -> None:
    title = "O = 0, H / √d"
    result = work(Job(title, 2, 10, Budget(epochs=1)))
    assert all(0 <= share <= 1 and growth > 0 for share, growth in result.seen)
    header, _, *rows = study_table([result]).splitlines()
    assert "people 5, 6" in header
    assert [row.split("|")[1].strip() for row in rows] == [title]
    assert f"{100 * result.accuracy:.1f}" in rows[0]


def test_depth_is_where_the_two_forms_part() -> None:
    rows = [row.split("|")[1:-1] for row in depth_table().splitlines()[2:]]
    growth = {(form.strip(), int(steps)): float(size) for form, steps, size, *_ in rows}
    assert growth["as printed", 16] > 1e6
    assert growth["stable", 16] < 4
