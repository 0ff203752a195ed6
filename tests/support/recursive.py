"""Drawn cases of RecursiveCrossModalAttention, with the layer and its twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
from hypothesis import strategies as st

from crossfuse import RecursiveCrossModalAttention
from tests.support import properties, reference
from tests.support.reference import Structure
from tests.support.strategies import DARK, Streams, filled, plain, streams

F64 = torch.float64
Form: TypeAlias = Literal["stable", "paper", "released"]
Joint: TypeAlias = Literal["all", "others"]


@dataclass(frozen=True)
class Case:
    """Inputs, and how the layer for them is built."""

    streams: Streams
    kind: str = "longest"  # what `length` is: "longest", "each" or "none"
    spare: int = 0  # how much longer than the inputs the layer's windows are
    recursions: int = 2
    joint: Joint = "others"
    share_weights: bool = False
    gate: bool = False
    form: Form = "paper"

    @property
    def length(self) -> int | dict[str, int] | list[int] | None:
        if self.kind == "none":
            return None
        if self.kind == "longest":
            return self.streams.length + self.spare
        each = [length + self.spare for length in self.streams.lengths]
        return dict(zip(self.streams.names, each, strict=True)) if self.streams.named else each

    def layer(
        self, dtype: torch.dtype = F64, *, checkpoint: bool = False, dropout: float = 0.0
    ) -> RecursiveCrossModalAttention:
        layer = RecursiveCrossModalAttention(
            self.streams.layer_dims,
            self.length,
            self.recursions,
            joint=self.joint,
            share_weights=self.share_weights,
            gate=self.gate,
            form=self.form,
            checkpoint=checkpoint,
            dropout=dropout,
            dtype=dtype,
        )
        return filled(layer, self.streams.seed)

    def redeclared(self, names: Sequence[str]) -> RecursiveCrossModalAttention:
        """The layer with its mappings written in another order."""
        dims, length = self.streams.by_name, self.length
        return RecursiveCrossModalAttention(
            {name: dims[name] for name in names},
            {name: length[name] for name in names} if isinstance(length, dict) else length,
            self.recursions,
            joint=self.joint,
            share_weights=self.share_weights,
            gate=self.gate,
            form=self.form,
            dtype=F64,
        )

    @property
    def twin(self) -> properties.Twin:
        length: reference.Length = None
        if self.kind == "each":
            each = [n + self.spare for n in self.streams.lengths]
            length = dict(zip(self.streams.names, each, strict=True))
        elif self.kind == "longest":
            length = self.streams.length + self.spare
        return partial(
            reference.recursive_cross_modal_attention,
            dims=self.streams.by_name,
            length=length,
            recursions=self.recursions,
            joint=self.joint,
            share_weights=self.share_weights,
            gate=self.gate,
            form=self.form,
        )


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    spare: int = 0,
    least: int | None = None,
    named: bool | None = None,
    masks: bool = True,
    missing: bool = True,
    batch: tuple[int, int] = (0, 3),
    most: int = 5,
) -> Case:
    form: Form = draw(st.sampled_from(get_args(Form)))
    kind = draw(st.sampled_from(["longest"] if form == "released" else ["longest", "none", "each"]))
    joint: Joint = draw(st.sampled_from(get_args(Joint)))
    few = least or (2 if joint == "others" else 1)
    drawn = draw(
        streams(
            least=few,
            most=most,
            aligned=kind != "each",
            named=named,
            masks=masks,
            missing=missing,
            batch=batch,
        )
    )
    return Case(
        drawn,
        kind,
        spare + draw(st.integers(0, 2)),
        draw(st.integers(1, 3)),
        joint,
        draw(st.booleans()),
        draw(st.booleans()),
        form,
    )


# The edges: one step, an empty batch, one modality, everything masked.
ONE_STEP = Case(plain(length=1))
NO_SAMPLES = Case(plain(batch=0))
ONE_MODALITY = Case(plain(dims=(3,)), joint="all")
ALL_MASKED = Case(DARK)
# Each modality of each sample has its own mask. Faults show most where a mask is counted (the layer
# without length) or combined with others (the released joint).
HOLES = Streams((2, 3, 5), 2, (5,) * 3, True, "each", ((3, 31), (9, 0), (16, 1)), frozenset(), 3)
COUNTED = Case(HOLES, "none")
COMBINED = Case(HOLES, form="released")


def is_the_input(outputs: Structure, inputs: Structure, mask: Structure) -> None:
    """Asserts that the outputs are the inputs, zero at invalid steps."""
    valid = properties.mask_of(inputs, mask)
    for place, y in properties.places(outputs).items():
        expected = properties.places(inputs)[place].masked_fill(~valid[place][..., None], 0)
        assert torch.equal(y, expected), f"{place} is not what came in"
