"""Trains and tests one network."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.watch.data import WINDOW, Recordings, Windows, cut, fold, moments
from examples.watch.models import Method, WatchNet

HOP = 2 * WINDOW  # between windows to learn from: half of each recording, another one each epoch


@dataclass(frozen=True)
class Budget:
    """What every method gets.

    Attributes:
        epochs: Passes over the training recordings.
        batch: Windows of a batch.
        rate: The highest learning rate; it rises over the first tenth and falls to zero.
        decay: Weight decay of AdamW.
        dropout: Before the classifier.
    """

    epochs: int = 15
    batch: int = 32
    rate: float = 4e-3
    decay: float = 1e-2
    dropout: float = 0.2

    def rate_at(self, epoch: float) -> float:
        """The learning rate at this (part of an) epoch."""
        done = epoch / self.epochs
        return self.rate * min(1.0, 10 * done) * (1 + math.cos(math.pi * done)) / 2


Seen: TypeAlias = tuple[float, float]
"""Share of C beyond 0.99 in size; size of the features after the step over that before it."""


@dataclass(frozen=True)
class Run:
    """How one network did on people that it had not seen.

    Attributes:
        method: Its name.
        fold: Which two people were held out.
        seed: Of its initialisation and training.
        accuracy: Share of their windows that it named right.
        confusion: Windows of exercise (row) named as exercise (column).
        seconds: Training and testing.
        seen: Of a candidate of the study, each modality's steps.
    """

    method: str
    fold: int
    seed: int
    accuracy: float
    confusion: list[list[int]]
    seconds: float
    seen: Sequence[Seen] = ()


def train(
    method: Method, recordings: Recordings, members: tuple[int, ...], seed: int, budget: Budget
) -> WatchNet:
    """Trains a network on windows of some recordings, cut anew in each epoch."""
    torch.manual_seed(seed)
    model = WatchNet(method, len(recordings.names), dropout=budget.dropout)
    model.measure(*moments(recordings, members))
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), budget.rate, weight_decay=budget.decay)
    model.train()
    for epoch in range(budget.epochs):
        batches = list(cut(recordings, members, HOP, generator).batches(budget.batch, generator))
        for k, batch in enumerate(batches):
            optimiser.param_groups[0]["lr"] = budget.rate_at(epoch + k / len(batches))
            loss = cross_entropy(model(batch.streams), batch.exercises)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
    return model.eval()


@torch.no_grad()
def confusion(model: nn.Module, windows: Windows, classes: int) -> Tensor:
    """Counts (classes, classes): windows of exercise (row) named as exercise (column)."""
    named = model(windows.streams).argmax(dim=-1)
    return torch.bincount(windows.exercises * classes + named, minlength=classes**2).reshape(
        classes, classes
    )


def run(
    name: str, method: Method, recordings: Recordings, index: int, seed: int, budget: Budget
) -> tuple[WatchNet, Run]:
    """Trains on one fold and tests on the people held out, on windows that overlap by half."""
    began = time.perf_counter()
    parts = fold(recordings, index)
    model = train(method, recordings, parts.train, seed, budget)
    counts = confusion(model, cut(recordings, parts.test, WINDOW // 2), len(recordings.names))
    accuracy = (counts.trace() / counts.sum()).item()
    seconds = time.perf_counter() - began
    return model, Run(name, index, seed, accuracy, counts.tolist(), seconds)
