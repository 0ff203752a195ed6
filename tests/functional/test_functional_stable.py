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
from crossfuse.functional._products import through_heads
from tests.functional.test_functional import OUTPUT, Numbers, flops, numbers
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


@given(draw=numbers, heads=HEADS, count=st.integers(1, 3))
def test_attended_features_with_and_without_the_map(draw: Numbers, heads: int, count: int) -> None:
    """X F C O, of one modality and of several at once, in windows on both sides of d steps."""
    draw.sizes |= {"h": heads, "w": heads * draw.sizes["d"], "n": count}
    x, feature, output = draw("nbsw"), draw("nww"), draw("nww")
    correlation = draw("nbhdd")
    query = torch.einsum("nbsw,nwv->nbsv", x, feature)
    query = query.reshape(*query.shape[:3], heads, draw.sizes["d"])
    maps = output.reshape(count, heads, draw.sizes["d"], draw.sizes["w"])
    expected = torch.einsum("nbshd,nbhde,nhew->nbsw", query, correlation, maps)
    found = through_heads(x, feature, correlation, output)
    properties.close(found, expected, "all", OUTPUT)
    longest = draw.sizes["k"]  # of the layer: of no effect without a compiler
    for n in range(count):
        one = through_heads(x[n], feature[n], correlation[n], output[n], longest)
        properties.close(one, expected[n], "one", OUTPUT)


def orders(steps: int, longest: int | None = None) -> tuple[int, int, int]:
    """Operations of a call, and what they are with H made first and with F C O made first."""
    draw = Numbers({"b": 2, "s": steps, "w": 12, "h": 3, "d": 4}, 0)
    given = draw("bsw"), draw("ww"), draw("bhdd"), draw("ww")
    map_first = 2 * 2 * steps * 12 * (2 * 12 + 4)
    weights_first = 2 * 2 * (12 * 12 * (4 + 12) + steps * 12 * 12)
    return flops(lambda: through_heads(*given, longest)), map_first, weights_first


@pytest.mark.parametrize("steps", [2, 11, 12, 13, 40])
def test_attended_features_take_the_order_of_the_fewest_operations(steps: int) -> None:
    found, *both = orders(steps)
    assert found == min(both), f"{found} operations, the orders take {both}"


@pytest.mark.parametrize("steps", [2, 40])
@pytest.mark.parametrize(("longest", "map_first"), [(None, False), (4, True), (40, False)])
def test_a_graph_of_attended_features_serves_all_lengths(
    steps: int, longest: int | None, map_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer's longest window decides, or that most windows have some hundreds of steps."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found, *both = orders(steps, longest)
    assert found == both[0 if map_first else 1]


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
