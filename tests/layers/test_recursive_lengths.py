"""The `length` of RecursiveCrossModalAttention: one for all, one for each, or none."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossfuse import RecursiveCrossModalAttention
from tests.support import properties
from tests.support.recursive import (
    F64,
    Case,
    Joint,
    cases,
)
from tests.support.strategies import Streams, filled, streams


def test_shapes_of_unaligned_parameters() -> None:
    lengths = {"a": 7, "b": 4, "c": 9}
    layer = RecursiveCrossModalAttention({"a": 2, "b": 3, "c": 5}, lengths, 1, joint="others")
    assert layer.state_dict()["recursions.0.b.temporal"].shape == (4, 7 + 9)
    layer = RecursiveCrossModalAttention({"a": 2, "b": 3, "c": 5}, lengths, 1)
    assert layer.state_dict()["recursions.0.b.temporal"].shape == (4, 7 + 4 + 9)


@given(
    case=streams(),
    joint=st.sampled_from(["others", "all"]),
    form=st.sampled_from(["stable", "paper"]),
    recursions=st.integers(1, 3),
    gate=st.booleans(),
)
def test_equal_lengths_with_equal_blocks_are_the_aligned_layer(
    case: Streams, joint: Joint, form: Literal["stable", "paper"], recursions: int, gate: bool
) -> None:
    """For windows shorter than the weights, masks and missing modalities."""
    aligned = Case(case, "longest", 2, recursions, joint, gate=gate, form=form)
    one, many = aligned.layer(), replace(aligned, kind="each").layer()
    members = len(case.dims) - (joint == "others")
    many.load_state_dict(
        {
            key: value.repeat(1, members) if key.endswith("temporal") else value
            for key, value in one.state_dict().items()
        }
    )
    inputs, mask = case.inputs(), case.mask()
    expected = properties.evaluate(one, inputs, mask)._replace(parameters={})
    actual = properties.evaluate(many, inputs, mask)._replace(parameters={})
    properties.same_result(actual, expected, "unaligned", properties.TOLERANCES[F64])


@given(case=streams(aligned=False, missing=False), data=st.data())
def test_a_block_belongs_to_its_modality(case: Streams, data: st.DataObject) -> None:
    """Without the block of j, modality i does not see j; with it, it does see the others."""
    layer = RecursiveCrossModalAttention(
        case.dims, list(case.lengths), 1, joint="others", form="paper", dtype=F64
    )
    filled(layer, case.seed)
    i, j = data.draw(st.permutations(range(len(case.dims))))[:2]
    others = [k for k in range(len(case.dims)) if k != i]
    start = sum(case.lengths[k] for k in others[: others.index(j)])
    with torch.no_grad():
        layer.get_parameter(f"recursions.0.{i}.temporal")[:, start : start + case.lengths[j]] = 0
    inputs = case.tensors()
    moved = [x + 1 if k == j else x for k, x in enumerate(inputs)]
    properties.close(layer(moved)[i], layer(inputs)[i], "modality i", 0.0)


@given(case=streams(aligned=False))
def test_each_modality_keeps_its_own_length(case: Streams) -> None:
    lengths = dict(zip(case.names, case.lengths, strict=True))
    layer = filled(
        RecursiveCrossModalAttention(
            case.layer_dims, lengths if case.named else list(case.lengths), dtype=F64
        ),
        case.seed,
    )
    inputs, mask = case.inputs(), case.mask()
    properties.same_structure(layer, inputs, mask)
    properties.padding_invariant(layer, inputs, mask)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((2, 2), [[1, 0], [0, 1]]),
        ((2, 4), [[1, 1, 0, 0], [0, 0, 1, 1]]),
        ((3, 2), [[1, 0], [0.5, 0.5], [0, 1]]),
    ],
)
def test_steps_of_different_rates_meet_for_the_time_that_they_share(
    lengths: tuple[int, int], expected: list[list[float]]
) -> None:
    layer = RecursiveCrossModalAttention(
        [2, 3], lengths, form="paper", joint="others", temporal_init="identity", dtype=F64
    )
    found = layer.get_parameter("recursions.0.0.temporal").detach()
    properties.close(found, torch.tensor(expected, dtype=F64), "T", 1e-12)


@given(seed=st.integers(0, 999), copies=st.integers(2, 4))
def test_the_stable_correlation_does_not_depend_on_the_length(seed: int, copies: int) -> None:
    """A window repeated end to end has the same C, and the same outputs, repeated."""
    layer = filled(RecursiveCrossModalAttention([4, 6], dtype=F64), seed)
    generator = torch.Generator().manual_seed(seed)
    x = [torch.randn(2, 5, dim, generator=generator, dtype=F64) for dim in (4, 6)]
    once, often = layer.inspect(x), layer.inspect([y.repeat(1, copies, 1) for y in x])
    for one, many in zip(once.recursions, often.recursions, strict=True):
        for c, again in zip(one.correlations, many.correlations, strict=True):
            properties.close(again, c, "C", 1e-10)
    for y, again in zip(once.outputs, often.outputs, strict=True):
        properties.close(again, y.repeat(1, copies, 1), "outputs", 1e-10)


@given(case=cases(), more=st.integers(1, 3))
def test_a_lengthened_layer_computes_the_same(case: Case, more: int) -> None:
    """With one length or one for each, gates, the released biases, shared weights."""
    layer, length = case.layer(), case.length
    if length is None:
        with pytest.raises(ValueError, match="length is not of the kind of this layer's"):
            layer.lengthened(9)
        return
    longer: int | dict[str, int] | list[int] = (
        length + more
        if isinstance(length, int)
        else {name: n + more for name, n in length.items()}
        if isinstance(length, dict)
        else [n + more for n in length]
    )
    inputs, mask = case.streams.inputs(), case.streams.mask()
    grown = layer.lengthened(longer)
    assert grown.length == longer
    expected = properties.places(layer(inputs, mask))
    for other in (grown, grown.lengthened(length)):
        for place, y in properties.places(other(inputs, mask)).items():
            properties.close(y, expected[place], place, 1e-12)
