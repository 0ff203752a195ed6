"""Numbers of runs that went wrong: each is refused, or has a line beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.affwild2.training.runs import CHECKPOINT, PARTS, read_checkpoint
from examples.affwild2.training.saved import SETUP
from tests.support.affwild2_cli import run, train, write_corpus

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and a run for each target; nobody may change it."""
    root = write_corpus(tmp_path_factory.mktemp("marks"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        for target in ("valence", "arousal"):
            assert train(monkeypatch, root, "--target", target, out=target) == ""
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage; its runs use the features beside them."""
    shutil.copytree(made, tmp_path / "data")
    for path in (tmp_path / "data").glob(f"*/{SETUP}"):
        path.write_text(path.read_text().replace(str(made), str(tmp_path / "data")))
    return tmp_path / "data"


def _evaluate(root: Path, *more: object) -> tuple[object, ...]:
    return ("evaluate", root / "valence", "--cpu", *more)


def _predict(root: Path, *more: object) -> tuple[object, ...]:
    runs = ("--valence", root / "valence", "--arousal", root / "arousal")
    out = ("--sample", root / "sample.txt", "--out", root / "predictions.txt")
    return ("predict", *runs, *out, "--cpu", *more)


def _change(root: Path, change: Change) -> None:
    state = read_checkpoint(root / "valence")
    change(state)
    torch.save(state, root / "valence" / CHECKPOINT)


def test_a_good_run_has_no_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *_evaluate(root)) == ""
    said = capsys.readouterr().out
    assert said.splitlines()[0].strip().startswith("concatenation, valence")
    assert said.endswith("(trials: 1, frames: 44)\n")
    assert run(monkeypatch, *_predict(root)) == ""
    assert capsys.readouterr().out == f"wrote {root / 'predictions.txt'}\n"


@pytest.mark.parametrize("name", [CHECKPOINT, SETUP])
def test_parts_of_two_runs_are_refused(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(root / "arousal" / name, root / "valence" / name)
    for command in (_evaluate(root), _predict(root)):
        said = run(monkeypatch, *command)
        assert (
            said == f"{root / 'valence'}: {CHECKPOINT} is of another run than {SETUP}; train again"
        )


@pytest.mark.parametrize("state", [[1], {"model": 1}])
def test_a_file_of_torch_that_is_no_checkpoint_is_refused(
    state: object, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_checkpoint(root / "valence").keys() == PARTS
    for path in (root / "valence").glob("*.pt"):
        torch.save(state, path)
    assert "is no checkpoint of train" in run(monkeypatch, *_evaluate(root))


@pytest.mark.parametrize("held", ["[]", '{"root'])
def test_settings_that_are_damaged_are_named(
    held: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, command in (
        (root / "features/settings.json", ("extract", "--root", root, "--out", root / "features")),
        (root / "valence" / SETUP, _evaluate(root)),
        (root / "features/settings.json", ("table", "--features", root / "features")),
    ):
        path.write_text(held)
        (root / "Train_Set").mkdir(exist_ok=True)
        (root / "Train_Set/video1.txt").write_text("valence,arousal\n0,0\n")
        more = ("--out", root / "table", "--demo", root / "sample.txt")
        said = run(monkeypatch, *command, *(more if command[0] == "table" else ()))
        assert said.startswith(f"{path}: is damaged")


@pytest.mark.parametrize("held", ["{}", '{"run": null}'])
def test_a_setup_of_another_form_is_refused(
    held: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "valence" / SETUP).write_text(held)
    said = run(monkeypatch, *_evaluate(root))
    assert said.startswith(f"{root / 'valence'}: was written by another version")


def test_a_training_that_is_not_over_is_reported(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _change(root, lambda state: state["progress"].update(done=False))
    for command in (_evaluate(root), _predict(root)):
        assert run(monkeypatch, *command) == ""
        first = capsys.readouterr().out.splitlines()[0]
        assert first.startswith(f"{root / 'valence'}: its training is not over (epoch 1 of 1)")


def test_predictions_that_never_move_are_reported(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def silence(state: dict[str, Any]) -> None:
        last = [name for name in state["best"] if name.startswith("head")][-2:]
        state["best"].update({name: 0 * state["best"][name] for name in last})

    _change(root, silence)
    for command in (_evaluate(root), _predict(root)):
        assert run(monkeypatch, *command) == ""
        assert "the valence predictions of all frames are the same" in capsys.readouterr().out


def test_trials_that_a_network_was_trained_on_are_counted(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another edition of the features may have other partitions."""
    shutil.copytree(root / "features", root / "other")
    path = root / "other/trials/video00000/meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "partition": "validation"}))
    assert run(monkeypatch, *_evaluate(root, "--features", root / "other")) == ""
    assert "the network was trained on 1 of these 2 trials" in capsys.readouterr().out
    assert run(monkeypatch, *_evaluate(root, "--partition", "train")) == ""
    assert "was trained on" not in capsys.readouterr().out


def test_own_features_may_be_given_in_any_order(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *_evaluate(root)) == ""
    before = capsys.readouterr().out
    streams = (f"clip={root / 'clip'}", f"mae={root / 'mae'}")
    assert run(monkeypatch, *_evaluate(root, "--own", *streams)) == ""
    assert capsys.readouterr().out == before
    assert "trained with own features" in run(monkeypatch, *_evaluate(root, "--own", streams[0]))


def test_own_features_that_never_move_are_reported(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "mae/video00002.npy"
    np.save(path, np.ones_like(np.load(path)))
    assert train(monkeypatch, root, out="flat") == ""
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 6 trials have the same mae in all frames (the first is video00002)" in said


def _arrays(name: str, change: Change) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / f"features/trials/{name}/frames.npz"
        with np.load(path) as held:
            arrays = dict(held)
        change(arrays)
        np.savez(path, **arrays)

    return damage


def _partition(root: Path) -> None:
    path = root / "features/trials/video00001/meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "partition": "Train_Set"}))


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "labels are not numbers": (
        _arrays("video00005", lambda held: held["labels"].fill(np.nan)),
        "video00005: has labels outside of [-1, 1] that count",
    ),
    "-5 counts": (
        _arrays("video00001", lambda held: (held["labels"].fill(-5), held["valid"].fill(1))),
        "video00001: has labels outside of [-1, 1] that count",
    ),
    "nothing counts": (
        _arrays("video00005", lambda held: held["valid"].fill(0)),
        "video00005: has no label that counts",
    ),
    "labels are fewer": (
        _arrays("video00001", lambda held: held.update(labels=held["labels"][:-4])),
        "video00001: has 33 frames and 29 of labels",
    ),
    "words are others": (
        _arrays("video00001", lambda held: held["word_index"].fill(99)),
        "video00001: has frames with other words than the",
    ),
    "the partition is unknown": (_partition, "video00001: is of no partition, found 'Train_Set'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_features_that_do_not_belong_together_end_training(
    wrong: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, said = WRONG[wrong]
    damage(root)
    assert said in train(monkeypatch, root, out="new")
    assert not (root / "new" / CHECKPOINT).exists()
