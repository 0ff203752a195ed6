"""The commands that train one network and use it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from examples.affwild2.dataset.challenge import write_challenge_file
from examples.affwild2.results.pictures import draw_run, draw_table
from examples.affwild2.results.report import write_report
from examples.affwild2.results.table import read_table
from examples.affwild2.training.assemble import (
    Saved,
    make_accelerator,
    missing_weights,
    prepare,
    read_saved,
    write_setup,
)
from examples.affwild2.training.evaluate import Predictions, Scores, score, smooth
from examples.affwild2.training.methods import find_method
from examples.affwild2.training.modalities import Name, Weights
from examples.affwild2.training.presets import PRESETS, Changes
from examples.affwild2.training.runs import Run
from examples.affwild2.training.train import train
from examples.affwild2.training.trials import TARGETS, Target


@dataclass(frozen=True)
class Train:
    """Trains one network: one method, one target, one fold.

    On several GPUs: torchrun --nproc-per-node 8 -m examples.affwild2 train ... (README.md).

    Attributes:
        features: What extract wrote.
        out: Folder of this run.
        method: A row of the table: rcma, rcma-stable, jca, concatenation, face, ...
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
        find_method(self.method)
        if preset.backbones == "demo" and self.weights.demo is None:
            raise ValueError("train: the demo preset needs --demo backbones.pt, which demo makes")
        seed = preset.seed if self.seed is None else self.seed
        run = Run(self.method, self.target, preset, self.fold, seed)
        accelerator = make_accelerator(cpu=self.cpu, mixed_precision=self.mixed_precision)
        made = prepare(run, self.features, self.weights)
        if accelerator.is_main_process:
            write_setup(self.out, run, self.features, made, resume=self.resume)
            for line in missing_weights(run, self.weights):
                console.print(line, style="yellow", highlight=False)
        done = train(
            run,
            self.out,
            made.backbones,
            made.training,
            made.validation,
            accelerator=accelerator,
            resume=self.resume,
            report=lambda row: _print_epoch(console, row) if accelerator.is_main_process else None,
        )
        if accelerator.is_main_process:
            console.print(
                f"{self.method}, {self.target}: CCC {done.best:.4f} after epoch "
                f"{done.best_epoch + 1} of {done.epoch}"
            )


@dataclass(frozen=True)
class Evaluate:
    """Scores a trained network over all valid frames of a partition.

    Attributes:
        run_folder: What train wrote.
        other: The run of the other target: then the challenge's score, the mean of both
            concordances, is printed too.
        features: Where the trials are; None takes those that it was trained with.
        partition: train or validation, of the run's fold.
        without: Modalities to leave out, as if they were missing.
        smooth: Frames of a moving mean over predictions, for valence and arousal; 0 for none (JCA:
            20 and 50).
        cpu: Use no GPU.
    """

    run_folder: tyro.conf.Positional[Path]
    other: Path | None = None
    features: Path | None = None
    partition: Literal["train", "validation"] = "validation"
    without: tuple[Name, ...] = ()
    smooth: tuple[int, int] = (0, 0)
    cpu: bool = False

    def run(self, console: Console) -> None:
        reached = {}
        for folder in (self.run_folder, self.other):
            if folder is not None:
                saved = read_saved(folder, self.features)
                if saved.run.target in reached:
                    raise ValueError(f"evaluate: both runs predict {saved.run.target}")
                reached[saved.run.target] = self._report(console, saved).ccc
        if len(reached) == len(TARGETS):
            console.print(f"the challenge's score: {sum(reached.values()) / len(reached):.4f}")

    def _report(self, console: Console, saved: Saved) -> Scores:
        trials = saved.trials(self.partition)
        made = saved.predict(trials, without=self.without, cpu=self.cpu)
        frames = self.smooth[TARGETS.index(saved.run.target)]
        scores = score(_smoothed(made, frames), trials, saved.run.target)
        lines = Table(title=f"{saved.run.method}, {saved.run.target}, {self.partition}")
        for column in ("trial", "CCC"):
            lines.add_column(column)
        for name, ccc in scores.trials.items():
            lines.add_row(name, f"{ccc:.4f}")
        console.print(lines)
        console.print(
            f"all frames: CCC {scores.ccc:.4f}, Pearson {scores.pearson:.4f}, "
            f"RMSE {scores.rmse:.4f}"
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
        smooth: Frames of a moving mean, for valence and arousal; 0 for none.
        cpu: Use no GPU.
    """

    valence: Path
    arousal: Path
    sample: Path
    out: Path
    features: Path | None = None
    smooth: tuple[int, int] = (0, 0)
    cpu: bool = False

    def run(self, console: Console) -> None:
        made = []
        for folder, target, frames in zip(
            (self.valence, self.arousal), TARGETS, self.smooth, strict=True
        ):
            saved = read_saved(folder, self.features)
            if saved.run.target != target:
                raise ValueError(f"predict: {folder} predicts {saved.run.target}, not {target}")
            predictions = saved.predict(saved.trials("test"), cpu=self.cpu)
            made.append(_smoothed(predictions, frames))
        absent = write_challenge_file(self.out, self.sample, *made)
        for name in absent:
            console.print(f"{name}: has no features; its rows are zeros", style="yellow")
        console.print(f"wrote {self.out}")


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
            console.print(f"wrote {report}")
        else:
            pictures = draw_run(read_saved(self.folder), self.folder, self.out)
        for path, _ in pictures:
            console.print(f"wrote {path}")


def _print_epoch(console: Console, row: Mapping[str, float]) -> None:
    console.print(
        f"epoch {row['epoch'] + 1}, stage {row['stage']}: loss {row['loss']:.4f}, "
        f"validation CCC {row['ccc']:.4f}, rate {row['rate']:.1e}, {row['seconds']:.0f} s",
        highlight=False,
    )


def _smoothed(predictions: Predictions, frames: int) -> Predictions:
    return {name: smooth(series, frames) for name, series in predictions.items()}
