"""The Aff-Wild2 example, second half: windows, folds, training, evaluation, files, report."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch import Tensor, nn

from crossfuse import ConcordanceLoss
from examples.affwild2.dataset.challenge import read_sample_lengths, write_challenge_file
from examples.affwild2.dataset.files import DamagedFile
from examples.affwild2.dataset.folds import Window, list_windows, make_fold
from examples.affwild2.network.backbones import Vectors
from examples.affwild2.network.batch_norm import MaskedBatchNorm
from examples.affwild2.training.assemble import find_problems, identify, make_backbones, make_trials
from examples.affwild2.training.evaluate import Scores, predict, score, smooth
from examples.affwild2.training.methods import METHODS, find_method
from examples.affwild2.training.modalities import MODALITIES, NAMES, Encoding, tcn_widths
from examples.affwild2.training.own import OwnFeatures, read_own
from examples.affwild2.training.presets import AUTHORS, DEMO, PAPER, Preset
from examples.affwild2.training.runs import (
    BEFORE,
    CHECKPOINT,
    LOG,
    Progress,
    Run,
    build,
    read_checkpoint,
    run_from,
)
from examples.affwild2.training.schedule import release, set_training, warmup_rate
from examples.affwild2.training.train import _Session, train
from examples.affwild2.training.trials import Batch, Trials, encode, shuffle_partners
from tests.support.affwild2 import SMALL
from tests.support.affwild2 import backbones as _backbones
from tests.support.affwild2 import features as _features
from tests.support.affwild2 import trials as _trials

REPOSITORY = Path(__file__).parents[2]


def _setup(seed: int = 0) -> tuple[dict[str, nn.Module], Trials, Trials]:
    backbones = _backbones()
    return (
        backbones,
        encode(_trials(seed=seed), backbones),
        encode(_trials((40, 33), seed=90 + seed), backbones),
    )


def _run(method: str = "rcma-stable", preset: Preset = SMALL, **changes: Any) -> Run:  # noqa: ANN401  # fields of Run
    return Run(method, "valence", preset, **changes)


# Windows and folds


@pytest.mark.parametrize(
    ("length", "starts"),
    [(450, [0, 150]), (501, [0, 200, 201]), (700, [0, 200, 400]), (120, [0]), (300, [0])],
)
def test_windows_start_where_the_protocol_says(length: int, starts: list[int]) -> None:
    assert list_windows([5, length], 300, 200) == [
        Window(0, 0),
        *(Window(1, start) for start in starts),
    ]


def test_folds_are_those_of_the_protocol() -> None:
    training = [f"{i:03d}" for i in range(356)]
    validation = [f"v{i:02d}" for i in range(76)]
    official = make_fold(list(reversed(training)), validation, 0)
    assert official == (tuple(training), tuple(validation))
    sizes = [len(make_fold(training, validation, k).validation) for k in range(6)]
    assert sizes == [76, 72, 71, 71, 71, 71]
    assert make_fold(training, validation, 1).validation == tuple(training[284:])
    assert make_fold(training, validation, 5).validation == tuple(training[:71])


@given(trials=st.integers(5, 40), held=st.integers(1, 5))
def test_folds_are_six_and_share_out_all_trials(trials: int, held: int) -> None:
    training, validation = (
        [f"{p}{i:02d}" for i in range(n)] for p, n in (("a", trials), ("b", held))
    )
    folds = [make_fold(training, validation, k) for k in range(6)]
    for fold in folds:
        assert sorted(fold.train + fold.validation) == sorted(training + validation)
    seen = [name for fold in folds for name in fold.validation]
    assert sorted(seen) == sorted(training + validation)


@pytest.mark.parametrize(("fold", "said"), [(6, "folds 0 to 5"), (2, "needs 5 training trials")])
def test_a_fold_that_cannot_be_is_refused(fold: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_fold(["a", "b"], ["c"], fold)


# The network


@given(seed=st.integers(0, 1000), steps=st.integers(2, 6), padding=st.integers(0, 4))
def test_batch_normalisation_is_torchs_over_the_valid_steps(
    seed: int, steps: int, padding: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, steps + padding, 5, generator=generator, dtype=torch.float64)
    mask = (torch.arange(steps + padding) < steps).expand(3, -1)
    ours, theirs = MaskedBatchNorm(5).double(), nn.BatchNorm1d(5).double()
    expected = theirs(x[mask])
    for junk in (0.0, 1e6):
        made = ours.train()(x.masked_fill(~mask[..., None], junk), mask)
        torch.testing.assert_close(made[mask], expected, rtol=1e-5, atol=1e-6)
        assert not made[~mask].any()
    assert ours.variance.dtype == torch.float64
    fresh = MaskedBatchNorm(5).double()
    fresh(x, mask)
    assert theirs.running_mean is not None
    assert theirs.running_var is not None
    torch.testing.assert_close(fresh.mean, theirs.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fresh.variance, theirs.running_var, rtol=1e-5, atol=1e-6)


def test_batch_normalisation_of_nothing_is_finite() -> None:
    layer, x = MaskedBatchNorm(3), torch.randn(2, 4, 3, requires_grad=True)
    out = layer(x, torch.zeros(2, 4, dtype=torch.bool))
    out.sum().backward()
    assert not out.any()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    torch.testing.assert_close(layer.variance, torch.ones(3))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_predicts_with_any_modality_missing(method: str) -> None:
    backbones = _backbones()
    model = build(_run(method), backbones).eval()
    seen = find_method(method).modalities
    trials = encode(_trials(), backbones).see(seen)
    batch = trials.batch([Window(0, 0), Window(1, 0)], 30, "valence")
    for gone in itertools.chain([()], itertools.combinations(seen, len(seen) - 1)):
        streams = {name: None if name in gone else x for name, x in batch.streams.items()}
        masks = {name: None if name in gone else x for name, x in batch.masks.items()}
        made = model(streams, masks, encoded=True)
        emptied = {n: m & (n not in gone) for n, m in batch.masks.items()}
        assert made.shape == (2, 30)
        assert made.abs().max() <= 1
        torch.testing.assert_close(made, model(batch.streams, emptied, encoded=True))


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("joint", ["others", "all"])
def test_no_parameter_is_dead(method: str, encoded: bool, joint: str) -> None:
    """Several processes wait for the gradient of every free parameter."""
    made = _backbones()
    for form in ("paper", "released"):
        preset = replace(SMALL, joint=joint, form=form)  # type: ignore[arg-type]  # as listed
        model = build(_run(method, preset), made).train()
        trials = _trials().see(find_method(method).modalities)
        trials = encode(trials, made) if encoded else trials
        if encoded:
            release(model, 0)
        batch = trials.batch([Window(0, 0), Window(3, 9)], 30, "valence")
        model(batch.streams, batch.masks, encoded=encoded).sum().backward()
        dead = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert dead == []


def test_frames_and_their_features_give_the_same_prediction() -> None:
    backbones = _backbones()
    raw = _trials()
    model = build(_run(), backbones)
    made = [
        predict(model, trials, size=30, hop=20, target="valence")
        for trials in (raw, encode(raw, backbones))
    ]
    for name in made[0]:
        torch.testing.assert_close(made[0][name], made[1][name])


def test_a_voice_without_sound_is_a_missing_modality() -> None:
    silent = Trials([_features("s", 40, sound=False)], NAMES)
    masks = silent.batch([Window(0, 0)], 30, "valence").masks
    assert not masks["voice"].any()
    assert masks["face"].all()


def test_an_encoding_is_all_that_a_run_needs_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    bands = Encoding(
        read=lambda cut: torch.from_numpy(cut.trial.patches(cut.start, cut.stop)).mean(1),
        widths=(4,),
        build=lambda weights, words_dim: Vectors(64),
    )
    monkeypatch.setitem(MODALITIES["voice"].encodings, "full", bands)
    preset = replace(SMALL, backbones="full", cache=False, widths=tcn_widths("full"))
    run = _run("voice", preset)
    backbones = make_backbones(run, words_dim=0)
    trials = make_trials(run, list(_trials().features), (0.0, 1.0), backbones)
    batch = trials.batch([Window(0, 0), Window(1, 5)], 30, "valence")
    model = build(run, backbones)
    assert batch.streams["voice"].shape == (2, 30, 64)
    assert model.state_dict()["encoders.branches.voice.norm.weight"].shape == (4,)
    assert model(batch.streams, batch.masks).shape == (2, 30)


def test_shuffled_partners_keep_the_face_and_change_the_rest() -> None:
    _, training, _ = _setup()
    mixed = shuffle_partners(training)
    assert training.encoded is not None
    assert mixed.encoded is not None
    for own, other, length in zip(training.encoded, mixed.encoded, training.lengths, strict=True):
        faces, voices = [own["face"], other["face"]], [own["voice"], other["voice"]]
        assert isinstance(faces[0], Tensor)
        assert isinstance(faces[1], Tensor)
        assert isinstance(voices[0], Tensor)
        assert isinstance(voices[1], Tensor)
        assert torch.equal(faces[0], faces[1])
        assert len(other["voice"]) == len(other["words"]) == length
        assert not torch.equal(voices[0], voices[1])


@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    gone=st.integers(0, 30),
    window=st.tuples(st.integers(0, 39), st.integers(0, 39)),
)
def test_shuffled_own_features_are_those_of_the_next_trial(
    lengths: list[int], gone: int, window: tuple[int, int]
) -> None:
    """A naive twin: row k of the partner, from the first again after its last; masks too."""
    made = [_features(f"{'t' * (i + 1)}", n) for i, n in enumerate(lengths)]
    rows = [np.arange(n * 2, dtype=np.float32).reshape(n, 2) + 100 * n for n in lengths]
    with tempfile.TemporaryDirectory() as folder:
        for trial, values in zip(made, rows, strict=True):
            _write_own(Path(folder), trial.name, values[: max(1, len(values) - gone)])
        own = {name: OwnFeatures(name, Path(folder)) for name in ("first", "second")}
        raw = Trials(made, ("first", "second"), own=own)
        mixed = shuffle_partners(encode(raw, {name: torch.nn.Identity() for name in own}))
        for i in reversed(range(len(made))):
            mine, other = i, (i + 1) % len(made)
            start, stop = sorted(min(edge, lengths[i]) for edge in window)
            chosen = mixed.choose([made[i].name])
            got = chosen.frames(0, start, stop)
            for name, of in (("first", mine), ("second", other)):
                present = chosen.present(0, name, start, stop)
                for k in range(start, stop):
                    row = k % lengths[of]
                    there = row < max(1, lengths[of] - gone)
                    assert bool(present[k - start]) == there
                    expected = rows[of][row].tolist() if there else [0.0, 0.0]
                    assert got[name][k - start].tolist() == expected


# The protocol


def test_the_repetitive_warm_up() -> None:
    rates = [[warmup_rate(PAPER, e, b, 10) for b in range(10)] for e in range(5)]
    for e, epoch in enumerate(rates):
        assert epoch == pytest.approx([1e-4 * b * (e + 1) / 250 for b in range(10)])
        assert epoch[0] == 0
    assert rates[4][9] == pytest.approx(1e-4 / 5 * 0.9)
    assert warmup_rate(PAPER, 5, 0, 10) is None
    assert warmup_rate(replace(PAPER, warmup="none"), 0, 0, 10) is None
    linear = replace(PAPER, warmup="linear", warmup_epochs=2)
    assert warmup_rate(linear, 1, 9, 10) == pytest.approx(1e-4)


def _session(tmp_path: Path, preset: Preset) -> _Session:
    from accelerate import Accelerator  # type: ignore[import-untyped]  # ships no types

    backbones = {
        "face": Released(3),
        "voice": _backbones()["voice"],
        "words": _backbones()["words"],
    }
    run = _run(preset=preset)
    return _Session(run, tmp_path, build(run, backbones), Accelerator(cpu=True))


class Released(nn.Module):
    """A backbone of three linear maps, freed one by one."""

    dim = 2

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(2, 2) for _ in range(groups))

    def forward(self, x: Tensor) -> Tensor:
        return x

    def release_groups(self) -> list[list[nn.Parameter]]:
        return [list(part.parameters()) for part in self.maps]


def test_stages_release_group_after_group(tmp_path: Path) -> None:
    """A stage lasts 5 + 24 epochs where nothing gets better, and 1e-8 is not below 1e-8."""
    preset = replace(
        SMALL,
        learning_rate=1e-5,
        least_rate=1e-8,
        warmup="repetitive",
        warmup_epochs=5,
        patience=5,
        factor=0.1,
        early_stop=1000,
        epochs=1000,
        releases=3,
        release_first=True,
        reload_best=True,
    )
    session = _session(tmp_path, preset)
    session.begin_stage(1)
    session.save = lambda: None  # type: ignore[method-assign]  # a hundred files say nothing
    freed, rates = [], []
    session.mean_loss, session.began = 1.0, 0.0
    session.scores = Scores(0.0, 0.0, 0.0, {}, 0)
    while session.goes_on():
        freed.append(session.progress.stage)
        rate = warmup_rate(preset, session.progress.stage_epoch, 1, 10)
        if rate is not None or session.progress.stage_epoch == 5:
            session.optimiser.param_groups[0]["lr"] = rate or preset.learning_rate
        rates.append(session.rate())
        session.finish_epoch(0.5)
    assert freed == [1] * 29 + [2] * 29 + [3] * 29
    assert rates[5:11] == [1e-5] * 6
    assert rates[11] == pytest.approx(1e-6)
    assert rates[28] == pytest.approx(1e-8)
    assert session.progress.done


def test_a_stage_frees_its_groups_and_no_others(tmp_path: Path) -> None:
    session = _session(tmp_path, replace(SMALL, releases=3))
    face = session.model.backbones.branches["face"].get_submodule("backbone.maps")
    for stage in range(4):
        session.begin_stage(stage)
        free = [all(p.requires_grad for p in part.parameters()) for part in face.children()]
        assert free == [k < stage for k in range(3)]
        optimised = {id(p) for group in session.optimiser.param_groups for p in group["params"]}
        assert optimised == {id(p) for p in session.model.parameters() if p.requires_grad}


class Normed(nn.Module):
    """A backbone of two groups with batch normalisation and dropout; the last is freed first."""

    dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.groups = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.1)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x

    def release_groups(self) -> list[list[nn.Parameter]]:
        return [list(part.parameters()) for part in reversed(self.groups)]


@pytest.mark.parametrize("keep_frozen", [True, False])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_frozen_layers_keep_their_statistics(stage: int, keep_frozen: bool) -> None:
    """Of a backbone that is half free, the frozen half does not move."""
    model = build(_run("face"), {"face": Normed()})
    release(model, stage)
    set_training(model, keep_frozen=keep_frozen)
    groups = model.backbones.branches["face"].get_submodule("backbone.groups")
    free = [stage > 1, stage > 0]
    training = [part.get_submodule("0").training for part in groups.children()]
    assert training == (free if keep_frozen else [True, True])
    assert model.encoders.training
    assert model.head.training


def test_only_padding_counts_beside_what_is_valid(tmp_path: Path) -> None:
    """Loss on padding counts frames beyond the end as zeros, but never frames nobody rated."""
    session = _session(tmp_path, replace(SMALL, loss_on_padding=True, learning_rate=0.0))
    session.begin_stage(0)
    given: list[Tensor] = []

    class Spy(ConcordanceLoss):
        def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
            given.extend([] if mask is None else [mask])
            return super().forward(prediction, target, mask)

    session.loss = Spy()
    trials = _trials((12, 40))
    batch = trials.batch([Window(0, 0), Window(1, 5)], 30, "valence")
    session._step(replace(batch, streams=_encoded_streams(batch)), 2, 2, encoded=True)
    (valid,) = given
    short, long = (torch.from_numpy(trial.valid) for trial in trials.features)
    assert valid[0].tolist() == short.tolist() + [True] * 18
    assert valid[1].tolist() == long[5:35].tolist()
    assert not valid.all()


def _encoded_streams(batch: Batch) -> dict[str, Tensor]:
    widths = {"face": 2, "voice": 4, "words": 3}
    return {name: torch.randn(2, 30, width) for name, width in widths.items()}


def test_the_joint_of_rcma_is_the_presets() -> None:
    for joint, method, expected in (
        ("others", "rcma", "others"),
        ("all", "rcma", "all"),
        ("others", "rcma-all", "all"),
        ("all", "rcma-stable", "others"),
    ):
        preset = replace(SMALL, joint=joint)  # type: ignore[arg-type]  # one of the two
        fusion = find_method(method).fusion({"a": 2, "b": 3}, preset)
        assert fusion.joint == expected


def test_backbones_move_only_once_they_are_free(tmp_path: Path) -> None:
    backbones, training, validation = _setup()
    before = {k: v.clone() for k, v in backbones["face"].state_dict().items()}
    train(_run(), tmp_path / "frozen", backbones, training, validation)
    assert all(torch.equal(before[k], v) for k, v in backbones["face"].state_dict().items())
    preset = replace(SMALL, releases=1, least_rate=1.0, epochs=3)
    progress = train(_run(preset=preset), tmp_path / "freed", backbones, training, validation)
    assert [row["stage"] for row in progress.log] == [0, 1, 1][: len(progress.log)]
    assert not all(torch.equal(before[k], v) for k, v in backbones["face"].state_dict().items())


def test_training_lowers_the_loss_and_keeps_the_best(tmp_path: Path) -> None:
    backbones, raw = _backbones(), _trials()
    labels = [{"face": torch.from_numpy(t.labels[:, [0, 1, 0]])} for t in raw.features]
    training = replace(raw, modalities=("face",), encoded=labels)
    preset = replace(SMALL, epochs=12, feature_noise=0.0, learning_rate=1e-2)
    run = _run("face", preset)
    progress = train(run, tmp_path, backbones, training, training)
    assert progress.log[-1]["loss"] < progress.log[0]["loss"] - 0.1
    model = build(run, backbones)
    model.load_state_dict(read_checkpoint(tmp_path)["best"])
    made = predict(model, training, size=30, hop=20, target="valence")
    assert score(made, training, "valence").ccc == pytest.approx(progress.best, abs=1e-6)
    assert progress.best == max(row["ccc"] for row in progress.log)


def test_early_stop(tmp_path: Path) -> None:
    backbones, training, validation = _setup()
    preset = replace(SMALL, epochs=50, learning_rate=1e-12, least_rate=0.0, early_stop=3)
    progress = train(_run(preset=preset), tmp_path, backbones, training, validation)
    assert progress.bad == 3
    assert progress.epoch - 1 - progress.best_epoch == 3


# Going on


def _state(out: Path) -> dict[str, Any]:
    held = read_checkpoint(out)
    for row in held["progress"]["log"]:
        row.pop("seconds")
    return held


def _assert_same_run(one: Path, other: Path) -> None:
    first, second = _state(one), _state(other)
    assert first["progress"] == second["progress"]
    for part in ("model", "best"):
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), name


def killed_run(out: str) -> None:
    """Trains, and is killed in the middle of the third epoch."""
    steps, whole = itertools.count(), torch.optim.Adam.step
    per_epoch = -(-len(list_windows(_trials().lengths, 30, 20)) // SMALL.batch)

    def step(self: torch.optim.Adam, closure: Any = None) -> Any:  # noqa: ANN401  # as torch's
        if next(steps) == 2 * per_epoch + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, closure)

    torch.set_num_threads(1)
    torch.optim.Adam.step = step  # type: ignore[method-assign]  # this process is about to die
    train(_run(), Path(out), *_setup())


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    train(_run(), tmp_path / "whole", *_setup())
    code = (
        "from tests.examples.test_affwild2_training import killed_run, sys; killed_run(sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "killed")]
    ended = subprocess.run(command, cwd=REPOSITORY, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert read_checkpoint(tmp_path / "killed")["progress"]["epoch"] == 2
    train(_run(), tmp_path / "killed", *_setup(), resume=True)
    _assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(("stop", "release_each_epoch"), [(1, True), (3, False)])
def test_a_run_resumes_in_any_epoch_and_stage(
    tmp_path: Path, stop: int, release_each_epoch: bool
) -> None:
    preset = replace(SMALL, patience=0, reload_best=True, augment=True)
    if release_each_epoch:
        preset = replace(preset, releases=1, least_rate=1.0)
    train(_run(preset=preset), tmp_path / "whole", *_setup())
    real, epochs = _Session.finish_epoch, itertools.count(1)

    def interrupted(self: _Session, ccc: float) -> None:
        real(self, ccc)
        if next(epochs) == stop:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Session, "finish_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(_run(preset=preset), tmp_path / "cut", *_setup())
    train(_run(preset=preset), tmp_path / "cut", *_setup(), resume=True)
    _assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_is_not_mixed_with_another(tmp_path: Path) -> None:
    train(_run(preset=replace(SMALL, epochs=1)), tmp_path, *_setup())
    with pytest.raises(ValueError, match="holds a run already; --resume"):
        train(_run(preset=replace(SMALL, epochs=1)), tmp_path, *_setup())
    with pytest.raises(ValueError, match="a run with other settings"):
        train(_run(seed=4), tmp_path, *_setup(), resume=True)
    for name in (CHECKPOINT, BEFORE):
        (tmp_path / name).write_bytes(b"half")
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"holds no checkpoint\.pt; train first"):
        read_checkpoint(tmp_path / "nowhere")
    assert (tmp_path / LOG).read_text().startswith("epoch,stage,rate,loss,ccc")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_falls_back_on_the_one_before(tmp_path: Path, damage: str) -> None:
    preset = replace(SMALL, epochs=3)
    train(_run(preset=preset), tmp_path / "whole", *_setup())
    train(_run(preset=replace(preset, epochs=2)), tmp_path / "cut", *_setup())
    path = tmp_path / "cut" / CHECKPOINT
    held = bytearray(path.read_bytes())
    weights = read_checkpoint(tmp_path / "cut")["best"]
    values = max(weights.values(), key=Tensor.numel).numpy().tobytes()
    if damage == "flipped":
        held[held.index(values) + len(values) // 2] ^= 1
    path.write_bytes(held if damage == "flipped" else held[: len(held) // 2])
    with pytest.warns(UserWarning, match=r"checkpoint-before\.pt, after epoch 2, is used"):
        train(_run(preset=preset), tmp_path / "cut", *_setup(), resume=True)
    _assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_goes_on_for_more_epochs_but_not_for_fewer(tmp_path: Path) -> None:
    short, long = (_run(preset=replace(SMALL, epochs=n)) for n in (2, 4))
    train(long, tmp_path / "whole", *_setup())
    assert train(short, tmp_path / "more", *_setup()).done
    assert train(long, tmp_path / "more", *_setup(), resume=True).epoch == 4
    _assert_same_run(tmp_path / "whole", tmp_path / "more")
    with pytest.raises(ValueError, match="a run with other settings"):
        train(short, tmp_path / "more", *_setup(), resume=True)


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(_run(preset=replace(SMALL, epochs=1)), tmp_path, *_setup())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("unexpected pos 64 vs 0")  # what torch raises on a full disk

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"checkpoint\.pt: cannot be written"):
        train(_run(), tmp_path, *_setup(), resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_that_diverges_stops_and_names_the_epoch(tmp_path: Path) -> None:
    preset = replace(SMALL, learning_rate=1e30, warmup="none")
    with pytest.raises(ValueError, match=r"of epoch 1 is -?(nan|inf); the run in .* stops"):
        train(_run(preset=preset), tmp_path, *_setup())
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_name_trial_and_frame(bad: float) -> None:
    broken = _features("t1", 40)
    assert broken.mel is not None
    broken.mel[int(broken.mel_rows[25]) + 95, 3] = bad  # the last row of that frame's patch
    with pytest.raises(ValueError, match=r"t1: its voice features are not finite at frame 26;"):
        Trials([broken], NAMES).batch([Window(0, 0)], 30, "valence")


def test_frames_beyond_the_end_of_a_file_are_masked() -> None:
    whole = _features("t0", 40)
    assert whole.mel is not None
    cut = replace(whole, mel=whole.mel[: int(whole.mel_rows[20]) + 96], faces=whole.faces[:33])
    batch, full = (Trials([x], NAMES).batch([Window(0, 5)], 30, "valence") for x in (cut, whole))
    assert batch.masks["voice"][0].tolist() == [True] * 16 + [False] * 14
    assert batch.masks["face"][0].tolist() == [True] * 28 + [False] * 2
    assert full.masks["face"].all()
    for name, mask in batch.masks.items():
        torch.testing.assert_close(batch.streams[name][mask], full.streams[name][mask])
    assert list(find_problems(_run(), [whole, cut], [])) == [
        "t0: 7 of 40 frames have no face; masked",
        "t0: 19 of 40 frames have no voice; masked",
    ]


def test_the_identity_of_features_changes_with_them() -> None:
    trial = _features("t0", 40)
    assert trial.mel is not None
    changed = [
        replace(trial, labels=trial.labels + 0.5),
        replace(trial, index=trial.index + 1),
        replace(trial, faces=255 - trial.faces),
        replace(trial, mel=trial.mel[:-1]),
        replace(trial, partition="validation"),
    ]
    found = {identify([one]) for one in (trial, *changed)}
    assert len(found) == 6
    assert identify([replace(trial)]) == identify([trial])


# Own features


def _write_own(folder: Path, name: str, rows: np.ndarray[Any, Any]) -> None:
    folder.mkdir(exist_ok=True)
    if len(name) % 2:
        np.save(folder / f"{name}.npy", rows)
    else:
        save_file({"features": rows}, folder / f"{name}.safetensors")


@given(
    frames=st.integers(1, 60),
    rate=st.sampled_from([None, 5.0, 12.5, 15.0, 50.0]),
    gone=st.integers(0, 20),
    seed=st.integers(0, 99),
    name=st.sampled_from(["t", "tt"]),
    varying=st.booleans(),
)
def test_own_features_meet_the_frame_that_they_were_made_at(
    frames: int, rate: float | None, gone: int, seed: int, name: str, *, varying: bool
) -> None:
    """A naive twin: the row whose time span holds the frame's time; frames may be left out."""
    rng = np.random.default_rng(seed)
    trial = _features(name, frames)
    kept = np.sort(rng.choice(3 * frames, frames, replace=False))
    trial = replace(trial, index=kept, frames=3 * frames)
    shown = [Fraction(k, 15) for k in range(3 * frames)]
    if varying:
        stamps = np.cumsum(rng.integers(1, 20, 3 * frames))  # in 1/100 s
        shown = [Fraction(int(stamp), 100) for stamp in stamps]
        trial = replace(trial, times=stamps / 100)
    count = 3 * frames if rate is None else math.ceil(float(shown[-1]) * rate)
    rows = rng.normal(size=(max(1, count - gone), 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        _write_own(Path(folder), name, rows)
        own = OwnFeatures("mine", Path(folder), rate)
        got, present = own.read(trial, 0, frames), own.present(trial, 0, frames)
        middle = own.read(trial, frames // 2, frames)
    for k, frame in enumerate(kept.tolist()):
        exact = Fraction(frame) if rate is None else shown[frame] * Fraction(rate)
        row = math.floor(exact)
        assert bool(present[k]) == (row < len(rows))
        assert got[k].tolist() == (rows[row].tolist() if row < len(rows) else [0.0] * 3)
    assert torch.equal(middle, got[frames // 2 :])


def test_own_features_with_a_rate_are_as_long_as_the_video(tmp_path: Path) -> None:
    """Ten frames at 10 fps, then ten at 50, the first of them 5 s after the start of the file."""
    times = 5 + np.concatenate([np.arange(10) / 10, 1 + np.arange(10) / 50])
    trial = replace(_features("a", 20), fps=19 / 1.18, times=times)
    for rows, fits in ((312, True), (62, False)):
        _write_own(tmp_path, "a", np.arange(2.0 * rows).reshape(rows, 2))
        assert fits == (not list(OwnFeatures("mine", tmp_path, 50.0).problems([trial])))
    assert identify([trial]) != identify([replace(trial, times=times + 0.001)])


def test_own_features_are_checked_trial_by_trial(tmp_path: Path) -> None:
    trials = [_features(name, 40) for name in ("a", "b", "c", "d")]
    for name, rows in (("a", 40), ("b", 31), ("c", 45)):
        _write_own(tmp_path, name, np.arange(2.0 * rows).reshape(rows, 2))
    assert list(OwnFeatures("mine", tmp_path).problems(trials)) == [
        "b: b.npy of mine has 31 rows, 40 belong to its 40 frames: fewer; the rest is masked",
        "c: c.npy of mine has 45 rows, 40 belong to its 40 frames: more; unused",
        f"d: has no mine in {tmp_path}; it is missing there",
    ]
    labelled = replace(trials[0], frames=50)
    faces = replace(labelled, name="b", face_present=np.arange(40) < 31)
    lines = list(OwnFeatures("mine", tmp_path).problems([labelled, faces]))
    assert lines[0].endswith("(as many as frames with labels; frames without need rows, too)")
    assert lines[1].endswith("(as many as frames with a face; frames without need rows, too)")
    nameless = replace(trials[0], fps=math.nan)
    (line,) = OwnFeatures("mine", tmp_path, 15.0).problems([nameless])
    assert line == "a: its frame rate is not known; mine is missing there"
    with pytest.raises(ValueError, match=r"no file is named after a trial; wanted, .* z\.npy"):
        list(OwnFeatures("mine", tmp_path).problems([_features("z", 5)]))
    _write_own(tmp_path, "a", np.array([[1, 2], [3, math.nan]], np.float32))
    with pytest.raises(DamagedFile, match=r"a\.npy: row 1 is not finite"):
        OwnFeatures("mine", tmp_path).read(trials[0], 0, 30)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (np.ones((4, 3)), r"e\.npy: has width 2; a\.npy has 3|a\.npy has 3"),
        (np.ones(4), r"must be numbers of shape \(rows, width\), found float64 of shape \(4,\)"),
        (np.array([["x"]]), "must be numbers of shape"),
    ],
)
def test_own_features_of_the_wrong_kind_are_refused(
    tmp_path: Path, rows: np.ndarray[Any, Any], said: str
) -> None:
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "e.npy", np.ones((4, 2)))
    with pytest.raises(DamagedFile, match=said):
        OwnFeatures("mine", tmp_path)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00v", b"junk junk junk"])
def test_a_cut_file_of_own_features_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"t{suffix}").write_bytes(content)
    with pytest.raises(DamagedFile, match=rf"t\{suffix}: cannot be read"):
        OwnFeatures("mine", tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine", "must be NAME=FOLDER or NAME=FOLDER@RATE"),
        ("mine=", "must be NAME=FOLDER"),
        ("face={}", "a name is letters, digits and _, and none of face, voice, words"),
        ("a.b={}", "a name is letters"),
        ("mine={}/nowhere", "is not a folder"),
        ("mine={}@0", "the rate must be above 0"),
        ("mine={}@-5", "the rate must be above 0"),
        ("mine={}", r"holds no \.npy or \.safetensors file"),
    ],
)
def test_a_wrong_option_for_own_features_is_reported(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_own([text.format(tmp_path)])


def test_own_features_stay_closed(tmp_path: Path) -> None:
    """A corpus of 600 trials must not need 600 open files."""
    for k in range(40):
        _write_own(tmp_path, "t" * (k + 1), np.ones((5, 2), np.float32))
    before = len(list(Path("/proc/self/fd").iterdir()))
    own = OwnFeatures("mine", tmp_path)
    read = [own.read(_features("t" * (k + 1), 5), 0, 5) for k in range(40)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert all(x.shape == (5, 2) for x in read)


def test_an_unknown_method_is_reported() -> None:
    with pytest.raises(ValueError, match="method 'rmca': there are face, voice"):
        find_method("rmca")


@pytest.mark.parametrize("preset", [PAPER, AUTHORS, DEMO])
def test_a_run_survives_json(preset: Preset) -> None:
    import json

    run = Run("rcma", "arousal", preset, fold=3, seed=7)
    assert run_from(json.loads(json.dumps(asdict(run)))) == run


# Evaluation


@given(seed=st.integers(0, 1000), lengths=st.lists(st.integers(1, 70), min_size=1, max_size=3))
def test_predictions_are_those_of_a_naive_twin(seed: int, lengths: list[int]) -> None:
    """Every frame is the mean over the windows that cover it, window by window, frame by frame."""
    trials = Trials(
        [_features(f"t{i}", n, seed=seed) for i, n in enumerate(lengths)],
        ("voice",),
        encoded=[{"voice": torch.randn(n, 4)} for n in lengths],
    )
    model = build(_run("voice"), _backbones()).eval()
    made = predict(model, trials, size=30, hop=20, target="valence", batch=2)
    for i, length in enumerate(lengths):
        collected: list[list[float]] = [[] for _ in range(length)]
        starts = [s for s in range(0, length, 20) if s + 30 <= length]
        if not starts or starts[-1] + 30 < length:
            starts.append(max(length - 30, 0))
        for start in starts:
            x = trials.encoded[i]["voice"][start : start + 30] if trials.encoded else torch.empty(0)
            padded = torch.zeros(1, 30, 4)
            padded[0, : len(x)] = x
            mask = (torch.arange(30) < len(x))[None]
            with torch.no_grad():
                out = model({"voice": padded}, {"voice": mask}, encoded=True)[0]
            for k in range(len(x)):
                collected[start + k].append(float(out[k]))
        expected = torch.tensor([sum(values) / len(values) for values in collected])
        torch.testing.assert_close(made[f"t{i}"], expected, rtol=1e-5, atol=1e-6)


def test_scores_are_over_all_valid_frames_together() -> None:
    trials = _trials((50, 20))
    generator = torch.Generator().manual_seed(1)
    made = {t.name: torch.randn(len(t), generator=generator) for t in trials.features}
    scores = score(made, trials, "arousal")
    p = np.concatenate([made[t.name].numpy()[t.valid] for t in trials.features]).astype(float)
    y = np.concatenate([t.labels[t.valid, 1] for t in trials.features]).astype(float)
    covariance = ((p - p.mean()) * (y - y.mean())).mean()
    ccc = 2 * covariance / (p.var() + y.var() + (p.mean() - y.mean()) ** 2)
    assert scores.ccc == pytest.approx(ccc, abs=1e-6)
    assert scores.pearson == pytest.approx(np.corrcoef(p, y)[0, 1], abs=1e-5)
    assert scores.rmse == pytest.approx(((p - y) ** 2).mean() ** 0.5, abs=1e-6)
    assert scores.ccc != pytest.approx(np.mean(list(scores.trials.values())))


def test_smoothing_is_a_moving_mean_with_zeros_beyond_the_ends() -> None:
    series = torch.tensor([2.0, 0.5, -0.5, 0.0, 1.0])
    torch.testing.assert_close(smooth(series, 3), torch.tensor([1.5, 1.0, 0.0, 0.5, 1.0]) / 3)
    assert smooth(series, 0) is series
    assert len(smooth(series, 4)) == 5


def test_the_challenge_file_has_the_samples_order_and_lengths(tmp_path: Path) -> None:
    sample = tmp_path / "sample.txt"
    names = {"b": 3, "a": 2, "gone": 1}
    rows = [f"{n}/{i:05d}.jpg,0,0" for n, count in names.items() for i in range(1, count + 1)]
    sample.write_text("\n".join(["image_location,valence,arousal", *rows]) + "\n")
    valence = {"a": torch.tensor([0.1, 0.2, 0.3]), "b": torch.tensor([-0.5, 0.25])}
    arousal = {name: -x for name, x in valence.items()}
    absent = write_challenge_file(tmp_path / "out.txt", sample, valence, arousal)
    assert absent == [
        "b: 1 rows lie beyond its predictions; they repeat the last value",
        "gone: has no features; its rows are zeros",
    ]
    assert (tmp_path / "out.txt").read_text().splitlines() == [
        "image_location,valence,arousal",
        "b/00001.jpg,-0.500000,0.500000",
        "b/00002.jpg,0.250000,-0.250000",
        "b/00003.jpg,0.250000,-0.250000",
        "a/00001.jpg,0.100000,-0.100000",
        "a/00002.jpg,0.200000,-0.200000",
        "gone/00001.jpg,0.000000,0.000000",
    ]


def test_the_challenge_file_keeps_the_samples_own_rows(tmp_path: Path) -> None:
    """Rows that skip frames, or take turns, name the same frames in what is written."""
    sample = tmp_path / "sample.txt"
    rows = ["a/00003.jpg", "b/00001.jpg", "a/00002.jpg"]
    sample.write_text("\n".join(["image_location,valence,arousal", *(f"{r},0,0" for r in rows)]))
    assert read_sample_lengths(sample) == {"a": 3, "b": 1}
    predictions = {"a": torch.tensor([0.1, 0.2, 0.3]), "b": torch.tensor([0.9])}
    write_challenge_file(tmp_path / "out.txt", sample, predictions, predictions)
    written = [line.split(",")[:2] for line in (tmp_path / "out.txt").read_text().splitlines()[1:]]
    assert written == [
        ["a/00003.jpg", "0.300000"],
        ["b/00001.jpg", "0.900000"],
        ["a/00002.jpg", "0.200000"],
    ]


def test_predictions_that_cannot_be_used_leave_the_file_before(tmp_path: Path) -> None:
    sample, out = tmp_path / "sample.txt", tmp_path / "out.txt"
    sample.write_text("image_location,valence,arousal\na/00001.jpg,0,0\n")
    out.write_text("before")
    good, bad = {"a": torch.tensor([0.1])}, {"a": torch.tensor([math.nan])}
    with pytest.raises(ValueError, match="a: its predictions are not finite"):
        write_challenge_file(out, sample, good, bad)
    with pytest.raises(ValueError, match="no trial of this file has a prediction"):
        write_challenge_file(out, sample, {"b": good["a"]}, {"b": good["a"]})
    for text in (
        "image,expression\na/00001.jpg,3\n",
        "image_location,Neutral,Anger\na/00001.jpg,0,0\n",
        "image_location;valence;arousal\na/00001.jpg;0;0\n",
        'image_location,valence,arousal\n"a/00001.jpg",0,0\n',
        "image_location,valence,arousal\na/00001.jpg;0;0\n",
    ):
        sample.write_text(text)
        with pytest.raises(DamagedFile, match=r"sample\.txt: line \d must be"):
            write_challenge_file(out, sample, good, good)
    assert out.read_text() == "before"


@pytest.mark.parametrize("row", ["a,0,0", "/00001.jpg,0,0", "a/x.jpg,0,0", "a/00000.jpg,0,0", ""])
def test_a_damaged_row_of_the_sample_is_reported(tmp_path: Path, row: str) -> None:
    sample = tmp_path / "sample.txt"
    sample.write_text(f"image_location,valence,arousal\n{row}\na/00001.jpg,0,0\n")
    with pytest.raises(DamagedFile, match=r"line 2 must be 'trial/00001\.jpg,0,0', found"):
        read_sample_lengths(sample)


# Several processes, less precision


def test_half_precision_trains(tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]  # no types

    from examples.affwild2.training.assemble import make_accelerator

    AcceleratorState._reset_state(True)
    try:
        accelerator = make_accelerator(cpu=True, mixed_precision="bf16")
        half = train(_run(), tmp_path / "half", *_setup(), accelerator=accelerator)
    finally:
        AcceleratorState._reset_state(True)
    full = train(_run(), tmp_path / "full", *_setup())
    losses = [[row["loss"] for row in progress.log] for progress in (half, full)]
    assert losses[0] != losses[1], "nothing was rounded"
    assert losses[0] == pytest.approx(losses[1], abs=0.03)


def distributed_run(out: str) -> None:
    """Trains without dropout and noise, so that the number of processes cannot matter.

    After the first epoch the backbones are free and see frames, cropped by chance.
    """
    from examples.affwild2.training.assemble import make_accelerator

    preset = replace(SMALL, batch=5, feature_noise=0.0, tcn_dropout=0.0, head_dropout=0.0)
    preset = replace(preset, releases=1, least_rate=1.0, augment=True)
    accelerator = make_accelerator(cpu=True)
    train(_run(preset=preset), Path(out), *_setup(), accelerator=accelerator)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Same losses and CCC to 1e-4: sums in another order, over four epochs."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom tests.examples.test_affwild2_training import distributed_run\n"
        "distributed_run(sys.argv[1])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", str(script), str(tmp_path / str(processes))]
        subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, timeout=300)
    one, two = (_state(tmp_path / str(n))["progress"]["log"] for n in (1, 2))
    assert [row["stage"] for row in one] == [0, 1, 1, 1][: len(one)]
    for key in ("loss", "ccc"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], abs=1e-4)


def test_progress_starts_before_everything() -> None:
    assert Progress().best == -np.inf
