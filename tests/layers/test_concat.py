"""The laws of ConcatFusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from crossfuse import ConcatFusion
from tests.support import properties, reference
from tests.support.reference import Structure
from tests.support.strategies import EDGES, GAPS, Streams, filled, permuted_rows, plain, streams

F64 = torch.float64
WIDTHS = pytest.mark.parametrize("out_features", [None, 4], ids=["bare", "linear"])


@dataclass(frozen=True)
class Case:
    """Inputs, and how the layer is built for them."""

    streams: Streams
    out_features: int | None = 4

    def layer(
        self, dtype: torch.dtype = F64, *, dims: Mapping[str, int] | None = None
    ) -> ConcatFusion:
        layer = ConcatFusion(dims or self.streams.layer_dims, self.out_features, dtype=dtype)
        return filled(layer, -1 if dims else self.streams.seed)

    @property
    def twin(self) -> properties.Twin:
        def twin(state: Mapping[str, Tensor], modalities: Structure, mask: Structure) -> Structure:
            projection = (state["linear.weight"], state["linear.bias"]) if state else None
            return reference.concat_fusion(
                modalities, mask, dims=self.streams.by_name, projection=projection
            )

        return twin


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    least: int = 1,
    named: bool | None = None,
    batch: tuple[int, int] = (0, 3),
    bare: bool = True,
) -> Case:
    drawn = draw(streams(least=least, most=4, named=named, batch=batch))
    return Case(drawn, draw(st.sampled_from([None, 1, 4] if bare else [1, 4]), label="out"))


@WIDTHS
@pytest.mark.parametrize("edge", EDGES)
def test_the_edges_agree_with_the_equations(edge: str, out_features: int | None) -> None:
    case = Case(EDGES[edge], out_features)
    inputs, mask = case.streams.inputs(), case.streams.mask()
    properties.agrees_with(case.layer(), case.twin, inputs, mask)
    properties.finite_gradients(case.layer(), inputs, mask)


@given(case=cases())
def test_agrees_with_the_equations(case: Case) -> None:
    properties.agrees_with(case.layer(), case.twin, case.streams.inputs(), case.streams.mask())


@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    case=cases(batch=(1, 3)),
)
def test_agrees_with_the_equations_in_every_dtype(dtype: torch.dtype, case: Case) -> None:
    properties.agrees_with(
        case.layer(dtype), case.twin, case.streams.inputs(dtype), case.streams.mask()
    )


@given(case=cases())
def test_returns_one_tensor_and_leaves_the_inputs_alone(case: Case) -> None:
    layer, inputs, mask = case.layer(), case.streams.inputs(), case.streams.mask()
    properties.does_not_mutate(layer, inputs, mask)
    fused = layer(inputs, mask)
    width = case.out_features or sum(case.streams.dims)
    assert fused.shape == (case.streams.batch, case.streams.length, width)
    assert fused.dtype == F64


def test_the_output_of_a_single_modality_is_a_new_tensor() -> None:
    x = torch.randn(2, 4, 3)
    fused = ConcatFusion([3])([x])
    assert torch.equal(fused, x)
    assert fused.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@given(case=cases())
def test_every_modality_has_its_block_of_features(case: Case) -> None:
    inputs, mask = properties.places(case.streams.inputs()), case.streams.mask()
    valid = properties.mask_of(case.streams.inputs(), mask)
    dims = case.streams.by_name
    fused = replace(case, out_features=None).layer()(case.streams.inputs(), mask)
    for name, block in zip(dims, fused.split(list(dims.values()), dim=-1), strict=True):
        if name in inputs:
            assert torch.equal(block, inputs[name].masked_fill(~valid[name][..., None], 0)), name
        else:
            assert not block.any(), f"{name} is missing and has features"


@given(case=cases(named=True), data=st.data())
def test_the_declared_order_does_not_matter(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.streams.dims))), label="order")
    inputs, mask = case.streams.inputs(), case.streams.mask()
    layer, other = case.layer(), case.layer(dims=case.streams.declared(order))
    properties.declared_in_any_order(layer, other, inputs, mask)
    assert torch.equal(layer(dict(reversed(inputs.items())), mask), layer(inputs, mask))


@given(case=cases(named=False), data=st.data())
def test_reordering_a_sequence_reorders_the_features(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.streams.dims))), label="order")
    inputs, mask, dims = case.streams.inputs(), case.streams.mask(), case.streams.dims
    masks = mask if mask is None or isinstance(mask, Tensor) else [mask[n] for n in order]
    rows = permuted_rows(dims, order)
    layer = case.layer()
    other = ConcatFusion([dims[n] for n in order], case.out_features, dtype=F64)
    state = layer.state_dict()
    if state:
        state["linear.weight"] = state["linear.weight"][:, rows]
    other.load_state_dict(state)
    expected = layer(inputs, mask)
    if not state:
        expected = expected[..., rows]
    found = other([inputs[n] for n in order], masks)
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
def test_pooled_modalities_are_those_of_one_step(case: Case) -> None:
    layer, inputs = case.layer(), case.streams.inputs()
    present = properties.places(inputs)
    pooled = properties.replace(inputs, {name: x[:, 0] for name, x in present.items()})
    one_step = properties.replace(inputs, {name: x[:, :1] for name, x in present.items()})
    assert torch.equal(layer(pooled), layer(one_step)[:, 0])


def test_every_parameter_learns() -> None:
    case = Case(plain((5, 7, 11), batch=3, length=6))
    properties.every_parameter_gets_a_gradient(case.layer(), case.streams.inputs())


@WIDTHS
def test_the_state_dict_is_the_whole_state(out_features: int | None) -> None:
    case = Case(plain(), out_features)
    properties.state_dict_round_trip(case.layer, case.streams.inputs())


def test_parameter_names_are_the_contract() -> None:
    dims = {"face": 2, "voice": 3, "words": 5}
    assert not ConcatFusion(dims).state_dict()
    found = {name: tuple(p.shape) for name, p in ConcatFusion(dims, 7).state_dict().items()}
    assert found == {"linear.weight": (7, 10), "linear.bias": (7,)}


@pytest.mark.parametrize("name", ["copy", "weight", "face-1", "0"])
def test_any_name_that_is_allowed_works(name: str) -> None:
    x = {name: torch.randn(2, 4, 3), "voice": torch.randn(2, 4, 5)}
    assert ConcatFusion({name: 3, "voice": 5})(x).shape == (2, 4, 8)


def test_initialisation_is_seeded_and_can_be_repeated() -> None:
    torch.manual_seed(1)
    first = ConcatFusion({"a": 40, "b": 60}, 30)
    again = filled(ConcatFusion({"a": 40, "b": 60}, 30), 0)
    torch.manual_seed(1)
    again.reset_parameters()
    for name, value in first.named_parameters():
        assert torch.equal(value, again.get_parameter(name)), name
        assert value.any(), name
    ConcatFusion([2, 3]).reset_parameters()


def test_factory_arguments_reach_every_parameter() -> None:
    layer = ConcatFusion([2, 3], 4, device="meta", dtype=torch.bfloat16)
    for name, value in layer.named_parameters():
        assert value.device.type == "meta", name
        assert value.dtype == torch.bfloat16, name


def test_printing_explains_the_layer() -> None:
    text = repr(ConcatFusion({"face": 2, "voice": 3}, 4))
    for part in ("ConcatFusion", "'face': 2", "out_features=4"):
        assert part in text, f"{part} is not in\n{text}"


def test_wrong_calls_are_answered() -> None:
    dims = {"face": 3, "voice": 5}
    with pytest.raises(ValueError, match="ConcatFusion: out_features must be a positive int"):
        ConcatFusion(dims, 0)
    with pytest.raises(ValueError, match="'voice' has 3 steps on axis 1, 'face' has 4"):
        ConcatFusion(dims)({"face": torch.randn(2, 4, 3), "voice": torch.randn(2, 3, 5)})
    with pytest.raises(TypeError, match="ConcatFusion: 'voice' has another dtype than 'face'"):
        ConcatFusion(dims)({"face": torch.randn(2, 4, 3), "voice": torch.randn(2, 4, 5).double()})
    with pytest.raises(TypeError, match="ConcatFusion: modalities must be a mapping or a sequence"):
        ConcatFusion([3, 3])(torch.randn(2, 4, 3))


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@WIDTHS
def test_one_compiled_graph_serves_every_batch_and_length(
    out_features: int | None, masked: bool
) -> None:
    layer = Case(plain(), out_features).layer(torch.float32)
    properties.one_graph_serves(
        layer,
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
