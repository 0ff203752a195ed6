"""The rows of the table: which modalities a network sees and how it fuses them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from crossfuse import (
    ConcatFusion,
    CrossAttention,
    JointCrossAttention,
    LeaderFollowerAttention,
    RecursiveCrossModalAttention,
)
from examples.affwild2.training.modalities import NAMES
from examples.affwild2.training.presets import Preset

Dims = dict[str, int]
FusionFactory = Callable[[Dims, Preset], nn.Module]


@dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        title: What the table calls it.
        fusion: Makes the fusion for the modalities' widths.
        modalities: What it sees.
    """

    title: str
    fusion: FusionFactory
    modalities: tuple[str, ...] = NAMES


def _concat(dims: Dims, preset: Preset) -> nn.Module:
    return ConcatFusion(dims)


def _leader(dims: Dims, preset: Preset) -> nn.Module:
    return LeaderFollowerAttention(dims, leader=next(iter(dims)))


def _cross(dims: Dims, preset: Preset) -> nn.Module:
    return CrossAttention(dims)


def _jca(*, stable: bool) -> FusionFactory:
    def make(dims: Dims, preset: Preset) -> nn.Module:
        return JointCrossAttention(
            dims,
            preset.window,
            form="stable" if stable else "paper",
            dropout=preset.attention_dropout,
        )

    return make


def _rcma(
    *, stable: bool = False, joint: Literal["all", "others"] | None = None, any_length: bool = False
) -> FusionFactory:
    def make(dims: Dims, preset: Preset) -> nn.Module:
        released = preset.form == "released" and not stable and not any_length
        return RecursiveCrossModalAttention(
            dims,
            None if any_length else preset.window,
            preset.recursions,
            joint=preset.joint if joint is None else joint,
            dropout=preset.attention_dropout,
            form="stable" if stable else "released" if released else "paper",
        )

    return make


METHODS: dict[str, Method] = {
    **{name: Method(f"{name} alone", _concat, (name,)) for name in NAMES},
    "concatenation": Method("concatenation", _concat),
    "leader-follower": Method("leader-follower, the face leads", _leader),
    "cross-attention": Method("cross-attention", _cross),
    "jca": Method("JCA as published", _jca(stable=False)),
    "jca-stable": Method("JCA, stable", _jca(stable=True)),
    "rcma": Method("RCMA as published, joint of the others", _rcma()),
    "rcma-all": Method("RCMA as published, joint of all", _rcma(joint="all")),
    "rcma-stable": Method(
        "RCMA, stable, joint of the others", _rcma(stable=True, joint="others", any_length=True)
    ),
    "rcma-stable-all": Method(
        "RCMA, stable, joint of all", _rcma(stable=True, joint="all", any_length=True)
    ),
    "rcma-stable-T": Method(
        "RCMA, stable, with T (length=300)", _rcma(stable=True, joint="others")
    ),
}
AVERAGE = "average"
# What the library recommends where the relation between streams differs from person to person.
RECOMMENDED = "rcma-stable-all"
SHUFFLED = f"{RECOMMENDED}-shuffled"
TITLES = {name: method.title for name, method in METHODS.items()} | {
    AVERAGE: "mean of the three single predictions",
    SHUFFLED: "RCMA, stable, joint of all; faces with another's voice and words",
}
SINGLE = NAMES


def title_of(name: str, preset: Preset) -> str:
    """What the table calls a row; the authors' preset has RCMA as released, not as published."""
    released = preset.form == "released" and name.startswith("rcma")
    return TITLES[name].replace("as published", "as released") if released else TITLES[name]


def find_method(name: str) -> Method:
    """Looks a method up; raises ValueError with the names there are."""
    if name not in METHODS:
        raise ValueError(f"method {name!r}: there are {', '.join(METHODS)}")
    return METHODS[name]
