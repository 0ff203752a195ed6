"""The methods: each turns streams into features of each step, and the same head reads them.

Shapes: B batch, L steps of the target, L_i steps and 8 features of stream i, D features fused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from crossfuse import (
    CrossAttention,
    JointCrossAttention,
    LeaderFollowerAttention,
    RecursiveCrossModalAttention,
)
from examples.which_fusion.streams import CHANNELS, NAMES, STEPS, Relation, Windows

DIMS = dict.fromkeys(NAMES, CHANNELS)
HEADS = 2
Streams: TypeAlias = Mapping[str, Tensor]
Masks: TypeAlias = Mapping[str, Tensor | None]


def resampled(x: Tensor, steps: int) -> Tensor:
    """Repeats the steps of x (B, l, ...) until there are ``steps`` of them."""
    return x if x.shape[1] == steps else x.repeat_interleave(steps // x.shape[1], dim=1)


class Alone(nn.Module):
    """Looks at one stream."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, streams: Streams, masks: Masks) -> Tensor:
        return streams[self.name]


class Concatenation(nn.Module):
    """Puts the streams side by side."""

    def forward(self, streams: Streams, masks: Masks) -> Tensor:
        return torch.cat([streams[name] for name in NAMES], dim=-1)


class PairwiseAttention(nn.Module):
    """Adds to each stream what torch's own attention finds for it in each of the others."""

    def __init__(self) -> None:
        super().__init__()
        pairs = [f"{one}-{other}" for one in NAMES for other in NAMES if other != one]
        # A step of zeros to attend to keeps a wholly missing stream from giving NaN.
        self.pairs = nn.ModuleDict(
            {
                pair: nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True, add_zero_attn=True)
                for pair in pairs
            }
        )

    def forward(self, streams: Streams, masks: Masks) -> Tensor:
        fused = dict(streams)
        for pair, attention in self.pairs.items():
            one, other = pair.split("-")
            x, mask = streams[other], masks[other]
            padding = None if mask is None else ~mask
            found, _ = attention(streams[one], x, x, key_padding_mask=padding, need_weights=False)
            fused[one] = fused[one] + found
        return torch.cat([fused[name] for name in NAMES], dim=-1)


class SelfAttention(nn.Module):
    """Lets each step attend to all steps of the streams side by side: one layer of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        width = CHANNELS * len(NAMES)
        self.layer = nn.TransformerEncoderLayer(
            width, HEADS * len(NAMES), 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )

    def forward(self, streams: Streams, masks: Masks) -> Tensor:
        fused: Tensor = self.layer(torch.cat([streams[name] for name in NAMES], dim=-1))
        return fused


class Layer(nn.Module):
    """Runs a layer of crossfuse and puts its outputs side by side."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, streams: Streams, masks: Masks) -> Tensor:
        fused = self.layer(streams, masks)
        if isinstance(fused, Tensor):
            return fused
        return torch.cat([resampled(fused[name], STEPS) for name in NAMES], dim=-1)


Make: TypeAlias = Callable[[Relation], nn.Module]


@dataclass(frozen=True)
class Method:
    """A way of fusing.

    Attributes:
        title: What a table calls it.
        make: Makes the fusion for a relation.
        unaligned: Whether it takes streams of different lengths as they are; the others get them
            resampled to the longest.
    """

    title: str
    make: Make
    unaligned: bool = False


def _rcma(
    *, length: int | None = STEPS, joint: Literal["all", "others"] = "others", stable: bool
) -> Make:
    return lambda relation: Layer(
        RecursiveCrossModalAttention(
            DIMS, length, form="stable" if stable else "paper", joint=joint
        )
    )


def _unaligned(*, stable: bool) -> Make:
    return lambda relation: Layer(
        RecursiveCrossModalAttention(
            DIMS, relation.lengths, form="stable" if stable else "paper", joint="others"
        )
    )


def from_identity(make: Make) -> Make:
    """Starts each T of a recursive attention where equal moments meet."""

    def made(relation: Relation) -> nn.Module:
        fusion = make(relation)
        with torch.no_grad():
            for name, weight in fusion.named_parameters():
                if name.endswith("temporal"):
                    weight.copy_(_same_moments(name.split(".")[-2], weight, relation))
        return fusion

    return made


def _same_moments(name: str, weight: Tensor, relation: Relation) -> Tensor:
    """Makes the T of a stream with ones where a step of a row lies in a step of a column."""
    rows, columns = weight.shape
    if rows == columns:
        return torch.eye(rows)
    others = [steps for other, steps in relation.lengths.items() if other != name]
    return torch.cat([_overlaps(rows, steps) for steps in others], dim=1)


def _overlaps(rows: int, columns: int) -> Tensor:
    """The mean over a row's steps of being in each column's, (rows, columns)."""
    finest = torch.eye(max(rows, columns)).unflatten(0, (rows, -1)).mean(dim=1)
    blocks: Tensor = finest.unflatten(1, (columns, -1))
    return blocks.sum(dim=-1)


METHODS: dict[str, Method] = {
    "concatenation": Method("concatenation", lambda _: Concatenation()),
    "pairwise": Method("pairwise nn.MultiheadAttention", lambda _: PairwiseAttention()),
    "self": Method("self-attention on the concatenation", lambda _: SelfAttention()),
    "leader": Method(
        "leader-follower (strong leads)",
        lambda _: Layer(LeaderFollowerAttention(DIMS, leader="strong")),
    ),
    "cross": Method("cross-attention", lambda _: Layer(CrossAttention(DIMS))),
    "jca": Method("JCA", lambda _: Layer(JointCrossAttention(DIMS, STEPS, form="paper"))),
    "jca-stable": Method("JCA, stable", lambda _: Layer(JointCrossAttention(DIMS, STEPS))),
    "rcma": Method("RCMA", _rcma(stable=False)),
    "rcma-all": Method("RCMA, joint of all", _rcma(joint="all", stable=False)),
    "rcma-any": Method("RCMA, length=None", _rcma(length=None, stable=False)),
    "rcma-stable": Method("RCMA, stable", _rcma(stable=True)),
    "rcma-stable-all": Method("RCMA, stable, joint of all", _rcma(joint="all", stable=True)),
    "rcma-stable-identity": Method(
        "RCMA, stable, T from identity", from_identity(_rcma(stable=True))
    ),
    "rcma-stable-any": Method("RCMA, stable, length=None", _rcma(length=None, stable=True)),
    "rcma-stable-any-all": Method(
        "RCMA, stable, length=None, joint of all", _rcma(length=None, joint="all", stable=True)
    ),
    "rcma-unaligned": Method("RCMA, unaligned", _unaligned(stable=False), unaligned=True),
    "rcma-stable-unaligned": Method(
        "RCMA, stable, unaligned", _unaligned(stable=True), unaligned=True
    ),
    "rcma-stable-unaligned-identity": Method(
        "RCMA, stable, unaligned, T from identity",
        from_identity(_unaligned(stable=True)),
        unaligned=True,
    ),
}

TITLES: dict[str, str] = {
    **{name: f"{name} stream alone" for name in NAMES},
    "average": "mean of the three predictions",
    **{name: method.title for name, method in METHODS.items()},
}


class Net(nn.Module):
    """A fusion, and the head that all methods share.

    Args:
        fusion: Streams and masks in, (B, L, D) out.
        width: Of the head's two hidden layers.
        dropout: After each of them.
        unaligned: Whether the fusion takes streams of different lengths as they are.
    """

    def __init__(
        self, fusion: nn.Module, *, width: int, dropout: float, unaligned: bool = False
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.unaligned = unaligned
        self.head = nn.Sequential(
            nn.LazyLinear(width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, 1),
        )

    def forward(self, windows: Windows) -> Tensor:
        """Predicts the target, (B, L)."""
        streams = windows.streams
        if not self.unaligned:
            streams = {name: resampled(x, STEPS) for name, x in streams.items()}
        predicted: Tensor = self.head(self.fusion(streams, windows.masks))
        return predicted.squeeze(-1)


def applicable(method: Method, relation: Relation) -> bool:
    """Whether a method has something to do: unaligned layers need different lengths."""
    return not method.unaligned or len(set(relation.lengths.values())) > 1
