"""The methods that watch and phone compare: sensors and fusion of each, none tuned by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from torch import nn

from crossfuse import (
    CrossAttention,
    CrossModalTransformer,
    JointCrossAttention,
    LeaderFollowerAttention,
    RecursiveCrossModalAttention,
)
from examples.common.candidates import CANDIDATES, Candidate
from examples.common.fusions import Concatenation, EncoderLayer, LowRankFusion, ModalityTokens
from examples.common.recordings import SENSORS, WINDOW

Dims: TypeAlias = dict[str, int]


@dataclass(frozen=True)
class Method:
    """The sensors of a network and how it fuses them.

    Attributes:
        title: What a table calls it.
        fusion: Makes the fusion for the widths of the encoded sensors.
        sensors: The sensors.
        early: Whether one encoder sees the sensors joined.
        any_length: Whether windows may be longer than those that it is trained on.
    """

    title: str
    fusion: Callable[[Dims], nn.Module] = lambda dims: Concatenation()
    sensors: tuple[str, ...] = tuple(SENSORS)
    early: bool = False
    any_length: bool = True


BASELINE = "concatenation"
MAIN = (BASELINE, "encoder", "transformer", "rcma")  # run first, at all seeds
METHODS: dict[str, Method] = {
    "accelerometer": Method("accelerometer alone", sensors=("accelerometer",)),
    "gyroscope": Method("gyroscope alone", sensors=("gyroscope",)),
    BASELINE: Method("concatenation"),
    "early": Method("early fusion, one TCN", early=True),
    "lmf": Method("low-rank fusion (LMF)", LowRankFusion),
    "encoder": Method("encoder layer on the concatenation", EncoderLayer),
    "tokens": Method("modality tokens per step", ModalityTokens),
    "transformer": Method(
        "CrossModalTransformer", lambda dims: CrossModalTransformer(dims, max(dims.values()))
    ),
    "cross": Method("CrossAttention", CrossAttention),
    "leader": Method(
        "LeaderFollower, accelerometer leads",
        lambda dims: LeaderFollowerAttention(dims, leader="accelerometer"),
    ),
    "jca-paper": Method(
        "JCA, paper's form",
        lambda dims: JointCrossAttention(dims, WINDOW, form="paper"),
        any_length=False,
    ),
    "jca": Method("JCA", lambda dims: JointCrossAttention(dims, WINDOW), any_length=False),
    "rcma-paper": Method(
        "RCMA, paper's form",
        lambda dims: RecursiveCrossModalAttention(dims, WINDOW, form="paper"),
        any_length=False,
    ),
    "rcma": Method("RCMA", RecursiveCrossModalAttention),
}
COMPARED = tuple(METHODS)
METHODS |= {
    name: Method(f"candidate: {title}", partial(Candidate, options=options))
    for name, (title, options) in CANDIDATES.items()
}
METHODS |= {
    "identity-start": Method(
        "candidate: T from the identity",
        lambda dims: RecursiveCrossModalAttention(dims, WINDOW),
        any_length=False,
    ),
    "random-start": Method(
        "candidate: T from a random start",
        lambda dims: RecursiveCrossModalAttention(dims, WINDOW, temporal_init="xavier"),
        any_length=False,
    ),
}
