"""A copy of another length has every other option of its layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crossfuse import JointCrossAttention, RecursiveCrossModalAttention
from tests.support.reference import Structure

DIMS = {"face": 3, "voice": 5}
KINDS: dict[str, tuple[Structure, dict[str, Any]]] = {
    "JCA": (JointCrossAttention, {"temporal_init": "xavier", "recursions": 2}),
    "JCA as published": (JointCrossAttention, {"form": "paper", "temporal_init": "identity"}),
    "RCMA": (RecursiveCrossModalAttention, {"temporal_init": "xavier", "share_weights": True}),
    "RCMA as published": (
        RecursiveCrossModalAttention,
        {"form": "paper", "temporal_init": "identity", "checkpoint": True},
    ),
    "RCMA as released": (RecursiveCrossModalAttention, {"form": "released", "joint": "others"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_copy_of_another_length_keeps_the_options(name: str) -> None:
    kind, options = KINDS[name]
    options = options | {"dropout": 0.3, "gate": True}
    grown, built = kind(DIMS, 4, **options).lengthened(7), kind(DIMS, 7, **options)
    assert repr(grown) == repr(built)
    for option, value in options.items():
        found = getattr(grown, option, value)
        assert getattr(found, "p", found) == value or option == "recursions", option
    for layer in (grown, built):
        torch.manual_seed(0)
        layer.reset_parameters()
    for key, value in built.state_dict().items():
        assert torch.equal(grown.state_dict()[key], value), key
