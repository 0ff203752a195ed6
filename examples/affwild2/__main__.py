"""The command line: ``python -m examples.affwild2 COMMAND --help``."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from examples.affwild2.assemble import (
    Saved,
    Weights,
    make_accelerator,
    make_backbones,
    make_trials,
    on_device,
    read_saved,
    scale_of,
    split,
    words_dim,
    write_setup,
)
from examples.affwild2.data import TARGETS, Target, Trials
from examples.affwild2.demo import run_demo
from examples.affwild2.evaluate import Predictions, predict, score, smooth, write_challenge_file
from examples.affwild2.extract import ExtractOptions, extract
from examples.affwild2.generate import Size, make_data
from examples.affwild2.latents import Switches
from examples.affwild2.methods import TITLES
from examples.affwild2.plots import (
    pick_trial,
    plot_correlations,
    plot_curves,
    plot_trial,
    seconds_of,
)
from examples.affwild2.presets import PRESETS
from examples.affwild2.pretrain import save_backbones, train_backbones
from examples.affwild2.table import Data, Plan, run_table
from examples.affwild2.table import Table as FusionTable
from examples.affwild2.train import Run, read_checkpoint, train


@dataclass(frozen=True)
class MakeData:
    """Makes data in the official layout: faces, voices and words that show a hidden feeling.

    Attributes:
        out: A folder that is empty or does not exist yet.
        size: tiny (10 trials of 8 to 22 s) or small (36 trials of 30 s).
        seed: Of everything.
        switches: What makes fusion more than adding up.
        mp4: Videos with sound instead of wav files and a table of frame rates.
        lexicon: own, or vader where vaderSentiment is installed.
    """

    out: Path
    size: Size = "small"
    seed: int = 0
    switches: tyro.conf.OmitArgPrefixes[Switches] = field(default_factory=Switches)
    mp4: bool = False
    lexicon: str = "own"

    def run(self, console: Console) -> None:
        make_data(
            self.out,
            size=self.size,
            seed=self.seed,
            switches=self.switches,
            mp4=self.mp4,
            lexicon=self.lexicon,
        )
        console.print(f"wrote {self.out}")


@dataclass(frozen=True)
class Extract:
    """Turns a tree of the official layout into features on disk; goes on where it was stopped.

    Attributes:
        root: The folder that holds cropped_aligned/ and the annotations.
        out: Where the features go.
        options: What to extract.
    """

    root: Path
    out: Path
    options: tyro.conf.OmitArgPrefixes[ExtractOptions] = field(default_factory=ExtractOptions)

    def run(self, console: Console) -> None:
        report = extract(self.root, self.out, self.options)
        for line in report.problems:
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print(
            f"{len(report.written)} trials written, {len(report.complete)} there already, "
            f"{len(report.left_out)} left out, {len(report.problems)} problems"
        )


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
        epochs: None takes the preset's.
        releases: Groups of backbone layers to free in turn; None takes the preset's.
        resume: Go on from the last checkpoint.
        cpu: Use no GPU.
        mixed_precision: no, fp16 or bf16.
        weights: Of the backbones.
    """

    features: Path
    out: Path
    method: str = "rcma"
    target: Target = "valence"
    preset: Literal["paper", "authors", "demo"] = "paper"
    fold: int = 0
    seed: int | None = None
    epochs: int | None = None
    releases: int | None = None
    resume: bool = False
    cpu: bool = False
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    weights: tyro.conf.OmitArgPrefixes[Weights] = field(default_factory=Weights)

    def run(self, console: Console) -> None:
        preset = PRESETS[self.preset]
        preset = replace(
            preset,
            epochs=preset.epochs if self.epochs is None else self.epochs,
            releases=preset.releases if self.releases is None else self.releases,
        )
        if preset.backbones == "demo" and self.weights.demo is None:
            raise ValueError("train: the demo preset needs --demo backbones.pt, which demo makes")
        seed = preset.seed if self.seed is None else self.seed
        run = Run(self.method, self.target, preset, self.fold, seed)
        accelerator = make_accelerator(cpu=self.cpu, mixed_precision=self.mixed_precision)
        training, validation = split(self.features, self.fold)
        dim, scale = words_dim(training), scale_of(run, training)
        backbones = make_backbones(preset, dim, self.weights)
        own = scale_of(run, validation) if preset.norm_stats == "partition" else scale
        parts = [
            make_trials(run, part, used, backbones)
            for part, used in ((training, scale), (validation, own))
        ]
        if accelerator.is_main_process:
            write_setup(self.out, run, self.features.resolve(), dim, scale)
        done = train(run, self.out, backbones, *parts, accelerator=accelerator, resume=self.resume)
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
        features: Where the trials are; None takes those that it was trained with.
        partition: train or validation, of the run's fold.
        without: Modalities to leave out, as if they were missing.
        smooth: Frames of a moving mean over predictions; 0 for none (JCA: 20 and 50).
        cpu: Use no GPU.
    """

    run_folder: tyro.conf.Positional[Path]
    features: Path | None = None
    partition: Literal["train", "validation"] = "validation"
    without: tuple[Literal["face", "voice", "words"], ...] = ()
    smooth: int = 0
    cpu: bool = False

    def run(self, console: Console) -> None:
        saved = read_saved(self.run_folder, self.features)
        trials = saved.trials(self.partition)
        made = predict_saved(saved, trials, self.without, cpu=self.cpu)
        smoothed = {name: smooth(series, self.smooth) for name, series in made.items()}
        scores = score(smoothed, trials, saved.run.target)
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


@dataclass(frozen=True)
class Predict:
    """Writes the challenge's file for the test trials from two trained networks.

    Attributes:
        valence: Folder of the run that tells valence.
        arousal: Folder of the run that tells arousal.
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
                raise ValueError(f"predict: {folder} tells {saved.run.target}, not {target}")
            predictions = predict_saved(saved, saved.trials("test"), (), cpu=self.cpu)
            made.append({name: smooth(series, frames) for name, series in predictions.items()})
        absent = write_challenge_file(self.out, self.sample, *made)
        for name in absent:
            console.print(f"{name}: has no features; its rows are zeros", style="yellow")
        console.print(f"wrote {self.out}")


@dataclass(frozen=True)
class TableCommand:
    """Trains every method with the demo preset over seeds and folds on one set of features.

    Attributes:
        features: What extract wrote from generated data.
        out: Where runs and table.json go; what is trained already is kept.
        backbones: The demo's backbones.pt; made if it is not there.
        methods: Rows; none means all.
        targets: Columns.
        seeds: One run each.
        folds: One run each.
        processes: Runs at the same time.
    """

    features: Path
    out: Path
    backbones: Path
    methods: tuple[str, ...] = ()
    targets: tuple[Target, ...] = TARGETS
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: tuple[int, ...] = (0,)
    processes: int = 2

    def run(self, console: Console) -> None:
        if not self.backbones.exists():
            save_backbones(self.backbones, train_backbones())
        for name in self.methods:
            if name not in TITLES:
                raise ValueError(f"method {name!r}: there are {', '.join(TITLES)}")
        plan = Plan("data", self.methods or tuple(TITLES), self.targets, self.seeds, self.folds)
        data = [Data("data", self.features)]
        table = run_table(
            data, self.out, [plan], PRESETS["demo"], self.backbones, processes=self.processes
        )
        show(console, table)


@dataclass(frozen=True)
class Plot:
    """Draws a trained network's training curves and, if it fuses with RCMA, its correlations.

    Attributes:
        run_folder: What train wrote.
        out: Folder for the pictures.
    """

    run_folder: tyro.conf.Positional[Path]
    out: Path

    def run(self, console: Console) -> None:
        saved, log = (
            read_saved(self.run_folder),
            read_checkpoint(self.run_folder)["progress"]["log"],
        )
        plot_curves(self.out / "curves.png", {saved.run.method: log})
        trials = saved.trials("validation")
        chosen = pick_trial(trials, saved.run.target)
        trial = trials.features[chosen]
        made = predict_saved(saved, trials.choose([trial.name]), (), cpu=True)
        plot_trial(
            self.out / "trial.png",
            trial.labels[:, TARGETS.index(saved.run.target)],
            {saved.run.method: made[trial.name]},
            seconds_of(trials, chosen),
            {"no face": ~trial.face_present},
            f"{saved.run.target}, {trial.name}",
        )
        if saved.run.method.startswith("rcma"):
            plot_correlations(
                self.out / "correlations.png", saved.model, trials, saved.run.preset.window
            )
        console.print(f"wrote {self.out}")


@dataclass(frozen=True)
class Demo:
    """Makes data, trains every method, and writes table.json, pictures and report.html.

    Attributes:
        out: Where everything goes; a run that was stopped goes on.
        size: tiny looks at the machinery only; small takes minutes and is worth reading.
        seed: Of the data.
        processes: Of one thread each.
    """

    out: Path = Path("runs/affwild2")
    size: Size = "small"
    seed: int = 0
    processes: int = 2

    def run(self, console: Console) -> None:
        table = run_demo(self.out, size=self.size, seed=self.seed, processes=self.processes)
        show(console, table)
        console.print(f"wrote {self.out / 'report.html'} and {self.out / 'table.json'}")


def predict_saved(
    saved: Saved, trials: Trials, without: tuple[str, ...], *, cpu: bool
) -> Predictions:
    preset = saved.run.preset
    model = on_device(saved.model, cpu=cpu)
    return predict(
        model,
        trials,
        size=preset.window,
        hop=preset.hop,
        target=saved.run.target,
        batch=preset.batch,
        without=without,
    )


def show(console: Console, table: FusionTable) -> None:
    """Prints a table; the paper's numbers stand in a column of their own."""
    for data, target in dict.fromkeys((row.data, row.target) for row in table.rows):
        lines = Table(title=f"{target}, generated data: {data}")
        for column in ("method", "CCC", "spread", "ceiling", "paper, on Aff-Wild2"):
            lines.add_column(column, justify="left" if column == "method" else "right")
        for row in table.rows:
            if (row.data, row.target) == (data, target):
                ceiling = "" if row.ceiling is None else f"{row.ceiling:.2f}"
                paper = "" if row.paper is None else f"{row.paper:.3f}"
                lines.add_row(row.title, f"{row.mean:.3f}", f"{row.spread:.3f}", ceiling, paper)
        console.print(lines)
    for line in table.verdicts:
        console.print(line, highlight=False)


COMMANDS: dict[str, Callable[..., Any]] = {
    "make-data": MakeData,
    "extract": Extract,
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "table": TableCommand,
    "plot": Plot,
    "demo": Demo,
}


def main() -> None:
    """Runs the command; a user's mistake is one line, not a traceback."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        description="Aff-Wild2 valence and arousal from faces, voices and words, end to end.",
    )
    try:
        command.run(Console())
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
