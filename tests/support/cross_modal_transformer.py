"""Drawn cases of CrossModalTransformer, with the layer and its twin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from hypothesis import strategies as st

from crossfuse import CrossModalTransformer
from tests.support import properties, reference
from tests.support.strategies import Streams, filled, plain, streams

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """Inputs, and how the layer is built for them."""

    streams: Streams
    width: int = 4
    heads: int = 2
    depth: int = 1

    def layer(
        self, dtype: torch.dtype = F64, *, order: list[int] | None = None
    ) -> CrossModalTransformer:
        dims = self.streams.layer_dims if order is None else self.streams.declared(order)
        layer = CrossModalTransformer(
            dims, self.width, heads=self.heads, depth=self.depth, dtype=dtype
        )
        return filled(layer, self.streams.seed if order is None else -1)

    @property
    def twin(self) -> properties.Twin:
        return partial(
            reference.cross_modal_transformer,
            dims=self.streams.by_name,
            heads=self.heads,
            depth=self.depth,
        )


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    most: int = 3,
    named: bool | None = None,
    batch: tuple[int, int] = (0, 2),
    masks: bool = True,
    missing: bool = True,
) -> Case:
    """Streams of different lengths."""
    drawn = draw(
        streams(
            most=most,
            named=named,
            batch=batch,
            steps=(1, 6),
            masks=masks,
            missing=missing,
            aligned=False,
        )
    )
    width, heads = draw(st.sampled_from([(4, 2), (3, 1), (6, 3), (2, 2)]), label="width, heads")
    return Case(drawn, width, heads)


def uneven(dims: tuple[int, ...] = (2, 3), batch: int = 2, length: int = 4) -> Streams:
    """Named streams without masks or gaps, the second twice as long."""
    lengths = (length, 2 * length, length + 1)[: len(dims)]
    return replace(plain(dims, batch), lengths=lengths)
