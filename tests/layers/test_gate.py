"""The laws of DynamicGate, and of gate=True on the layers that take it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from crossfuse import DynamicGate, JointCrossAttention, RecursiveCrossModalAttention
from tests.support import properties, reference
from tests.support.reference import Structure
from tests.support.strategies import Streams, filled, streams

F64 = torch.float64
TIGHT = properties.TOLERANCES[F64].output
seeds = st.integers(0, 2**16)


def pair(shape: tuple[int, ...], seed: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    """Features before and after an attention."""
    generator = torch.Generator().manual_seed(seed)
    x, attended = (torch.randn(shape, generator=generator, dtype=F64) for _ in range(2))
    return x.to(dtype), attended.to(dtype)


def gate_for(dim: int, seed: int, temperature: float = 0.1) -> DynamicGate:
    return filled(DynamicGate(dim, temperature=temperature, dtype=F64), seed)


shapes = st.tuples(st.integers(0, 3), st.integers(1, 7), st.sampled_from([1, 2, 5]))


@given(shape=shapes, seed=seeds, temperature=st.sampled_from([0.1, 0.5, 2.0]))
def test_agrees_with_the_paper(shape: tuple[int, int, int], seed: int, temperature: float) -> None:
    gate = gate_for(shape[2], seed, temperature)

    def twin(state: Mapping[str, Tensor], both: Structure, mask: None) -> Tensor:
        pairs = zip(*both, strict=True)
        parts = state["score.weight"], state["score.bias"]
        rows = [reference.dynamic_gate(*parts, a, b, temperature) for a, b in pairs]
        return torch.stack(rows) if rows else both[0]

    x, attended = pair(shape, seed)
    shadow = dict(gate.named_parameters())
    found = properties.evaluate(lambda both, _: gate(*both), (x, attended), owner=gate)
    expected = properties.evaluate(
        lambda both, mask: twin(shadow, both, mask), (x, attended), owner=gate
    )
    properties.same_result(found, expected, "against the twin", properties.TOLERANCES[F64])


@given(shape=shapes, seed=seeds)
def test_a_gate_that_has_learnt_nothing_averages(shape: tuple[int, int, int], seed: int) -> None:
    gate = filled(DynamicGate(shape[2], dtype=F64), 0, scale=0.0)
    x, attended = pair(shape, seed)
    properties.close(gate(x, attended), torch.relu((x + attended) / 2), "output", TIGHT)


@pytest.mark.parametrize("chosen", [0, 1])
@given(shape=shapes, seed=seeds)
def test_a_sure_gate_chooses(chosen: int, shape: tuple[int, int, int], seed: int) -> None:
    """Score 0 is for the features, score 1 for the attended ones; both through a relu."""
    gate = filled(DynamicGate(shape[2], dtype=F64), 0, scale=0.0)
    with torch.no_grad():
        gate.score.bias[chosen] = 100.0
    both = pair(shape, seed)
    assert torch.equal(gate(*both), torch.relu(both[chosen]))


@given(shape=shapes, seed=seeds)
def test_the_colder_the_surer(shape: tuple[int, int, int], seed: int) -> None:
    x, attended = pair(shape, seed)
    scores = gate_for(shape[2], seed).score(attended)
    chosen = torch.where(scores[..., :1] > scores[..., 1:], x, attended)
    clear = (scores[..., 0] - scores[..., 1]).abs() > 1e-3
    cold = gate_for(shape[2], seed, temperature=1e-6)(x, attended)
    properties.close(cold[clear], torch.relu(chosen)[clear], "cold", TIGHT)
    hot = gate_for(shape[2], seed, temperature=1e12)(x, attended)
    properties.close(hot, torch.relu((x + attended) / 2), "hot", TIGHT)


@given(shape=shapes, seed=seeds)
def test_every_step_is_gated_by_itself(shape: tuple[int, int, int], seed: int) -> None:
    gate, (x, attended) = gate_for(shape[2], seed), pair(shape, seed)
    order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed))
    moved = gate(x[:, order], attended[:, order])
    properties.close(moved, gate(x, attended)[:, order], "output", TIGHT)
    properties.does_not_mutate(lambda both, _: gate(*both), (x, attended))
    zero = torch.zeros_like(x)
    assert not gate(zero, zero).any(), "something came from nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype_is_kept_and_finite(dtype: torch.dtype) -> None:
    gate = filled(DynamicGate(5, dtype=dtype), 1)
    x, attended = pair((2, 4, 5), 1, dtype)
    assert gate(x, attended).dtype == dtype
    properties.finite_gradients(lambda both, _: gate(*both), (x * 50, attended * 50))


Gated = JointCrossAttention | RecursiveCrossModalAttention
Builder = Callable[..., Gated]


def joint(dims: Structure, length: int, **options: Structure) -> Gated:
    return JointCrossAttention(dims, length, 4, dtype=F64, **options)


def recursive(dims: Structure, length: int, **options: Structure) -> Gated:
    return RecursiveCrossModalAttention(dims, length, joint="all", dtype=F64, **options)


LAYERS = pytest.mark.parametrize("build", [joint, recursive])
DARK = Streams((2, 3), 2, (3, 3), True, "each", ((7, 7), (7, 7)), frozenset(), 2)


@LAYERS
@example(drawn=DARK)
@given(drawn=streams(least=2, most=3))
def test_a_gated_layer_is_the_layer_and_a_gate_for_each(build: Builder, drawn: Streams) -> None:
    """Between what came into the layer and what came out of its last step."""
    gated = filled(build(drawn.layer_dims, drawn.length, gate=True), drawn.seed)
    bare = build(drawn.layer_dims, drawn.length)
    state = gated.state_dict()
    bare.load_state_dict({key: state[key] for key in bare.state_dict()})
    inputs, mask = drawn.inputs(), drawn.mask()
    valid = properties.mask_of(inputs, mask)
    after = properties.places(bare(inputs, mask))
    for name, y in properties.places(gated(inputs, mask)).items():
        before = properties.places(inputs)[name].masked_fill(~valid[name][..., None], 0)
        gate = DynamicGate(before.shape[-1], dtype=F64)
        head = f"gates.{list(drawn.by_name)[int(name)] if name.isdigit() else name}."
        gate.load_state_dict(
            {key.removeprefix(head): value for key, value in state.items() if head in key}
        )
        properties.close(y, gate(before, after[name]), name, TIGHT)


@LAYERS
@given(drawn=streams(least=2, most=3))
def test_gated_outputs_are_not_negative_and_zero_where_masked(
    build: Builder, drawn: Streams
) -> None:
    layer = filled(build(drawn.layer_dims, drawn.length, gate=True), drawn.seed)
    inputs, mask = drawn.inputs(), drawn.mask()
    valid = properties.mask_of(inputs, mask)
    for name, y in properties.places(layer(inputs, mask)).items():
        assert y.ge(0).all(), name
        assert not y.masked_fill(valid[name][..., None], 0).any(), name
    properties.finite_gradients(layer, inputs, mask)


@LAYERS
def test_gates_have_names_and_learn(build: Builder) -> None:
    layer = filled(build({"face": 5, "voice": 7}, 6, gate=True), 3)
    gates = {
        name: tuple(value.shape)
        for name, value in layer.state_dict().items()
        if name.startswith("gates.")
    }
    assert gates == {
        "gates.face.score.weight": (2, 5),
        "gates.face.score.bias": (2,),
        "gates.voice.score.weight": (2, 7),
        "gates.voice.score.bias": (2,),
    }
    x, y = pair((3, 6, 5), 1)[0], pair((3, 6, 7), 2)[0]
    properties.every_parameter_gets_a_gradient(layer, {"face": x, "voice": y})
    assert not any("gates" in name for name in build([5, 7], 6).state_dict())


@LAYERS
def test_resetting_a_layer_resets_its_gates(build: Builder) -> None:
    again = filled(build([2, 3], 4, gate=True), 0)
    again.reset_parameters()
    before = filled(build([2, 3], 4, gate=True), 0).state_dict()
    for name, value in again.state_dict().items():
        assert not torch.equal(value, before[name]), f"{name} was not re-initialised"


def test_the_temperature_is_that_of_the_paper_unless_given() -> None:
    assert DynamicGate(3).temperature == 0.1
    assert DynamicGate(3, temperature=1e-30).temperature == 1e-30  # the lowest


def test_resetting_a_gate_draws_it_as_it_was_built() -> None:
    torch.manual_seed(1)
    first, again = DynamicGate(5), filled(DynamicGate(5), 0)
    torch.manual_seed(1)
    again.reset_parameters()
    assert torch.equal(first.score.weight, again.score.weight)
    assert torch.equal(first.score.bias, again.score.bias)


def test_factory_arguments_reach_every_parameter_and_printing_explains() -> None:
    gate = DynamicGate(5, temperature=0.5, device="meta", dtype=torch.bfloat16)
    for value in gate.parameters():
        assert value.device.type == "meta"
        assert value.dtype == torch.bfloat16
    assert "DynamicGate" in repr(gate)
    assert "dim=5, temperature=0.5" in repr(gate)


def test_wrong_calls_are_answered() -> None:
    x, y = torch.randn(2, 4, 3), torch.randn(2, 4, 5)
    for temperature in (0, -1.0, 1e-31, float("nan"), float("inf"), "cold", True):
        with pytest.raises(ValueError, match="DynamicGate: temperature must be positive"):
            DynamicGate(3, temperature=temperature)  # type: ignore[arg-type]  # the wrong call
    gate = DynamicGate(3)
    with pytest.raises(ValueError, match="DynamicGate: 'x' and 'attended' differ in shape"):
        gate(x, x[:1])
    with pytest.raises(ValueError, match="DynamicGate: 'attended' has 5 features on axis 2"):
        gate(x, y)
    with pytest.raises(TypeError, match="DynamicGate: 'x' has another dtype than the parameters"):
        gate(x.double(), x)
    with pytest.raises(ValueError, match="DynamicGate: 'attended' is on another device"):
        gate(x, x.to("meta"))


@pytest.mark.slow
def test_the_compiled_gate_is_the_gate() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend  # takes long to import

    torch.compiler.reset()
    gate = filled(DynamicGate(5), 1)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(gate, backend=counter, fullgraph=True, dynamic=True)
    for batch, length in ((3, 7), (2, 9)):
        both = pair((batch, length, 5), 1, torch.float32)
        properties.same_result(
            properties.evaluate(lambda xy, _: compiled(*xy), both, owner=gate),
            properties.evaluate(lambda xy, _: gate(*xy), both, owner=gate),
            "compiled",
            properties.TOLERANCES[torch.float32],
        )
    assert counter.frame_count == 1


def test_gradcheck() -> None:
    gate = gate_for(3, 2)
    both = [x.requires_grad_() for x in pair((1, 2, 3), 5)]
    assert torch.autograd.gradcheck(gate, both)
