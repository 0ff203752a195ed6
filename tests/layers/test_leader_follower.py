"""The laws of LeaderFollowerAttention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from crossfuse import LeaderFollowerAttention
from tests.support import properties, reference, released
from tests.support.reference import Structure
from tests.support.strategies import EDGES, GAPS, Streams, filled, permuted_rows, plain, streams

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """Inputs, and how the layer is built for them."""

    streams: Streams
    width: int = 4
    led_by: int = 0  # a modality by its place in the streams, counted round

    @property
    def lead(self) -> int:
        return self.led_by % len(self.streams.dims)

    @property
    def leader(self) -> str:
        return self.streams.names[self.lead]

    def layer(
        self, dtype: torch.dtype = F64, *, dims: Mapping[str, int] | None = None
    ) -> LeaderFollowerAttention:
        layer = LeaderFollowerAttention(
            dims or self.streams.layer_dims,
            self.width,
            leader=self.leader if self.streams.named else self.lead,
            dtype=dtype,
        )
        return filled(layer, -1 if dims else self.streams.seed)

    @property
    def twin(self) -> properties.Twin:
        dims = self.streams.by_name

        def twin(state: Mapping[str, Tensor], modalities: Structure, mask: Structure) -> Structure:
            def affine(key: str) -> reference.Affine:
                return reference.Affine(state[f"{key}.weight"], state[f"{key}.bias"])

            parts = ("query", "key", "value")
            maps = {name: {part: affine(f"{part}.{name}") for part in parts} for name in dims}
            return reference.leader_follower_attention(
                maps, affine("norm"), modalities, mask, dims=dims, leader=self.leader
            )

        return twin


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    least: int = 1,
    named: bool | None = None,
    batch: tuple[int, int] = (0, 3),
    widths: tuple[int, ...] = (1, 4, 13),
) -> Case:
    return Case(
        draw(streams(least=least, most=4, named=named, batch=batch)),
        draw(st.sampled_from(widths), label="width"),
        draw(st.integers(0, 3), label="leader"),
    )


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
    case=cases(batch=(1, 3), widths=(4, 13)),
)
def test_agrees_with_the_equations_in_every_dtype(dtype: torch.dtype, case: Case) -> None:
    """With a width of at least 4.

    A layer norm over few features, which may nearly agree, magnifies the rounding of their
    differences.
    """
    properties.agrees_with(
        case.layer(dtype), case.twin, case.streams.inputs(dtype), case.streams.mask()
    )


def test_reproduces_the_published_numbers() -> None:
    """Their model has the modalities in the order of a sequence."""
    data = released.load("leader_follower_release")
    layer = LeaderFollowerAttention(
        list(released.DIMS.values()), 4, leader=list(released.DIMS).index("video"), dtype=F64
    )
    heads = {"encoderQ": "query", "encoderK": "key", "encoderV": "value", "ln": "norm"}
    place = {name: str(n) for n, name in enumerate(released.DIMS)}
    state = {}
    for key, value in released.weights(data).items():
        head, *rest = key.split(".")
        state[".".join([heads[head], *(place.get(part, part) for part in rest)])] = value
    layer.load_state_dict(state)
    inputs = released.part(data, "input")
    found = properties.evaluate(
        layer, [inputs[name] for name in released.DIMS], weigh={"": data["cotangent"]}
    )
    output, gradient = properties.TOLERANCES[F64]
    properties.close(found.outputs[""], data["output"], "output", output)
    for name, expected in released.part(data, "input_grad").items():
        properties.close(found.inputs[place[name]], expected, f"gradient of {name}", gradient)


@given(case=cases())
def test_returns_one_tensor_and_leaves_the_inputs_alone(case: Case) -> None:
    layer, inputs, mask = case.layer(), case.streams.inputs(), case.streams.mask()
    properties.does_not_mutate(layer, inputs, mask)
    fused = layer(inputs, mask)
    width = case.streams.dims[case.lead] + len(case.streams.dims) * case.width
    assert fused.shape == (case.streams.batch, case.streams.length, width)
    assert fused.dtype == F64


@given(case=cases(named=True), data=st.data())
def test_the_declared_order_does_not_matter(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.streams.dims))), label="order")
    inputs, mask = case.streams.inputs(), case.streams.mask()
    layer, other = case.layer(), case.layer(dims=case.streams.declared(order))
    properties.declared_in_any_order(layer, other, inputs, mask)
    assert torch.equal(layer(dict(reversed(inputs.items())), mask), layer(inputs, mask))


@given(case=cases(named=False), data=st.data())
def test_reordering_a_sequence_reorders_the_rows(case: Case, data: st.DataObject) -> None:
    dims, count = case.streams.dims, len(case.streams.dims)
    order = data.draw(st.permutations(range(count)), label="order")
    drawn = replace(case.streams, dims=tuple(dims[n] for n in order))
    layer = case.layer()
    other = replace(case, streams=drawn, led_by=order.index(case.lead)).layer()
    state = {}
    for key, value in layer.state_dict().items():
        head, *names, last = key.split(".")
        moved = [str(order.index(int(name))) for name in names]
        state[".".join([head, *moved, last])] = value[order] if head == "norm" else value
    other.load_state_dict(state)
    inputs, mask = case.streams.inputs(), case.streams.mask()
    masks = mask if mask is None or isinstance(mask, Tensor) else [mask[n] for n in order]
    blocks = permuted_rows((dims[case.lead], *[case.width] * count), [0, *(n + 1 for n in order)])
    found = other([inputs[n] for n in order], masks)
    expected = layer(inputs, mask)[..., blocks]
    properties.close(found, expected, "output", properties.TOLERANCES[F64].output)


@given(case=cases(batch=(1, 3)))
def test_samples_do_not_mix(case: Case) -> None:
    properties.batch_independent(case.layer(), case.streams.inputs(), case.streams.mask())


@example(case=Case(GAPS))
@given(case=cases())
def test_masked_steps_do_not_matter(case: Case) -> None:
    properties.padding_invariant(
        case.layer(), case.streams.inputs(), case.streams.mask(), padding=2
    )


@given(case=cases(least=2), data=st.data())
def test_a_missing_modality_is_a_masked_one(case: Case, data: st.DataObject) -> None:
    inputs = case.streams.whole().inputs()
    name = data.draw(st.sampled_from(list(inputs) if case.streams.named else range(len(inputs))))
    properties.missing_equals_masked(case.layer(), inputs, name, case.streams.mask())


@given(case=cases())
def test_the_leader_is_kept_and_each_step_is_fused_separately(case: Case) -> None:
    layer, whole = case.layer(), case.streams.whole()
    inputs = whole.inputs()
    fused = layer(inputs)
    assert torch.equal(fused[..., : whole.dims[case.lead]], whole.tensors()[case.lead])
    alone = {place: x[:, :1] for place, x in properties.places(inputs).items()}
    first = layer(properties.replace(inputs, alone))
    properties.close(first, fused[:, :1], "the first step", properties.TOLERANCES[F64].output)


def test_every_parameter_learns() -> None:
    case = Case(plain((5, 7, 11), batch=3, length=6))
    properties.every_parameter_gets_a_gradient(case.layer(), case.streams.inputs())


def test_the_state_dict_is_the_whole_state() -> None:
    case = Case(plain())
    properties.state_dict_round_trip(case.layer, case.streams.inputs())


def test_parameter_names_are_the_contract() -> None:
    dims = {"face": 2, "voice": 3, "words": 5}
    expected: dict[str, tuple[int, ...]] = {"norm.weight": (3, 7), "norm.bias": (3, 7)}
    for part in ("query", "key", "value"):
        for name, dim in dims.items():
            expected |= {f"{part}.{name}.weight": (7, dim), f"{part}.{name}.bias": (7,)}
    layer = LeaderFollowerAttention(dims, 7, leader="voice")
    assert {name: tuple(p.shape) for name, p in layer.state_dict().items()} == expected
    default = LeaderFollowerAttention([2, 3], leader=1).state_dict()
    assert default["query.1.weight"].shape == (32, 3)


@pytest.mark.parametrize("name", ["copy", "weight", "face-1", "0"])
def test_any_name_that_is_allowed_works(name: str) -> None:
    x = {name: torch.randn(2, 4, 3), "voice": torch.randn(2, 4, 5)}
    assert LeaderFollowerAttention({name: 3, "voice": 5}, 2, leader=name)(x).shape == (2, 4, 7)


def test_initialisation_is_seeded_and_can_be_repeated() -> None:
    dims = {"a": 40, "b": 60}
    torch.manual_seed(1)
    first = LeaderFollowerAttention(dims, 30, leader="a")
    again = filled(LeaderFollowerAttention(dims, 30, leader="a"), 0)
    torch.manual_seed(1)
    again.reset_parameters()
    for name, value in first.named_parameters():
        assert torch.equal(value, again.get_parameter(name)), name
        assert name.startswith("norm") or value.any(), name


def test_factory_arguments_reach_every_parameter() -> None:
    layer = LeaderFollowerAttention([2, 3], leader=0, device="meta", dtype=torch.bfloat16)
    for name, value in layer.named_parameters():
        assert value.device.type == "meta", name
        assert value.dtype == torch.bfloat16, name


def test_printing_explains_the_layer() -> None:
    named = repr(LeaderFollowerAttention({"face": 2, "voice": 3}, 8, leader="voice"))
    for part in ("LeaderFollowerAttention", "'face': 2", "width=8", "leader='voice'"):
        assert part in named, f"{part} is not in\n{named}"
    assert "[2, 3], width=32, leader='1'" in repr(LeaderFollowerAttention([2, 3], leader=1))


def test_wrong_calls_are_answered() -> None:
    dims = {"face": 3, "voice": 5}
    with pytest.raises(ValueError, match="LeaderFollowerAttention: unknown leader"):
        LeaderFollowerAttention(dims, leader="words")
    with pytest.raises(ValueError, match="LeaderFollowerAttention: unknown leader"):
        LeaderFollowerAttention(dims, leader=0)
    with pytest.raises(ValueError, match="LeaderFollowerAttention: unknown leader"):
        LeaderFollowerAttention([3, 5], leader=-1)
    with pytest.raises(ValueError, match="LeaderFollowerAttention: width must be a positive int"):
        LeaderFollowerAttention(dims, 0, leader="face")


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
