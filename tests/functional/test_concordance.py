"""The laws of functional.concordance."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from crossfuse.functional import concordance
from tests.support import properties, reference
from tests.support.concordance import (
    DARK,
    F64,
    HALF_PRECISION,
    NOTHING,
    ONE_STEP,
    OVER,
    TIGHT,
    Case,
    cases,
    options,
)


def definition(x: Tensor, y: Tensor, moments: str) -> Tensor:
    """The coefficient of two 1-d series of valid steps; 0 where there are none."""
    if len(x) == 0:
        return x.new_zeros(())
    if moments == "unbiased":
        (xx, xy), (_, yy) = torch.cov(torch.stack([x, y]))
        ratio: Tensor = 2 * xy / (xx + yy + (x.mean() - y.mean()).square())
        return ratio
    return reference.concordance(x, y, mixed_moments=moments == "mixed")


def by_definition(case: Case, over: str, moments: str) -> Tensor:
    """Window by window and series by series, the invalid steps cut out."""
    count = math.prod(case.more)
    x, y = (one.reshape(case.batch, case.length, count) for one in case.series())
    valid = case.valid()
    groups = [[b] for b in range(case.batch)] if over == "window" else [list(range(case.batch))]
    values = [
        definition(
            torch.cat([x[b, valid[b], k] for b in group] or [x.new_zeros(0)]),
            torch.cat([y[b, valid[b], k] for b in group] or [x.new_zeros(0)]),
            moments,
        )
        for group in groups
        for k in range(count)
    ]
    shape = (case.batch, *case.more) if over == "window" else case.more
    return torch.stack(values).reshape(shape) if values else x.new_zeros(shape)


def several_steps(case: Case, over: str) -> bool:
    """Whether every group has no valid step or at least two, as unbiased variances need."""
    counts = case.valid().sum(1) if over == "window" else case.valid().sum()[None]
    return bool((counts != 1).all())


@options
@pytest.mark.parametrize("over", OVER)
@example(case=NOTHING)
@example(case=DARK)
@example(case=ONE_STEP)
@given(case=cases())
def test_equals_the_definition(over: str, moments: str, case: Case) -> None:
    found = concordance(*case.series(), case.mask(), over=over, moments=moments)
    if moments == "biased" or several_steps(case, over):
        properties.close(found, by_definition(case, over, moments), "coefficient", TIGHT)


@options
@given(case=cases())
def test_is_symmetric(moments: str, case: Case) -> None:
    (x, y), mask = case.series(torch.float32), case.mask()
    forth, back = (concordance(*both, mask, moments=moments) for both in ((x, y), (y, x)))
    assert torch.equal(forth, back)


@options
@given(case=cases(), noise=st.sampled_from([0.0, 1e-6, 1e-3, 1.0]), shift=st.sampled_from([0, 3]))
def test_lies_between_minus_one_and_one(
    moments: str, case: Case, noise: float, shift: float
) -> None:
    for dtype in (F64, torch.float32, *HALF_PRECISION):
        bounded(case, dtype, moments, noise, shift)


def bounded(case: Case, dtype: torch.dtype, moments: str, noise: float, shift: float) -> None:
    x, y = case.series(dtype)
    centre = x.mean(dim=1, keepdim=True)
    for other in (x + noise * y, 2 * centre - x + noise * y, x + shift, y * noise):
        found = concordance(x, other, case.mask(), moments=moments)
        assert found.abs().le(1).all(), found


@given(case=cases(batch=(1, 3)), at=st.integers(0, 8))
def test_is_one_exactly_where_the_series_are_equal(case: Case, at: int) -> None:
    """For the smallest change that float32 can see in the square, too."""
    x, _ = case.series(torch.float32)
    valid = case.valid()
    same = concordance(x, x, case.mask())
    known = valid.any(dim=1).reshape(-1, *[1] * len(case.more)).expand_as(same)
    assert torch.equal(same, known.to(same.dtype))
    other = x.clone()
    step = at % case.length
    other[:, step] += 0.01
    changed = valid[:, step].reshape(-1, *[1] * len(case.more)).expand_as(same)
    found = concordance(x, other, case.mask())
    assert found[changed].lt(1).all()
    assert torch.equal(found[~changed], same[~changed])


@options
@given(
    case=cases(least=2),
    shift=st.sampled_from([-100.0, 0.25, 7.0]),
    scale=st.sampled_from([1e-3, 0.3, 1e4]),
)
def test_a_common_shift_and_a_positive_scale_do_not_matter(
    moments: str, case: Case, shift: float, scale: float
) -> None:
    """With the floor of the denominator scaled like the denominator: it is in squared units."""
    (x, y), mask = case.series(), case.mask()
    moved, floor = (x * scale + shift, y * scale + shift), 1e-8
    found = concordance(*moved, mask, moments=moments, eps=floor * scale**2)
    properties.close(
        found, concordance(x, y, mask, moments=moments, eps=floor), "coefficient", 1e-8
    )


@options
@given(case=cases())
def test_turning_one_series_around_its_mean_turns_the_sign(moments: str, case: Case) -> None:
    case = replace(case, invalid=None)
    x, y = case.series()
    y = y - y.mean(dim=1, keepdim=True) + x.mean(dim=1, keepdim=True)
    turned = 2 * x.mean(dim=1, keepdim=True) - y
    if case.length > 1:
        found = concordance(x, turned, moments=moments)
        properties.close(found, -concordance(x, y, moments=moments), "coefficient", TIGHT)
