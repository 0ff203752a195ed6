"""Every public module on a GPU; and without one, that no call waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import crossfuse
from tests.support.layers import SPECIMENS, Arguments, foreign_warnings_silenced
from tests.support.properties import close

SIZES = (3, 6)
CASES = [
    (name, masked)
    for name, specimen in SPECIMENS.items()
    for masked in ((False, True) if specimen.takes_mask else (False,))
]
on_each = pytest.mark.parametrize(("name", "masked"), CASES)
DEVICE = "cuda"


def gpu(test: Any) -> Any:  # noqa: ANN401 - a test
    """Marks a test that needs a GPU."""
    there = torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(not there, reason="no CUDA device")(test))


def prepared(name: str, masked: bool, device: str, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """A module and its arguments; features are leaves with gradients."""
    module = SPECIMENS[name].module(dtype).to(device)

    def moved(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        x = x.to(device)
        return x.to(dtype).requires_grad_() if x.is_floating_point() else x

    return module, tree_map(moved, SPECIMENS[name].arguments(SIZES, masked))


def tensors(values: object) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def outputs(module: nn.Module, arguments: Arguments) -> list[Tensor]:
    return [y.double() for y in tensors(module(*arguments))]  # masks as well


def results(module: nn.Module, arguments: Arguments) -> list[Tensor]:
    """Outputs, and gradients of inputs and parameters."""
    out = outputs(module, arguments)
    leaves = [x for x in tensors(arguments) if x.requires_grad] + list(module.parameters())
    total = torch.stack([y.square().sum() for y in out]).sum()
    if not total.requires_grad:
        return out
    return [*out, *torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)]


@on_each
def test_no_call_waits_for_the_device(name: str, masked: bool) -> None:
    """On meta, as on a GPU, a number is not there when the call that computes it returns."""
    for x in results(*prepared(name, masked, "meta", torch.float32)):
        assert x.device.type == "meta"


@gpu
@on_each
def test_equals_the_cpu(name: str, masked: bool) -> None:
    expected = results(*prepared(name, masked, "cpu", torch.float64))
    actual = results(*prepared(name, masked, DEVICE, torch.float64))
    for one, other in zip(actual, expected, strict=True):
        close(one.cpu(), other, name, 1e-10)


@gpu
@on_each
def test_a_gpu_is_never_waited_for(name: str, masked: bool) -> None:
    module, arguments = prepared(name, masked, DEVICE, torch.float32)
    results(module, arguments)  # libraries start
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(module, arguments)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@gpu
@on_each
def test_autocast_is_finite(name: str, masked: bool) -> None:
    module, arguments = prepared(name, masked, DEVICE, torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        found = results(module, arguments)
    assert all(x.isfinite().all() for x in found)


@gpu
@on_each
def test_a_graph_replays_new_numbers(name: str, masked: bool) -> None:
    module, arguments = prepared(name, masked, DEVICE, torch.float32)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.no_grad():
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            outputs(module, arguments)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            replayed = outputs(module, arguments)
        for x in tensors(arguments):
            if x.is_floating_point():
                x.mul_(0.5)
        graph.replay()
        for one, other in zip(replayed, outputs(module, arguments), strict=True):
            close(one, other, name, 1e-5)


@gpu
@pytest.mark.slow
@on_each
def test_compiled_equals_eager(name: str, masked: bool) -> None:
    module, arguments = prepared(name, masked, DEVICE, torch.float32)
    with foreign_warnings_silenced():
        compiled = crossfuse.compile(module)
        found = results(compiled, arguments)
    for one, other in zip(found, results(module, arguments), strict=True):
        close(one, other, name, 1e-4)
