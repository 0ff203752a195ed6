"""Trains and tests one method on one relation."""

import math
import time
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from crossfuse import ConcordanceLoss
from crossfuse.functional import concordance
from examples.which_fusion.methods import METHODS, Alone, Net, resampled
from examples.which_fusion.streams import NAMES, RELATIONS, STEPS, Windows

SINGLES = "singles"  # the job that trains each stream alone, and averages the predictions
BEST = "best"  # the job that computes the best attainable


@dataclass(frozen=True)
class Budget:
    """The training budget of every method.

    Attributes:
        windows: To train on.
        tested: New windows to test on.
        epochs: Passes over the windows to train on.
        batch: Windows of a batch.
        rate: The highest learning rate; it rises over the first tenth and falls to zero.
        decay: Weight decay of AdamW.
        dropout: In the head.
        width: Of the head's two hidden layers.
    """

    windows: int = 3600
    tested: int = 300
    epochs: int = 1
    batch: int = 30
    rate: float = 1e-2
    decay: float = 1e-2
    dropout: float = 0.1
    width: int = 64

    def at_length(self, steps: int) -> "Budget":
        """The budget for windows of this many steps: as many updates, of fewer long windows."""
        batch = min(self.batch, max(3, 2 * STEPS * self.batch // steps))
        share = batch / self.batch
        return replace(
            self,
            batch=batch,
            windows=round(share * self.windows),
            tested=round(share * self.tested),
        )

    def rate_at(self, done: float) -> float:
        """The learning rate after this share of the training."""
        return self.rate * min(1.0, 10 * done) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Job:
    """What to train: a method on a relation.

    Attributes:
        relation: A key of RELATIONS.
        method: A key of METHODS, SINGLES or BEST.
        seed: Of the rotations, the windows and the training.
        budget: The training budget.
    """

    relation: str
    method: str
    seed: int
    budget: Budget


@dataclass(frozen=True)
class Run:
    """The result of a method.

    Attributes:
        relation: A key of RELATIONS.
        method: A key of TITLES, or "best" for the best attainable.
        seed: Of the rotations, the windows and the training.
        agreement: Concordance with the target on new windows.
        seconds: Of processor time, training and testing.
        parameters: Of the fusion, without the head.
    """

    relation: str
    method: str
    seed: int
    agreement: float
    seconds: float
    parameters: int = 0


@lru_cache(maxsize=2)
def samples(relation: str, seed: int, train: int, test: int) -> tuple[Windows, Windows]:
    """Draws the windows to train on and to test on: the same for every method."""
    return RELATIONS[relation].samples(seed, train, test)


def train(net: nn.Module, windows: Windows, budget: Budget) -> None:
    """Trains a network to agree with the target."""
    loss = ConcordanceLoss(over="batch")
    optimiser = torch.optim.AdamW(
        net.parameters(), budget.rate, weight_decay=budget.decay, fused=True
    )
    batches = [
        rows
        for _ in range(budget.epochs)
        for rows in torch.randperm(budget.windows).split(budget.batch)
    ]
    net.train()
    for k, rows in enumerate(batches):
        optimiser.param_groups[0]["lr"] = budget.rate_at((k + 1) / len(batches))
        batch = windows.part(rows)
        optimiser.zero_grad()
        loss(net(batch), batch.target).backward()
        optimiser.step()
    net.eval()


def predictions(job: Job, method: str) -> tuple[Tensor, int]:
    """Trains a method, or one stream alone.

    Returns:
        The predicted target of new windows, (n, L), and the parameters of the fusion.
    """
    relation = RELATIONS[job.relation]
    budget = job.budget.at_length(relation.steps)
    known, new = samples(job.relation, job.seed, budget.windows, budget.tested)
    torch.manual_seed(job.seed)
    fusion = Alone(method) if method in NAMES else METHODS[method].make(relation)
    unaligned = method in METHODS and METHODS[method].unaligned
    net = Net(fusion, width=budget.width, dropout=budget.dropout, unaligned=unaligned)
    net(new.part(torch.arange(1)))  # sets the number of features that the head reads
    train(net, known, budget)
    with torch.no_grad():
        parts = torch.arange(budget.tested).split(budget.batch)
        predicted = torch.cat([net(new.part(rows)) for rows in parts])
    return predicted, sum(parameter.numel() for parameter in fusion.parameters())


def best_agreement(windows: Windows) -> float:
    """The highest concordance that any guess can have: that of the best one at the right size.

    Among all guesses, the mean given the streams correlates most with the target; stretched to the
    target's variance, its concordance is its correlation.
    """
    both = torch.stack([windows.best.flatten(), windows.target.flatten()])
    return torch.corrcoef(both)[0, 1].item()


def run(job: Job) -> list[Run]:
    """Trains and tests: one result, or those of each stream alone and their mean."""
    budget = job.budget.at_length(RELATIONS[job.relation].steps)
    _, new = samples(job.relation, job.seed, budget.windows, budget.tested)
    began = time.process_time()

    def scored(name: str, value: float, size: int = 0) -> Run:
        seconds = time.process_time() - began
        return Run(job.relation, name, job.seed, value, seconds, size)

    def agreement(predicted: Tensor) -> float:
        return concordance(predicted, new.target, over="batch").item()

    if job.method == BEST:
        return [scored(BEST, best_agreement(new))]
    if job.method != SINGLES:
        predicted, size = predictions(job, job.method)
        return [scored(job.method, agreement(predicted), size)]
    runs, alone = [], {}
    for name in NAMES:
        alone[name], _ = predictions(job, name)
        runs.append(scored(name, agreement(alone[name])))
    mean = average(alone, {name: new.masks[name] for name in NAMES})
    return [*runs, scored("average", agreement(mean))]


def average(alone: dict[str, Tensor], masks: dict[str, Tensor | None]) -> Tensor:
    """Averages the predictions of the streams that are present, (n, L)."""
    weights = {
        name: torch.ones_like(x)
        if (mask := masks[name]) is None
        else resampled(mask, x.shape[1]).to(x)
        for name, x in alone.items()
    }
    total = torch.stack([alone[name] * weight for name, weight in weights.items()]).sum(dim=0)
    return total / torch.stack(list(weights.values())).sum(dim=0).clamp(min=1)
