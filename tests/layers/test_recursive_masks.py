"""Masks, missing modalities and samples in RecursiveCrossModalAttention."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support import properties
from tests.support.recursive import (
    Case,
    cases,
)


@given(case=cases(batch=(1, 3)))
def test_samples_do_not_mix(case: Case) -> None:
    properties.batch_independent(case.layer(), case.streams.inputs(), case.streams.mask())


@given(case=cases(spare=2))
def test_masked_steps_do_not_matter(case: Case) -> None:
    layer = case.layer()
    properties.padding_invariant(layer, case.streams.inputs(), case.streams.mask(), padding=2)


@given(case=cases(least=2), data=st.data())
def test_a_missing_modality_is_a_masked_one(case: Case, data: st.DataObject) -> None:
    inputs = case.streams.whole().inputs()
    mask = case.streams.mask()
    names = list(inputs) if case.streams.named else list(range(len(inputs)))
    name = data.draw(st.sampled_from(names))
    properties.missing_equals_masked(case.layer(), inputs, name, mask)
