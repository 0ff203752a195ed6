"""The Aff-Wild2 example with more trials than open files, and more rows than memory."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.affwild2.dataset.features import load_features
from examples.affwild2.training.assemble import make_accelerator, prepare
from examples.affwild2.training.evaluate import score
from examples.affwild2.training.own import OwnFeatures, Standardise
from examples.affwild2.training.runs import Run
from examples.affwild2.training.saved import read_saved, write_setup
from examples.affwild2.training.train import train
from examples.affwild2.training.trials import Trials, encode
from tests.support.affwild2 import SMALL, features

TRIALS, SPARE = 150, 32  # files that may be opened beside those of the test runner


@pytest.fixture
def few_files() -> Iterator[None]:
    """Lets the process open no more than a few files at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + SPARE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _write_extracted(out: Path) -> None:
    """Writes what ``extract`` would: two thirds of the trials are for training."""
    for k in range(TRIALS):
        trial = features(f"t{k:03d}", 5 + k % 10)
        folder, source = out / "trials" / trial.name, out / "videos" / trial.name
        folder.mkdir(parents=True)
        source.mkdir(parents=True)
        np.save(folder / "faces.npy", trial.faces)
        np.save(source / "mel.npy", np.asarray(trial.mel))
        np.savez(source / "words.npz", ids=np.asarray(trial.word_ids))
        arrays = ("index", "labels", "valid", "face_present", "mel_rows", "word_index")
        np.savez(folder / "frames.npz", **{name: getattr(trial, name) for name in arrays})
        meta = {
            "partition": ("train", "train", "train", "train", "validation", "test")[k % 6],
            "source": trial.name,
            "fps": trial.fps,
            "frames": trial.frames,
            "sound": True,
        }
        (folder / "meta.json").write_text(json.dumps(meta))


def _write_own(folder: Path, lengths: dict[str, int], width: int) -> OwnFeatures:
    folder.mkdir()
    for k, (name, length) in enumerate(lengths.items()):
        rows = np.random.default_rng(k).normal(3, 2, (length, width))
        np.save(folder / f"{name}.npy", rows.astype(np.float32))
    return OwnFeatures("mine", folder)


@pytest.mark.usefixtures("few_files")
def test_many_trials_need_few_open_files(tmp_path: Path) -> None:
    _write_extracted(tmp_path / "features")
    lengths = {trial.name: len(trial) for trial in load_features(tmp_path / "features")}
    assert len(lengths) == TRIALS
    own = (_write_own(tmp_path / "own", lengths, 3),)
    run = Run(
        "concatenation",
        "valence",
        replace(SMALL, epochs=1, batch=64),
        own=(own[0].stream,),
        modalities=("face", "mine"),
    )
    made = prepare(run, tmp_path / "features", own=own)
    assert made.problems == ()
    write_setup(tmp_path / "run", run, tmp_path / "features", made, own=own)
    train(
        run,
        tmp_path / "run",
        made.backbones,
        made.training,
        made.selection,
        accelerator=make_accelerator(cpu=True),
    )
    saved = read_saved(tmp_path / "run")
    for partition in ("validation", "test"):
        trials = saved.trials(partition)
        predictions = saved.predict(trials, cpu=True)
        assert {name: len(x) for name, x in predictions.items()} == {
            trial.name: lengths[trial.name] for trial in trials.features
        }
        assert len(score(predictions, trials, "valence").trials) == TRIALS // 6


def test_a_cache_leaves_own_features_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3 million frames of a wide encoder a cache would need many gigabytes."""
    trial = features("t", 200)
    own = _write_own(tmp_path / "own", {"t": 200}, 4)
    backbone = Standardise(4)
    backbone.mean, backbone.spread = own.measure([trial])
    raw, read = Trials([trial], ("mine",), own={"mine": own}), []

    def count(self: OwnFeatures, trial: object, start: int, stop: int) -> torch.Tensor:
        read.append(stop - start)
        return original(self, trial, start, stop)  # type: ignore[arg-type]  # a Features

    original = OwnFeatures.read
    monkeypatch.setattr(OwnFeatures, "read", count)
    cached = encode(raw, {"mine": backbone})
    assert not read
    torch.testing.assert_close(
        cached.frames(0, 150, 200)["mine"], backbone(raw.frames(0, 150, 200)["mine"])
    )
    assert read == [50, 50]
    everything = cached.frames(0, 0, 200)["mine"] * backbone.spread + backbone.mean
    rows = torch.from_numpy(np.load(tmp_path / "own" / "t.npy"))
    torch.testing.assert_close(everything, rows, atol=1e-5, rtol=0)


def test_own_features_are_measured_over_all_trials_together(tmp_path: Path) -> None:
    lengths = {"a": 7, "b": 30, "c": 1}
    own = _write_own(tmp_path / "own", lengths, 4)
    rows = np.concatenate([np.load(tmp_path / "own" / f"{name}.npy") for name in lengths])
    mean, spread = own.measure([features(name, length) for name, length in lengths.items()])
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(spread, rows.std(0), rtol=1e-6)
