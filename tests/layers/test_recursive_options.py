"""The options of RecursiveCrossModalAttention, what `inspect` shows, and unusual containers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossfuse import DynamicGate, JointCrossAttention, RecursiveCrossModalAttention
from tests.support import properties
from tests.support.recursive import (
    F64,
    Case,
    Form,
    Joint,
    cases,
    is_the_input,
)
from tests.support.strategies import Streams, filled, plain, streams


@given(case=cases())
def test_inspecting_changes_nothing(case: Case) -> None:
    layer, inputs, mask = case.layer(), case.streams.inputs(), case.streams.mask()
    seen, outputs = layer.inspect(inputs, mask), properties.places(layer(inputs, mask))
    valid = properties.mask_of(inputs, mask)
    assert len(seen.recursions) == case.recursions
    last = properties.places(seen.recursions[-1].features)
    for place, y in properties.places(seen.outputs).items():
        assert torch.equal(y, outputs[place]), f"{place}: the outputs are not those of forward"
        assert case.gate or torch.equal(y, last[place]), f"{place}: not the last features"
    for recursion in seen.recursions:
        for place, c in properties.places(recursion.correlations).items():
            h, y = properties.places(recursion.attention_maps)[place], outputs[place]
            assert not h[~valid[place]].any(), f"{place}: the map of an invalid step is not zero"
            assert c.abs().le(1 + 1e-12).all()
            if case.form == "stable":
                heads, width = c.shape[1:3]
                assert c.shape == (y.shape[0], heads, width, width)
                assert (h.shape, heads * width) == (y.shape, y.shape[2])
            else:
                assert c.shape == (y.shape[0], y.shape[2], h.shape[2])
                assert h.shape[:2] == y.shape[:2]
                assert h.ge(0).all()


@given(case=streams(), gate=st.booleans(), form=st.sampled_from(["stable", "paper", "released"]))
def test_inspecting_agrees_bit_for_bit(case: Streams, gate: bool, form: Form) -> None:
    """In single precision too, where another order of the sums would show."""
    inputs, mask = case.inputs(torch.float32), case.mask()
    for layer in (
        RecursiveCrossModalAttention(
            case.layer_dims, case.length, 3, gate=gate, form=form, checkpoint=True
        ),
        JointCrossAttention(case.layer_dims, case.length, 4, gate=gate),
    ):
        filled(layer, case.seed)
        seen, outputs = layer.inspect(inputs, mask), layer(inputs, mask)
        assert type(seen.outputs) is type(outputs)
        for name, y in properties.places(outputs).items():
            assert torch.equal(y, properties.places(seen.outputs)[name]), name


@given(case=streams(missing=False, masks=False, batch=(1, 2)))
def test_each_recursion_follows_from_the_one_before(case: Streams) -> None:
    """X_{k+1} = X_k + H_k O_k: what is shown is what was computed."""
    layer = RecursiveCrossModalAttention(case.dims, case.length, 3, form="paper", dtype=F64)
    filled(layer, case.seed)
    before = case.tensors()
    for k, recursion in enumerate(layer.inspect(before).recursions):
        for i, x in enumerate(before):
            output = layer.get_parameter(f"recursions.{k}.{i}.output")
            expected = x + recursion.attention_maps[i] @ output
            properties.close(recursion.features[i], expected, f"recursion {k}, modality {i}", 1e-10)
        before = list(recursion.features)


@given(case=streams(missing=False, batch=(1, 3)))
def test_the_gate_stands_between_input_and_result(case: Streams) -> None:
    inputs, mask = case.inputs(), case.mask()
    valid = properties.mask_of(inputs, mask)
    for gated, without in (
        (
            RecursiveCrossModalAttention(case.layer_dims, case.length, gate=True, dtype=F64),
            RecursiveCrossModalAttention(case.layer_dims, case.length, dtype=F64),
        ),
        (
            JointCrossAttention(case.layer_dims, case.length, gate=True, dtype=F64),
            JointCrossAttention(case.layer_dims, case.length, dtype=F64),
        ),
    ):
        filled(gated, case.seed)
        state = gated.state_dict()
        without.load_state_dict({k: v for k, v in state.items() if not k.startswith("gates")})
        attended = properties.places(without(inputs, mask))
        for name, y in properties.places(gated(inputs, mask)).items():
            x = properties.places(inputs)[name].masked_fill(~valid[name][..., None], 0)
            gate = gated.gates[name]
            assert isinstance(gate, DynamicGate)
            properties.close(y, gate(x, attended[name]), name, 1e-10)


@given(case=cases())
def test_dropping_everything_leaves_the_input(case: Case) -> None:
    """x + dropout(...) with p = 1: the residual is what is left, in training only."""
    case = replace(case, gate=False)
    kept, dropping = case.layer(), case.layer(dropout=1.0)
    inputs, mask = case.streams.inputs(), case.streams.mask()
    is_the_input(dropping(inputs, mask), inputs, mask)
    dropping.eval()
    properties.does_not_mutate(dropping, inputs, mask)
    expected = properties.places(kept(inputs, mask))
    for place, y in properties.places(dropping(inputs, mask)).items():
        assert torch.equal(y, expected[place]), f"{place}: dropout in evaluation mode"


@pytest.mark.slow
@given(case=streams(batch=(1, 3)), joint=st.sampled_from(["others", "all"]))
def test_released_masks_and_gaps_obey_the_laws(case: Streams, joint: Joint) -> None:
    """Its biases would fill invalid steps, were they not zeroed after each map."""
    layer = RecursiveCrossModalAttention(
        case.layer_dims, case.length + 2, joint=joint, form="released", dtype=F64
    )
    filled(layer, case.seed)
    inputs, mask = case.inputs(), case.mask()
    properties.padding_invariant(layer, inputs, mask, padding=2)
    properties.finite_gradients(layer, inputs, mask)
    whole = case.whole().inputs()
    for name in list(whole) if case.named else range(len(whole)):
        properties.missing_equals_masked(layer, whole, name, mask)


def test_other_containers_are_welcome() -> None:
    """Any Mapping or Sequence will do, and lists of dims too."""
    from collections import OrderedDict
    from types import MappingProxyType

    x = plain().inputs()
    layer = filled(
        RecursiveCrossModalAttention(OrderedDict(video=2, audio=3, text=5), 4, dtype=F64), 0
    )
    expected = layer(x)
    for other in (OrderedDict(x), MappingProxyType(x)):
        given_ = layer(other)
        assert type(given_) is dict
        assert all(torch.equal(given_[name], y) for name, y in expected.items())
    in_order = filled(RecursiveCrossModalAttention((2, 3, 5), 4, dtype=F64), 0)
    assert type(in_order(list(x.values()))) is tuple


def test_inputs_that_are_not_contiguous() -> None:
    layer = filled(RecursiveCrossModalAttention([2, 3], 4, dtype=F64), 0)
    x = [torch.randn(2, dim, 4, dtype=F64) for dim in (2, 3)]
    expected = layer([y.mT.contiguous() for y in x])
    for y, z in zip(layer([y.mT for y in x]), expected, strict=True):
        properties.close(y, z, "transposed", 1e-12)


def test_expanded_masks_and_inputs() -> None:
    """One sample expanded over the batch, as broadcasting users do."""
    layer = filled(RecursiveCrossModalAttention([2, 3], 4, dtype=F64), 0)
    x = [torch.randn(1, 4, dim, dtype=F64).expand(3, 4, dim) for dim in (2, 3)]
    mask = torch.tensor([[True, False, True, True]]).expand(3, 4)
    properties.padding_invariant(layer, x, mask)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_only_a_checkpoint_computes_a_recursion_again(checkpoint: bool) -> None:
    layer = RecursiveCrossModalAttention([3, 5], checkpoint=checkpoint)
    calls: list[object] = []
    for step in layer.recursions:
        step.register_forward_pre_hook(lambda module, args: calls.append(module))
    y, _ = layer([torch.randn(2, 4, 3), torch.randn(2, 4, 5)])
    torch.autograd.backward(y.sum())
    assert len(calls) == (4 if checkpoint else 2)
