"""The laws of JointCrossAttention."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from crossfuse import JointCrossAttention
from tests.support import properties, released
from tests.support.joint import (
    ALL_MASKED,
    F64,
    NO_SAMPLES,
    ONE_MODALITY,
    ONE_STEP,
    Case,
    cases,
)
from tests.support.strategies import permuted_rows


@example(case=ONE_STEP)
@example(case=NO_SAMPLES)
@example(case=ONE_MODALITY)
@example(case=ALL_MASKED)
@given(case=cases())
def test_agrees_with_the_paper(case: Case) -> None:
    properties.agrees_with(case.layer(), case.twin, case.streams.inputs(), case.streams.mask())


def test_reproduces_the_published_numbers() -> None:
    data = released.load("jca_release")
    layer = JointCrossAttention({"audio": 6, "video": 6}, 9, width=5, dtype=F64)
    layer.load_state_dict(released.jca_state(data))
    released.reproduces(lambda x: layer(released.jca_encoded(data, x)), *released.numbers(data))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(case=cases(most=3, batch=(1, 3)))
def test_agrees_with_the_paper_in_every_dtype(dtype: torch.dtype, case: Case) -> None:
    """Without gates, whose temperature of 0.1 would magnify the rounding tenfold."""
    case = replace(case, gate=False)
    layer = case.layer(dtype)
    properties.agrees_with(layer, case.twin, case.streams.inputs(dtype), case.streams.mask())


@example(case=NO_SAMPLES)
@given(case=cases())
def test_gives_back_the_structure(case: Case) -> None:
    layer, mask = case.layer(), case.streams.mask()
    properties.same_structure(layer, case.streams.inputs(), mask)
    properties.does_not_mutate(layer, case.streams.inputs(), mask)


@given(case=cases(named=True))
def test_the_order_of_the_keys_does_not_matter(case: Case) -> None:
    layer, inputs = case.layer(), case.streams.inputs()
    backwards = dict(reversed(inputs.items()))
    properties.same_structure(layer, backwards)
    reverse = layer(backwards)
    for name, y in layer(inputs).items():
        assert y is None or torch.equal(y, reverse[name])


@given(case=cases(named=True), data=st.data())
def test_the_declared_order_does_not_matter(case: Case, data: st.DataObject) -> None:
    """A layer declared in another order computes the same from the same state dict."""
    dims = case.streams.by_name
    other = JointCrossAttention(
        {name: dims[name] for name in data.draw(st.permutations(list(dims)), label="order")},
        case.streams.length + case.spare,
        case.width,
        recursions=case.recursions,
        form=case.form,
        gate=case.gate,
        dtype=F64,
    )
    properties.declared_in_any_order(
        case.layer(), other, case.streams.inputs(), case.streams.mask()
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
    names = list(inputs) if case.streams.named else list(range(len(inputs)))
    name = data.draw(st.sampled_from(names))
    properties.missing_equals_masked(case.layer(), inputs, name, case.streams.mask())


def permuted(case: Case, order: Sequence[int]) -> JointCrossAttention:
    """The layer with its modalities declared in another order, and its parameters moved along."""
    dims = [case.streams.dims[n] for n in order]
    layer = JointCrossAttention(
        dims,
        case.streams.length + case.spare,
        case.width,
        recursions=case.recursions,
        gate=case.gate,
        dtype=F64,
    )
    state = {}
    for key, value in case.layer().state_dict().items():
        head, name, part = re.split(r"\.(\d+)\.(?=[a-z])", key, maxsplit=1)
        if part == "joint":
            value = value[permuted_rows(case.streams.dims, order)]
        state[f"{head}.{list(order).index(int(name))}.{part}"] = value
    layer.load_state_dict(state)
    return layer


@given(case=cases(named=False), data=st.data())
def test_reordering_the_modalities_reorders_the_outputs(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.streams.dims))))
    inputs, mask = case.streams.inputs(), case.streams.mask()
    properties.modality_equivariant(case.layer(), permuted(case, order), inputs, mask, order)


@example(case=ALL_MASKED)
@example(case=NO_SAMPLES)
@given(case=cases())
def test_gradients_are_finite(case: Case) -> None:
    properties.finite_gradients(case.layer(), case.streams.inputs(), case.streams.mask())
