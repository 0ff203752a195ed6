"""Masks in functional.concordance."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from crossfuse.functional import concordance
from tests.support import properties
from tests.support.concordance import (
    OVER,
    TIGHT,
    Case,
    cases,
    options,
)


@options
@given(case=cases())
def test_masking_is_leaving_out(moments: str, case: Case) -> None:
    (x, y), valid = case.series(), case.valid()
    found = concordance(x, y, case.mask(), moments=moments)
    for b in range(case.batch):
        kept = x[b, valid[b]][None], y[b, valid[b]][None]
        properties.close(found[b], concordance(*kept, moments=moments)[0], "cut out", TIGHT)


@given(case=cases(batch=(1, 3)), over=st.sampled_from(OVER))
def test_nothing_in_a_masked_step_matters(case: Case, over: str) -> None:
    valid = case.valid().reshape(case.batch, case.length, *[1] * len(case.more))
    clean = [series.requires_grad_() for series in case.series()]
    expected = concordance(clean[0], clean[1], case.mask(), over=over)
    gradients = torch.autograd.grad(expected.sum(), clean)
    for garbage in properties.GARBAGE:
        dirty = [x.detach().masked_fill(~valid, garbage).requires_grad_() for x in clean]
        found = concordance(dirty[0], dirty[1], case.valid(), over=over)
        assert torch.equal(found, expected)
        for ours, theirs in zip(torch.autograd.grad(found.sum(), dirty), gradients, strict=True):
            assert torch.equal(ours, theirs)
            assert not ours.masked_fill(valid, 0).any()


@options
@given(case=cases())
def test_over_the_batch_is_over_one_long_window(moments: str, case: Case) -> None:
    (x, y), valid = case.series(), case.valid()
    long = x.flatten(0, 1)[None], y.flatten(0, 1)[None]
    expected = concordance(*long, valid.flatten()[None], moments=moments)[0]
    found = concordance(x, y, case.mask(), over="batch", moments=moments)
    properties.close(found, expected, "coefficient", TIGHT)
