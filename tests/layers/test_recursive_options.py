"""The options of RecursiveCrossModalAttention, where test_recursive.py does not reach them."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Literal, TypeAlias

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
Form: TypeAlias = Literal["stable", "paper", "released"]
Joint: TypeAlias = Literal["all", "others"]


# Unaligned lengths


@given(
    case=streams(),
    joint=st.sampled_from(["others", "all"]),
    form=st.sampled_from(["stable", "paper"]),
)
def test_equal_lengths_and_blocks_are_the_aligned_layer(
    case: Streams, joint: Joint, form: Literal["stable", "paper"]
) -> None:
    """For both joints, windows shorter than the weights, masks and missing modalities."""
    longest = case.length + 2
    lengths = dict.fromkeys(case.names, longest) if case.named else [longest] * len(case.dims)
    one = RecursiveCrossModalAttention(case.layer_dims, longest, form=form, joint=joint, dtype=F64)
    many = RecursiveCrossModalAttention(case.layer_dims, lengths, form=form, joint=joint, dtype=F64)
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


# inspect


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


def kept_bytes(recursions: int, *, checkpoint: bool) -> int:
    """What lives after the forward pass, without parameters, inputs and outputs."""
    gc.collect()
    layer = RecursiveCrossModalAttention([16, 8, 12], 64, recursions, checkpoint=checkpoint)
    x = [torch.randn(4, 64, dim) for dim in (16, 8, 12)]
    saved: list[Tensor] = []

    def pack(y: Tensor) -> Tensor:
        saved.append(y.detach())
        return saved[-1]  # y itself would keep its own history alive

    with saved_tensors_hooks(pack, lambda y: y):
        outputs = layer(x)
    held = [y for y in gc.get_objects() if type(y) is Tensor and y.device.type == "cpu"]
    users = {address(y) for y in (*layer.parameters(), *x, *outputs)}
    sizes = {address(y): y.untyped_storage().nbytes() for y in (*saved, *held)}
    return sum(size for at, size in sizes.items() if at not in users)


def address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


@pytest.mark.slow
def test_checkpointing_keeps_one_set_of_features_for_each_recursion() -> None:
    floor = kept_bytes(1, checkpoint=True)
    features = 4 * 64 * (16 + 8 + 12) * 4
    generator = torch.get_rng_state().nbytes  # to drop the same again
    for count in (2, 4, 8):
        plain = kept_bytes(count, checkpoint=False) - floor
        recomputed = kept_bytes(count, checkpoint=True) - floor
        assert recomputed <= (count - 1) * (features + generator), f"{count}: {recomputed} bytes"
        assert recomputed < plain / 3, f"{count}: {recomputed} bytes, {plain} without"


# form="released"


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


# Numerical range


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("length", [30, None, {"a": 30, "b": 30, "c": 30}], ids=str)
@pytest.mark.parametrize("recursions", [1, 2, 4, 8, 16])
def test_stable_stays_finite(
    recursions: int, length: int | dict[str, int] | None, autocast: bool
) -> None:
    """At the start, and with O re-initialised, as if training had moved it far from zero."""
    torch.manual_seed(recursions)
    dims = {"a": 64, "b": 16, "c": 32}
    layer = RecursiveCrossModalAttention(dims, length, recursions)
    inputs = {name: 3 * torch.randn(2, 30, dim) for name, dim in dims.items()}
    mask = torch.rand(2, 30) < 0.8
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        properties.finite_gradients(layer, inputs, mask)
        for name, weight in layer.named_parameters():
            if name.endswith("output"):
                torch.nn.init.xavier_uniform_(weight)
        properties.finite_gradients(layer, inputs, mask)


def test_the_published_form_grows_and_the_stable_one_hardly() -> None:
    """What benchmarks/saturation.py measures, small."""
    dims, growth = [64, 16, 32], {}
    forms: tuple[Form, ...] = ("paper", "stable")
    x = [torch.randn(4, 50, dim) for dim in dims]
    for form in forms:
        torch.manual_seed(0)
        layer = RecursiveCrossModalAttention(dims, 50, 8, form=form)
        for name, weight in layer.named_parameters():
            if name.endswith("output"):
                torch.nn.init.xavier_uniform_(weight)
        norms = [torch.cat(s.features, dim=-1).norm().item() for s in layer.inspect(x).recursions]
        growth[form] = [after / before for before, after in pairwise(norms)]
    assert min(growth["paper"]) > 2, f"paper: {growth['paper']}"
    assert max(growth["stable"]) < 2, f"stable: {growth['stable']}"
