"""Drawn cases of JointCrossAttention, with the layer and its twin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from hypothesis import strategies as st

from crossfuse import JointCrossAttention
from tests.support import properties, reference
from tests.support.strategies import DARK, Streams, filled, plain, streams

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """Inputs, and how the layer for them is built."""

    streams: Streams
    spare: int = 0  # how much longer than the inputs the layer's windows are
    width: int = 4
    form: Literal["stable", "paper"] = "paper"
    gate: bool = False
    recursions: int = 1

    def layer(self, dtype: torch.dtype = F64, *, dropout: float = 0.0) -> JointCrossAttention:
        layer = JointCrossAttention(
            self.streams.layer_dims,
            self.streams.length + self.spare,
            self.width,
            form=self.form,
            recursions=self.recursions,
            gate=self.gate,
            dropout=dropout,
            dtype=dtype,
        )
        return filled(layer, self.streams.seed)

    @property
    def twin(self) -> properties.Twin:
        return partial(
            reference.joint_cross_attention,
            dims=self.streams.by_name,
            recursions=self.recursions,
            gate=self.gate,
        )


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    spare: int = 0,
    least: int = 1,
    most: int = 5,
    named: bool | None = None,
    batch: tuple[int, int] = (0, 3),
) -> Case:
    drawn = draw(streams(least=least, most=most, named=named, batch=batch))
    return Case(
        drawn,
        spare + draw(st.integers(0, 2)),
        draw(st.sampled_from([1, 4, 13])),
        draw(st.sampled_from(["stable", "paper"])),
        draw(st.booleans()),
        draw(st.integers(1, 2)),
    )


# The edges: one step, an empty batch, one modality, everything masked.
ONE_STEP = Case(plain(length=1))
NO_SAMPLES = Case(plain(batch=0))
ONE_MODALITY = Case(plain(dims=(3,)))
ALL_MASKED = Case(DARK)
