"""The laws of CrossAttention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrize, prune

from crossfuse import CrossAttention, functional
from tests.support import properties, reference
from tests.support.reference import Structure
from tests.support.strategies import EDGES, GAPS, Streams, filled, plain, streams

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """Inputs, and how the layer is built for them."""

    streams: Streams
    temperature: float = 1.0

    def layer(
        self, dtype: torch.dtype = F64, *, dims: Mapping[str, int] | None = None
    ) -> CrossAttention:
        layer = CrossAttention(
            dims or self.streams.layer_dims, temperature=self.temperature, dtype=dtype
        )
        return filled(layer, -1 if dims else self.streams.seed)

    @property
    def twin(self) -> properties.Twin:
        dims = self.streams.by_name

        def twin(state: Mapping[str, Tensor], modalities: Structure, mask: Structure) -> Structure:
            weights = {pair: state["weights." + ".".join(pair)] for pair in combinations(dims, 2)}
            return reference.cross_attention(
                weights, modalities, mask, dims=dims, temperature=self.temperature
            )

        return twin


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    named: bool | None = None,
    batch: tuple[int, int] = (0, 3),
    temperatures: tuple[float, ...] = (0.5, 1.0, 3.0),
) -> Case:
    drawn = draw(streams(most=4, named=named, batch=batch))
    return Case(drawn, draw(st.sampled_from(temperatures), label="temperature"))


@pytest.mark.parametrize("edge", EDGES)
def test_the_edges_agree_with_the_equations(edge: str) -> None:
    case = Case(EDGES[edge])
    inputs, mask = case.streams.inputs(), case.streams.mask()
    properties.agrees_with(case.layer(), case.twin, inputs, mask)
    properties.finite_gradients(case.layer(), inputs, mask)


@given(case=cases())
def test_agrees_with_the_equations(case: Case) -> None:
    properties.agrees_with(case.layer(), case.twin, case.streams.inputs(), case.streams.mask())


@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    case=cases(batch=(1, 3), temperatures=(1.0, 3.0)),
)
def test_agrees_with_the_equations_in_every_dtype(dtype: torch.dtype, case: Case) -> None:
    """With a temperature of at least 1: a smaller one magnifies the rounding of the scores."""
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
    layer, other = case.layer(), case.layer(dims=case.streams.declared(order))
    properties.declared_in_any_order(layer, other, inputs, mask)
    backwards = properties.places(layer(dict(reversed(inputs.items())), mask))
    for place, y in properties.places(layer(inputs, mask)).items():
        assert torch.equal(y, backwards[place])


@given(case=cases(named=False), data=st.data())
def test_reordering_a_sequence_reorders_the_outputs(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.streams.dims))), label="order")
    layer = case.layer()
    drawn = replace(case.streams, dims=tuple(case.streams.dims[n] for n in order))
    other, state = replace(case, streams=drawn).layer(), {}
    for key, value in layer.state_dict().items():
        i, j = (order.index(int(name)) for name in key.split(".")[1:])
        state[f"weights.{min(i, j)}.{max(i, j)}"] = value.T if i > j else value
    other.load_state_dict(state)
    properties.modality_equivariant(layer, other, case.streams.inputs(), case.streams.mask(), order)


@given(case=cases(batch=(1, 3)))
def test_samples_do_not_mix(case: Case) -> None:
    properties.batch_independent(case.layer(), case.streams.inputs(), case.streams.mask())


@example(case=Case(GAPS))
@given(case=cases())
def test_masked_steps_do_not_matter(case: Case) -> None:
    properties.padding_invariant(
        case.layer(), case.streams.inputs(), case.streams.mask(), padding=2
    )


@given(case=cases(), data=st.data())
def test_a_missing_modality_is_a_masked_one(case: Case, data: st.DataObject) -> None:
    inputs = case.streams.whole().inputs()
    name = data.draw(st.sampled_from(list(inputs) if case.streams.named else range(len(inputs))))
    properties.missing_equals_masked(case.layer(), inputs, name, case.streams.mask())


@given(case=cases(batch=(1, 3)))
def test_no_weights_add_the_mean(case: Case) -> None:
    """Uniform attention, whatever the temperature: the mean over the valid steps."""
    layer = case.layer()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
    inputs, mask = case.streams.inputs(), case.streams.mask()
    valid = properties.mask_of(inputs, mask)
    for name, y in properties.places(layer(inputs, mask)).items():
        known = valid[name][..., None]
        x = properties.places(inputs)[name].masked_fill(~known, 0)
        mean = x.sum(dim=1, keepdim=True) / known.sum(dim=1, keepdim=True).clamp(min=1)
        expected = torch.tanh(x + mean).masked_fill(~known, 0)
        properties.close(y, expected, name, properties.TOLERANCES[F64].output)


def test_a_low_temperature_picks_the_step_that_fits_best() -> None:
    x = torch.eye(3, dtype=F64)[None]
    scores = functional.cross_correlation(x, x[:, [2, 0, 1]], torch.eye(3, dtype=F64))
    picked = functional.cross_attention(x, scores, temperature=1e-3)
    properties.close(picked, x[:, [2, 0, 1]], "the steps picked", 1e-12)
    blended = functional.cross_attention(x, scores, temperature=1e9)
    properties.close(blended, torch.full_like(x, 1 / 3), "the steps blended", 1e-8)


def test_gradients_per_sample_add_up() -> None:
    """vmap of grad through functional_call, where the weights are no parameters."""
    case = Case(plain(batch=3))
    layer, inputs = case.layer(), case.streams.inputs()
    state = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(state: dict[str, Tensor], sample: dict[str, Tensor]) -> Tensor:
        fused = functional_call(layer, state, ({name: x[None] for name, x in sample.items()},))
        return torch.stack([y.square().sum() for y in fused.values()]).sum()

    each = vmap(grad(loss), in_dims=(None, 0))(state, inputs)
    total = torch.stack([y.square().sum() for y in layer(inputs).values()]).sum()
    torch.autograd.backward(total)
    for name, value in layer.named_parameters():
        assert value.grad is not None
        properties.close(each[name].sum(dim=0), value.grad, name, 1e-10)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_weights_can_be_parametrized_and_pruned() -> None:
    case = Case(plain((2, 3)))
    layer, twice, none = case.layer(), case.layer(), case.layer()
    with torch.no_grad():
        for weight in twice.parameters():
            weight.mul_(2)
    inputs = case.streams.inputs()
    expected = twice(inputs)
    parametrize.register_parametrization(layer.weights["audio"], "video", Doubled())
    for place, y in layer(inputs).items():
        properties.close(y, expected[place], place, 1e-12)
    with torch.no_grad():
        none.weights["audio"].get_parameter("video").zero_()
    expected = none(inputs)
    pruned = case.layer()
    prune.random_unstructured(pruned.weights["audio"], "video", amount=1.0)
    for place, y in pruned(inputs).items():
        properties.close(y, expected[place], place, 1e-12)


def test_every_parameter_learns() -> None:
    case = Case(plain((5, 7, 11), batch=3, length=6))
    properties.every_parameter_gets_a_gradient(case.layer(), case.streams.inputs())


def test_the_state_dict_is_the_whole_state() -> None:
    case = Case(plain())
    properties.state_dict_round_trip(case.layer, case.streams.inputs())


def test_parameter_names_are_the_contract() -> None:
    layer = CrossAttention({"words": 5, "voice": 3, "face": 2})
    assert {name: tuple(p.shape) for name, p in layer.state_dict().items()} == {
        "weights.face.voice": (2, 3),
        "weights.face.words": (2, 5),
        "weights.voice.words": (3, 5),
    }
    assert list(CrossAttention([2, 3]).state_dict()) == ["weights.0.1"]


@pytest.mark.parametrize("name", ["copy", "weight", "face-1", "0"])
def test_any_name_that_is_allowed_works(name: str) -> None:
    x = {name: torch.randn(2, 4, 3), "voice": torch.randn(2, 4, 5)}
    assert list(CrossAttention({name: 3, "voice": 5})(x)) == [name, "voice"]


def test_initialisation_is_seeded_and_can_be_repeated() -> None:
    torch.manual_seed(1)
    first = CrossAttention({"a": 40, "b": 60})
    again = filled(CrossAttention({"a": 40, "b": 60}), 0)
    torch.manual_seed(1)
    again.reset_parameters()
    weight = first.state_dict()["weights.a.b"]
    assert torch.equal(weight, again.state_dict()["weights.a.b"])
    assert weight.abs().max() <= (6 / 100) ** 0.5
    assert weight.std().item() == pytest.approx((2 / 100) ** 0.5, rel=0.1)


def test_factory_arguments_reach_every_parameter() -> None:
    layer = CrossAttention([2, 3], device="meta", dtype=torch.bfloat16)
    for name, value in layer.named_parameters():
        assert value.device.type == "meta", name
        assert value.dtype == torch.bfloat16, name


def test_printing_explains_the_layer() -> None:
    text = repr(CrossAttention({"face": 2, "voice": 3}, temperature=0.5))
    for part in ("CrossAttention", "'face': 2", "temperature=0.5", "voice=(2, 3)"):
        assert part in text, f"{part} is not in\n{text}"


def test_wrong_calls_are_answered() -> None:
    dims = {"face": 3, "voice": 5}
    with pytest.raises(ValueError, match="CrossAttention: too few modalities"):
        CrossAttention([3])
    with pytest.raises(ValueError, match="CrossAttention: temperature must be positive"):
        CrossAttention(dims, temperature=0.0)
    with pytest.raises(ValueError, match="'voice' has 3 steps on axis 1, 'face' has 4"):
        CrossAttention(dims)({"face": torch.randn(2, 4, 3), "voice": torch.randn(2, 3, 5)})


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_one_compiled_graph_serves_every_batch_and_length(masked: bool) -> None:
    properties.one_graph_serves(
        Case(plain()).layer(torch.float32),
        [
            (
                plain(batch=batch, length=length).inputs(torch.float32),
                {"video": torch.rand(batch, length) > 0.3, "text": None} if masked else None,
            )
            for batch, length in ((6, 7), (2, 9), (5, 3))
        ],
    )


def test_gradcheck() -> None:
    """Autograd against finite differences, once, in the smallest case that has everything."""
    case = Case(plain((2, 3), batch=1, length=2, named=False))
    layer, mask = case.layer(), [torch.tensor([[True, False]]), None]
    leaves = [x.requires_grad_() for x in case.streams.tensors()]
    assert torch.autograd.gradcheck(lambda a, b: layer([a, b], mask), leaves)
