"""Layers and functions stay on the device of their inputs: on meta."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import crossfuse
from crossfuse import windows
from tests.support.reference import Structure

DIMS = {"face": 3, "voice": 5}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "rcma": lambda: crossfuse.RecursiveCrossModalAttention(DIMS, gate=True),
    "rcma with a length": lambda: crossfuse.RecursiveCrossModalAttention(DIMS, 8),
    "rcma as released": lambda: crossfuse.RecursiveCrossModalAttention(DIMS, 8, form="released"),
    "jca": lambda: crossfuse.JointCrossAttention(DIMS, 8, gate=True),
    "cross": lambda: crossfuse.CrossAttention(DIMS),
    "transformer": lambda: crossfuse.CrossModalTransformer(DIMS, 8, heads=2),
    "leader": lambda: crossfuse.LeaderFollowerAttention(DIMS, 4, leader="face"),
    "concat": lambda: crossfuse.ConcatFusion(DIMS, 4),
    "pooling": lambda: crossfuse.AttentionPooling(DIMS),
    "mean": crossfuse.MaskedMean,
    "tokens": lambda: crossfuse.MissingTokens(DIMS),
    "dropout": lambda: crossfuse.ModalityDropout(0.5),
}
FUNCTIONS: dict[str, Callable[[Tensor], Structure]] = {
    "collate": lambda x: crossfuse.collate([[x[0]], [x[1, :2]], [None]]),
    "average": lambda x: crossfuse.resample([x], [2], 3),
    "linear": lambda x: crossfuse.resample([x], [2], 3, mode="linear"),
    "nearest": lambda x: crossfuse.resample([x], [2], 3, mode="nearest"),
    "align": lambda x: crossfuse.align([x], [x[0, :, 0]], x[0, :, 1], within=1.0),
    "between": lambda x: crossfuse.align([x], [x[..., 0]], x[..., 1], within=1.0, mode="linear"),
    "gather": lambda x: windows.gather_windows(x[0], [0, 2], 3),
    "average windows": lambda x: windows.overlap_average(x, [0, 3], 6),
    "loss": lambda x: crossfuse.ConcordanceLoss()(x, x),
    "loss over the batch": lambda x: crossfuse.ConcordanceLoss(over="batch")(x, x),
}


def device_of(values: Structure) -> set[str]:
    return {x.device.type for x in tree_leaves(values) if isinstance(x, Tensor)}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_stays_on_its_device(name: str, masked: bool) -> None:
    with torch.device("meta"):
        x = {"face": torch.randn(2, 4, 3), "voice": torch.randn(2, 4, 5)}
        mask = torch.ones(2, 4, dtype=torch.bool) if masked else None
        layer = LAYERS[name]()
    assert device_of(layer(x, mask)) == {"meta"}
    assert {p.device.type for p in layer.parameters()} <= {"meta"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_stays_on_the_device_of_its_input(name: str) -> None:
    assert device_of(FUNCTIONS[name](torch.randn(2, 4, 3, device="meta"))) == {"meta"}


@pytest.mark.parametrize("name", ["rcma with a length", "rcma as released", "jca"])
def test_a_copy_of_another_length_stays_on_the_device_of_the_layer(name: str) -> None:
    layer: Structure = LAYERS[name]().to(device="meta", dtype=torch.float64)
    copy = layer.lengthened(9)
    assert {(p.device.type, p.dtype) for p in copy.parameters()} == {("meta", torch.float64)}
