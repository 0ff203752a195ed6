"""Synthetic streams that observe one hidden signal, each differently, and the best guess of it.

The hidden signal z is normal and independent at every step, except in the slow streams, so its
neighbours carry no information about a step: this compares fusion, not smoothing. A stream observes
z in one of its eight directions; the other seven are noise of the same size, and a rotation hides
which it is.

Shapes: n windows, L steps, K cases (such as the sign of a window), O observations, z hidden values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch
from torch import Generator, Tensor

CHANNELS = 8
STEPS = 60
NAMES = ("faint", "strong", "third")


@dataclass(frozen=True)
class Seen:
    """The observations of z, before they are hidden among channels.

    Attributes:
        target: z, (n, L).
        views: The observation of each stream, (n, L_i), at unit variance.
        best: The mean of z given all views of the window, (n, L).
        masks: The valid steps of each stream, (n, L_i); None if all are.
    """

    target: Tensor
    views: dict[str, Tensor]
    best: Tensor
    masks: dict[str, Tensor | None]


@dataclass(frozen=True)
class Windows:
    """Windows of streams.

    Attributes:
        streams: (n, L_i, 8) each, zero where missing.
        masks: (n, L_i) each, True = valid; None if all are.
        target: (n, L).
        best: The mean of the target given the streams, (n, L).
    """

    streams: dict[str, Tensor]
    masks: dict[str, Tensor | None]
    target: Tensor
    best: Tensor

    def part(self, rows: Tensor) -> "Windows":
        """Takes some of the windows."""
        return Windows(
            {name: stream[rows] for name, stream in self.streams.items()},
            {name: None if mask is None else mask[rows] for name, mask in self.masks.items()},
            self.target[rows],
            self.best[rows],
        )


Draw: TypeAlias = Callable[[int, Generator], Seen]


@dataclass(frozen=True)
class Relation:
    """How the streams go together.

    Attributes:
        title: What a table calls it.
        draw: Draws windows.
        varies: Whether the relation between the streams differs from window to window.
        lengths: Steps of each stream in a window.
        memory: Correlation of neighbouring steps of the noise.
        narrow: Whether only the main methods are run: long windows take long.
    """

    title: str
    draw: Draw
    varies: bool = False
    lengths: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, STEPS))
    memory: float = 0.0
    narrow: bool = False

    @property
    def steps(self) -> int:
        """Steps of the target."""
        return max(self.lengths.values())

    def windows(self, count: int, world: int, draw: int) -> Windows:
        """Draws windows.

        Args:
            count: How many.
            world: Seed of what is the same in all windows: the rotation of each stream.
            draw: Seed of the windows.
        """
        generator = Generator().manual_seed(draw)
        seen = self.draw(count, generator)
        fixed = Generator().manual_seed(world)
        streams = {}
        for name, view in seen.views.items():
            noise = normal(*view.shape, CHANNELS - 1, memory=self.memory, generator=generator)
            rotation = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=fixed)).Q
            stream = torch.cat([view[..., None], noise], dim=-1) @ rotation
            mask = seen.masks[name]
            streams[name] = stream if mask is None else stream * mask[..., None]
        return Windows(streams, seen.masks, seen.target, seen.best)

    def samples(self, seed: int, train: int, test: int) -> tuple[Windows, Windows]:
        """Draws windows to learn from and new ones to test on, of one world."""
        return self.windows(train, seed, 2 * seed), self.windows(test, seed, 2 * seed + 1)


def normal(*shape: int, memory: float = 0.0, generator: Generator) -> Tensor:
    """Draws a stationary normal process over the second dimension, at unit variance.

    Args:
        shape: (n, L, ...).
        memory: Correlation of neighbouring steps; 0 draws independent ones.
        generator: Of the numbers.
    """
    fresh = torch.randn(*shape, generator=generator)
    if not memory:
        return fresh
    now, steps = fresh[:, 0], [fresh[:, 0]]
    for step in fresh[:, 1:].unbind(dim=1):
        now = memory * now + (1 - memory**2) ** 0.5 * step
        steps.append(now)
    return torch.stack(steps, dim=1)


def guesses(views: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
    """Guesses hidden values in each case: the exact posterior of a linear Gaussian model.

    Args:
        views: (..., O), each of unit variance: gains times z, and noise.
        gains: (..., K, O, z), what each view has of each hidden value, in each case.

    Returns:
        The log-likelihood of each case, (..., K), and the mean of z, (..., K, z).
    """
    variance = 1 - gains.square().sum(dim=-1)  # of the noise
    weight = gains / variance[..., None]
    precision = torch.eye(gains.shape[-1]) + gains.mT @ weight
    told = (weight * views[..., None, :, None]).sum(dim=-2)
    mean = (torch.linalg.inv(precision) @ told[..., None])[..., 0]
    surprise = (views[..., None, :].square() / variance + variance.log()).sum(dim=-1)
    return ((told * mean).sum(dim=-1) - torch.logdet(precision) - surprise) / 2, mean


def noisy(
    signal: Tensor, gain: float | Tensor, generator: Generator, memory: float = 0.0
) -> Tensor:
    """Adds noise to a signal of unit variance, at unit variance."""
    gains = torch.as_tensor(gain)
    noise = normal(*signal.shape, memory=memory, generator=generator)
    return gains * signal + (1 - gains.square()).sqrt() * noise


def signs(*shape: int, generator: Generator) -> Tensor:
    """Draws -1 or 1."""
    return 2.0 * torch.randint(2, shape, generator=generator) - 1


def _seen(z: Tensor, views: tuple[Tensor, ...], best: Tensor, strong: Tensor | None = None) -> Seen:
    masks = {name: strong if name == "strong" else None for name in NAMES}
    return Seen(z, dict(zip(NAMES, views, strict=True)), best, masks)


def same(count: int, generator: Generator) -> Seen:
    """Every stream observes z with the same gain in every window."""
    z = torch.randn(count, STEPS, generator=generator)
    gains = (0.5, 0.7, 0.6)
    views = tuple(noisy(z, gain, generator) for gain in gains)
    _, mean = guesses(torch.stack(views, dim=-1), torch.tensor(gains)[None, :, None])
    return _seen(z, views, mean[..., 0, 0])


def missing(count: int, generator: Generator) -> Seen:
    """The same everywhere, but the strong stream misses a third of the windows, and bursts.

    A burst is a sixth of a window; one in two of the other windows has one.
    """
    z = torch.randn(count, STEPS, generator=generator)
    gains = (0.5, 0.9, 0.6)
    views = tuple(noisy(z, gain, generator) for gain in gains)
    lot = torch.rand(count, 1, generator=generator)
    burst = STEPS // 6
    start = torch.randint(STEPS - burst, (count, 1), generator=generator)
    since = torch.arange(STEPS) - start
    valid = (lot > 1 / 3) & ~((lot < 2 / 3) & (since >= 0) & (since < burst))
    there = torch.stack([torch.ones_like(z), valid.float(), torch.ones_like(z)], dim=-1)
    cases = (torch.tensor(gains) * there)[..., None, :, None]
    _, mean = guesses(torch.stack(views, dim=-1) * there, cases)
    return _seen(z, views, mean[..., 0, 0], valid)


def sign_of_window(count: int, generator: Generator, steps: int = STEPS) -> Seen:
    """The strong stream's sign is drawn for each window; the third observes z one step in five."""
    z = torch.randn(count, steps, generator=generator)
    often = 0.2
    now = (torch.rand(z.shape, generator=generator) < often).float()
    gains = (0.45, 0.95, 0.9)
    sign = signs(count, 1, generator=generator)
    views = (
        noisy(z, gains[0], generator),
        noisy(sign * z, gains[1], generator),
        noisy(z, gains[2] * now, generator),
    )
    cases = [[gains[0], s * gains[1], on * gains[2]] for s in (-1, 1) for on in (0, 1)]
    likelihood, mean = guesses(torch.stack(views, dim=-1), torch.tensor(cases)[..., None])
    joint = likelihood.unflatten(-1, (2, 2)) + torch.tensor([1 - often, often]).log()
    of_sign = joint.logsumexp(dim=-1).sum(dim=1, keepdim=True).softmax(dim=-1)  # (n, 1, 2)
    share = of_sign[..., None] * joint.softmax(dim=-1)
    best = (share * mean[..., 0].unflatten(-1, (2, 2))).sum(dim=(-2, -1))
    return _seen(z, views, best)


MEMORY = 0.9


def slow_sign(count: int, generator: Generator) -> Seen:
    """The strong stream's sign is drawn for each window; z and all noise change slowly.

    All have the same memory, so the mean of z given the streams and a sign depends on the step
    alone; the evidence on the sign is that of the innovations, which are independent.
    """
    z = normal(count, STEPS, memory=MEMORY, generator=generator)
    gains = (0.45, 0.95, 0.3)
    sign = signs(count, 1, generator=generator)
    signals = (z, sign * z, z)
    views = tuple(
        noisy(signal, gain, generator, MEMORY) for signal, gain in zip(signals, gains, strict=True)
    )
    seen = torch.stack(views, dim=-1)
    fresh = (seen[:, 1:] - MEMORY * seen[:, :-1]) / (1 - MEMORY**2) ** 0.5
    innovations = torch.cat([seen[:, :1], fresh], dim=1)
    cases = torch.tensor([[gains[0], s * gains[1], gains[2]] for s in (-1, 1)])[..., None]
    likelihood, _ = guesses(innovations, cases)
    of_sign = likelihood.sum(dim=1, keepdim=True).softmax(dim=-1)
    _, mean = guesses(seen, cases)
    return _seen(z, views, (of_sign * mean[..., 0]).sum(dim=-1))


def negated(count: int, generator: Generator) -> Seen:
    """The strong stream's sign flips now and then within a window; the third indicates the sign."""
    z = torch.randn(count, STEPS, generator=generator)
    flip = 1 / 20
    turns = torch.rand(count, STEPS - 1, generator=generator) < flip
    first = signs(count, 1, generator=generator)
    sign = torch.cat([first, first * (1 - 2.0 * turns).cumprod(dim=1)], dim=1)
    gains, cue = (0.45, 0.95), 0.9
    views = (
        noisy(z, gains[0], generator),
        noisy(sign * z, gains[1], generator),
        noisy(sign, cue, generator),
    )
    either = torch.tensor([-1.0, 1.0])
    cases = torch.tensor([[gains[0], s * gains[1]] for s in (-1, 1)])[..., None]
    likelihood, mean = guesses(torch.stack(views[:2], dim=-1), cases)
    likelihood = likelihood - (views[2][..., None] - cue * either).square() / (2 * (1 - cue**2))
    best = (smoothed(likelihood, flip) * mean[..., 0]).sum(dim=-1)
    return _seen(z, views, best)


def smoothed(likelihood: Tensor, flip: float) -> Tensor:
    """Computes the probability of each of two states of a Markov chain, given all steps.

    Args:
        likelihood: Log-likelihood of each state, (n, L, 2).
        flip: Probability of the other state at the next step.

    Returns:
        The probabilities, (n, L, 2).
    """
    chain = torch.tensor([[1 - flip, flip], [flip, 1 - flip]])

    def past(told: Tensor) -> Tensor:
        """The log-probability of the state given the steps before, up to a constant."""
        belief, beliefs = torch.zeros(len(told), 2), []
        for step in told.unbind(dim=1):
            beliefs.append(belief)
            belief = ((belief + step).softmax(dim=-1) @ chain).log()
        return torch.stack(beliefs, dim=1)

    return (likelihood + past(likelihood) + past(likelihood.flip(1)).flip(1)).softmax(dim=-1)


LENGTHS = (STEPS // 2, STEPS, STEPS // 4)


def different_lengths(count: int, generator: Generator) -> Seen:
    """As the sign of a window, but the streams run at different rates.

    The faint stream observes the mean of two steps, the third that of four.
    """
    block = STEPS // LENGTHS[2]
    z = torch.randn(count, STEPS, generator=generator)
    sign = signs(count, 1, generator=generator)
    gains = (0.45, 0.95, 0.5)
    views = tuple(
        noisy(
            signal.unflatten(1, (steps, -1)).sum(dim=-1) * (steps / STEPS) ** 0.5, gain, generator
        )
        for signal, steps, gain in zip((z, sign * z, z), LENGTHS, gains, strict=True)
    )
    rows = [
        gain
        * (steps / STEPS) ** 0.5
        * torch.eye(steps * block // STEPS).repeat_interleave(STEPS // steps, dim=1)
        for steps, gain in zip(LENGTHS, gains, strict=True)
    ]
    cases = torch.stack([torch.cat([rows[0], s * rows[1], rows[2]]) for s in (-1, 1)])
    parts = [view.unflatten(1, (LENGTHS[2], -1)) for view in views]
    likelihood, mean = guesses(torch.cat(parts, dim=-1), cases)
    of_sign = likelihood.sum(dim=1).softmax(dim=-1)
    best = (of_sign[:, None, :, None] * mean).sum(dim=2).flatten(1)
    return _seen(z, views, best)


RELATIONS: dict[str, Relation] = {
    "same": Relation("the same everywhere", same),
    "sign": Relation("sign drawn for each window", sign_of_window, varies=True),
    "negated": Relation("sign flips within a window, with a cue", negated),
    "missing": Relation("strong stream missing at random", missing),
    "lengths": Relation(
        "sign for each window, different lengths",
        different_lengths,
        varies=True,
        lengths=dict(zip(NAMES, LENGTHS, strict=True)),
    ),
    "slow": Relation("sign for each window, slow streams", slow_sign, varies=True, memory=MEMORY),
    **{
        f"sign-{steps}": Relation(
            f"sign for each window, {steps} steps",
            partial(sign_of_window, steps=steps),
            varies=True,
            lengths=dict.fromkeys(NAMES, steps),
            narrow=True,
        )
        for steps in (30, 300, 3000)
    },
}
