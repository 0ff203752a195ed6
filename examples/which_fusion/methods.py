"""The methods: each turns streams into features of each step, and the same head reads them.

Shapes: B batch, L steps of the target, L_i steps and 8 features of stream i, D features fused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from crossfuse import (
    CrossAttention,
    CrossModalTransformer,
    JointCrossAttention,
    LeaderFollowerAttention,
    RecursiveCrossModalAttention,
    TemporalConvNet,
)
from examples.common.candidates import CANDIDATES, Candidate, Options
from examples.common.fusions import Concatenation, EncoderLayer, LowRankFusion, ModalityTokens
from examples.which_fusion.streams import CHANNELS, NAMES, Relation, Windows

DIMS = dict.fromkeys(NAMES, CHANNELS)
HEADS = 2  # of each stream's 8 features
Streams: TypeAlias = Mapping[str, Tensor]
Masks: TypeAlias = Mapping[str, Tensor | None]


def resampled(x: Tensor, steps: int) -> Tensor:
    """Repeats the steps of x (B, l, ...) until there are ``steps`` of them."""
    return x if x.shape[1] == steps else x.repeat_interleave(steps // x.shape[1], dim=1)


class Alone(nn.Module):
    """Passes one stream on."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, streams: Streams, masks: Masks) -> Tensor:
        return streams[self.name]


class PairwiseAttention(nn.Module):
    """Adds to each stream its attention to each of the other streams, by torch's layer."""

    def __init__(self) -> None:
        super().__init__()
        pairs = [f"{one}-{other}" for one in NAMES for other in NAMES if other != one]
        # A step of zeros to attend to: attention to a wholly missing stream would be NaN.
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


class EarlyFusion(nn.Module):
    """Encodes the joined streams with one TCN."""

    def __init__(self) -> None:
        super().__init__()
        width = CHANNELS * len(NAMES)
        self.encoder = TemporalConvNet(width, (width, width))

    def forward(self, streams: Streams, masks: Masks) -> Tensor:
        encoded: Tensor = self.encoder(torch.cat([streams[name] for name in NAMES], dim=-1))
        return encoded


class Layer(nn.Module):
    """Runs a layer of crossfuse and concatenates its outputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, streams: Streams, masks: Masks) -> Tensor:
        fused = self.layer(streams, masks)
        if isinstance(fused, Tensor):
            return fused
        steps = max(x.shape[1] for x in fused.values())
        return torch.cat([resampled(fused[name], steps) for name in NAMES], dim=-1)


@dataclass(frozen=True)
class Method:
    """A fusion method.

    Attributes:
        title: What a table calls it.
        make: Makes the fusion for a relation.
        unaligned: Whether it takes streams of different lengths as they are; the others get them
            resampled to the longest.
        main: Whether it is run on narrow relations too.
        candidate: Whether it is a candidate for the stable form of RCMA: run only if it is named,
            and only if the relation varies. It takes no masks.
    """

    title: str
    make: Callable[[Relation], nn.Module]
    unaligned: bool = False
    main: bool = False
    candidate: bool = False


def _candidate(options: Options) -> Callable[[Relation], nn.Module]:
    return lambda _: Layer(Candidate(DIMS, options))


def _transformer(relation: Relation) -> nn.Module:
    return Layer(CrossModalTransformer(DIMS, CHANNELS, heads=HEADS))


METHODS: dict[str, Method] = {
    "concatenation": Method("concatenation", lambda _: Concatenation(), main=True),
    "early": Method("early fusion, one TCN", lambda _: EarlyFusion()),
    "lmf": Method("low-rank fusion (LMF)", lambda _: LowRankFusion(DIMS)),
    "pairwise": Method("pairwise nn.MultiheadAttention", lambda _: PairwiseAttention()),
    "self": Method(
        "encoder layer on the concatenation",
        lambda _: EncoderLayer(DIMS, heads=HEADS * len(NAMES)),
        main=True,
    ),
    "tokens": Method("modality tokens per step", lambda _: ModalityTokens(DIMS, heads=HEADS)),
    "transformer": Method("CrossModalTransformer", _transformer),
    "leader": Method(
        "LeaderFollower, strong leads",
        lambda _: Layer(LeaderFollowerAttention(DIMS, leader="strong")),
    ),
    "cross": Method("CrossAttention", lambda _: Layer(CrossAttention(DIMS))),
    "jca-paper": Method(
        "JCA, paper's form",
        lambda relation: Layer(JointCrossAttention(DIMS, relation.steps, form="paper")),
    ),
    "jca": Method("JCA", lambda relation: Layer(JointCrossAttention(DIMS, relation.steps))),
    "rcma-paper": Method(
        "RCMA, paper's form",
        lambda relation: Layer(RecursiveCrossModalAttention(DIMS, relation.steps, form="paper")),
    ),
    "rcma-paper-any": Method(
        "RCMA, paper's form, length=None",
        lambda _: Layer(RecursiveCrossModalAttention(DIMS, form="paper")),
        main=True,
    ),
    "rcma": Method("RCMA", lambda _: Layer(RecursiveCrossModalAttention(DIMS)), main=True),
    "transformer-unaligned": Method(
        "CrossModalTransformer, unaligned", _transformer, unaligned=True
    ),
    "rcma-unaligned": Method(
        "RCMA, unaligned",
        lambda relation: Layer(RecursiveCrossModalAttention(DIMS, relation.lengths)),
        unaligned=True,
    ),
}

COMPARED = tuple(METHODS)
METHODS |= {
    name: Method(f"candidate: {title}", _candidate(options), candidate=True)
    for name, (title, options) in CANDIDATES.items()
}
METHODS |= {
    "identity-start": Method(
        "candidate: T from the identity",
        lambda relation: Layer(RecursiveCrossModalAttention(DIMS, relation.steps)),
        candidate=True,
    ),
    "random-start": Method(
        "candidate: T from a random start",
        lambda relation: Layer(
            RecursiveCrossModalAttention(DIMS, relation.steps, temporal_init="xavier")
        ),
        candidate=True,
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
        fusion: Maps streams and masks to (B, L, D).
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
            steps = windows.target.shape[1]
            streams = {name: resampled(x, steps) for name, x in streams.items()}
        predicted: Tensor = self.head(self.fusion(streams, windows.masks))
        return predicted.squeeze(-1)


def applicable(method: Method, relation: Relation) -> bool:
    """Whether a method is run on a relation: unaligned layers need different lengths."""
    different = len(set(relation.lengths.values())) > 1
    aligned = different or not method.unaligned
    wanted = relation.varies or not method.candidate
    return aligned and wanted and (method.main or not relation.narrow)
