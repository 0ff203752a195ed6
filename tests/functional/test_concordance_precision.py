"""functional.concordance in half precision, and far from zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossfuse.functional import concordance
from tests.support import properties
from tests.support.concordance import (
    F64,
    HALF_PRECISION,
    OVER,
    Case,
    cases,
)


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
@given(case=cases(), over=st.sampled_from(OVER))
def test_halves_are_summed_in_float32(dtype: torch.dtype, case: Case, over: str) -> None:
    x, y = case.series(dtype)
    found = concordance(x, y, case.mask(), over=over)
    assert found.dtype == torch.float32
    assert torch.equal(found, concordance(x.float(), y.float(), case.mask(), over=over))
    assert torch.equal(found, concordance(x, y.float(), case.mask(), over=over))
    assert concordance(x, y.double(), case.mask()).dtype == F64
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(concordance(leaf, y, case.mask()).sum(), leaf)
    assert gradient.dtype == dtype


@given(case=cases(least=2))
def test_a_large_common_offset_costs_nothing(case: Case) -> None:
    """In float32, for series that it holds exactly at that offset (in units of 1/16)."""
    x, y = (torch.round(16 * series).float() / 16 for series in case.series())
    expected = concordance(x, y, case.mask())
    found = concordance(x + 2**17, y + 2**17, case.mask())
    properties.close(found, expected, "coefficient", 1e-5)


def test_long_windows_in_float32_keep_their_digits() -> None:
    x, y = (torch.round(1024 * series).float() / 1024 for series in Case(2, 100_000).series())
    properties.close(concordance(x, y), concordance(x.double(), y.double()), "coefficient", 1e-6)
