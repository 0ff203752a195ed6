"""The laws of CrossModalTransformer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import properties
from tests.support.cross_modal_transformer import Case, cases, uneven
from tests.support.strategies import EDGES


@pytest.mark.parametrize("edge", EDGES)
def test_the_edges_agree_with_the_equations(edge: str) -> None:
    case = Case(EDGES[edge])
    inputs, mask = case.streams.inputs(), case.streams.mask()
    properties.agrees_with(case.layer(), case.twin, inputs, mask)
    properties.finite_gradients(case.layer(), inputs, mask)


@example(case=Case(uneven((2, 3, 5))), depth=3)
@given(case=cases(), depth=st.integers(1, 2))
def test_agrees_with_the_equations(case: Case, depth: int) -> None:
    case = replace(case, depth=depth)
    properties.agrees_with(case.layer(), case.twin, case.streams.inputs(), case.streams.mask())


@pytest.mark.slow
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    case=cases(batch=(1, 2)),
)
def test_agrees_with_the_equations_in_every_dtype(dtype: torch.dtype, case: Case) -> None:
    """With one block for each pair, and a width of at least 4 for each head.

    A layer norm over few features, which may nearly agree, magnifies the rounding of their
    differences; every further block does it again.
    """
    case = replace(case, width=12)
    properties.agrees_with(
        case.layer(dtype), case.twin, case.streams.inputs(dtype), case.streams.mask()
    )


@given(case=cases())
def test_gives_back_the_structure_and_leaves_the_inputs_alone(case: Case) -> None:
    layer, inputs, mask = case.layer(), case.streams.inputs(), case.streams.mask()
    properties.does_not_mutate(layer, inputs, mask)
    properties.same_structure(layer, inputs, mask)


@given(case=cases(named=True), data=st.data())
def test_the_declared_order_does_not_matter(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.streams.dims))), label="order")
    inputs, mask = case.streams.inputs(), case.streams.mask()
    layer = case.layer()
    properties.declared_in_any_order(layer, case.layer(order=order), inputs, mask)
    backwards = properties.places(layer(dict(reversed(inputs.items())), mask))
    for place, y in properties.places(layer(inputs, mask)).items():
        assert torch.equal(y, backwards[place])


def test_the_order_of_the_steps_is_seen_in_every_modality() -> None:
    """By the positions: without them, attention is blind to the order of a source's steps."""
    case = Case(uneven())
    layer, inputs = case.layer(), case.streams.inputs()
    expected = layer(inputs)
    for name, x in inputs.items():
        moved = layer({**inputs, name: x.flip(1)})
        for other, y in expected.items():
            if other != name:
                assert (moved[other] - y).abs().max() > 1e-3
