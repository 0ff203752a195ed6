"""Drawn cases of TemporalConvNet, with the net and its twin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from crossfuse import TemporalConvNet
from tests.support import reference
from tests.support.strategies import filled

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """One stream, and the net for it."""

    dim: int = 3
    widths: tuple[int, ...] = (5, 5, 2)
    kernel_size: int = 3
    causal: bool = True
    batch: int = 2
    length: int = 7
    invalid: tuple[int, ...] | None = None  # per sample, a bit set of invalid steps
    seed: int = 0

    def net(self, dtype: torch.dtype = F64) -> TemporalConvNet:
        net = TemporalConvNet(
            self.dim,
            self.widths,
            kernel_size=self.kernel_size,
            causal=self.causal,
            dtype=dtype,
        )
        return filled(net, self.seed)

    def x(self, dtype: torch.dtype = F64) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        shape = self.batch, self.length, self.dim
        return torch.randn(shape, generator=generator, dtype=F64).to(dtype)

    def mask(self) -> Tensor | None:
        if self.invalid is None:
            return None
        rows = [[not (bits >> t) & 1 for t in range(self.length)] for bits in self.invalid]
        return torch.tensor(rows, dtype=torch.bool).reshape(self.batch, self.length)

    def twin(self, state: dict[str, Tensor], x: Tensor, mask: Tensor | None) -> Tensor:
        blocks = []
        for k in range(len(self.widths)):
            head = f"blocks.{k}"
            first, second = (
                reference.weight_norm(
                    state[f"{head}.{conv}.parametrizations.weight.original0"],
                    state[f"{head}.{conv}.parametrizations.weight.original1"],
                )
                for conv in ("first", "second")
            )
            biases = (state[f"{head}.first.bias"], state[f"{head}.second.bias"])
            around = f"{head}.residual"
            residual = (
                (state[f"{around}.weight"], state[f"{around}.bias"])
                if f"{around}.weight" in state
                else None
            )
            blocks.append(reference.ConvBlock((first, second), biases, residual))
        return reference.temporal_conv_net(blocks, x, mask, causal=self.causal)


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    causal: bool | None = None,
    masks: bool = True,
    batch: tuple[int, int] = (0, 3),
) -> Case:
    is_causal = draw(st.booleans()) if causal is None else causal
    size, length = draw(st.integers(*batch)), draw(st.integers(1, 9))
    bits = st.tuples(*[st.integers(0, 2**length - 1)] * size)
    return Case(
        dim=draw(st.sampled_from([1, 2, 3])),
        widths=tuple(draw(st.lists(st.sampled_from([2, 5, 7]), min_size=1, max_size=3))),
        kernel_size=draw(st.sampled_from([1, 2, 3, 5] if is_causal else [1, 3, 5])),
        causal=is_causal,
        batch=size,
        length=length,
        invalid=draw(bits) if masks and draw(st.booleans()) else None,
        seed=draw(st.integers(0, 2**16)),
    )
