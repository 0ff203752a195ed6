"""Trains one network for one target on one fold (items 21 and 32-39 of the set-up).

An epoch draws everything from its own number, so a run that was killed and resumes at the epoch
after its last checkpoint goes on to the same numbers as one that was not: bit for bit on one CPU.

For others: ``train(run, out, data) -> Progress``; ``load_run(out)`` gives back the best network.
"""

import csv
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]  # ships no types
from accelerate.utils import gather_object  # type: ignore[import-untyped]  # ships no types
from torch import Tensor, nn

from crossfuse import ConcordanceLoss
from examples.affwild2.data import Batch, Target, Trials
from examples.affwild2.evaluate import predict, score
from examples.affwild2.folds import Window, list_windows
from examples.affwild2.methods import find_method
from examples.affwild2.model import AffectNet
from examples.affwild2.presets import Preset

CHECKPOINT, LOG = "checkpoint.pt", "log.csv"


@dataclass(frozen=True)
class Run:
    """What is trained.

    Attributes:
        method: A row of the table.
        target: valence or arousal: one network each.
        preset: All numbers.
        fold: 0 for the official split.
        seed: Of weights, order and dropout.
        shuffled: Whether faces go with another trial's voice and words.
    """

    method: str
    target: Target
    preset: Preset
    fold: int = 0
    seed: int = 0
    shuffled: bool = False


@dataclass
class Progress:
    """How far a run has come; a checkpoint holds it.

    Attributes:
        epoch: Epochs done.
        stage: Groups of backbone layers that are free.
        stage_epoch: Epochs done in this stage.
        best: The best validation CCC.
        best_epoch: When it was reached.
        bad: Epochs in this stage since the best, or since the stage began.
        done: Whether the run is over.
        log: One row per epoch.
    """

    epoch: int = 0
    stage: int = 0
    stage_epoch: int = 0
    best: float = -math.inf
    best_epoch: int = -1
    bad: int = 0
    done: bool = False
    log: list[dict[str, float]] = field(default_factory=list)


def build(run: Run, backbones: Mapping[str, nn.Module]) -> AffectNet:
    """Builds the network of a run, with the weights that its seed draws."""
    method, preset = find_method(run.method), run.preset
    widths = dict(zip(("face", "voice", "words"), preset.widths, strict=True))

    def head(dim: int) -> nn.Module:
        if preset.head_width is None:
            return nn.Sequential(nn.Dropout(preset.head_dropout), nn.Linear(dim, 1))
        return nn.Sequential(
            nn.Dropout(preset.head_dropout),
            nn.Linear(dim, preset.head_width),
            nn.LeakyReLU(),
            nn.Dropout(preset.head_dropout),
            nn.Linear(preset.head_width, 1),
        )

    torch.manual_seed(run.seed)
    return AffectNet(
        {name: backbones[name] for name in method.modalities},
        widths,
        lambda dims: method.fusion(dims, preset),
        head,
        dropout=preset.tcn_dropout,
        noise=preset.feature_noise,
    )


def warmup_rate(preset: Preset, epoch: int, batch: int, batches: int) -> float | None:
    """The learning rate of a batch of the warm-up, counted from 0 in a stage; None after it."""
    if preset.warmup == "none" or epoch >= preset.warmup_epochs:
        return None
    if preset.warmup == "linear":
        steps = batches * preset.warmup_epochs
        return preset.learning_rate * (epoch * batches + batch + 1) / steps
    return preset.learning_rate * batch * (epoch + 1) / (batches * preset.warmup_epochs**2)


def train(
    run: Run,
    out: Path,
    backbones: Mapping[str, nn.Module],
    training: Trials,
    validation: Trials,
    *,
    accelerator: Accelerator | None = None,
    resume: bool = False,
) -> Progress:
    """Trains a network; writes its checkpoint and log after every epoch.

    Args:
        run: What to train.
        out: Where checkpoint, log and settings go.
        backbones: One per modality; they are trained in place where groups are released.
        training: Trials to train on.
        validation: Trials whose CCC decides which weights are the best.
        accelerator: Devices, precision and processes; None makes one for the CPU.
        resume: Go on from the checkpoint in ``out``, if there is one.

    Raises:
        ValueError: ``out`` holds a checkpoint of another run, or one and ``resume`` is False.
    """
    accelerator = Accelerator(cpu=True) if accelerator is None else accelerator
    session = _Session(run, out, build(run, backbones), accelerator)
    if session.resumed(resume):
        session.prepare()
    else:
        session.begin_stage(1 if run.preset.release_first else 0)
    while session.goes_on():
        session.train_epoch(training)
        session.finish_epoch(session.validate(validation))
    return session.progress


def load_run(out: Path, run: Run, backbones: Mapping[str, nn.Module]) -> AffectNet:
    """Builds the network of a run with its best weights.

    Raises:
        ValueError: There is no checkpoint of this run.
    """
    model = build(run, backbones)
    model.load_state_dict(read_checkpoint(out)["best"])
    return model.eval()


def read_checkpoint(out: Path) -> dict[str, Any]:
    """Reads the checkpoint of a run.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    path = out / CHECKPOINT
    if not path.exists():
        raise ValueError(f"{out}: holds no {CHECKPOINT}; train first")
    try:
        return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises almost anything on a damaged file
        raise ValueError(f"{path}: cannot be read ({type(error).__name__})") from error


class _Session:
    """A run in the making: the network, its optimiser, and how far it has come."""

    def __init__(self, run: Run, out: Path, model: AffectNet, accelerator: Accelerator) -> None:
        self.run, self.out, self.accelerator = run, out, accelerator
        self.preset = run.preset
        self.model = model.to(accelerator.device)
        self.progress = Progress()
        self.best = _copy(self.model)
        self.loss = ConcordanceLoss(moments=run.preset.moments)
        self.release()
        self.make_optimiser()

    def goes_on(self) -> bool:
        """Decides at the start of an epoch: one more, another stage, or the end."""
        progress, preset = self.progress, self.preset
        over = progress.epoch >= preset.epochs or progress.bad >= preset.early_stop
        past = progress.stage_epoch >= preset.warmup_epochs
        if not over and past and self.rate() < preset.least_rate:
            over = progress.stage >= min(preset.releases, self.groups())
            if not over:
                self.begin_stage(progress.stage + 1)
        if over and not progress.done:
            progress.done = True
            self.save()
        return not progress.done

    def groups(self) -> int:
        """How many groups the backbones have, the most of all."""
        return max((len(groups) for groups in self._groups()), default=0)

    def release(self) -> None:
        """Freezes the backbones but for the groups that the stages so far have freed."""
        for parameter in self.model.backbones.parameters():
            parameter.requires_grad_(False)
        for groups in self._groups():
            for group in groups[: self.progress.stage]:
                for parameter in group:
                    parameter.requires_grad_(True)

    def begin_stage(self, stage: int) -> None:
        """Frees the next group; a new optimiser, warm-up and count start from the best weights."""
        self.progress.stage, self.progress.stage_epoch, self.progress.bad = stage, 0, 0
        self.model.load_state_dict(self.best)
        self.release()
        self.make_optimiser()
        self.prepare()

    def make_optimiser(self) -> None:
        free = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(
            free, lr=self.preset.learning_rate, weight_decay=self.preset.weight_decay
        )
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimiser,
            mode="max",
            factor=self.preset.factor,
            patience=self.preset.patience,
            threshold=0.0,
            threshold_mode="abs",
            eps=0.0,  # the default would leave rates near 1e-8 as they are
        )

    def prepare(self) -> None:
        """Wraps the network for devices, precision and processes; anew, as layers are freed."""
        self.wrapped = self.accelerator.prepare_model(self.model)

    def view(self, trials: Trials) -> Trials:
        """The features made before as long as the backbones are frozen, then the frames."""
        return trials if self.progress.stage == 0 else replace(trials, encoded=None)

    def rate(self) -> float:
        return float(self.optimiser.param_groups[0]["lr"])

    def train_epoch(self, trials: Trials) -> None:
        """Goes through all windows once and logs the mean loss."""
        preset, epoch, trials = self.preset, self.progress.epoch, self.view(trials)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed(_seed(self.run.seed, epoch, rank))
        self.began = time.perf_counter()
        self.model.train()
        if preset.freeze_bn or trials.encoded is not None:
            for branch in self.model.backbones.branches.values():
                frozen = not any(p.requires_grad for p in branch.parameters())
                branch.train(not frozen)
        batches = self._order(list_windows(trials.lengths, preset.window, preset.train_hop))
        losses = []
        for number, windows in enumerate(batches):
            rate = warmup_rate(preset, self.progress.stage_epoch, number, len(batches))
            if rate is None and number == 0 and self._warmup_ends():
                rate = preset.learning_rate
            if rate is not None:
                self.optimiser.param_groups[0]["lr"] = rate
            mine = windows[rank::world]
            batch = trials.batch(
                mine or windows[:1], preset.window, self.run.target, self._draws(windows, mine)
            )
            batch = batch.to(self.accelerator.device)
            encoded = trials.encoded is not None
            losses.append(self._step(batch, len(mine), len(windows), encoded=encoded))
        self.mean_loss = float(torch.stack(losses).mean())

    def validate(self, trials: Trials) -> float:
        """The CCC over all valid frames of all trials; each process predicts its share of them."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        names = [trial.name for trial in trials.features][rank::world]
        made = predict(
            self.model,
            self.view(trials).choose(names),
            size=self.preset.window,
            hop=self.preset.hop,
            target=self.run.target,
            batch=self.preset.batch,
        )
        if world > 1:
            made = dict(gather_object(list(made.items())))
        self.scores = score(made, trials, self.run.target)
        return self.scores.ccc

    def finish_epoch(self, ccc: float) -> None:
        """Compares with the best, lets the rate fall, writes the checkpoint."""
        progress, preset = self.progress, self.preset
        better = ccc > progress.best
        progress.bad = 0 if better else progress.bad + 1
        if better:
            progress.best, progress.best_epoch = ccc, progress.epoch
            self.best = _copy(self.model)
        progress.log.append(
            {
                "epoch": progress.epoch,
                "stage": progress.stage,
                "rate": self.rate(),
                "loss": self.mean_loss,
                "ccc": ccc,
                "pearson": self.scores.pearson,
                "rmse": self.scores.rmse,
                "seconds": round(time.perf_counter() - self.began, 3),
            }
        )
        if preset.warmup != "none" and progress.stage_epoch < preset.warmup_epochs:
            self.plateau.best = progress.best
        else:
            self.plateau.step(ccc)
        progress.epoch += 1
        progress.stage_epoch += 1
        if preset.reload_best:
            self.model.load_state_dict(self.best)
        self.save()

    def save(self) -> None:
        """Writes checkpoint and log under other names and renames them when they are whole."""
        if not self.accelerator.is_main_process:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "run": _described(self.run),
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "best": self.best,
            "optimiser": self.optimiser.state_dict(),
            "plateau": self.plateau.state_dict(),
        }
        partial = self.out / f".{CHECKPOINT}.partial"
        torch.save(state, partial)
        partial.replace(self.out / CHECKPOINT)
        partial = self.out / f".{LOG}.partial"
        with partial.open("w", newline="") as file:
            if self.progress.log:
                writer = csv.DictWriter(file, list(self.progress.log[0]))
                writer.writeheader()
                writer.writerows(self.progress.log)
        partial.replace(self.out / LOG)

    def resumed(self, resume: bool) -> bool:
        """Goes on from the checkpoint, if there is one."""
        if not (self.out / CHECKPOINT).exists():
            return False
        if not resume:
            raise ValueError(f"train: {self.out} holds a run already; --resume goes on with it")
        state = read_checkpoint(self.out)
        if state["run"] != _described(self.run):
            raise ValueError(
                f"train: {self.out} holds a run with other settings; name a new folder"
            )
        self.progress = Progress(**state["progress"])
        self.release()
        self.make_optimiser()
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.plateau.load_state_dict(state["plateau"])
        self.best = state["best"]
        return True

    def _groups(self) -> list[list[list[nn.Parameter]]]:
        """The groups of each backbone that has any, first to be freed first."""
        found = []
        for branch in self.model.backbones.branches.values():
            groups = getattr(branch.get_submodule("backbone"), "release_groups", None)
            if groups is not None:
                found.append(cast(list[list[nn.Parameter]], groups()))
        return found

    def _warmup_ends(self) -> bool:
        after = self.preset.warmup_epochs if self.preset.warmup != "none" else 0
        return self.progress.stage_epoch == after

    def _order(self, windows: list[Window]) -> list[list[Window]]:
        """The batches of an epoch, over all processes; the last may be smaller."""
        epoch = 0 if self.preset.shuffle == "once" else self.progress.epoch
        generator = torch.Generator().manual_seed(_seed(self.run.seed, epoch, 0))
        order = torch.randperm(len(windows), generator=generator)
        return [[windows[i] for i in part.tolist()] for part in order.split(self.preset.batch)]

    def _draws(
        self, windows: Sequence[Window], mine: Sequence[Window]
    ) -> list[torch.Generator | None] | None:
        """One generator per window, the same however many processes share the batch."""
        if not self.preset.augment:
            return None
        seeds = [_seed(self.run.seed, self.progress.epoch, 1 + w.trial, w.start) for w in mine]
        drawn = [torch.Generator().manual_seed(seed) for seed in seeds]
        return [*drawn] or [None] * len(windows[:1])

    def _step(self, batch: Batch, mine: int, together: int, *, encoded: bool) -> Tensor:
        """One step of the optimiser; the loss is the mean over the windows of all processes."""
        world = self.accelerator.num_processes
        present = {
            name: mask if mine else torch.zeros_like(mask) for name, mask in batch.masks.items()
        }
        with self.accelerator.autocast():
            prediction = self.wrapped(batch.streams, present, encoded=encoded)
        valid = None if self.preset.loss_on_padding else batch.valid
        if not mine:
            valid = torch.zeros_like(batch.valid)
        share = self.loss(prediction.float(), batch.labels, valid) * max(mine, 1) / together
        self.optimiser.zero_grad()
        self.accelerator.backward(share * world)
        self.optimiser.step()
        total: Tensor = self.accelerator.reduce(share.detach(), reduction="sum")
        return total.cpu()


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _seed(*parts: int) -> int:
    """Mixes numbers into one seed."""
    seed = 17
    for part in parts:
        seed = (seed * 1_000_003 + part) % (2**63 - 25)
    return seed


def _described(run: Run) -> dict[str, Any]:
    """The run as plain values, as JSON would hold them."""
    return cast(dict[str, Any], json.loads(json.dumps(asdict(run))))
