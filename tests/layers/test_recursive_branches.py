"""What every form of a branch hands on: the dropout to the equations, its sizes to a reader."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from crossfuse import RecursiveCrossModalAttention
from tests.support.strategies import filled

FORMS = ["stable", "paper", "released"]


@pytest.mark.parametrize("form", FORMS)
def test_dropout_drops_all_that_a_recursion_adds(
    form: Literal["stable", "paper", "released"],
) -> None:
    layer = RecursiveCrossModalAttention([4, 4], 5, form=form, dropout=1.0, dtype=torch.float64)
    filled(layer, 0)
    inputs = [torch.randn(2, 5, 4, dtype=torch.float64) for _ in range(2)]
    assert all(torch.equal(one, x) for one, x in zip(layer(inputs), inputs, strict=True))
    added = [one - x for one, x in zip(layer.eval()(inputs), inputs, strict=True)]
    assert all((one != 0).any() for one in added)


@pytest.mark.parametrize("form", FORMS)
def test_a_printed_layer_shows_the_sizes_of_its_weights(
    form: Literal["stable", "paper", "released"],
) -> None:
    printed = repr(RecursiveCrossModalAttention([4, 6], 5, form=form))
    assert "feature=(4, 4)" in printed
    assert "feature=(6, 6)" in printed
