"""The laws of ConcatFusion, CrossAttention and LeaderFollowerAttention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from crossfuse import ConcatFusion, CrossAttention, LeaderFollowerAttention, functional
from tests.support import properties, reference, released
from tests.support.reference import Structure
from tests.support.strategies import Streams, filled, permuted_rows, streams

F64 = torch.float64
KINDS = ("concat", "linear", "cross", "leader")


@dataclass(frozen=True)
class Case:
    """Inputs, and which layer is built for them."""

    kind: str
    streams: Streams
    width: int = 4  # of the linear map, or of the queries
    leader: int = 0
    temperature: float = 1.0

    def layer(self, dtype: torch.dtype = F64, *, seed: int | None = None) -> nn.Module:
        dims, count = self.streams.layer_dims, len(self.streams.dims)
        layer: nn.Module
        if self.kind == "cross":
            layer = CrossAttention(dims, temperature=self.temperature, dtype=dtype)
        elif self.kind == "leader":
            leader = self.streams.names[self.leader % count] if self.streams.named else self.leader
            leader = leader if self.streams.named else self.leader % count
            layer = LeaderFollowerAttention(dims, self.width, leader=leader, dtype=dtype)
        else:
            width = self.width if self.kind == "linear" else None
            layer = ConcatFusion(dims, width, dtype=dtype)
        return filled(layer, self.streams.seed if seed is None else seed)

    @property
    def twin(self) -> properties.Twin:
        return partial(twin, self)


def twin(
    case: Case, state: Mapping[str, Tensor], modalities: Structure, mask: Structure
) -> Structure:
    """The naive layer of the case's kind, with its parameters by our names."""
    dims = case.streams.by_name
    if case.kind == "cross":
        weights = {pair: state["weights." + ".".join(pair)] for pair in combinations(dims, 2)}
        return reference.cross_attention(
            weights, modalities, mask, dims=dims, temperature=case.temperature
        )
    if case.kind == "leader":
        maps = {
            name: {
                part: reference.Affine(state[f"{part}.{name}.weight"], state[f"{part}.{name}.bias"])
                for part in ("query", "key", "value")
            }
            for name in dims
        }
        norm = reference.Affine(state["norm.weight"], state["norm.bias"])
        leader = list(dims)[case.leader % len(dims)]
        return reference.leader_follower_attention(
            maps, norm, modalities, mask, dims=dims, leader=leader
        )
    projection = (state["linear.weight"], state["linear.bias"]) if state else None
    return reference.concat_fusion(modalities, mask, dims=dims, projection=projection)


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    kinds: tuple[str, ...] = KINDS,
    least: int = 1,
    most: int = 4,
    named: bool | None = None,
    batch: tuple[int, int] = (0, 3),
    missing: bool = True,
) -> Case:
    kind = draw(st.sampled_from(kinds), label="kind")
    least = max(least, 2 if kind == "cross" else 1)
    drawn = draw(streams(least=least, most=most, named=named, batch=batch, missing=missing))
    return Case(
        kind,
        drawn,
        draw(st.sampled_from([1, 4, 13]), label="width"),
        draw(st.integers(0, 3), label="leader"),
        draw(st.sampled_from([0.5, 1.0, 3.0]), label="temperature"),
    )


def plain(dims: tuple[int, ...] = (2, 3, 5), batch: int = 2, length: int = 4) -> Streams:
    """Named streams without masks or gaps."""
    empty = ((0,) * batch,) * len(dims)
    return Streams(dims, batch, (length,) * len(dims), True, "none", empty, frozenset(), 3)


# The edges: one step, an empty batch, everything masked, one sample without a modality.
DARK = Streams((2, 3), 2, (3, 3), True, "each", ((7, 7), (7, 7)), frozenset(), 2)
GAPS = Streams((2, 3), 2, (3, 3), True, "each", ((7, 0), (4, 1)), frozenset(), 2)
EDGES = (plain(length=1), plain(batch=0), DARK, GAPS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edge", EDGES, ids=("one step", "no samples", "dark", "gaps"))
def test_the_edges_agree_with_the_equations(kind: str, edge: Streams) -> None:
    case = Case(kind, edge)
    properties.agrees_with(case.layer(), case.twin, edge.inputs(), edge.mask())
    properties.finite_gradients(case.layer(), edge.inputs(), edge.mask())


@given(case=cases())
def test_agrees_with_the_equations(case: Case) -> None:
    properties.agrees_with(case.layer(), case.twin, case.streams.inputs(), case.streams.mask())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(case=cases(most=3, batch=(1, 3)))
def test_agrees_with_the_equations_in_every_dtype(dtype: torch.dtype, case: Case) -> None:
    """With a temperature of at least 1 and a width of at least 4.

    A smaller temperature magnifies the rounding of the scores, and a LayerNorm over few features,
    which may nearly agree, that of their differences.
    """
    case = replace(case, temperature=max(case.temperature, 1.0), width=max(case.width, 4))
    layer = case.layer(dtype)
    properties.agrees_with(layer, case.twin, case.streams.inputs(dtype), case.streams.mask())


def test_leader_follower_reproduces_the_published_numbers() -> None:
    data = released.load("leader_follower_release")
    names = {"encoderQ": "query", "encoderK": "key", "encoderV": "value", "ln": "norm"}
    layer = LeaderFollowerAttention(released.DIMS, 4, leader="video", dtype=F64)
    theirs = released.weights(data)
    split = [(key, *key.split(".", 1)) for key in theirs]
    layer.load_state_dict({f"{names[head]}.{rest}": theirs[key] for key, head, rest in split})
    found = properties.evaluate(layer, released.part(data, "input"), weigh={"": data["cotangent"]})
    output, gradient = properties.TOLERANCES[F64]
    properties.close(found.outputs[""], data["output"], "output", output)
    for name, expected in released.part(data, "input_grad").items():
        properties.close(found.inputs[name], expected, f"gradient of {name}", gradient)


@given(case=cases())
def test_gives_back_the_structure_or_one_tensor(case: Case) -> None:
    layer, inputs, mask = case.layer(), case.streams.inputs(), case.streams.mask()
    properties.does_not_mutate(layer, inputs, mask)
    if case.kind == "cross":
        properties.same_structure(layer, inputs, mask)
        return
    dims = case.streams.dims
    width = {
        "concat": sum(dims),
        "linear": case.width,
        "leader": dims[case.leader % len(dims)] + len(dims) * case.width,
    }[case.kind]
    assert layer(inputs, mask).shape == (case.streams.batch, case.streams.length, width)
    assert layer(inputs, mask).dtype == F64


@given(case=cases(named=True))
def test_the_order_of_the_keys_does_not_matter(case: Case) -> None:
    layer, inputs = case.layer(), case.streams.inputs()
    backwards = properties.places(layer(dict(reversed(inputs.items()))))
    in_sequence = list(properties.places(layer(list(inputs.values()))).values())
    for n, (place, y) in enumerate(properties.places(layer(inputs)).items()):
        assert torch.equal(y, backwards[place])
        assert torch.equal(y, in_sequence[n])


@given(case=cases(batch=(1, 3)))
def test_samples_do_not_mix(case: Case) -> None:
    properties.batch_independent(case.layer(), case.streams.inputs(), case.streams.mask())


@example(case=Case("cross", GAPS))
@example(case=Case("leader", GAPS))
@given(case=cases())
def test_masked_steps_do_not_matter(case: Case) -> None:
    """Nor does the length: every layer takes any."""
    properties.padding_invariant(
        case.layer(), case.streams.inputs(), case.streams.mask(), padding=2
    )


@given(case=cases(least=2), data=st.data())
def test_a_missing_modality_is_a_masked_one(case: Case, data: st.DataObject) -> None:
    inputs = case.streams.whole().inputs()
    names = list(inputs) if case.streams.named else list(range(len(inputs)))
    name = data.draw(st.sampled_from(names))
    properties.missing_equals_masked(case.layer(), inputs, name, case.streams.mask())


@given(case=cases(batch=(1, 3)))
def test_gradients_are_finite(case: Case) -> None:
    properties.finite_gradients(case.layer(), case.streams.inputs(), case.streams.mask())


def moved(case: Case, order: list[int]) -> nn.Module:
    """The layer with its modalities declared in another order, and its parameters moved along."""
    drawn = replace(case.streams, dims=tuple(case.streams.dims[n] for n in order))
    leader = order.index(case.leader % len(order))
    layer = replace(case, streams=drawn, leader=leader).layer(seed=-1)
    state = {}
    for key, value in case.layer().state_dict().items():
        head, *names, last = key.split(".")
        if head == "linear" and last == "weight":
            value = value[:, permuted_rows(case.streams.dims, order)]
        elif head == "norm":
            value = value[order]
        elif head == "weights":
            i, j = order.index(int(names[0])), order.index(int(last))
            names, last, value = [str(min(i, j))], str(max(i, j)), value.T if i > j else value
        elif head != "linear":
            names = [str(order.index(int(names[0])))]
        state[".".join([head, *names, last])] = value
    layer.load_state_dict(state)
    return layer


@given(case=cases(named=False), data=st.data())
def test_reordering_the_modalities_reorders_the_outputs(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.streams.dims))))
    inputs, mask = case.streams.inputs(), case.streams.mask()
    layer, other = case.layer(), moved(case, order)
    if case.kind == "cross":
        properties.modality_equivariant(layer, other, inputs, mask, order)
        return
    masks = mask if mask is None or isinstance(mask, Tensor) else tuple(mask[n] for n in order)
    expected, dims = layer(inputs, mask), case.streams.dims
    if case.kind == "concat":
        expected = expected[..., permuted_rows(dims, order)]
    elif case.kind == "leader":
        blocks = (dims[case.leader % len(dims)], *[case.width] * len(dims))
        expected = expected[..., permuted_rows(blocks, [0, *(n + 1 for n in order)])]
    found = other(tuple(inputs[n] for n in order), masks)
    properties.close(found, expected, "output", properties.TOLERANCES[F64].output)


@given(case=cases(kinds=("concat",)))
def test_concatenating_puts_the_features_side_by_side(case: Case) -> None:
    inputs, mask = properties.places(case.streams.inputs()), case.streams.mask()
    valid = properties.mask_of(case.streams.inputs(), mask)
    blocks = case.layer()(case.streams.inputs(), mask).split(case.streams.dims, dim=-1)
    for name, block in zip(case.streams.by_name, blocks, strict=True):
        if name in inputs:
            kept = inputs[name].masked_fill(~valid[name][..., None], 0)
            assert torch.equal(block, kept), name
        else:
            assert not block.any(), f"{name} is missing and has features"


@given(case=cases(kinds=("leader",)))
def test_leader_follower_keeps_the_leader_and_each_step_to_itself(case: Case) -> None:
    layer, whole = case.layer(), case.streams.whole()
    inputs = whole.inputs()
    lead = case.leader % len(whole.dims)
    fused = layer(inputs)
    assert torch.equal(fused[..., : whole.dims[lead]], whole.tensors()[lead])
    alone = {place: x[:, :1] for place, x in properties.places(inputs).items()}
    first = layer(properties.replace(inputs, alone))
    properties.close(first, fused[:, :1], "the first step", properties.TOLERANCES[F64].output)


@given(case=cases(kinds=("cross",), batch=(1, 3)))
def test_cross_attention_with_no_weights_adds_the_mean(case: Case) -> None:
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


@pytest.mark.parametrize("kind", ["linear", "cross", "leader"])
def test_every_parameter_learns(kind: str) -> None:
    case = Case(kind, plain((5, 7, 11), batch=3, length=6))
    properties.every_parameter_gets_a_gradient(case.layer(), case.streams.inputs())


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_dict_is_the_whole_state(kind: str) -> None:
    case = Case(kind, plain())
    properties.state_dict_round_trip(case.layer, case.streams.inputs())


def test_parameter_names_are_the_contract() -> None:
    dims = {"face": 2, "voice": 3, "words": 5}
    assert shapes(ConcatFusion(dims)) == {}
    assert shapes(ConcatFusion(dims, 7)) == {"linear.weight": (7, 10), "linear.bias": (7,)}
    assert shapes(CrossAttention(dims)) == {
        "weights.face.voice": (2, 3),
        "weights.face.words": (2, 5),
        "weights.voice.words": (3, 5),
    }
    assert list(shapes(CrossAttention([2, 3]))) == ["weights.0.1"]
    expected: dict[str, tuple[int, ...]] = {"norm.weight": (3, 7), "norm.bias": (3, 7)}
    for part in ("query", "key", "value"):
        for name, dim in dims.items():
            expected |= {f"{part}.{name}.weight": (7, dim), f"{part}.{name}.bias": (7,)}
    assert shapes(LeaderFollowerAttention(dims, 7, leader="voice")) == expected
    default = LeaderFollowerAttention([2, 3], leader=1).state_dict()
    assert default["query.1.weight"].shape == (32, 3)


def shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}


@pytest.mark.parametrize("name", ["get", "copy", "weight", "face-1", "0"])
def test_any_name_that_is_allowed_works(name: str) -> None:
    x = {name: torch.randn(2, 4, 3), "voice": torch.randn(2, 4, 5)}
    dims = {name: 3, "voice": 5}
    assert list(CrossAttention(dims)(x)) == [name, "voice"]
    assert ConcatFusion(dims)(x).shape == (2, 4, 8)
    assert LeaderFollowerAttention(dims, 2, leader=name)(x).shape == (2, 4, 7)


@pytest.mark.parametrize("kind", ["linear", "cross", "leader"])
def test_initialisation_is_seeded_and_can_be_repeated(kind: str) -> None:
    dims = {"a": 40, "b": 60}
    builds: dict[str, Callable[[], Any]] = {
        "linear": lambda: ConcatFusion(dims, 30),
        "cross": lambda: CrossAttention(dims),
        "leader": lambda: LeaderFollowerAttention(dims, 30, leader="a"),
    }
    torch.manual_seed(1)
    first = builds[kind]()
    again = filled(builds[kind](), 0)
    torch.manual_seed(1)
    again.reset_parameters()
    for name, value in first.named_parameters():
        assert torch.equal(value, again.get_parameter(name)), name
        assert name.startswith("norm") or value.abs().max() > 0, name
    if kind == "cross":
        weight = first.state_dict()["weights.a.b"]
        assert weight.abs().max() <= (6 / 100) ** 0.5
        assert weight.std().item() == pytest.approx((2 / 100) ** 0.5, rel=0.1)


def test_factory_arguments_reach_every_parameter() -> None:
    how: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    for layer in (
        ConcatFusion([2, 3], 4, **how),
        CrossAttention([2, 3], **how),
        LeaderFollowerAttention([2, 3], leader=0, **how),
    ):
        for name, value in layer.named_parameters():
            assert value.device.type == "meta", name
            assert value.dtype == torch.bfloat16, name


def test_printing_explains_the_layers() -> None:
    dims = {"face": 2, "voice": 3}
    for layer, parts in (
        (ConcatFusion(dims, 4), ["'face': 2", "out_features=4"]),
        (CrossAttention(dims, temperature=0.5), ["'face': 2", "temperature=0.5", "voice=(2, 3)"]),
        (LeaderFollowerAttention(dims, 8, leader="voice"), ["'face': 2", "width=8", "'voice'"]),
        (LeaderFollowerAttention([2, 3], leader=1), ["[2, 3]", "leader='1'"]),
    ):
        for part in (type(layer).__name__, *parts):
            assert part in repr(layer), f"{part} is not in\n{layer!r}"


def test_wrong_calls_are_answered() -> None:
    dims = {"face": 3, "voice": 5}
    with pytest.raises(ValueError, match="CrossAttention: too few modalities"):
        CrossAttention([3])
    with pytest.raises(ValueError, match="ConcatFusion: out_features must be a positive int"):
        ConcatFusion(dims, 0)
    with pytest.raises(ValueError, match="CrossAttention: temperature must be positive"):
        CrossAttention(dims, temperature=0.0)
    with pytest.raises(ValueError, match="LeaderFollowerAttention: unknown leader"):
        LeaderFollowerAttention(dims, leader="words")
    with pytest.raises(ValueError, match="LeaderFollowerAttention: unknown leader"):
        LeaderFollowerAttention(dims, leader=0)
    with pytest.raises(ValueError, match="LeaderFollowerAttention: unknown leader"):
        LeaderFollowerAttention([3, 5], leader=-1)
    with pytest.raises(ValueError, match="LeaderFollowerAttention: width must be a positive int"):
        LeaderFollowerAttention(dims, 0, leader="face")
    for layer in (ConcatFusion(dims), CrossAttention(dims)):
        with pytest.raises(ValueError, match=r"'voice' has 3 steps on axis 1, 'face' has 4"):
            layer({"face": torch.randn(2, 4, 3), "voice": torch.randn(2, 3, 5)})
    with pytest.raises(TypeError, match="ConcatFusion: 'voice' has another dtype than 'face'"):
        ConcatFusion(dims)({"face": torch.randn(2, 4, 3), "voice": torch.randn(2, 4, 5).double()})


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_compiled_graph_serves_every_batch_and_length(kind: str, masked: bool) -> None:
    # The first sizes differ from each other and from every dim: equal ones share a symbol.
    torch.compiler.reset()
    layer = Case(kind, plain()).layer(torch.float32)
    counter = CompileCounterWithBackend("aot_eager")
    compiled, graphs = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True), 0
    for batch, length in ((6, 7), (2, 9), (5, 3)):
        inputs = plain(batch=batch, length=length).inputs(torch.float32)
        mask = {"video": torch.rand(batch, length) > 0.3, "text": None} if masked else None
        properties.eager_equals_compiled(layer, compiled, inputs, mask)
        graphs = graphs or counter.frame_count  # a first call may start over to fix a number
    assert counter.frame_count == graphs


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_layer_takes_any_batch_and_length(kind: str) -> None:
    layer = Case(kind, plain()).layer(torch.float32)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    inputs, mask = plain(batch=3, length=7).inputs(torch.float32), torch.rand(3, 7) > 0.3
    exported = torch.export.export(
        layer, (inputs, mask), dynamic_shapes=(dict.fromkeys(inputs, free), free)
    ).module()
    inputs, mask = plain(batch=2, length=11).inputs(torch.float32), torch.rand(2, 11) > 0.3
    expected = properties.places(layer(inputs, mask))
    for place, y in properties.places(exported(inputs, mask)).items():
        properties.close(y, expected[place], place, properties.TOLERANCES[torch.float32].output)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    """Autograd against finite differences, once, in the smallest case that has everything."""
    case = Case(kind, replace(plain((2, 3), batch=1, length=2), named=False))
    layer = case.layer()
    mask = [torch.tensor([[True, False]]), None]

    def run(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return tuple(properties.places(layer([a, b], mask)).values())

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in case.streams.tensors()])
