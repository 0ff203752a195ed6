"""The rows of the table: which modalities a network sees and how it fuses them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from crossfuse import (
    ConcatFusion,
    CrossAttention,
    CrossModalTransformer,
    JointCrossAttention,
    LeaderFollowerAttention,
    RecursiveCrossModalAttention,
)
from examples.affwild2.training.modalities import NAMES
from examples.affwild2.training.presets import Preset

Dims = dict[str, int]
Streams = Mapping[str, Tensor | None]
TRANSFORMER_WIDTH = 40
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


class EncoderLayer(nn.Module):
    """A rival from torch alone: one encoder layer on the concatenated features, (B, L, sum of d).

    Args:
        dims: Features of each modality.
        preset: Gives the dropout.
    """

    def __init__(self, dims: Dims, preset: Preset) -> None:
        super().__init__()
        self.join, width = ConcatFusion(dims), sum(dims.values())
        heads = next(heads for heads in (4, 3, 2, 1) if width % heads == 0)
        self.layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, preset.attention_dropout, batch_first=True, norm_first=True
        )

    def forward(self, features: Streams, mask: Streams | None = None) -> Tensor:
        joined: Tensor = self.join(features, mask)
        valid = joined.new_zeros(joined.shape[:2], dtype=torch.bool)
        for name, stream in features.items():
            if stream is not None:
                own = None if mask is None else mask.get(name)
                valid = valid | (torch.ones_like(valid) if own is None else own)
        # a window without any valid step would make the softmax NaN: it attends to all of its zeros
        hidden = ~valid & valid.any(1, keepdim=True)
        out: Tensor = self.layer(joined, src_key_padding_mask=hidden)
        return out * valid[..., None]


def _transformer(dims: Dims, preset: Preset) -> nn.Module:
    return CrossModalTransformer(dims, TRANSFORMER_WIDTH, dropout=preset.attention_dropout)


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
    form: Literal["stable", "released"] | None = None,
    *,
    joint: Literal["all", "others"] | None = None,
    any_length: bool = False,
) -> FusionFactory:
    def make(dims: Dims, preset: Preset) -> nn.Module:
        return RecursiveCrossModalAttention(
            dims,
            None if any_length else preset.window,
            preset.recursions,
            joint=preset.joint if joint is None else joint,
            dropout=preset.attention_dropout,
            form=preset.form if form is None else form,
        )

    return make


METHODS: dict[str, Method] = {
    **{name: Method(f"{name} alone", _concat, (name,)) for name in NAMES},
    "concatenation": Method("concatenation", _concat),
    "encoder-layer": Method("one Transformer encoder layer on the concatenation", EncoderLayer),
    "transformer": Method("cross-modal Transformer (as MulT)", _transformer),
    "leader-follower": Method("leader-follower, the face leads", _leader),
    "cross-attention": Method("cross-attention", _cross),
    "jca": Method("JCA as published", _jca(stable=False)),
    "jca-stable": Method('JCA, form="stable"', _jca(stable=True)),
    "rcma": Method("RCMA as published, joint of the others", _rcma()),
    "rcma-all": Method("RCMA as published, joint of all", _rcma(joint="all")),
    "rcma-released": Method("RCMA as released, joint of the others", _rcma("released")),
    "rcma-stable": Method(
        'RCMA, form="stable", joint="others"', _rcma("stable", joint="others", any_length=True)
    ),
    "rcma-stable-all": Method(
        'RCMA, form="stable", joint="all"', _rcma("stable", joint="all", any_length=True)
    ),
    "rcma-stable-T": Method(
        'RCMA, form="stable", joint="others", length=300', _rcma("stable", joint="others")
    ),
}
AVERAGE = "average"
# What the library recommends where the relation between streams differs from person to person.
RECOMMENDED = "rcma-stable-all"
SHUFFLED = f"{RECOMMENDED}-shuffled"
RELEASED = "rcma-released"  # what rcma is with the authors' preset
TITLES = {name: method.title for name, method in METHODS.items()} | {
    AVERAGE: "mean of the single predictions",
    SHUFFLED: 'RCMA, form="stable", joint="all"; all modalities but the first of another trial',
}
SINGLE = NAMES


def title_of(name: str, preset: Preset) -> str:
    """What the table calls a row; the authors' preset has RCMA as released, not as published."""
    title = TITLES.get(name, f"{name} alone")  # own features
    released = preset.form == "released" and name.startswith("rcma")
    return title.replace("as published", "as released") if released else title


def find_method(name: str, own: tuple[str, ...] = ()) -> Method:
    """Looks a method up; the name of own features is the method that sees them alone.

    Raises:
        ValueError: There is none; the message lists the names.
    """
    if name in own:
        return Method(f"{name} alone", _concat, (name,))
    if name not in METHODS:
        raise ValueError(f"method {name!r}: there are {', '.join((*METHODS, *own))}")
    return METHODS[name]
