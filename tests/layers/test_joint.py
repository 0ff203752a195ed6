"""The laws of JointCrossAttention."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from crossfuse import JointCrossAttention
from tests.support import properties, reference, released
from tests.support.reference import Structure
from tests.support.strategies import Streams, filled, permuted_rows, streams

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """Inputs, and how the layer for them is built."""

    streams: Streams
    spare: int = 0  # how much longer than the inputs the layer's windows are
    width: int = 4
    form: Literal["stable", "paper"] = "paper"
    gate: bool = False
    recursions: int = 1

    def layer(self, dtype: torch.dtype = F64, *, dropout: float = 0.0) -> JointCrossAttention:
        layer = JointCrossAttention(
            self.streams.layer_dims,
            self.streams.length + self.spare,
            self.width,
            form=self.form,
            recursions=self.recursions,
            gate=self.gate,
            dropout=dropout,
            dtype=dtype,
        )
        return filled(layer, self.streams.seed)

    @property
    def twin(self) -> properties.Twin:
        return partial(
            reference.joint_cross_attention,
            dims=self.streams.by_name,
            recursions=self.recursions,
            gate=self.gate,
        )


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    spare: int = 0,
    least: int = 1,
    most: int = 5,
    named: bool | None = None,
    batch: tuple[int, int] = (0, 3),
) -> Case:
    drawn = draw(streams(least=least, most=most, named=named, batch=batch))
    return Case(
        drawn,
        spare + draw(st.integers(0, 2)),
        draw(st.sampled_from([1, 4, 13])),
        draw(st.sampled_from(["stable", "paper"])),
        draw(st.booleans()),
        draw(st.integers(1, 2)),
    )


def plain(dims: Sequence[int] = (2, 3, 5), batch: int = 2, length: int = 4) -> Streams:
    """Named streams without masks or gaps."""
    empty = ((0,) * batch,) * len(dims)
    lengths = (length,) * len(dims)
    return Streams(tuple(dims), batch, lengths, True, "none", empty, frozenset(), 3)


# The edges: one step, an empty batch, one modality, everything masked.
ONE_STEP = Case(plain(length=1))
NO_SAMPLES = Case(plain(batch=0))
ONE_MODALITY = Case(plain(dims=(3,)))
ALL_MASKED = Case(Streams((2, 3), 2, (3, 3), True, "each", ((7, 7), (7, 7)), frozenset(), 2))


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


def is_the_input(outputs: Structure, inputs: Structure, mask: Structure) -> None:
    """Asserts that the outputs are the inputs, zero at invalid steps."""
    valid = properties.mask_of(inputs, mask)
    for place, y in properties.places(outputs).items():
        expected = properties.places(inputs)[place].masked_fill(~valid[place][..., None], 0)
        assert torch.equal(y, expected)


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
