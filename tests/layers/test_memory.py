"""What does not fit into memory is refused before it is allocated, and only that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import ceil
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import crossfuse
from crossfuse import collate, resample, windows
from crossfuse._clock import Mode
from tests.support.reference import Structure

Dims = dict[str, int]
dims = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(
    lambda sizes: {f"m{k}": size for k, size in enumerate(sizes)}
)
modes = st.sampled_from(get_args(Mode))
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])

# Layers whose weights are counted to the last one, biases and norms aside.
COUNTED: dict[str, Callable[..., nn.Module]] = {
    "JCA": lambda dims, n, **o: crossfuse.JointCrossAttention(dims, n, 3, recursions=n, **o),
    "cross": lambda dims, n, **o: crossfuse.CrossAttention(dims, **o),
    "transformer": lambda dims, n, **o: crossfuse.CrossModalTransformer(
        dims, 4 * n, heads=2, depth=n, **o
    ),
    "leader": lambda dims, n, **o: crossfuse.LeaderFollowerAttention(dims, n, leader="m0", **o),
    "concat": lambda dims, n, **o: crossfuse.ConcatFusion(dims, n, **o),
    "gate": lambda dims, n, **o: crossfuse.DynamicGate(n, **o),
    "tokens": lambda dims, n, **o: crossfuse.MissingTokens(dims, **o),
    "pooling": lambda dims, n, **o: crossfuse.AttentionPooling(dims, **o),
    "RCMA as released": lambda dims, n, **o: crossfuse.RecursiveCrossModalAttention(
        dims, n, n, form="released", **o
    ),
}
# Layers of which the largest weights are counted.
ESTIMATED: dict[str, Callable[..., nn.Module]] = {
    "RCMA": lambda dims, n, **o: crossfuse.RecursiveCrossModalAttention(dims, n, n, **o),
    "RCMA of any length": lambda dims, n, **o: crossfuse.RecursiveCrossModalAttention(
        dims, recursions=n, form="paper", **o
    ),
    "TCN": lambda dims, n, **o: crossfuse.TemporalConvNet(n, list(dims.values()), **o),
}


@contextmanager
def memory(size: float) -> Iterator[None]:
    """A machine with so many bytes."""
    # The module that the package holds: pytest imports another one for its doctests.
    errors = vars(windows)["_errors"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "_memory", lambda: float(size))
        yield


def fits(call: Callable[[], Structure], size: float) -> bool:
    """Whether a machine with so many bytes is enough for a call."""
    with memory(size):
        try:
            call()
        except ValueError as error:
            if "would not fit into memory" not in str(error):
                raise
            return False
        return True


def weights(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters that are no biases, norms or scales, or all, if there are no others."""
    maps = [m for m in layer.modules() if not isinstance(m, nn.LayerNorm)]
    every = [p for module in maps for p in module.parameters(recurse=False)]
    return [p for p in every if p.ndim > 1] or every


@pytest.mark.parametrize("name", COUNTED)
@given(dims=dims, n=st.integers(1, 3), dtype=dtypes)
def test_weights_that_fit_are_allocated(name: str, dims: Dims, n: int, dtype: torch.dtype) -> None:
    def make() -> nn.Module:
        return COUNTED[name](dims, n, dtype=dtype)

    size = sum(p.numel() for p in weights(make())) * dtype.itemsize
    assert fits(make, size)
    assert not fits(make, size - 1)


@pytest.mark.parametrize("name", ESTIMATED)
@given(dims=dims, n=st.integers(1, 3), dtype=dtypes)
def test_a_third_of_the_memory_for_the_weights_is_too_little(
    name: str, dims: Dims, n: int, dtype: torch.dtype
) -> None:
    def make() -> nn.Module:
        return ESTIMATED[name](dims, n, dtype=dtype)

    size = sum(p.numel() for p in weights(make())) * dtype.itemsize
    assert fits(make, size + 4096 if name == "TCN" else size)  # with what a small net pads
    assert not fits(make, size / 3)


@pytest.mark.parametrize(("taps", "blocks", "width"), [(2, 1, 3), (3, 2, 1), (5, 4, 2)])
def test_the_padding_of_the_last_block_fits(taps: int, blocks: int, width: int) -> None:
    """It doubles from block to block, and is made for weights on any device."""

    def make() -> nn.Module:
        widths = [width] * blocks
        return crossfuse.TemporalConvNet(width, widths, kernel_size=taps, device="meta")

    size = 4 * (taps - 1) * 2 ** (blocks - 1) * width
    assert fits(make, size)
    assert not fits(make, size - 1)


@given(
    batch=st.integers(1, 4), steps=st.integers(1, 9), dim=st.integers(1, 5), dtype=dtypes,
    missing=st.booleans(),
)  # fmt: skip
def test_a_batch_that_fits_is_padded(
    batch: int, steps: int, dim: int, dtype: torch.dtype, missing: bool
) -> None:
    x = torch.ones(steps, dim, dtype=dtype)
    samples: list[Any] = [[x], *[[None if missing else x[:1]]] * (batch - 1)]
    size = batch * steps * dim * dtype.itemsize
    assert fits(lambda: collate(samples), size)
    assert not fits(lambda: collate(samples), size - 1)


@given(
    count=st.integers(1, 5), size=st.integers(1, 9), dim=st.integers(1, 5), dtype=dtypes
)  # fmt: skip
def test_windows_that_fit_are_cut(count: int, size: int, dim: int, dtype: torch.dtype) -> None:
    """Before and after masking, with an index of 8 bytes for each step."""
    x, starts = torch.ones(count, dim, dtype=dtype), list(range(count))
    needed = 2 * count * size * (dim * dtype.itemsize + 8)
    assert fits(lambda: windows.gather_windows(x, starts, size), needed)
    assert not fits(lambda: windows.gather_windows(x, starts, size), needed - 1)
    assert fits(lambda: windows.window_starts(size + count - 1, size, 1), 40 * count)
    assert not fits(lambda: windows.window_starts(size + count - 1, size, 1), 40 * count - 1)


@given(batch=st.integers(1, 3), length=st.integers(1, 9), dim=st.integers(1, 5), dtype=dtypes)
@torch.no_grad()
def test_a_live_window_that_fits_is_held(
    batch: int, length: int, dim: int, dtype: torch.dtype
) -> None:
    encode = crossfuse.PerModality([nn.Identity()])
    live = crossfuse.LiveWindow(encode, crossfuse.ConcatFusion([dim]), [dim], length)
    x, size = torch.ones(batch, 1, dim, dtype=dtype), batch * length * dim * dtype.itemsize
    assert fits(lambda: live.stream([x]), size)
    assert not fits(lambda: live.stream([x]), size - 1)


@given(
    batch=st.integers(1, 3), own=st.integers(1, 7), rate=st.integers(1, 7),
    steps=st.integers(1, 9), dim=st.integers(1, 4), mode=modes,
    dtype=dtypes,
)  # fmt: skip
def test_a_clock_that_fits_is_made(
    batch: int, own: int, rate: int, steps: int, dim: int, mode: Mode, dtype: torch.dtype
) -> None:
    """Under each of its steps, those of a stream that it may overlap, with index and weight."""
    x = torch.ones(batch, 3, dim, dtype=dtype)
    ratio = Fraction(rate, own)
    under = ceil(Fraction(ratio.denominator - 1, ratio.numerator)) + 1 if mode == "average" else 2
    size = steps * under * (16 + batch * (dim * dtype.itemsize + 16))
    assert fits(lambda: resample([x], [own], rate, steps=steps, mode=mode), size)
    assert not fits(lambda: resample([x], [own], rate, steps=steps, mode=mode), size - 1)


def test_what_does_not_fit_is_named_in_gibibytes() -> None:
    with memory(3 * 2**30), pytest.raises(ValueError, match="would not fit") as caught:
        crossfuse.DynamicGate(2**29)
    lines = str(caught.value).splitlines()
    assert lines[0] == "DynamicGate: the parameters would not fit into memory"
    assert lines[1].split() == ["got", "4", "GiB"]
    assert lines[2].split() == ["expected", "at", "most", "3", "GiB"]


def test_a_size_beyond_all_floats_is_named_too() -> None:
    with memory(0), pytest.raises(ValueError, match=r"got       9\.31e\+290 GiB"):
        resample([torch.ones(1, 1, 1)], [1e-300], 1e300)


def test_on_other_devices_nothing_is_refused() -> None:
    with memory(0):
        assert crossfuse.DynamicGate(2**29, device="meta").dim == 2**29
        with torch.device("meta"):
            assert crossfuse.DynamicGate(2**29).dim == 2**29
