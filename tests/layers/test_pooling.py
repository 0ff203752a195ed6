"""The laws of MaskedMean and AttentionPooling, against twins that loop over samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from crossfuse import AttentionPooling, ConcatFusion, MaskedMean, RecursiveCrossModalAttention
from tests.support import properties
from tests.support.reference import Structure, by_name
from tests.support.strategies import Streams, filled, streams

DIM, WIDTHS = 3, {"face": 3, "voice": 5}
ONE: dict[str, Callable[[], nn.Module]] = {
    "MaskedMean": MaskedMean,
    "AttentionPooling": lambda: filled(AttentionPooling(DIM, dtype=torch.float64), 0),
}


def pooled_sample(x: Tensor, valid: Tensor, query: Tensor | None) -> Tensor:
    """One sample (L, d): the mean of the valid steps, weighted by exp(x · q / sqrt(d))."""
    steps = [x[t] for t in range(x.shape[0]) if valid[t]]
    if not steps:
        return torch.zeros(x.shape[1], dtype=x.dtype)
    if query is None:
        return torch.stack(steps).sum(dim=0) / len(steps)
    weights = [torch.exp((step * query).sum() / x.shape[1] ** 0.5) for step in steps]
    total = torch.stack(weights).sum()
    return torch.stack([w / total * s for w, s in zip(weights, steps, strict=True)]).sum(dim=0)


def twin(state: Mapping[str, Tensor], modalities: Structure, mask: Structure) -> Structure:
    """Every sample of every modality by itself."""
    named = isinstance(modalities, Mapping)
    names = list(modalities) if named else [str(n) for n in range(len(modalities))]
    values = dict(zip(names, modalities.values() if named else modalities, strict=True))
    masks = by_name(mask, names)
    outputs: dict[str, Tensor | None] = {}
    for name, x in values.items():
        outputs[name] = None
        if x is not None:
            valid = masks[name]
            valid = torch.ones(x.shape[:2], dtype=torch.bool) if valid is None else valid
            query = state.get(f"queries.{name}.vector")
            rows = [pooled_sample(x[b], valid[b], query) for b in range(x.shape[0])]
            outputs[name] = torch.stack(rows) if rows else x.sum(dim=1)
    return outputs if named else tuple(outputs.values())


def layers(case: Streams) -> list[nn.Module]:
    attention = AttentionPooling(case.layer_dims, dtype=torch.float64)
    return [MaskedMean(), filled(attention, case.seed)]


@given(case=streams(least=1, aligned=False))
def test_it_agrees_with_the_twin(case: Streams) -> None:
    for layer in layers(case):
        properties.agrees_with(layer, twin, case.inputs(), case.mask())


@given(case=streams(least=1, aligned=False, batch=(1, 3)))
def test_the_usual_laws_hold(case: Streams) -> None:
    for layer in layers(case):
        inputs, mask = case.inputs(), case.mask()
        properties.does_not_mutate(layer, inputs, mask)
        properties.finite_gradients(layer, inputs, mask)
        properties.batch_independent(layer, inputs, mask)


@given(case=streams(least=1, aligned=False))
def test_missing_in_missing_out_in_the_structure_of_the_input(case: Streams) -> None:
    inputs = case.inputs()
    for layer in layers(case):
        outputs = layer(inputs, case.mask())
        assert type(outputs) is type(inputs)
        assert properties.places(outputs).keys() == properties.places(inputs).keys()
        assert len(outputs) == len(inputs)


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("garbage", properties.GARBAGE)
def test_nothing_at_an_invalid_step_matters(name: str, garbage: float) -> None:
    """Values and gradients, also where no step is valid."""
    layer = ONE[name]()
    x = torch.randn(3, 6, DIM, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([[6], [2], [0]])
    clean = properties.evaluate(layer, x, mask)
    dirty = properties.evaluate(layer, x.masked_fill(~mask[..., None], garbage), mask)
    tolerance = properties.TOLERANCES[torch.float64]
    properties.same_result(dirty, clean, f"with {garbage}", tolerance)
    properties.finite_gradients(layer, x, mask)
    assert not clean.outputs[""][2].any()
    assert not clean.inputs[""][~mask].any()
    shorter = layer(x[1:2, :2])
    properties.close(shorter[0], clean.outputs[""][1], "without padding", tolerance.output)


@pytest.mark.parametrize("name", ONE)
def test_the_order_of_steps_does_not_matter(name: str) -> None:
    layer, x = ONE[name](), torch.randn(2, 7, DIM, dtype=torch.float64)
    mask = torch.rand(2, 7) < 0.7
    order = torch.randperm(7)
    properties.close(layer(x[:, order], mask[:, order]), layer(x, mask), "permuted", 1e-12)


@given(case=streams(least=1, aligned=False))
def test_attention_pooling_starts_as_the_mean(case: Streams) -> None:
    layer = AttentionPooling(case.layer_dims, dtype=torch.float64)
    found = properties.places(layer(case.inputs(), case.mask()))
    for place, y in properties.places(MaskedMean()(case.inputs(), case.mask())).items():
        properties.close(found[place], y, f"modality {place!r}", 1e-12)


def test_attention_pooling_learns_from_its_start() -> None:
    layer = AttentionPooling({"face": 3, "voice": 5})
    x = {"face": torch.randn(2, 9, 3), "voice": torch.randn(2, 4, 5)}
    properties.every_parameter_gets_a_gradient(layer, x)
    filled(layer, 0).reset_parameters()
    assert not any(parameter.any() for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_mean_of_many_steps_stays_in_the_range_of_half_precision(dtype: torch.dtype) -> None:
    x = torch.full((1, 5000, 1), 100.0, dtype=dtype)
    assert MaskedMean()(x).item() == 100.0
    assert AttentionPooling(1, dtype=dtype)(x).item() == pytest.approx(100.0, rel=2**-6)


def test_it_follows_a_fusion_of_several_modalities_and_of_one_tensor() -> None:
    """With a modality missing in the batch, in a sample, and with all of them."""
    fuse = RecursiveCrossModalAttention(WIDTHS, length=None)
    x = {name: torch.randn(3, 8, dim) for name, dim in WIDTHS.items()}
    silent = torch.arange(8) < torch.tensor([[8], [0], [5]])
    pools = MaskedMean(), AttentionPooling(WIDTHS)
    for pool, gone in product(pools, ({}, {"voice": None})):
        masks = {"face": None, "voice": silent}
        pooled = pool(fuse(x | gone, masks), masks)
        assert pooled["face"].shape == (3, 3)
        assert pooled["voice"] is None if gone else not pooled["voice"][1].any()
        one_step = {n: None if y is None else y[:, None] for n, y in pooled.items()}
        for head in (ConcatFusion(WIDTHS, 4), ConcatFusion(WIDTHS)):
            assert torch.equal(head(pooled), head(one_step)[:, 0])
    joined = ConcatFusion(WIDTHS, 4)(fuse(x, silent), silent)
    assert AttentionPooling(4)(joined, silent).shape == MaskedMean()(joined, silent).shape == (3, 4)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: MaskedMean()(torch.randn(4, 3)), ValueError, "'x' has 2 axes, not 3"),
        (lambda: MaskedMean()(torch.ones(1, 2, 3).long()), TypeError, "'x' is not of a floating"),
        (
            lambda: MaskedMean()(torch.randn(2, 4, 3), {"face": None}),
            TypeError,
            "MaskedMean: mask is not a tensor, but x is one",
        ),
        (
            lambda: MaskedMean()({"face": torch.randn(2, 4, 3)}, torch.ones(2, 5).bool()),
            ValueError,
            "mask does not have the batch and steps",
        ),
        (lambda: MaskedMean()({"face": [1.0]}), TypeError, "'face' is not a tensor"),
        (
            lambda: AttentionPooling(3)({"x": torch.randn(2, 4, 3)}),
            TypeError,
            "AttentionPooling: x is not what the layer was built for\n  got       dict",
        ),
        (
            lambda: AttentionPooling({"face": 3})(torch.randn(2, 4, 3)),
            TypeError,
            "got       one tensor\n  expected  modalities of {'face': 3}",
        ),
        (
            lambda: AttentionPooling(3)(torch.randn(2, 4, 3), [None]),
            TypeError,
            "AttentionPooling: mask is not a tensor, but x is one",
        ),
        (lambda: AttentionPooling(3)(torch.randn(2, 4, 2)), ValueError, "'x' has 2 features"),
        (
            lambda: AttentionPooling(3)(torch.randn(2, 4, 3).double()),
            TypeError,
            "AttentionPooling: 'x' has another dtype than the parameters",
        ),
        (lambda: AttentionPooling(0), ValueError, "must be a positive int"),
    ],
)
def test_a_mistake_is_named(
    call: Callable[[], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)


def test_printing_explains() -> None:
    assert "AttentionPooling(\n  3" in repr(AttentionPooling(3))
    assert "{'face': 3}" in repr(AttentionPooling({"face": 3}))
