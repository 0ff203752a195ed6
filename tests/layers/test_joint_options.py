"""JointCrossAttention: parameters, options, what `inspect` shows, compilation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from crossfuse import JointCrossAttention
from tests.support import properties
from tests.support.joint import (
    F64,
    Case,
    cases,
)
from tests.support.reference import Structure
from tests.support.strategies import Streams, filled, plain


@pytest.mark.parametrize("gate", [False, True])
def test_every_parameter_learns(gate: bool) -> None:
    case = Case(plain(dims=(5, 7, 11), batch=3, length=6), gate=gate)
    properties.every_parameter_gets_a_gradient(case.layer(), case.streams.inputs())


def test_the_state_dict_is_the_whole_state() -> None:
    case = Case(plain(), gate=True)
    properties.state_dict_round_trip(case.layer, case.streams.inputs())


def test_parameter_names_are_the_contract() -> None:
    state = JointCrossAttention({"face": 2, "voice": 3}, 4, width=7).state_dict()
    expected = {
        f"recursions.0.{name}.{part}": shape
        for name in ("face", "voice")
        for part, shape in (
            ("temporal", (4, 4)),
            ("own", (4, 7)),
            ("joint", (5, 7)),
            ("output", (7, 4)),
        )
    }
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    assert JointCrossAttention([2, 3], 4).state_dict()["recursions.0.1.own"].shape == (4, 32)


@given(case=cases())
def test_inspecting_changes_nothing(case: Case) -> None:
    layer, inputs, mask = case.layer(), case.streams.inputs(), case.streams.mask()
    seen, outputs = layer.inspect(inputs, mask), properties.places(layer(inputs, mask))
    for place, y in properties.places(seen.outputs).items():
        last = seen.recursions[-1]
        c, h, x = (
            properties.places(part)[place]
            for part in (last.correlations, last.attention_maps, last.features)
        )
        assert torch.equal(y, outputs[place]), f"{place}: the outputs are not those of forward"
        assert case.gate or torch.equal(y, x), f"{place}: not the attended features"
        assert c.shape == (*y.shape[::2], sum(case.streams.dims))
        assert h.shape == (*y.shape[::2], case.width)
        assert c.abs().le(1).all()
        assert h.ge(0).all()


def is_the_input(outputs: Structure, inputs: Structure, mask: Structure) -> None:
    """Asserts that the outputs are the inputs, zero at invalid steps."""
    valid = properties.mask_of(inputs, mask)
    for place, y in properties.places(outputs).items():
        expected = properties.places(inputs)[place].masked_fill(~valid[place][..., None], 0)
        assert torch.equal(y, expected)


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


@given(case=cases())
def test_stable_starts_as_the_identity(case: Case) -> None:
    layer = JointCrossAttention(
        case.streams.layer_dims, case.streams.length, recursions=case.recursions, dtype=F64
    )
    inputs, mask = case.streams.inputs(), case.streams.mask()
    is_the_input(layer(inputs, mask), inputs, mask)


def test_initialisation_is_xavier_and_seeded() -> None:
    def build() -> JointCrossAttention:
        torch.manual_seed(1)
        return JointCrossAttention({"a": 40, "b": 60}, 50, width=70, form="paper")

    first, second = build(), build()
    for name, value in first.named_parameters():
        bound = (6 / sum(value.shape)) ** 0.5
        assert value.abs().max() <= bound, name
        assert value.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name
        assert torch.equal(value, second.get_parameter(name))
    torch.manual_seed(1)
    filled(second, 0).reset_parameters()
    for name, value in first.named_parameters():
        assert torch.equal(value, second.get_parameter(name)), name


@given(case=cases(), more=st.integers(1, 3))
def test_a_lengthened_layer_computes_the_same(case: Case, more: int) -> None:
    layer, inputs, mask = case.layer(), case.streams.inputs(), case.streams.mask()
    grown = layer.lengthened(layer.length + more)
    expected = properties.places(layer(inputs, mask))
    for other in (grown, grown.lengthened(layer.length)):
        for place, y in properties.places(other(inputs, mask)).items():
            properties.close(y, expected[place], place, 1e-12)


def test_factory_arguments_reach_every_parameter() -> None:
    layer = JointCrossAttention([2, 3], 4, gate=True, device="meta", dtype=torch.bfloat16)
    for name, value in layer.named_parameters():
        assert value.device.type == "meta", name
        assert value.dtype == torch.bfloat16, name


def test_printing_explains_the_layer() -> None:
    text = repr(JointCrossAttention({"face": 2, "voice": 3}, 7, width=5))
    for part in ("JointCrossAttention", "'face': 2", "length=7", "width=5", "form='stable'"):
        assert part in text, f"{part} is not in\n{text}"


@pytest.mark.slow
def test_the_compiled_layer_is_the_layer() -> None:
    case = Case(Streams((2, 3), 2, (4, 4), True, "each", ((1, 0), (0, 6)), frozenset(), 2), 3)
    layer = case.layer()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for mask in (None, case.streams.mask()):
        properties.eager_equals_compiled(layer, compiled, case.streams.inputs(), mask)


def test_gradcheck() -> None:
    """Autograd against finite differences, once, in the smallest case that has everything."""
    case = Case(plain(dims=(2, 3), batch=1, length=2))
    layer = case.layer()

    def run(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer({"video": a, "audio": b}).values())

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in case.streams.tensors()])
