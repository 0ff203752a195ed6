"""CrossModalTransformer differentiated twice and per sample, compiled and exported."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.support import properties
from tests.support.cross_modal_transformer import Case, cases, uneven
from tests.support.strategies import DARK, GAPS


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
