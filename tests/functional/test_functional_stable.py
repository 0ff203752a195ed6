"""The equations of the stable form of RCMA against their definitions written out in indices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu

from crossfuse import functional
from tests.functional.test_functional import OUTPUT, Numbers, numbers
from tests.support import properties

HEADS = st.integers(1, 4)


def in_heads(x: Tensor, heads: int) -> Tensor:
    """Features (B, L, h k) as (B, L, h, k)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads)


def normalised(x: Tensor, count: Tensor) -> Tensor:
    """Columns of x (B, L, d) over their root mean square, over n steps."""
    power = torch.einsum("bsd,bsd->bd", x, x) / count[:, None]
    return x / (power + 1e-5).sqrt()[:, None]


@given(draw=numbers, heads=HEADS, zeros=st.integers(0, 3))
def test_stable_correlation(draw: Numbers, heads: int, zeros: int) -> None:
    batch, steps, width = (draw.sizes[axis] for axis in "bsd")
    draw.sizes["w"] = heads * width
    key, value = draw("bsw"), draw("bsw")
    counts = (torch.arange(batch) - zeros).clamp(0)

    def expected(count: Tensor) -> Tensor:
        k, v = (in_heads(normalised(x, count), heads) for x in (key, value))
        return torch.einsum("bshk,bshm->bhkm", k, v) / count[:, None, None, None]

    each = functional.rcma_stable_correlation(key, value, counts, heads)
    properties.close(each, expected(counts.clamp(1).double()), "a count for each", OUTPUT)
    one = expected(torch.full((batch,), float(steps), dtype=torch.float64))
    kinds: tuple[Callable[[int], int | Tensor], ...] = (int, torch.tensor)
    for kind in kinds:
        found = functional.rcma_stable_correlation(key, value, kind(steps), heads=heads)
        properties.close(found, one, "one count", OUTPUT)


def test_all_features_make_up_one_head() -> None:
    draw = Numbers({"b": 2, "s": 5, "w": 6}, 0)
    key, value = draw("bsw"), draw("bsw")
    found = functional.rcma_stable_correlation(key, value, 5)
    assert torch.equal(found, functional.rcma_stable_correlation(key, value, 5, 1))


@given(draw=numbers, heads=HEADS)
def test_stable_attention_map(draw: Numbers, heads: int) -> None:
    draw.sizes |= {"h": heads, "w": heads * draw.sizes["d"]}
    query, correlation = draw("bsw"), draw("bhdd")
    spread = torch.einsum("bshk,bhkm->bshm", in_heads(query, heads), correlation)
    expected = (spread / draw.sizes["d"] ** 0.5).flatten(2)
    found = functional.rcma_stable_attention_map(query, correlation)
    properties.close(found, expected, "H", OUTPUT)


@given(draw=numbers)
def test_feed_forward(draw: Numbers) -> None:
    x, value, hidden = draw("bsd"), draw("bsk"), draw("dk")
    bias, back = draw("k"), draw("kd")
    level = x - x.mean(2, keepdim=True)
    scores = level / (level.square().mean(2, keepdim=True) + 1e-5).sqrt()
    inner = gelu(torch.einsum("bsd,dk->bsk", scores, hidden) + value + bias)
    expected = x + torch.einsum("bsk,kd->bsd", inner, back)
    found = functional.rcma_feed_forward(x, value, hidden, bias, back)
    properties.close(found, expected, "X", OUTPUT)
    assert torch.equal(functional.rcma_feed_forward(x, value, hidden, bias, back, dropout=1.0), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_windows_of_loud_features_stay_in_half_precision(dtype: torch.dtype) -> None:
    """Their squares and sums are beyond float16, and bfloat16 does not hold their count."""
    key = torch.full((1, 3001, 4), 300.0, dtype=dtype)
    found = functional.rcma_stable_correlation(key, -key, torch.tensor([3001]))
    properties.close(found.double(), -torch.ones(1, 1, 4, 4).double(), "C", 1e-2)
