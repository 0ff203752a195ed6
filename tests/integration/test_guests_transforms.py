"""Every public layer under torch's transforms: derivatives in both modes, traces, saved models."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from tests.integration.test_guests import SIZES, tensors
from tests.support import properties
from tests.support.layers import SPECIMENS, foreign_warnings_silenced

# ModalityDropout returns masks, which have no derivative.
DIFFERENTIABLE = [name for name in SPECIMENS if name != "ModalityDropout"]
MASKED = [(n, m) for n in DIFFERENTIABLE for m in (False, True)[: 1 + SPECIMENS[n].takes_mask]]


def energy(name: str, masked: bool) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The sum of squares of a layer's outputs as a function of one input, and that input."""
    module = SPECIMENS[name].module()
    leaves, structure = pytree.tree_flatten(SPECIMENS[name].arguments(SIZES, masked))
    k = next(k for k, x in enumerate(leaves) if x.is_floating_point())

    def function(x: Tensor) -> Tensor:
        outputs = module(*pytree.tree_unflatten([*leaves[:k], x, *leaves[k + 1 :]], structure))
        squares = [y.square().sum() for y in tensors(outputs) if y.is_floating_point()]
        return torch.stack(squares).sum()

    return function, leaves[k]


@pytest.mark.parametrize(("name", "masked"), MASKED)
def test_forward_mode_agrees_with_reverse_mode(name: str, masked: bool) -> None:
    """And the Hessian, which is one mode over the other, is symmetric."""
    function, x = energy(name, masked)
    # The fused attention has no forward mode.
    with foreign_warnings_silenced(), sdpa_kernel(SDPBackend.MATH):
        forward, reverse = torch.func.jacfwd(function)(x), torch.func.jacrev(function)(x)
        hessian = torch.func.hessian(function)(x).reshape(x.numel(), x.numel())
    properties.close(forward, reverse, "gradient", 1e-4)
    properties.close(hessian, hessian.mT, "Hessian", 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in DIFFERENTIABLE if "Recursive" in n or "Joint" in n])
def test_a_symbolic_trace_computes_the_same(name: str) -> None:
    module, arguments = SPECIMENS[name].module(), SPECIMENS[name].arguments(SIZES, False)
    trace = make_fx(lambda *x: module(*x), tracing_mode="symbolic", _allow_non_fake_inputs=True)
    with foreign_warnings_silenced():
        traced = trace(*arguments)
    for x, y in zip(tensors(traced(*arguments)), tensors(module(*arguments)), strict=True):
        properties.close(x, y, "traced", 1e-5)


@pytest.mark.parametrize("name", SPECIMENS)
def test_a_saved_module_computes_the_same(name: str) -> None:
    """The whole module, pickled, not its state dict."""
    module, file = SPECIMENS[name].module(), io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    arguments = SPECIMENS[name].arguments(SIZES, SPECIMENS[name].takes_mask)
    for x, y in zip(tensors(again(*arguments)), tensors(module(*arguments)), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_saved_tensors_on_the_cpu_leave_the_gradients(name: str) -> None:
    function, x = energy(name, SPECIMENS[name].takes_mask)
    x = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(function(x), x)
    with torch.autograd.graph.save_on_cpu():
        (found,) = torch.autograd.grad(function(x), x)
    assert torch.equal(found, expected)
