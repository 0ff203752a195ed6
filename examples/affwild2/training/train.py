"""Trains one network for one target on one fold.

An epoch draws everything from its own number, so a run that was killed and resumes at the epoch
after its last checkpoint goes on to the same numbers as one that was not: bit for bit on one CPU.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]  # ships no types
from accelerate.utils import gather_object  # type: ignore[import-untyped]  # ships no types
from torch import Tensor, nn

from crossfuse import ConcordanceLoss
from examples.affwild2.dataset.folds import Window, list_windows
from examples.affwild2.dataset.progress import follow
from examples.affwild2.network.model import AffectNet
from examples.affwild2.training.evaluate import predict, score
from examples.affwild2.training.runs import Progress, Run, build, claim, write_checkpoint
from examples.affwild2.training.schedule import (
    count_groups,
    make_optimiser,
    make_plateau,
    release,
    set_training,
    warmup_length,
    warmup_rate,
)
from examples.affwild2.training.trials import Batch, Trials


def train(
    run: Run,
    out: Path,
    backbones: Mapping[str, nn.Module],
    training: Trials,
    validation: Trials,
    *,
    accelerator: Accelerator | None = None,
    resume: bool = False,
    progress: bool = False,
    report: Callable[[Mapping[str, float]], None] | None = None,
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
        progress: Show how far each epoch is.
        report: Called after every epoch with its line of the log.

    Raises:
        ValueError: ``out`` holds a checkpoint of another run, or one and ``resume`` is False; or
            features, loss or score are not finite.
    """
    accelerator = Accelerator(cpu=True) if accelerator is None else accelerator
    checkpoint = claim(out, run, resume=resume)
    session = _Session(run, out, build(run, backbones), accelerator, progress=progress)
    if checkpoint is None:
        session.begin_stage(1 if run.preset.release_first else 0)
    else:
        session.go_on(checkpoint)
    while session.goes_on():
        session.train_epoch(training)
        session.finish_epoch(session.validate(validation))
        if report is not None:
            report(session.progress.log[-1])
    return session.progress


class _Session:
    """A run in the making: the network, its optimiser, and how far it has come."""

    def __init__(
        self,
        run: Run,
        out: Path,
        model: AffectNet,
        accelerator: Accelerator,
        *,
        progress: bool = False,
    ) -> None:
        self.run, self.out, self.accelerator = run, out, accelerator
        self.shown = progress and accelerator.is_main_process
        self.preset = run.preset
        self.model = model.to(accelerator.device)
        self.progress = Progress()
        self.best = _copy(self.model)
        self.loss = ConcordanceLoss(moments=run.preset.moments)
        self.free()

    def goes_on(self) -> bool:
        """Decides at the start of an epoch: one more, another stage, or the end."""
        progress, preset = self.progress, self.preset
        over = progress.epoch >= preset.epochs or progress.bad >= preset.early_stop
        past = progress.stage_epoch >= preset.warmup_epochs
        if not over and past and self.rate() < preset.least_rate:
            over = progress.stage >= min(preset.releases, count_groups(self.model))
            if not over:
                self.begin_stage(progress.stage + 1)
        if over and not progress.done:
            progress.done = True
            self.save()
        return not progress.done

    def begin_stage(self, stage: int) -> None:
        """Frees the next group; a new optimiser, warm-up and count start from the best weights."""
        self.progress.stage, self.progress.stage_epoch, self.progress.bad = stage, 0, 0
        self.model.load_state_dict(self.best)
        self.free()
        self.prepare()

    def free(self) -> None:
        """Frees the layers of this stage and makes a new optimiser for all that is free."""
        release(self.model, self.progress.stage)
        self.optimiser = make_optimiser(self.model, self.preset)
        self.plateau = make_plateau(self.optimiser, self.preset)

    def prepare(self) -> None:
        """Wraps network and optimiser for devices, precision and processes, again in each stage."""
        self.wrapped = self.accelerator.prepare_model(self.model)
        self.stepper = self.accelerator.prepare_optimizer(self.optimiser)

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
        set_training(self.model, keep_frozen=preset.freeze_bn or trials.encoded is not None)
        batches = self._order(list_windows(trials.lengths, preset.window, preset.train_hop))
        losses = []
        title = f"epoch {epoch + 1}, batches"
        shown = follow(batches, title, len(batches), count=False) if self.shown else batches
        for number, windows in enumerate(shown):
            self._set_rate(number, len(batches))
            mine = windows[rank::world]
            batch = trials.batch(
                mine or windows[:1], preset.window, self.run.target, self._draws(windows, mine)
            )
            batch = batch.to(self.accelerator.device)
            encoded = trials.encoded is not None
            losses.append(self._step(batch, len(mine), len(windows), encoded=encoded))
        self.mean_loss = float(torch.stack(losses).mean())
        self._check("loss", self.mean_loss)

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
            title=f"epoch {self.progress.epoch + 1}, batches to validate" if self.shown else None,
        )
        if world > 1:
            made = dict(gather_object(list(made.items())))
        self.scores = score(made, trials, self.run.target)
        self._check("validation CCC", self.scores.ccc)
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
        if progress.stage_epoch < warmup_length(preset):
            self.plateau.best = progress.best
        else:
            self.plateau.step(ccc)
        progress.epoch += 1
        progress.stage_epoch += 1
        if preset.reload_best:
            self.model.load_state_dict(self.best)
        self.save()

    def save(self) -> None:
        """Writes checkpoint and log, by one process for all."""
        if not self.accelerator.is_main_process:
            return
        state = {  # runs.PARTS
            "run": self.run.described(),
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "best": self.best,
            "optimiser": self.optimiser.state_dict(),
            "plateau": self.plateau.state_dict(),
        }
        write_checkpoint(self.out, state, self.progress.log)

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.progress = Progress(**state["progress"])
        if state["run"]["preset"]["epochs"] < self.preset.epochs:
            self.progress.done = False  # more epochs than it was given before
        self.free()
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.plateau.load_state_dict(state["plateau"])
        self.best = state["best"]
        self.prepare()

    def _check(self, what: str, value: float) -> None:
        """Ends a run that has diverged; the checkpoint of the epoch before is kept."""
        if not math.isfinite(value):
            raise ValueError(
                f"train: the {what} of epoch {self.progress.epoch + 1} is {value}; the run in "
                f"{self.out} stops (is the learning rate, {self.rate():.1e}, too high?)"
            )

    def _set_rate(self, batch: int, batches: int) -> None:
        """Warms up; once that is over the plateau alone moves the rate."""
        rate = warmup_rate(self.preset, self.progress.stage_epoch, batch, batches)
        if rate is None and batch == 0 and self.progress.stage_epoch == warmup_length(self.preset):
            rate = self.preset.learning_rate
        if rate is not None:
            self.optimiser.param_groups[0]["lr"] = rate

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
        valid = batch.valid | batch.padding if self.preset.loss_on_padding else batch.valid
        if not mine:
            valid = torch.zeros_like(valid)
        share = self.loss(prediction.float(), batch.labels, valid) * max(mine, 1) / together
        self.stepper.zero_grad()
        self.accelerator.backward(share * world)
        self.stepper.step()
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
