"""The Aff-Wild2 example from end to end, by its commands: mp4 in, predictions and pictures out."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from examples.affwild2.__main__ import COMMANDS, main
from examples.affwild2.commands import demo
from examples.affwild2.commands.run import Evaluate, Plot, Predict, Train
from examples.affwild2.commands.table import TableCommand
from examples.affwild2.dataset.extract import extract
from examples.affwild2.dataset.features import load_features
from examples.affwild2.dataset.files import hold
from examples.affwild2.dataset.sources import ExtractOptions
from examples.affwild2.results import sweep
from examples.affwild2.results.pictures import hidden_frames
from examples.affwild2.results.table import read_table
from examples.affwild2.synthetic import ceilings, generate
from examples.affwild2.synthetic.latents import Switches
from examples.affwild2.synthetic.pretrain import load_backbones, save_backbones
from examples.affwild2.training import presets
from examples.affwild2.training.assemble import missing_weights
from examples.affwild2.training.evaluate import score
from examples.affwild2.training.modalities import NAMES, Weights
from examples.affwild2.training.presets import PRESETS, Changes
from examples.affwild2.training.runs import CHECKPOINT, LOCK
from examples.affwild2.training.saved import SETUP, read_saved
from tests.support import affwild2
from tests.support.affwild2 import SMALL, backbones

QUICK = Changes(epochs=1)


def _console() -> Console:
    return Console(record=True, width=200, quiet=False, file=StringIO())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the tiny mp4 tree, and one network for each target."""
    tree, out = affwild2.tree(tmp_path_factory, mp4=True), tmp_path_factory.mktemp("trained")
    extract(tree, out / "features")
    save_backbones(out / "backbones.pt", backbones())
    for target in ("valence", "arousal"):
        Train(
            out / "features",
            out / target,
            method="rcma-stable",
            target=target,
            preset="demo",
            cpu=True,
            changes=QUICK,
            weights=Weights(demo=out / "backbones.pt"),
        ).run(Console(quiet=True))
    return out


def test_from_mp4_to_the_challenge_file(
    trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tree = affwild2.tree(tmp_path_factory, mp4=True)
    sample = tree / "CVPR_6th_ABAW_VA_test_set_sample.txt"
    out = trained / "predictions.txt"
    Predict(trained / "valence", trained / "arousal", sample, out, cpu=True).run(_console())
    rows, wanted = (path.read_text().splitlines() for path in (out, sample))
    assert [row.split(",")[0] for row in rows] == [row.split(",")[0] for row in wanted]
    values = np.array([row.split(",")[1:] for row in rows[1:]], float)
    assert np.abs(values).max() <= 1
    assert values.std() > 0
    with pytest.raises(ValueError, match="predicts arousal, not valence"):
        Predict(trained / "arousal", trained / "valence", sample, out, cpu=True).run(_console())


def _figures(text: str, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text)]


def test_two_networks_have_the_challenges_score(trained: Path) -> None:
    console = _console()
    Evaluate(trained / "valence", trained / "arousal", cpu=True).run(console)
    said = console.export_text()
    each = _figures(said, r"all frames: CCC (-?\d\.\d{4}), Pearson")
    assert len(each) == 2
    (score,) = _figures(said, r"the challenge's score: (-?\d\.\d{4})")
    assert score == pytest.approx(sum(each) / 2, abs=1e-4)
    with pytest.raises(ValueError, match="evaluate: both runs predict valence"):
        Evaluate(trained / "valence", trained / "valence", cpu=True).run(_console())


def test_a_network_is_scored_with_and_without_modalities(trained: Path) -> None:
    found = []
    for options in ({}, {"without": ("voice",)}, {"smooth": (20, 0)}, {"smooth": (0, 50)}):
        console = _console()
        Evaluate(trained / "valence", cpu=True, **options).run(console)
        found += _figures(console.export_text(), r"all frames: CCC (-?\d\.\d{4})")
    assert found[0] != found[1]
    assert found[0] != found[2]
    assert found[0] == found[3], "the second number is for arousal"


def test_three_own_streams_from_training_to_the_challenge_file(
    trained: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By frames, by rate, and with a trial missing; of ours only the words."""
    rng = np.random.default_rng(0)
    for trial in load_features(trained / "features"):
        rows = {"mae": (trial.frames, 7), "clip": (trial.frames, 3)}
        rows["wave"] = (round(trial.frames / trial.fps * 50), 5)
        for name, shape in rows.items():
            (tmp_path / name).mkdir(exist_ok=True)
            if (name, trial.name) != ("clip", "video2"):
                np.save(tmp_path / name / f"{trial.name}.npy", rng.normal(3, 9, shape))
    own = tuple(f"{n}={tmp_path / n}{r}" for n, r in (("mae", ""), ("clip", ""), ("wave", "@50")))
    seen = ("mae", "clip", "wave", "words")
    console = _console()
    for target in ("valence", "arousal"):
        Train(
            trained / "features",
            tmp_path / target,
            method="rcma-stable-all",
            own=own,
            modalities=seen,
            target=target,
            preset="demo",
            cpu=True,
            changes=QUICK,
            weights=Weights(demo=trained / "backbones.pt"),
        ).run(console)
    said = console.export_text()
    assert "own features mae (width 7), clip (width 3), wave (width 5) beside words" in said
    assert f"video2: has no clip in {tmp_path / 'clip'}; it is missing there" in said
    model = read_saved(tmp_path / "valence").model
    assert tuple(model.encoders.branches) == seen
    spread = model.get_buffer("backbones.branches.mae.backbone.spread")
    assert spread.tolist() == pytest.approx([9.0] * 7, rel=0.1)
    tree = affwild2.tree(tmp_path_factory, mp4=True)
    sample = tree / "CVPR_6th_ABAW_VA_test_set_sample.txt"
    runs, out = (tmp_path / "valence", tmp_path / "arousal"), tmp_path / "p.txt"
    Predict(*runs, sample, out, cpu=True).run(_console())
    first = out.read_text()
    assert np.std([float(row.split(",")[1]) for row in first.splitlines()[1:]]) > 0
    Predict(*runs, sample, out, own=own, cpu=True).run(_console())
    assert out.read_text() == first
    with pytest.raises(ValueError, match="was trained with own features mae of width 7, rate None"):
        Predict(*runs, sample, out, own=own[:1], cpu=True).run(_console())
    np.save(tmp_path / "mae" / "video1.npy", rng.normal(size=(9, 7)))
    with pytest.raises(ValueError, match="the features changed since the run was trained"):
        Evaluate(tmp_path / "valence", cpu=True).run(_console())


def test_runs_of_two_folds_have_no_common_score(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "arousal", tmp_path / "arousal")
    held = torch.load(tmp_path / "arousal" / CHECKPOINT, weights_only=True)
    setup = json.loads((tmp_path / "arousal" / SETUP).read_text())
    setup["run"]["fold"] = held["run"]["fold"] = 2
    (tmp_path / "arousal" / SETUP).write_text(json.dumps(setup))
    torch.save(held, tmp_path / "arousal" / CHECKPOINT)
    with pytest.raises(ValueError, match="the runs are of folds 0 and 2"):
        Evaluate(trained / "valence", tmp_path / "arousal", cpu=True).run(_console())
    held["progress"]["best_epoch"] = -1
    torch.save(held, tmp_path / "arousal" / CHECKPOINT)
    with pytest.raises(ValueError, match="no epoch of this run has a score"):
        Evaluate(tmp_path / "arousal", cpu=True).run(_console())


def test_a_folder_in_use_is_refused(trained: Path, tmp_path: Path) -> None:
    with (
        hold(tmp_path / LOCK, "train"),
        pytest.raises(ValueError, match=r"is in use by process \d+ on"),
    ):
        Train(
            trained / "features",
            tmp_path,
            preset="demo",
            cpu=True,
            changes=QUICK,
            weights=Weights(demo=trained / "backbones.pt"),
        ).run(_console())
    assert not (tmp_path / SETUP).exists()


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (PermissionError(13, "Permission denied", "x/y.csv"), "x/y.csv: Permission denied", None),
        (EOFError("No data left in file"), "EOFError: No data left in file", None),
        (ValueError("two\nlines"), "two lines", None),
        (BrokenProcessPool("broken"), "a worker process ended early", None),
        (KeyboardInterrupt(), 130, "stopped; the same command"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    raised: BaseException,
    status: int | str,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(self: Evaluate, console: Console) -> None:
        raise raised

    monkeypatch.setattr(Evaluate, "run", fail)
    monkeypatch.setattr("sys.argv", ["affwild2", "evaluate", "run"])
    with pytest.raises(SystemExit) as ended:
        main()
    if isinstance(status, int):
        assert ended.value.code == status
        assert capsys.readouterr().err.startswith(str(said))
    else:
        assert str(ended.value.code).startswith(status)
        assert "\n" not in str(ended.value.code)


def test_a_refused_run_leaves_the_first_as_it_was(trained: Path) -> None:
    before = {name: (trained / "valence" / name).read_bytes() for name in (SETUP, CHECKPOINT)}
    for options in ({"resume": False}, {"resume": True, "seed": 5}):
        with pytest.raises(ValueError, match="holds a run"):
            Train(
                trained / "features",
                trained / "valence",
                method="rcma-stable",
                preset="demo",
                cpu=True,
                changes=QUICK,
                weights=Weights(demo=trained / "backbones.pt"),
                **options,
            ).run(_console())
    for name, content in before.items():
        assert (trained / "valence" / name).read_bytes() == content


def test_a_run_is_drawn(trained: Path, tmp_path: Path) -> None:
    Plot(trained / "valence", tmp_path).run(_console())
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {"curves.png", "trial.png", "correlations.png"}


def test_hidden_frames_are_those_of_the_truth(
    trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tree = affwild2.tree(tmp_path_factory, mp4=True)
    parts = ("face_missing", "mouth_hidden", "eyes_hidden")
    some = dict.fromkeys(parts, False)
    for trial in load_features(trained / "features"):
        hidden = hidden_frames(trained / "features", trial)
        with np.load(tree / "truth" / f"{trial.name}.npz") as truth:
            missing = truth["face_missing"][trial.index]
            expected = {part: truth[part][trial.index] & ~missing for part in parts[1:]}
        expected["face_missing"] = missing
        for part, got in zip(parts, hidden.values(), strict=True):
            np.testing.assert_array_equal(got, expected[part])
            some[part] |= bool(got.any())
    assert all(some.values())


@pytest.fixture
def rough_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings of two short trials: sixty take half a minute."""

    def rough(trials: int, *, switches: Switches) -> ceilings.Table:
        return ceilings.ceilings(min(trials, 2), seconds=4, switches=switches)

    monkeypatch.setattr(sweep, "ceilings", rough)


@pytest.mark.usefixtures("rough_ceilings")
def test_a_table_of_methods_and_folds(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "demo", replace(SMALL, epochs=1))
    methods = ("face", "voice", "words", "average", "rcma")
    command = TableCommand(
        trained / "features",
        tmp_path,
        methods=methods,
        targets=("valence",),
        seeds=(0,),
        folds=(0, 1),
        processes=1,
        cpu=True,
        weights=Weights(demo=trained / "backbones.pt"),
    )
    command.run(_console())
    table = read_table(tmp_path / "table.json")
    assert {(row.method, row.folds) for row in table.rows} == {
        (method, folds) for method in methods for folds in ("official split", "other folds")
    }
    assert all(row.ceiling is not None for row in table.rows), "the tree says how it was made"
    held = json.loads((tmp_path / "table.json").read_text())["runs"]
    assert sorted({run["fold"] for run in held}) == [0, 1]
    run = tmp_path / "runs/data/rcma-valence-fold1-seed0"
    assert read_saved(run).run.fold == 1, "evaluate and plot read the runs of a table"
    Plot(tmp_path, tmp_path / "pictures").run(_console())
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        "bars-data-valence.png",
        "bars-data-valence-folds.png",
        "report.html",
    }
    with pytest.raises(ValueError, match="method 'rmca': there are face, voice"):
        replace(command, methods=("rmca",)).run(_console())
    with pytest.raises(ValueError, match="table: average needs face, voice, words too"):
        replace(command, methods=("average",)).run(_console())


def test_a_table_of_own_features_has_the_controls(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "ceilings", lambda *_, **__: None)
    monkeypatch.setitem(PRESETS, "demo", replace(SMALL, epochs=1))
    rng = np.random.default_rng(0)
    (tmp_path / "mae").mkdir()
    for trial in load_features(trained / "features"):
        np.save(tmp_path / "mae" / f"{trial.name}.npy", rng.normal(size=(trial.frames, 4)))
    methods = ("mae", "words", "average", "rcma-stable-all", "rcma-stable-all-shuffled")
    command = TableCommand(
        trained / "features",
        tmp_path / "table",
        methods=methods,
        own=(f"mae={tmp_path / 'mae'}",),
        modalities=("mae", "words"),
        targets=("valence",),
        seeds=(0,),
        processes=1,
        cpu=True,
        weights=Weights(demo=trained / "backbones.pt"),
    )
    command.run(_console())
    table = read_table(tmp_path / "table" / "table.json")
    assert {row.method for row in table.rows} == set(methods)
    by_name = {row.method: row.mean for row in table.rows}
    assert by_name["rcma-stable-all"] != by_name["rcma-stable-all-shuffled"]
    runs = tmp_path / "table/runs/data"
    both = [read_saved(runs / f"{name}-valence-fold0-seed0") for name in ("mae", "words")]
    parts = [one.predict(one.trials("validation"), cpu=True) for one in both]
    mean = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    scores = score(mean, both[0].trials("validation"), "valence")
    assert by_name["average"] == pytest.approx(scores.ccc, abs=1e-5)
    with pytest.raises(ValueError, match="table: average needs mae, words too"):
        replace(command, methods=("words", "average")).run(_console())


def test_saved_backbones_come_back(tmp_path: Path) -> None:
    save_backbones(tmp_path / "b.pt", backbones())
    again = load_backbones(tmp_path / "b.pt")
    for name, backbone in backbones().items():
        for key, value in backbone.state_dict().items():
            assert torch.equal(again[name].state_dict()[key], value)


# The full preset


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features with BERT vectors of the tiny tree, where one trial has no transcript."""
    tree, out = tmp_path_factory.mktemp("worded") / "tree", tmp_path_factory.mktemp("worded-out")
    shutil.copytree(affwild2.tree(tmp_path_factory, mp4=True), tree)
    (tree / "transcripts/video2.csv").unlink()
    report = extract(tree, out / "features", ExtractOptions(bert=affwild2.bert()))
    assert report.problems == ("video2: has no transcript; the words are absent",)
    return out


@pytest.mark.parametrize("preset", ["paper", "authors"])
def test_the_full_presets_train_on_bert_words(
    worded: Path, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words alone: IR-50 and VGGish would take hours here."""
    narrow = replace(PRESETS[preset], widths={"face": (8,), "voice": (8,), "words": (8, 8)})
    monkeypatch.setitem(PRESETS, preset, narrow)
    console = _console()
    Train(
        worded / "features",
        tmp_path / "run",
        method="words",
        preset=preset,  # type: ignore[arg-type]  # one of the three
        cpu=True,
        changes=QUICK,
    ).run(console)
    Evaluate(tmp_path / "run", cpu=True).run(console)
    assert "random weights" not in console.export_text(clear=False)
    assert re.search(r"all frames: CCC -?\d\.\d{4}", console.export_text())
    setup = json.loads((tmp_path / "run" / SETUP).read_text())
    assert setup["words_dim"] == 384
    mean, spread = setup["scale"]
    saved = read_saved(tmp_path / "run")
    training, validation = saved.trials("train"), saved.trials("validation")
    vectors = np.concatenate([trial.text(0, len(trial)) for trial in training.features])
    assert (mean, spread) == pytest.approx((vectors.mean(), vectors.std()), rel=1e-4)
    assert training.scale == (mean, spread)
    assert (validation.scale == training.scale) == (preset == "paper")
    absent = [trial.name for trial in training.features if trial.word_ids is None]
    assert absent == ["video2"]


@pytest.mark.usefixtures("rough_ceilings")
def test_a_table_of_the_full_preset(
    worded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        PRESETS, "paper", replace(PRESETS["paper"], widths=dict.fromkeys(NAMES, (8,)))
    )
    command = TableCommand(
        worded / "features",
        tmp_path,
        preset="paper",
        methods=("words",),
        targets=("valence",),
        seeds=(3,),
        processes=1,
        cpu=True,
        changes=QUICK,
    )
    command.run(_console())
    (row,) = read_table(tmp_path / "table.json").rows
    assert read_saved(tmp_path / "runs/data/words-valence-fold0-seed3").scale != (0.0, 1.0)
    command.run(_console())
    assert read_table(tmp_path / "table.json").rows == (row,), "what is trained is kept"
    with pytest.raises(ValueError, match="method 'rcma-stable-all-shuffled': there are face"):
        replace(command, methods=("rcma-stable-all-shuffled",)).run(_console())


def test_word_vectors_are_asked_for(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no word vectors; run extract with --bert MODEL"):
        Train(trained / "features", tmp_path, method="words", cpu=True).run(_console())


def test_backbones_without_weights_are_reported() -> None:
    from examples.affwild2.training.runs import Run

    run = Run("rcma", "valence", PRESETS["paper"])
    found = missing_weights(run, Weights(vggish=Path("v.pth")))
    assert found == ["IR-50 starts from random weights (no --ir50 FILE): a dry run"]
    assert missing_weights(replace(run, method="words"), Weights()) == []
    assert missing_weights(replace(run, preset=PRESETS["demo"]), Weights()) == []


# The command line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["affwild2", command, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: python -m examples.affwild2 {command}" in said
    for number, line in enumerate(said.splitlines()):
        option = re.search(r"^│ (--[a-z0-9-]+)", line)
        if option and option[1] != "--help":
            following = " ".join(said.splitlines()[number : number + 2])
            assert re.search(r"[a-z]{3,} [a-z0-9]", following.split(option[1])[1]), option[1]


def test_the_parity_switches_change_the_preset() -> None:
    changes = Changes(
        warmup="none",
        freeze_bn=True,
        loss_on_padding=False,
        norm_stats="train",
        shuffle="epoch",
        reload_best=False,
        batch=96,
    )
    changed = changes.apply(PRESETS["authors"])
    for name, value in vars(changes).items():
        expected = getattr(PRESETS["authors"], name) if value is None else value
        assert getattr(changed, name) == expected
    assert Changes().apply(PRESETS["authors"]) == PRESETS["authors"]


def test_every_number_of_a_preset_has_its_source() -> None:
    lines = Path(presets.__file__).read_text().splitlines()
    fields = [line for line in lines if re.match(r"    [a-z_]+=", line)]
    names = [line.split("=")[0].strip() for line in fields]
    assert sorted(names) == sorted(3 * list(vars(presets.PAPER)))
    assert [line for line in fields if not re.search(r",  # \w", line)] == []


# The demo


def test_data_of_the_demo_is_made_once_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):  # simulates a kill
        pass

    def stopped(*_: object) -> None:
        raise Stop

    switches = Switches(0.5, 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(generate, "_write_manifest", stopped)
        with pytest.raises(Stop):
            demo.make_kind(tmp_path, "a kind", "tiny", 4, switches)
    monkeypatch.setitem(generate.COUNTS, "tiny", {"train": 2, "validation": 2, "test": 1})
    data = demo.make_kind(tmp_path, "a kind", "tiny", 4, switches)
    assert {trial.partition for trial in load_features(data.features)} == {
        "train",
        "validation",
        "test",
    }
    tree = tmp_path / "data/a-kind/tree"
    stamps = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    assert demo.make_kind(tmp_path, "a kind", "tiny", 4, switches) == data
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == stamps
    with pytest.raises(ValueError, match="was made with seed 4, not 5; name a new folder"):
        demo.make_kind(tmp_path, "a kind", "tiny", 5, switches)
    with pytest.raises(ValueError, match=r"was made with sarcasm 0\.5, not 0\.25; name a new"):
        demo.make_kind(tmp_path, "a kind", "tiny", 4, Switches(0.25, 0.0))
