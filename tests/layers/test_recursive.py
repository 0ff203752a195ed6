"""The laws of RecursiveCrossModalAttention."""

from __future__ import annotations

import pytest
from hypothesis import example, given

from crossfuse import RecursiveCrossModalAttention
from tests.support import properties, released
from tests.support.recursive import (
    ALL_MASKED,
    COMBINED,
    COUNTED,
    F64,
    NO_SAMPLES,
    ONE_MODALITY,
    ONE_STEP,
    Case,
    Form,
    Joint,
    cases,
)
from tests.support.strategies import plain


@example(case=ONE_STEP)
@example(case=NO_SAMPLES)
@example(case=ONE_MODALITY)
@example(case=ALL_MASKED)
@example(case=COUNTED)
@example(case=COMBINED)
@given(case=cases())
def test_agrees_with_the_paper(case: Case) -> None:
    properties.agrees_with(case.layer(), case.twin, case.streams.inputs(), case.streams.mask())


@pytest.mark.parametrize("joint", ["others", "all"])
def test_reproduces_the_published_numbers(joint: Joint) -> None:
    data = released.load(f"rcma_release_{joint}")
    layer = RecursiveCrossModalAttention(released.DIMS, 13, joint=joint, form="released", dtype=F64)
    layer.load_state_dict(released.rcma_state(data, joint))
    released.reproduces(layer, *released.numbers(data))


@example(case=NO_SAMPLES)
@given(case=cases())
def test_gives_back_the_structure(case: Case) -> None:
    layer, mask = case.layer(), case.streams.mask()
    properties.same_structure(layer, case.streams.inputs(), mask)
    properties.does_not_mutate(layer, case.streams.inputs(), mask)


@example(case=ALL_MASKED)
@example(case=NO_SAMPLES)
@given(case=cases())
def test_gradients_are_finite(case: Case) -> None:
    properties.finite_gradients(case.layer(), case.streams.inputs(), case.streams.mask())


@pytest.mark.parametrize("form", ["stable", "paper", "released"])
@pytest.mark.parametrize("joint", ["others", "all"])
@pytest.mark.parametrize("gate", [False, True])
def test_every_parameter_learns(form: Form, joint: Joint, gate: bool) -> None:
    case = Case(plain(dims=(5, 7, 11), batch=3, length=6), joint=joint, form=form, gate=gate)
    properties.every_parameter_gets_a_gradient(case.layer(), case.streams.inputs())
