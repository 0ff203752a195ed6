"""The order of modalities in RecursiveCrossModalAttention: it does not matter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from crossfuse import RecursiveCrossModalAttention
from tests.support import properties
from tests.support.recursive import (
    Case,
    cases,
)
from tests.support.strategies import Streams, permuted_rows


@given(case=cases(named=True))
def test_the_order_of_the_keys_does_not_matter(case: Case) -> None:
    layer, inputs = case.layer(), case.streams.inputs()
    backwards = dict(reversed(inputs.items()))
    properties.same_structure(layer, backwards)
    given_order, reverse = layer(inputs), layer(backwards)
    for name, x in inputs.items():
        assert x is None or torch.equal(given_order[name], reverse[name])


@given(case=cases(named=True), data=st.data())
def test_the_declared_order_does_not_matter(case: Case, data: st.DataObject) -> None:
    """A layer declared in another order computes the same from the same state dict."""
    names = data.draw(st.permutations(case.streams.names), label="order")
    properties.declared_in_any_order(
        case.layer(), case.redeclared(names), case.streams.inputs(), case.streams.mask()
    )


def permuted(case: Case, order: Sequence[int]) -> RecursiveCrossModalAttention:
    """The layer with its modalities declared in another order, and its parameters moved along."""
    old, source = case.streams, case.layer().state_dict()
    names = old.names
    moved = Case(
        Streams(
            tuple(old.dims[n] for n in order),
            old.batch,
            tuple(old.lengths[n] for n in order),
            old.named,
            old.masked,
            tuple(old.invalid[n] for n in order),
            frozenset(place for place, n in enumerate(order) if n in old.missing),
            old.seed,
        ),
        *[getattr(case, name) for name in list(Case.__dataclass_fields__)[1:]],
    )
    lengths = [length + case.spare for length in old.lengths]
    state = {}
    for key, value in source.items():
        head, _, tail = key.partition(".")
        index, name, part = (
            tail.split(".", 2) if head == "recursions" else ("", *tail.split(".", 1))
        )
        n = names.index(name)
        members = [m for m in range(len(names)) if case.joint == "all" or m != n]
        sizes = [old.dims[m] for m in members]
        into = [members.index(m) for m in order if m in members]
        rows = permuted_rows(sizes, into)
        meets_joint = "value" if case.form == "stable" else "output"
        if part in (meets_joint, "joint_bias"):
            value = value[rows]
        elif part == "joint":
            value = value[rows][:, rows]
        elif part == "temporal" and case.kind == "each":
            value = value[:, permuted_rows([lengths[m] for m in members], into)]
        place = str(order.index(n))
        state[".".join((head, *index, place, part))] = value
    layer = moved.layer()
    layer.load_state_dict(state)
    return layer


@given(case=cases(named=False), data=st.data())
def test_reordering_the_modalities_reorders_the_outputs(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.streams.dims))))
    inputs, mask = case.streams.inputs(), case.streams.mask()
    properties.modality_equivariant(case.layer(), permuted(case, order), inputs, mask, order)
