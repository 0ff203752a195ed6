"""Drawn cases of the concordance correlation coefficient."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.support import properties

F64 = torch.float64
MOMENTS = ("biased", "unbiased", "mixed")
OVER = ("window", "batch")
TIGHT = properties.TOLERANCES[F64].output
HALF_PRECISION = (torch.bfloat16, torch.float16)
options = pytest.mark.parametrize("moments", MOMENTS)


@dataclass(frozen=True)
class Case:
    """Two series (B, L, ...), their mask, and the seed of their numbers."""

    batch: int
    length: int
    more: tuple[int, ...] = ()
    invalid: tuple[int, ...] | None = None  # per window, a bit set of invalid steps
    seed: int = 0

    def series(self, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
        """Two series that agree in part, off zero."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch, self.length, *self.more)
        x, y = (torch.randn(shape, generator=generator, dtype=F64) for _ in range(2))
        return (x + 0.5).to(dtype), (x * 0.7 + y).to(dtype)

    def mask(self) -> Tensor | None:
        if self.invalid is None:
            return None
        rows = [[not (bits >> t) & 1 for t in range(self.length)] for bits in self.invalid]
        return torch.tensor(rows, dtype=torch.bool).reshape(self.batch, self.length)

    def valid(self) -> Tensor:
        mask = self.mask()
        return torch.ones(self.batch, self.length, dtype=torch.bool) if mask is None else mask


@st.composite
def cases(draw: st.DrawFn, *, batch: tuple[int, int] = (0, 3), least: int = 1) -> Case:
    size, length = draw(st.integers(*batch)), draw(st.integers(least, 9))
    more = draw(st.sampled_from([(), (1,), (2,), (3, 2)]))
    bits = st.integers(0, 2**length - 1)
    invalid = tuple(draw(bits) for _ in range(size)) if draw(st.booleans()) else None
    return Case(size, length, more, invalid, draw(st.integers(0, 2**16)))


NOTHING = Case(0, 4)
DARK = Case(2, 3, (2,), (7, 0))
ONE_STEP = Case(3, 1)
