"""Wrong options and inputs of JointCrossAttention, and what it prints."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crossfuse import JointCrossAttention


@pytest.mark.parametrize(
    ("options", "named"),
    [({"temporal_init": "smooth"}, "temporal_init"), ({"recursions": 1001}, "recursions")],
)
def test_a_wrong_option_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        JointCrossAttention([4, 4], 5, **options)


def test_inputs_are_compared_with_the_parameters() -> None:
    layer = JointCrossAttention([4, 4], 5)
    with pytest.raises((TypeError, ValueError), match="the parameters"):
        layer([torch.zeros(2, 5, 4, dtype=torch.float64) for _ in range(2)])


def test_a_printed_layer_shows_the_sizes_of_its_weights() -> None:
    assert "=(5, 5)" in repr(JointCrossAttention([4, 6], 5))
