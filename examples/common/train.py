"""Trains and tests one network on one fold of a data set."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.common.methods import METHODS
from examples.common.network import SensorNet
from examples.common.recordings import (
    WINDOW,
    Fold,
    Recordings,
    Windows,
    around,
    cut,
    fold,
    middles,
    moments,
)

LENGTHS = {"half": WINDOW // 2, "twice": 2 * WINDOW}  # of windows that are tested on as well
AT_ONCE = 512  # windows of a batch in testing


@dataclass(frozen=True)
class Budget:
    """The training budget of every method.

    Attributes:
        epochs: Passes over the training recordings.
        batch: Windows of a batch.
        rate: The highest learning rate; it rises over the first tenth and falls to zero.
        decay: Weight decay of AdamW.
        dropout: Before the classifier.
        shortest: Steps of the shortest windows to train on. Each batch draws its length, evenly on
            a logarithmic scale: from half to twice a length, half of the batches are below it.
        longest: Steps of the longest.
    """

    epochs: int = 15
    batch: int = 32
    rate: float = 4e-3
    decay: float = 1e-2
    dropout: float = 0.2
    shortest: int = WINDOW
    longest: int = WINDOW

    def rate_at(self, epoch: float) -> float:
        """The learning rate at this (part of an) epoch."""
        done = epoch / self.epochs
        return self.rate * min(1.0, 10 * done) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class DataSet:
    """Recordings, the people held out in each fold, and how they are cut into windows.

    Attributes:
        title: What is classified.
        package: The installed package that ships the recordings.
        load: Reads them.
        held_out: The people of each fold; all others of these are trained on.
        hop: Steps between the starts of windows to train on, which are cut again in each epoch.
        test_hop: Steps between the starts of windows to test on.
        epochs: Passes over the training recordings.
    """

    title: str
    package: str
    load: Callable[[], Recordings]
    held_out: tuple[tuple[int, ...], ...]
    hop: int
    test_hop: int
    epochs: int

    def fold(self, recordings: Recordings, index: int) -> Fold:
        """Divides the recordings."""
        people = {person for part in self.held_out for person in part}
        return fold(recordings, people, self.held_out[index])


@dataclass(frozen=True)
class Run:
    """The results of one network on held-out subjects.

    Attributes:
        method: A key of METHODS.
        fold: Which people were held out.
        seed: Of the initialisation and the training.
        confusion: Windows of class (row) classified as class (column).
        half: Accuracy on windows of half of WINDOW steps; None where it does not apply.
        twice: Accuracy on windows of twice as many.
        parameters: Of the network.
        step_ms: Milliseconds of processor time for each training step.
    """

    method: str
    fold: int
    seed: int
    confusion: list[list[int]]
    half: float | None
    twice: float | None
    parameters: int
    step_ms: float

    @cached_property
    def accuracy(self) -> float:
        """Share of the windows that are classified correctly."""
        right = sum(row[k] for k, row in enumerate(self.confusion))
        return right / sum(map(sum, self.confusion))

    @cached_property
    def recalls(self) -> list[float]:
        """Share of each class's windows that are classified correctly; NaN if there are none."""
        return [row[k] / sum(row) if any(row) else math.nan for k, row in enumerate(self.confusion)]

    @property
    def balanced(self) -> float:
        """Mean of the recalls of the classes that the people tested on have."""
        known = [recall for recall in self.recalls if not math.isnan(recall)]
        return sum(known) / len(known)


class Course:
    """The batches to train on: windows around other steps in each epoch, of other lengths.

    Args:
        data: The data set.
        recordings: Its recordings.
        members: Those to train on.
        budget: Sets the size of a batch and its lengths, on which the number of batches does not
            depend.
        seed: Of places, order and lengths.
    """

    def __init__(
        self,
        data: DataSet,
        recordings: Recordings,
        members: tuple[int, ...],
        budget: Budget,
        seed: int,
    ) -> None:
        self.data, self.recordings, self.members, self.budget = data, recordings, members, budget
        self.places = torch.Generator().manual_seed(seed)
        self.lengths = Random(seed)

    def epoch(self) -> list[Windows]:
        """Cuts the batches of the next epoch."""
        steps = middles(self.recordings, self.members, self.data.hop, generator=self.places)
        order = torch.randperm(len(steps), generator=self.places)
        parts = torch.split(steps[order], self.budget.batch)
        return [around(self.recordings, part, self._length()) for part in parts]

    def _length(self) -> int:
        shortest, longest = math.log(self.budget.shortest), math.log(self.budget.longest)
        return round(math.exp(self.lengths.uniform(shortest, longest)))


def train(
    model: SensorNet, data: DataSet, recordings: Recordings, parts: Fold, seed: int, budget: Budget
) -> float:
    """Trains a network on windows around other steps in each epoch; returns the ms per step."""
    course = Course(data, recordings, parts.train, budget, seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), budget.rate, weight_decay=budget.decay, fused=True
    )
    model.train()
    seconds, steps = 0.0, 0
    for epoch in range(budget.epochs):
        batches = course.epoch()
        began = time.process_time()
        for k, batch in enumerate(batches):
            optimiser.param_groups[0]["lr"] = budget.rate_at(epoch + k / len(batches))
            loss = cross_entropy(model(batch.streams), batch.labels)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        seconds, steps = seconds + time.process_time() - began, steps + len(batches)
    model.eval()
    return 1e3 * seconds / steps


@torch.no_grad()
def confusion(
    model: nn.Module, data: DataSet, recordings: Recordings, parts: Fold, window: int = WINDOW
) -> Tensor:
    """Counts (classes, classes): windows of class (row) classified as class (column)."""
    classes = len(recordings.names)
    windows = cut(recordings, parts.test, data.test_hop, window=window)
    found = [model(part.streams).argmax(dim=-1) for part in windows.batches(AT_ONCE)]
    pairs = windows.labels * classes + torch.cat(found)
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def run(
    name: str, data: DataSet, recordings: Recordings, index: int, seed: int, budget: Budget
) -> tuple[SensorNet, Run]:
    """Trains on one fold and tests on the people held out."""
    method, parts = METHODS[name], data.fold(recordings, index)
    torch.manual_seed(seed)
    model = SensorNet(method, len(recordings.names), dropout=budget.dropout)
    model.measure(*moments(recordings, parts.train))
    step_ms = train(model, data, recordings, parts, seed, budget)

    def accuracy(window: int) -> float:
        counts = confusion(model, data, recordings, parts, window)
        return (counts.trace() / counts.sum()).item()

    at = {key: accuracy(steps) if method.any_length else None for key, steps in LENGTHS.items()}
    counts = confusion(model, data, recordings, parts).tolist()
    size = sum(parameter.numel() for parameter in model.parameters())
    return model, Run(name, index, seed, counts, at["half"], at["twice"], size, step_ms)
