"""The commands that train one network and use it."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from examples.affwild2.dataset.challenge import write_challenge_file
from examples.affwild2.dataset.files import hold
from examples.affwild2.dataset.layout import Partition
from examples.affwild2.results.pictures import draw_run, draw_table
from examples.affwild2.results.report import write_report
from examples.affwild2.results.table import read_table
from examples.affwild2.training.assemble import (
    find_problems,
    make_accelerator,
    missing_weights,
    prepare,
)
from examples.affwild2.training.evaluate import (
    Predictions,
    Scores,
    is_constant,
    score,
    smooth,
)
from examples.affwild2.training.modalities import NAMES, Weights
from examples.affwild2.training.own import read_own
from examples.affwild2.training.presets import PRESETS, Changes
from examples.affwild2.training.runs import LOCK, Run
from examples.affwild2.training.saved import Saved, read_saved, write_setup
from examples.affwild2.training.train import train
from examples.affwild2.training.trials import TARGETS, Target, Trials


@dataclass(frozen=True)
class Train:
    """Trains one network: one method, one target, one fold.

    On several GPUs: torchrun --nproc-per-node 8 -m examples.affwild2 train ... (README.md).

    Attributes:
        features: What extract wrote.
        out: Folder of this run.
        method: A row of the table: rcma, rcma-stable, jca, concatenation, face, ...; or the NAME of
            own features, alone.
        own: Your own features, one or more NAME=FOLDER or NAME=FOLDER@RATE: a .npy or .safetensors
            file of (rows, width) per trial, one row per video frame, or RATE rows per second.
        modalities: What the network sees, of face, voice, words and own names; none means all.
        target: One network each.
        preset: The paper's numbers, its code's, or the demo's.
        fold: 0 is the official split; 1 to 5 validate on parts of the training set.
        seed: None takes the preset's.
        resume: Go on from the last checkpoint.
        cpu: Use no GPU.
        mixed_precision: no, fp16 (GPU only) or bf16.
        changes: What differs from the preset.
        weights: Of the backbones.
    """

    features: Path
    out: Path
    method: str = "rcma"
    own: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    target: Target = "valence"
    preset: Literal["paper", "authors", "demo"] = "paper"
    fold: int = 0
    seed: int | None = None
    resume: bool = False
    cpu: bool = False
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    changes: tyro.conf.OmitArgPrefixes[Changes] = field(default_factory=Changes)
    weights: tyro.conf.OmitArgPrefixes[Weights] = field(default_factory=Weights)

    def run(self, console: Console) -> None:
        preset = self.changes.apply(PRESETS[self.preset])
        own = read_own(self.own)
        seed = preset.seed if self.seed is None else self.seed
        streams = tuple(one.stream for one in own)
        run = Run(
            self.method,
            self.target,
            preset,
            self.fold,
            seed,
            own=streams,
            modalities=self.modalities,
        )
        ours = [name for name in run.design.modalities if name in NAMES]
        if ours and preset.backbones == "demo" and self.weights.demo is None:
            raise ValueError("train: the demo preset needs --demo backbones.pt, which demo makes")
        accelerator = make_accelerator(cpu=self.cpu, mixed_precision=self.mixed_precision)
        first = accelerator.is_main_process
        with hold(self.out / LOCK, "train") if first else nullcontext():
            made = prepare(run, self.features, self.weights, own=own)
            if first:
                write_setup(self.out, run, self.features, made, resume=self.resume, own=own)
                for line in (*_inputs(run, self.preset), *made.problems):
                    warn(console, line)
                for line in missing_weights(run, self.weights):
                    warn(console, line)
            done = train(
                run,
                self.out,
                made.backbones,
                made.training,
                made.selection,
                accelerator=accelerator,
                resume=self.resume,
                progress=True,
                report=lambda row: _print_epoch(console, row) if first else None,
            )
        if first:
            count = len(made.selection.features)
            chosen = (
                f"every {preset.select}th training trial, held out ({count})"
                if preset.select
                else f"the same trials ({count}), so the score is optimistic"
            )
            console.print(
                f"{self.method}, {self.target}: CCC {done.best:.4f} after epoch "
                f"{done.best_epoch + 1} of {done.epoch}; the epoch is the best on {chosen}",
                markup=False,
                soft_wrap=True,
            )


@dataclass(frozen=True)
class Evaluate:
    """Scores a trained network over all valid frames of a partition.

    Attributes:
        run_folder: What train wrote.
        other: The run of the other target: then the challenge's score, the mean of both
            concordances, is printed too.
        features: Where the trials are; None takes those that it was trained with.
        own: Your own features, as for train; none takes those that it was trained with.
        partition: train or validation, of the run's fold.
        without: Modalities to leave out, as if they were missing.
        smooth: Frames of a moving mean over predictions, for valence and arousal; 0 for none (JCA:
            20 and 50).
        cpu: Use no GPU.
        batch: Windows at once; None takes the training's number.
    """

    run_folder: tyro.conf.Positional[Path]
    other: Path | None = None
    features: Path | None = None
    own: tuple[str, ...] = ()
    partition: Literal["train", "validation"] = "validation"
    without: tuple[str, ...] = ()
    smooth: tuple[int, int] = (0, 0)
    cpu: bool = False
    batch: int | None = None

    def run(self, console: Console) -> None:
        _require_batch(self.batch, "evaluate")
        own = read_own(self.own) if self.own else None
        folders = [folder for folder in (self.run_folder, self.other) if folder is not None]
        held = [read_saved(folder, self.features, own) for folder in folders]
        first, last = held[0].run, held[-1].run
        if len(held) > 1 and first.target == last.target:
            raise ValueError(f"evaluate: both runs predict {first.target}")
        if first.fold != last.fold:
            raise ValueError(
                f"evaluate: the runs are of folds {first.fold} and {last.fold}; the challenge's "
                "score needs both targets on the same trials"
            )
        for saved in held:
            for name in self.without:
                if name not in saved.run.design.modalities:
                    seen = ", ".join(saved.run.design.modalities)
                    raise ValueError(f"evaluate: --without {name}: the network sees {seen}")
        reached = {saved.run.target: self._report(console, saved).ccc for saved in held}
        if len(reached) == len(TARGETS):
            console.print(f"the challenge's score: {sum(reached.values()) / len(reached):.4f}")

    def _report(self, console: Console, saved: Saved) -> Scores:
        trials = saved.trials(self.partition)
        for line in _marks(saved, trials, self.partition):
            warn(console, line)
        title = f"{saved.run.target}, batches to predict"
        made = saved.predict(
            trials, without=self.without, cpu=self.cpu, batch=self.batch, title=title
        )
        require_finite(made, "evaluate")
        if is_constant(made):
            warn(console, _constant(saved))
        frames = self.smooth[TARGETS.index(saved.run.target)]
        scores = score(_smoothed(made, frames), trials, saved.run.target)
        lines = Table(title=escape(f"{saved.run.method}, {saved.run.target}, {self.partition}"))
        for column in ("trial", "CCC"):
            lines.add_column(column)
        for name, ccc in scores.trials.items():
            lines.add_row(escape(name), f"{ccc:.4f}")
        console.print(lines)
        console.print(
            f"all frames: CCC {scores.ccc:.4f}, Pearson {scores.pearson:.4f}, "
            f"RMSE {scores.rmse:.4f} (trials: {len(scores.trials)}, frames: {scores.frames})",
            highlight=False,
        )
        return scores


@dataclass(frozen=True)
class Predict:
    """Writes the challenge's file for the test trials from two trained networks.

    Attributes:
        valence: Folder of the run that predicts valence.
        arousal: Folder of the run that predicts arousal.
        sample: The challenge's sample file, which fixes order and lengths.
        out: The file to write.
        features: Where the test trials are; None takes those that they were trained with.
        own: Your own features, as for train; none takes those that they were trained with.
        smooth: Frames of a moving mean, for valence and arousal; 0 for none.
        cpu: Use no GPU.
        batch: Windows at once; None takes the training's number.
    """

    valence: Path
    arousal: Path
    sample: Path
    out: Path
    features: Path | None = None
    own: tuple[str, ...] = ()
    smooth: tuple[int, int] = (0, 0)
    cpu: bool = False
    batch: int | None = None

    def run(self, console: Console) -> None:
        _require_batch(self.batch, "predict")
        made = []
        own = read_own(self.own) if self.own else None
        for folder, target, frames in zip(
            (self.valence, self.arousal), TARGETS, self.smooth, strict=True
        ):
            saved = read_saved(folder, self.features, own)
            if saved.run.target != target:
                raise ValueError(f"predict: {folder} predicts {saved.run.target}, not {target}")
            trials = saved.trials("test")
            for line in _marks(saved, trials, "test"):
                warn(console, line)
            title = f"{target}, batches to predict"
            predictions = saved.predict(trials, cpu=self.cpu, batch=self.batch, title=title)
            require_finite(predictions, "predict")
            if is_constant(predictions):
                warn(console, _constant(saved))
            made.append(_smoothed(predictions, frames))
        for line in write_challenge_file(self.out, self.sample, *made):
            warn(console, line)
        console.print(f"wrote {self.out}", markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Plot:
    """Draws what train or table wrote.

    Of a run: its curves, a validation trial with the frames shaded where the face is missing, and,
    if it fuses with RCMA, its correlations. Of a table: bars with spread and ceilings, a report.

    Attributes:
        folder: What train or table wrote.
        out: Folder for the pictures.
    """

    folder: tyro.conf.Positional[Path]
    out: Path

    def run(self, console: Console) -> None:
        if (self.folder / "table.json").exists():
            table, report = read_table(self.folder / "table.json"), self.out / "report.html"
            pictures = draw_table(table, self.out)
            write_report(report, table, pictures, {"table": self.folder / "table.json"})
            console.print(f"wrote {report}", markup=False, soft_wrap=True)
        else:
            pictures = draw_run(read_saved(self.folder), self.folder, self.out)
        for path, _ in pictures:
            console.print(f"wrote {path}", markup=False, soft_wrap=True)


def warn(console: Console, line: str) -> None:
    """Prints a line that a user must see, as it is: names may hold brackets."""
    console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _marks(saved: Saved, trials: Trials, partition: Partition) -> Iterator[str]:
    """Lines about a run and trials whose numbers must not be taken for those of a good run."""
    yield from saved.problems
    names = [trial.name for trial in trials.features]
    trained = sum(name in saved.trained for name in names)
    if trained and partition != "train":
        yield f"the network was trained on {trained} of these {len(names)} trials"
    seen = [one for one in saved.own if one.stream.name in saved.run.design.modalities]
    yield from find_problems(saved.run, trials.features, seen)


def _constant(saved: Saved) -> str:
    return (
        f"the {saved.run.target} predictions of all frames are the same: the network learned "
        "nothing, or sees nothing"
    )


def require_finite(predictions: Predictions, who: str) -> None:
    """Raises ValueError with the first trial whose predictions are not finite."""
    for name, series in predictions.items():
        if not bool(series.isfinite().all()):
            raise ValueError(f"{who}: the predictions for {name} are not finite; the run diverged")


def _require_batch(batch: int | None, who: str) -> None:
    if batch is not None and batch < 1:
        raise ValueError(f"{who}: --batch must be 1 or more, found {batch}")


def _inputs(run: Run, preset: str) -> Iterator[str]:
    """Says which inputs are not those of the preset."""
    used, seen = {stream.name: stream for stream in run.own}, run.design.modalities
    if not set(seen) & set(used):
        return
    widths = ", ".join(f"{name} (width {used[name].width})" for name in seen if name in used)
    ours = ", ".join(name for name in seen if name not in used)
    beside = f"beside {ours}" if ours else f"in place of {', '.join(NAMES)}"
    yield (
        f"own features {widths} {beside}: of preset {preset} only the numbers of network and "
        "training are used"
    )


def _print_epoch(console: Console, row: Mapping[str, float]) -> None:
    console.print(
        f"epoch {row['epoch'] + 1}, stage {row['stage']}: loss {row['loss']:.4f}, "
        f"validation CCC {row['ccc']:.4f}, rate {row['rate']:.1e}, {row['seconds']:.0f} s",
        highlight=False,
    )


def _smoothed(predictions: Predictions, frames: int) -> Predictions:
    return {name: smooth(series, frames) for name, series in predictions.items()}
