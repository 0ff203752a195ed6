"""The options of RecursiveCrossModalAttention, where test_recursive.py does not reach them."""

from __future__ import annotations

import gc
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from crossfuse import DynamicGate, JointCrossAttention, RecursiveCrossModalAttention
from tests.support import properties
from tests.support.strategies import Streams, filled, streams

F64 = torch.float64


# Unaligned lengths


@given(case=streams(), joint=st.sampled_from(["others", "all"]), stable=st.booleans())
def test_equal_lengths_and_blocks_are_the_aligned_layer(
    case: Streams, joint: str, stable: bool
) -> None:
    """For both joints, windows shorter than the weights, masks and missing modalities."""
    longest = case.length + 2
    lengths = dict.fromkeys(case.names, longest) if case.named else [longest] * len(case.dims)
    one = RecursiveCrossModalAttention(
        case.layer_dims, longest, joint=joint, stable=stable, dtype=F64
    )
    many = RecursiveCrossModalAttention(
        case.layer_dims, lengths, joint=joint, stable=stable, dtype=F64
    )
    filled(one, case.seed)
    members = len(case.dims) - (joint == "others")
    state = {
        key: value.repeat(1, members) if key.endswith("temporal") else value
        for key, value in one.state_dict().items()
    }
    many.load_state_dict(state)
    inputs, mask = case.inputs(), case.mask()
    expected = properties.evaluate(one, inputs, mask)._replace(parameters={})
    actual = properties.evaluate(many, inputs, mask)._replace(parameters={})
    properties.same_result(actual, expected, "unaligned", properties.TOLERANCES[F64])


@given(case=streams(aligned=False, missing=False), data=st.data())
def test_a_block_belongs_to_its_modality(case: Streams, data: st.DataObject) -> None:
    """Without the block of j, modality i does not see j; with it, it does see the others."""
    layer = RecursiveCrossModalAttention(case.dims, list(case.lengths), 1, dtype=F64, dropout=0.0)
    filled(layer, case.seed)
    i, j = data.draw(st.permutations(range(len(case.dims))))[:2]
    others = [k for k in range(len(case.dims)) if k != i]
    start = sum(case.lengths[k] for k in others[: others.index(j)])
    with torch.no_grad():
        layer.get_parameter(f"steps.0.{i}.temporal")[:, start : start + case.lengths[j]] = 0
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


# inspect


@given(case=streams(), gate=st.booleans(), variant=st.sampled_from(["printed", "released"]))
def test_inspecting_agrees_bit_for_bit(case: Streams, gate: bool, variant: str) -> None:
    """In single precision too, where another order of the sums would show."""
    inputs, mask = case.inputs(torch.float32), case.mask()
    for layer in (
        RecursiveCrossModalAttention(
            case.layer_dims, case.length, 3, gate=gate, variant=variant, checkpoint=True
        ),
        JointCrossAttention(case.layer_dims, case.length, 4, gate=gate),
    ):
        filled(layer, case.seed)
        seen, outputs = layer.inspect(inputs, mask), layer(inputs, mask)
        assert type(seen.outputs) is type(outputs)
        for name, y in properties.places(outputs).items():
            assert torch.equal(y, properties.places(seen.outputs)[name]), name


@given(case=streams(missing=False, masks=False, batch=(1, 2)))
def test_each_step_follows_from_the_one_before(case: Streams) -> None:
    """X_{k+1} = X_k + H_k O_k: what is shown is what was computed, step by step."""
    layer = RecursiveCrossModalAttention(case.dims, case.length, 3, dtype=F64)
    filled(layer, case.seed)
    before = case.tensors()
    for k, step in enumerate(layer.inspect(before).steps):
        for i, x in enumerate(before):
            output = layer.get_parameter(f"steps.{k}.{i}.output")
            expected = x + step.attention_maps[i] @ output
            properties.close(step.features[i], expected, f"step {k}, modality {i}", 1e-10)
        before = list(step.features)


# gate


@given(case=streams(missing=False, batch=(1, 3)))
def test_the_gate_stands_between_input_and_result(case: Streams) -> None:
    inputs, mask = case.inputs(), case.mask()
    valid = properties.mask_of(inputs, mask)
    for gated, plain in (
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
        plain.load_state_dict({k: v for k, v in state.items() if not k.startswith("gates")})
        attended = properties.places(plain(inputs, mask))
        for name, y in properties.places(gated(inputs, mask)).items():
            x = properties.places(inputs)[name].masked_fill(~valid[name][..., None], 0)
            gate = gated.gates[name]
            assert isinstance(gate, DynamicGate)
            properties.close(y, gate(x, attended[name]), name, 1e-10)


# checkpoint


def kept_bytes(steps: int, *, checkpoint: bool) -> int:
    """What lives after the forward pass, without parameters, inputs and outputs."""
    gc.collect()
    layer = RecursiveCrossModalAttention([16, 8, 12], 64, steps, checkpoint=checkpoint)
    x = [torch.randn(4, 64, dim) for dim in (16, 8, 12)]
    saved: list[Tensor] = []

    def pack(y: Tensor) -> Tensor:
        saved.append(y.detach())
        return saved[-1]  # y itself would keep its own history alive for ever

    with saved_tensors_hooks(pack, lambda y: y):
        outputs = layer(x)
    held = [y for y in gc.get_objects() if type(y) is Tensor and y.device.type == "cpu"]
    users = {address(y) for y in (*layer.parameters(), *x, *outputs)}
    sizes = {address(y): y.untyped_storage().nbytes() for y in (*saved, *held)}
    return sum(size for at, size in sizes.items() if at not in users)


def address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def test_checkpointing_keeps_one_set_of_features_for_each_step() -> None:
    floor = kept_bytes(1, checkpoint=True)
    features = 4 * 64 * (16 + 8 + 12) * 4
    generator = torch.get_rng_state().nbytes  # to drop the same again
    for steps in (2, 4, 8):
        plain = kept_bytes(steps, checkpoint=False) - floor
        recomputed = kept_bytes(steps, checkpoint=True) - floor
        assert recomputed <= (steps - 1) * (features + generator), (
            f"{steps} steps: {recomputed} bytes"
        )
        assert recomputed < plain / 3, f"{steps} steps: {recomputed} bytes, {plain} without"


# variant="released"


@given(case=streams(batch=(1, 3)), joint=st.sampled_from(["others", "all"]))
def test_released_masks_and_gaps_obey_the_laws(case: Streams, joint: str) -> None:
    """Its biases would fill invalid steps, were they not zeroed after each map."""
    layer = RecursiveCrossModalAttention(
        case.layer_dims, case.length + 2, joint=joint, variant="released", dtype=F64
    )
    filled(layer, case.seed)
    inputs, mask = case.inputs(), case.mask()
    properties.padding_invariant(layer, inputs, mask, padding=2)
    properties.finite_gradients(layer, inputs, mask)
    whole = case.whole().inputs()
    for name in list(whole) if case.named else range(len(whole)):
        properties.missing_equals_masked(layer, whole, name, mask)


# Numerical range


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("length", [30, None, {"a": 30, "b": 30, "c": 30}], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_stable_stays_finite(
    steps: int, length: int | dict[str, int] | None, autocast: bool
) -> None:
    """At the start, and with O drawn anew, as if training had led far away from zero."""
    torch.manual_seed(steps)
    dims = {"a": 64, "b": 16, "c": 32}
    layer = RecursiveCrossModalAttention(dims, length, steps, stable=True)
    inputs = {name: 3 * torch.randn(2, 30, dim) for name, dim in dims.items()}
    mask = torch.rand(2, 30) < 0.8
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        properties.finite_gradients(layer, inputs, mask)
        for name, weight in layer.named_parameters():
            if name.endswith("output"):
                torch.nn.init.xavier_uniform_(weight)
        properties.finite_gradients(layer, inputs, mask)


def test_the_printed_form_grows_and_the_stable_one_hardly() -> None:
    """What benchmarks/saturation.py measures, small."""
    dims, growth = [64, 16, 32], {}
    x = [torch.randn(4, 50, dim) for dim in dims]
    for stable in (False, True):
        torch.manual_seed(0)
        layer = RecursiveCrossModalAttention(dims, 50, 8, stable=stable)
        for name, weight in layer.named_parameters():
            if name.endswith("output"):
                torch.nn.init.xavier_uniform_(weight)
        norms = [torch.cat(s.features, dim=-1).norm().item() for s in layer.inspect(x).steps]
        growth[stable] = [after / before for before, after in pairwise(norms)]
    assert min(growth[False]) > 2, f"printed: {growth[False]}"
    assert max(growth[True]) < 2, f"stable: {growth[True]}"
