"""Faults of files, options and disks, by the command line: one line, or the right numbers."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from examples.affwild2.dataset.extract import extract
from examples.affwild2.dataset.files import whole
from examples.affwild2.dataset.layout import read_annotation
from examples.affwild2.training.runs import CHECKPOINT, LOG, read_checkpoint
from tests.support import affwild2
from tests.support.affwild2_cli import SAMPLE, run, train, write_corpus


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight trials of features and two folders of own features; nobody may change it."""
    return write_corpus(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def _cut(path: str, keep: float) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        content = (root / path).read_bytes()
        (root / path).write_bytes(content[: int(keep * len(content))])

    return damage


def _write(path: str, rows: object) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        np.save(root / path, np.asarray(rows))

    return damage


def _bfloat16(root: Path) -> None:
    (root / "mae/video00001.npy").unlink()
    rows = torch.zeros(33, 3, dtype=torch.bfloat16)
    save_file({"features": rows}, root / "mae/video00001.safetensors")


def _two_tensors(root: Path) -> None:
    (root / "mae/video00001.npy").unlink()
    rows = torch.zeros(33, 3)
    save_file({"a": rows, "b": rows + 1}, root / "mae/video00001.safetensors")


def _not_finite(root: Path) -> None:
    rows = np.load(root / "clip/video00002.npy")
    rows[51, 1] = np.inf
    np.save(root / "clip/video00002.npy", rows)


def _short_labels(root: Path) -> None:
    path = root / "features/trials/video00003/frames.npz"
    with np.load(path) as held:
        arrays = dict(held)
    del arrays["valid"]
    np.savez(path, **arrays)


FAULTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "own features are cut": (_cut("mae/video00003.npy", 0.6), ("video00003.npy: cannot be read",)),
    "own features are empty": (_cut("clip/video00000.npy", 0), ("video00000.npy: cannot be read",)),
    "own features are of another width": (
        _write("mae/video00004.npy", np.zeros((60, 4))),
        ("video00004.npy: has width 4; video00000.npy has 3",),
    ),
    "own features are pickled objects": (
        _write("mae/video00001.npy", [[None, 1, 2]]),
        ("video00001.npy", "object"),
    ),
    "own features are not finite": (_not_finite, ("video00002.npy: row 51 is not finite",)),
    "own features are words": (
        _write("mae/video00001.npy", [["a", "b", "c"]]),
        ("video00001.npy: must be numbers of shape (rows, width), found <U1",),
    ),
    "own features are in two tensors": (
        _two_tensors,
        ("video00001.safetensors: must hold one tensor, found ['a', 'b']",),
    ),
    "frames are cut": (
        _cut("features/trials/video00002/frames.npz", 0.5),
        ("video00002: cannot be read", "extract it again"),
    ),
    "an array is absent": (_short_labels, ("video00003: cannot be read", "'valid'")),
    "faces are cut": (
        _cut("features/trials/video00002/faces.npy", 0.5),
        ("faces.npy: cannot be read",),
    ),
    "what was extracted is cut": (
        _cut("features/trials/video00001/meta.json", 0.5),
        ("video00001: cannot be read", "extract it again"),
    ),
    "the sound is absent": (
        lambda root: (root / "features/videos/video00004/mel.npy").unlink(),
        ("mel.npy: cannot be read",),
    ),
    "the run folder is a file": (lambda root: (root / "run").touch(), ("run: ", "exists")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_file_ends_training_with_its_name(
    fault: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, parts = FAULTS[fault]
    damage(root)
    said = train(monkeypatch, root)
    assert all(part in said for part in parts), said
    assert not (root / "run" / CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--epochs", 0), "--epochs must be 1 or more, found 0"),
        (("--batch", 0), "--batch must be 1 or more, found 0"),
        (("--releases", -1), "--releases must be 0 or more, found -1"),
        (("--learning-rate", "nan"), "--learning-rate must be a number above 0, found nan"),
        (("--modalities", "mae", "mae"), "modality 'mae': is given twice"),
        (("--modalities", "mae"), "--method mae trains on it alone"),
        (("--fold", 6), "fold 6: there are the folds 0 to 5"),
    ],
)
def test_options_that_make_no_training_are_refused(
    options: tuple[object, ...], said: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said in train(monkeypatch, made, *options, out="refused")
    assert not (made / "refused" / CHECKPOINT).exists()


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "column by column", "two more"])
def test_own_features_in_another_form_make_the_same_network(
    dtype: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quarters are exact in all of them; rows after the last frame are not used."""
    assert train(monkeypatch, root, out="first") == ""
    for path in (root / "mae").iterdir():
        rows = np.load(path)
        if dtype == "column by column":
            np.save(path, np.asfortranarray(rows))
        elif dtype == "two more":
            np.save(path, np.concatenate([rows, np.full((2, 3), 99.0)]))
        else:
            np.save(path, rows.astype(dtype))
    capsys.readouterr()
    assert train(monkeypatch, root, out="second") == ""
    lines = [line for line in capsys.readouterr().out.splitlines() if "more; unused" in line]
    assert len(lines) == (6 if dtype == "two more" else 0)  # of training and validation
    first, second = (torch.load(root / run / CHECKPOINT)["best"] for run in ("first", "second"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_own_features_as_bfloat16_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _bfloat16(root)
    # The rest depends on whether another package has registered bfloat16 with NumPy.
    message = train(monkeypatch, root)
    assert "video00001.safetensors: " in message
    assert "bfloat16" in message


@contextmanager
def _full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_run_that_was_there(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(monkeypatch, root) == ""
    before = {name: (root / "run" / name).read_bytes() for name in (CHECKPOINT, LOG)}
    with _full_disk(20_000):
        said = train(monkeypatch, root, "--epochs", 2, "--resume")
    assert f"{root / 'run' / CHECKPOINT}: cannot be written" in said
    assert {name: (root / "run" / name).read_bytes() for name in before} == before
    assert not list((root / "run").glob(".*.partial"))
    assert train(monkeypatch, root, "--epochs", 2, "--resume") == ""


@pytest.mark.parametrize("write", ["text", "array", "arrays"])
def test_what_a_full_disk_cuts_is_removed_and_named(tmp_path: Path, write: str) -> None:
    rows = np.zeros((100, 100))

    def fill() -> None:
        with whole(tmp_path / "out") as partial:
            partial.mkdir()
            if write == "text":
                (partial / "a.txt").write_text("a" * 80_000)
            elif write == "array":
                np.save(partial / "a.npy", rows)
            else:
                np.savez(partial / "a.npz", a=rows)

    with _full_disk(20_000), pytest.raises(OSError, match=re.escape(str(tmp_path / "out"))):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_predictions_are_whole_or_as_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for target in ("valence", "arousal"):
        assert train(monkeypatch, root, "--target", target, out=target) == ""
    out = root / "predictions.txt"
    command = (
        *("predict", "--valence", root / "valence", "--arousal", root / "arousal"),
        *("--sample", root / "sample.txt", "--out", out, "--cpu"),
    )
    assert run(monkeypatch, *command) == ""
    before = out.read_text()
    assert before.startswith("image_location,valence,arousal\nvideo00006/00001.jpg,")
    with _full_disk(10):
        assert str(out) in run(monkeypatch, *command)
    assert out.read_text() == before
    assert run(monkeypatch, *command, "--batch", 0).startswith("predict: --batch must be 1")
    assert run(monkeypatch, *command, "--batch", 1) == ""
    (root / "sample.txt").write_text(SAMPLE.replace("video00006", "video99999"))
    assert "no trial of this file has a prediction" in run(monkeypatch, *command)
    (root / "mae/video00006.npy").unlink()
    (root / "sample.txt").write_text(SAMPLE)
    assert run(monkeypatch, *command) == "", "a missing stream is masked, with a line"
    rows = np.load(root / "clip/video00006.npy")
    rows[5] = np.nan
    np.save(root / "clip/video00006.npy", rows)
    assert "video00006.npy: row 5 is not finite" in run(monkeypatch, *command)


def test_a_setup_that_is_cut_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(monkeypatch, root) == ""
    assert run(monkeypatch, "evaluate", root / "run", "--cpu", "--batch", 5) == ""
    assert "--batch must be" in run(monkeypatch, "evaluate", root / "run", "--batch", -1)
    held = json.loads((root / "run/setup.json").read_text())
    (root / "run/setup.json").write_text(json.dumps(held)[:50])
    assert "setup.json: is damaged" in run(monkeypatch, "evaluate", root / "run", "--cpu")
    shutil.rmtree(root / "features")
    (root / "run/setup.json").write_text(json.dumps(held))
    assert "holds no" in run(monkeypatch, "evaluate", root / "run", "--cpu")


def _interrupt(arguments: list[str], line: str) -> tuple[int, str]:
    """Interrupts a command and its workers once it prints ``line``; returns status and errors."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "examples.affwild2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert any(printed.startswith(line) for printed in process.stdout), "ended too early"
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    return process.returncode, errors


STOPPED = "stopped; the same command, with --resume for train, goes on\n"


@pytest.mark.slow
def test_an_interrupted_training_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = (f"mae={root / 'mae'}", f"clip={root / 'clip'}")
    command = (
        f"train --features {root / 'features'} --out {root / 'run'} --preset demo --cpu".split()
    )
    more = f"--own {' '.join(streams)} --modalities mae clip --method concatenation".split()
    assert _interrupt([*command, *more, "--epochs", "5000"], "epoch 2,") == (130, STOPPED)
    done = int(read_checkpoint(root / "run")["progress"]["epoch"])
    assert done >= 2
    assert train(monkeypatch, root, "--epochs", 5000, "--resume") == ""
    assert int(read_checkpoint(root / "run")["progress"]["epoch"]) > done


@pytest.mark.slow
def test_interrupted_workers_print_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tree, out = affwild2.tree(tmp_path_factory), tmp_path / "out"
    command = ["extract", "--root", str(tree), "--out", str(out), "--workers", "2"]
    assert _interrupt(command, "videos to extract") == (130, STOPPED)
    report = extract(tree, out)
    assert len(report.written) + len(report.complete) == 10


ROWS = ["0.1,-0.25", "-5,-5", "1,0.5"]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffvalence,arousal\r\n" + "\r\n".join(ROWS) + "\r\n",
        "valence,arousal\r" + "\r".join(ROWS),
        "Valence, Arousal\n" + "\n".join(row.replace(",", " ,\t") for row in ROWS) + "\n\n\n",
    ],
)
def test_labels_of_other_systems_are_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "video1.txt"
    path.write_text(text, encoding="utf-8", newline="")
    labels = read_annotation(path)
    expected = np.array([[0.1, -0.25], [-5.0, -5.0], [1.0, 0.5]])
    np.testing.assert_allclose(labels.values, expected, rtol=1e-6)
    assert labels.valid.tolist() == [True, False, True]
    assert labels.problems == ()


def test_a_third_column_in_one_row_drops_that_frame_alone(tmp_path: Path) -> None:
    path = tmp_path / "video1.txt"
    path.write_text("valence,arousal\n0.1,0.2\n0.1,0.2,0.9\n")
    labels = read_annotation(path)
    assert labels.valid.tolist() == [True, False]
    assert labels.problems == (
        f"{path}: 1 of 2 lines are not two numbers (the first is line 3); those frames are left "
        "out",
    )
