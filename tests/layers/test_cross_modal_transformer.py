"""The laws of CrossModalTransformer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from crossfuse import CrossModalTransformer, functional
from tests.support import properties, reference
from tests.support.strategies import DARK, EDGES, GAPS, Streams, filled, plain, streams

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """Inputs, and how the layer is built for them."""

    streams: Streams
    width: int = 4
    heads: int = 2
    depth: int = 1

    def layer(
        self, dtype: torch.dtype = F64, *, order: list[int] | None = None
    ) -> CrossModalTransformer:
        dims = self.streams.layer_dims if order is None else self.streams.declared(order)
        layer = CrossModalTransformer(
            dims, self.width, heads=self.heads, depth=self.depth, dtype=dtype
        )
        return filled(layer, self.streams.seed if order is None else -1)

    @property
    def twin(self) -> properties.Twin:
        return partial(
            reference.cross_modal_transformer,
            dims=self.streams.by_name,
            heads=self.heads,
            depth=self.depth,
        )


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    most: int = 3,
    named: bool | None = None,
    batch: tuple[int, int] = (0, 2),
    masks: bool = True,
    missing: bool = True,
) -> Case:
    """Streams of different lengths."""
    drawn = draw(
        streams(
            most=most,
            named=named,
            batch=batch,
            steps=(1, 6),
            masks=masks,
            missing=missing,
            aligned=False,
        )
    )
    width, heads = draw(st.sampled_from([(4, 2), (3, 1), (6, 3), (2, 2)]), label="width, heads")
    return Case(drawn, width, heads)


def uneven(dims: tuple[int, ...] = (2, 3), batch: int = 2, length: int = 4) -> Streams:
    """Named streams without masks or gaps, the second twice as long."""
    lengths = (length, 2 * length, length + 1)[: len(dims)]
    return replace(plain(dims, batch), lengths=lengths)


@pytest.mark.parametrize("edge", EDGES)
def test_the_edges_agree_with_the_equations(edge: str) -> None:
    case = Case(EDGES[edge])
    inputs, mask = case.streams.inputs(), case.streams.mask()
    properties.agrees_with(case.layer(), case.twin, inputs, mask)
    properties.finite_gradients(case.layer(), inputs, mask)


@example(case=Case(uneven((2, 3, 5))), depth=3)
@given(case=cases(), depth=st.integers(1, 2))
def test_agrees_with_the_equations(case: Case, depth: int) -> None:
    case = replace(case, depth=depth)
    properties.agrees_with(case.layer(), case.twin, case.streams.inputs(), case.streams.mask())


@pytest.mark.slow
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    case=cases(batch=(1, 2)),
)
def test_agrees_with_the_equations_in_every_dtype(dtype: torch.dtype, case: Case) -> None:
    """With one block for each pair, and a width of at least 4 for each head.

    A layer norm over few features, which may nearly agree, magnifies the rounding of their
    differences; every further block does it again.
    """
    case = replace(case, width=12)
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
    layer = case.layer()
    properties.declared_in_any_order(layer, case.layer(order=order), inputs, mask)
    backwards = properties.places(layer(dict(reversed(inputs.items())), mask))
    for place, y in properties.places(layer(inputs, mask)).items():
        assert torch.equal(y, backwards[place])


@given(case=cases(batch=(1, 3)))
def test_samples_do_not_mix(case: Case) -> None:
    properties.batch_independent(case.layer(), case.streams.inputs(), case.streams.mask())


@example(case=Case(GAPS))
@given(case=cases())
def test_masked_steps_do_not_matter(case: Case) -> None:
    properties.padding_invariant(
        case.layer(), case.streams.inputs(), case.streams.mask(), padding=2
    )


@given(case=cases(missing=False), data=st.data())
def test_a_missing_modality_is_a_masked_one(case: Case, data: st.DataObject) -> None:
    inputs = case.streams.inputs()
    name = data.draw(st.sampled_from(list(inputs) if case.streams.named else range(len(inputs))))
    properties.missing_equals_masked(case.layer(), inputs, name, case.streams.mask())


@pytest.mark.slow
@example(case=Case(DARK))
@example(case=Case(GAPS))
@given(case=cases(batch=(1, 2)))
def test_second_derivatives_are_finite(case: Case) -> None:
    """Where torch has them: its fused kernels for attention do not."""
    layer, inputs = case.layer(), case.streams.inputs()
    leaves = {place: x.requires_grad_() for place, x in properties.places(inputs).items()}
    with sdpa_kernel(SDPBackend.MATH):
        outputs = properties.places(layer(properties.replace(inputs, leaves), case.streams.mask()))
        total = torch.stack([y.square().sum() for y in outputs.values()]).sum()
        first = torch.autograd.grad(
            total, list(leaves.values()), create_graph=True, materialize_grads=True
        )
        slope = torch.stack([g.square().sum() for g in first]).sum()
        wanted = [*leaves.values(), *layer.parameters()]
        for second in torch.autograd.grad(slope, wanted, materialize_grads=True):
            assert torch.isfinite(second).all()


@pytest.mark.slow
def test_gradcheck_of_both_orders() -> None:
    case = Case(replace(uneven(batch=1, length=2), named=False), width=2, heads=1)
    layer = case.layer()
    mask = [torch.tensor([[True, False]]), None]

    def run(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return tuple(properties.places(layer([a, b], mask)).values())

    leaves = [x.requires_grad_() for x in case.streams.tensors()]
    assert torch.autograd.gradcheck(run, leaves)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(run, leaves)


@given(case=cases(masks=False, missing=False, batch=(1, 2)))
def test_a_source_that_is_missing_adds_nothing_to_a_target(case: Case) -> None:
    """However its attention maps are set: the outputs do not depend on them."""
    layer, inputs = case.layer(), case.streams.inputs()
    source = next(iter(inputs)) if case.streams.named else 0
    alone = properties.replace(inputs, {str(source): None})
    before = properties.places(layer(alone))
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if f".pairs.{source}." in name and name.split(".")[-2] in {"key", "value", "output"}:
                parameter.mul_(-7)
    for place, y in properties.places(layer(alone)).items():
        assert torch.equal(y, before[place])


def test_the_order_of_the_steps_is_seen_in_every_modality() -> None:
    """By the positions: without them, attention is blind to the order of a source's steps."""
    case = Case(uneven())
    layer, inputs = case.layer(), case.streams.inputs()
    expected = layer(inputs)
    for name, x in inputs.items():
        moved = layer({**inputs, name: x.flip(1)})
        for other, y in expected.items():
            if other != name:
                assert (moved[other] - y).abs().max() > 1e-3


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_positions_are_the_sinusoids_of_the_paper(width: int) -> None:
    found = functional.cross_modal_positions(torch.zeros(2, 7, width, dtype=F64))
    for t in range(7):
        for feature in range(width):
            angle = torch.tensor(t / 10000 ** (feature // 2 * 2 / width), dtype=F64)
            expected = angle.cos() if feature % 2 else angle.sin()
            assert found[1, t, feature].item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_positions_tell_late_steps_apart_in_half_precision(dtype: torch.dtype) -> None:
    late = functional.cross_modal_positions(torch.zeros(1, 70_000, 8, dtype=dtype))[0, -9:]
    exact = functional.cross_modal_positions(torch.zeros(1, 70_000, 8, dtype=F64))[0, -9:]
    assert (late.double() - exact).abs().max() <= 2.0**-7


def test_attention_to_equal_keys_is_the_mean_and_to_nothing_is_zero() -> None:
    query, value = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    valid = torch.tensor([[True, True, False, True, False], [False] * 5])
    found = functional.cross_modal_attention(query, torch.zeros_like(value), value, valid, heads=2)
    properties.close(found[0], value[0, [0, 1, 3]].mean(dim=0).expand(3, 4), "the mean", 1e-6)
    assert not found[1].any()


def test_every_parameter_learns() -> None:
    case = Case(uneven((5, 7, 11), batch=3, length=6), depth=2)
    properties.every_parameter_gets_a_gradient(case.layer(), case.streams.inputs())


def test_the_state_dict_is_the_whole_state() -> None:
    case = Case(uneven(), depth=2)
    properties.state_dict_round_trip(case.layer, case.streams.inputs())


def test_parameter_names_are_the_contract() -> None:
    layer = CrossModalTransformer({"face": 2, "voice": 3, "words": 5}, 4, heads=2, depth=2)
    found = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {}

    def block(key: str, width: int) -> None:
        for norm in ("target_norm", "source_norm", "hidden_norm"):
            expected.update({f"{key}.{norm}.weight": (width,), f"{key}.{norm}.bias": (width,)})
        for part in ("query", "key", "value", "output"):
            expected[f"{key}.{part}.weight"] = (width, width)
        expected[f"{key}.expand.weight"] = (4 * width, width)
        expected[f"{key}.expand.bias"] = (4 * width,)
        expected[f"{key}.contract.weight"] = (width, 4 * width)
        expected[f"{key}.contract.bias"] = (width,)

    for name, dim in {"face": 2, "voice": 3, "words": 5}.items():
        expected |= {f"embed.{name}.weight": (4, dim), f"embed.{name}.bias": (4,)}
        for n in range(2):
            for source in {"face", "voice", "words"} - {name}:
                block(f"targets.{name}.pairs.{source}.{n}", 4)
            block(f"targets.{name}.self_attention.{n}", 8)
        expected |= {f"targets.{name}.norm.weight": (8,), f"targets.{name}.norm.bias": (8,)}
        expected[f"targets.{name}.output.weight"] = (dim, 8)
        expected[f"targets.{name}.output.bias"] = (dim,)
    assert found == expected


def test_initialisation_is_seeded_and_can_be_repeated() -> None:
    first, again = (CrossModalTransformer({"a": 40, "b": 60}) for _ in range(2))
    filled(again, 0)
    for layer in (first, again):
        torch.manual_seed(1)
        layer.reset_parameters()
    for name, value in first.named_parameters():
        assert torch.equal(value, again.get_parameter(name)), name
        if "norm" in name:
            assert (value == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias") or name in {
            "targets.a.output.weight",
            "targets.b.output.weight",
        }:
            assert not value.any(), name
        else:
            bound = (6 / sum(value.shape)) ** 0.5
            assert 0.9 * bound < value.abs().max() <= bound, name


def test_a_new_layer_is_the_identity() -> None:
    inputs = uneven().inputs(torch.float32)
    for name, y in CrossModalTransformer({"video": 2, "audio": 3})(inputs).items():
        assert torch.equal(y, inputs[name])


def test_factory_arguments_reach_every_parameter() -> None:
    layer = CrossModalTransformer([2, 3], device="meta", dtype=torch.bfloat16)
    for name, value in layer.named_parameters():
        assert value.device.type == "meta", name
        assert value.dtype == torch.bfloat16, name


def test_dropout_is_random_in_training_only() -> None:
    inputs = uneven().inputs(torch.float32)
    layer = filled(CrossModalTransformer({"video": 2, "audio": 3}, 8, dropout=0.5), 0)
    assert not torch.equal(layer(inputs)["video"], layer(inputs)["video"])
    assert torch.equal(layer.eval()(inputs)["video"], layer(inputs)["video"])


def test_printing_explains_the_layer() -> None:
    text = repr(CrossModalTransformer({"face": 2, "voice": 3}, 8, heads=2, depth=3, dropout=0.1))
    for part in ("'face': 2", "width=8", "heads=2", "depth=3", "dropout=0.1"):
        assert part in text, f"{part} is not in\n{text}"


def test_wrong_calls_are_answered() -> None:
    dims = {"face": 3, "voice": 5}
    answers: list[tuple[dict[str, Any], str]] = [
        ({"width": 0}, "width must be a positive int"),
        ({"heads": 0}, "heads must be a positive int"),
        ({"depth": 0}, "depth must be a positive int"),
        ({"dropout": 2}, "dropout must be a probability"),
        ({"width": 6}, "width is not a multiple of heads"),
    ]
    for wrong, message in answers:
        with pytest.raises(ValueError, match=f"CrossModalTransformer: {message}"):
            CrossModalTransformer(dims, **wrong)
    with pytest.raises(ValueError, match="use width=8"):
        CrossModalTransformer(dims, 6)
    with pytest.raises(ValueError, match="CrossModalTransformer: too few modalities"):
        CrossModalTransformer([3])
    with pytest.raises(ValueError, match="mask does not have the batch and steps"):
        CrossModalTransformer(dims)(
            {"face": torch.randn(2, 4, 3), "voice": torch.randn(2, 6, 5)},
            torch.ones(2, 4, dtype=torch.bool),
        )


def test_gradients_per_sample_add_up() -> None:
    """vmap of grad through functional_call, against autograd over the batch."""
    case = Case(uneven(batch=3))
    layer, inputs = case.layer(), case.streams.inputs()
    state = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(state: dict[str, Tensor], sample: dict[str, Tensor]) -> Tensor:
        fused = functional_call(layer, state, ({name: x[None] for name, x in sample.items()},))
        return torch.stack([y.square().sum() for y in fused.values()]).sum()

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no batching rule on the CPU
        each = vmap(grad(loss), in_dims=(None, 0))(state, inputs)
    total = torch.stack([y.square().sum() for y in layer(inputs).values()]).sum()
    torch.autograd.backward(total)
    for name, value in layer.named_parameters():
        assert value.grad is not None
        properties.close(each[name].sum(dim=0), value.grad, name, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_one_compiled_graph_serves_every_batch_and_length(masked: bool) -> None:
    properties.one_graph_serves(
        Case(uneven()).layer(torch.float32),
        [
            (
                uneven(batch=batch, length=length).inputs(torch.float32),
                {"video": torch.rand(batch, length) > 0.3} if masked else None,
            )
            for batch, length in ((6, 7), (9, 13), (5, 11))
        ],
    )


@pytest.mark.slow
def test_an_exported_layer_takes_any_batch_and_any_lengths() -> None:
    layer = Case(uneven()).layer(torch.float32)
    batch = torch.export.Dim("batch")
    free = {name: {0: batch, 1: torch.export.Dim(f"steps_{name}")} for name in ("video", "audio")}
    example = uneven(batch=3, length=5)
    masks = {name: torch.rand(x.shape[:2]) > 0.3 for name, x in example.inputs().items()}
    exported = torch.export.export(
        layer, (example.inputs(torch.float32), masks), dynamic_shapes=(free, free)
    ).module()
    other = replace(uneven(batch=2), lengths=(9, 2))
    masks = {name: torch.rand(x.shape[:2]) > 0.3 for name, x in other.inputs().items()}
    expected = layer(other.inputs(torch.float32), masks)
    for place, y in exported(other.inputs(torch.float32), masks).items():
        properties.close(y, expected[place], place, properties.TOLERANCES[torch.float32].output)
