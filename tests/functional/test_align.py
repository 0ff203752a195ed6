"""The laws of align, against a twin that looks at every step for every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from crossfuse import align, resample
from crossfuse._clock import Mode
from tests.support import properties

MODES: tuple[Mode, ...] = ("average", "linear", "nearest")
modes = st.sampled_from(MODES)
F64 = torch.float64
few = st.lists(st.integers(0, 9), min_size=1, max_size=3)


def twin(x: Tensor, times: Tensor, valid: Tensor, c: float, within: float, mode: str) -> Tensor:
    """One step of the clock from one recording (L, d); NaN if there is nothing to make it of."""
    near = sorted(
        (float(t), k) for k, t in enumerate(times) if valid[k] and abs(float(t) - c) <= within
    )
    if mode == "average":
        found = [x[k] for t, k in near if t < c + within]
        return torch.stack(found).mean(dim=0) if found else torch.full_like(x[0], float("nan"))
    if not near:
        return torch.full_like(x[0], float("nan"))
    past, ahead = [p for p in near if p[0] <= c], [p for p in near if p[0] > c]
    if not past or not ahead:
        return x[past[-1][1] if past else ahead[0][1]]
    (before, i), (after, j) = past[-1], ahead[0]
    if mode == "nearest":
        return x[i] if c - before <= after - c else x[j]
    share = (c - before) / (after - before)
    return (1 - share) * x[i] + share * x[j]


def recording(seed: int, batch: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, time stamps in no order and with ties, and a mask. Quarters are exact."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, steps, 2, generator=generator, dtype=F64)
    times = torch.randint(0, 40, (batch, steps), generator=generator).to(F64) / 4
    return x, times, torch.rand(batch, steps, generator=generator) < 0.8


def distinct(times: Tensor) -> Tensor:
    """Moves equal time stamps apart, since which of them is the last one is a choice."""
    return times + torch.arange(times.shape[1], dtype=F64) / 64


@given(
    mode=modes,
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 9)),
    within=st.sampled_from([0.25, 1.0, 50.0]),
    seed=st.integers(0, 999),
)
def test_it_agrees_with_the_twin(
    mode: Mode, sizes: tuple[int, int, int], within: float, seed: int
) -> None:
    batch, steps, count = sizes
    x, times, valid = recording(seed, batch, steps)
    times = distinct(times)
    clock = torch.arange(count, dtype=F64) * 1.25
    ((y,), (mask,)) = align([x], [times], clock, valid, within=within, mode=mode)
    for b in range(batch):
        rows = [twin(x[b], times[b], valid[b], float(c), within, mode) for c in clock]
        expected = torch.stack(rows)
        assert torch.equal(mask[b], ~expected[:, 0].isnan())
        properties.close(y[b], expected.nan_to_num(0.0), f"sample {b}", 1e-12)


@given(mode=modes, seed=st.integers(0, 999), lengths=few)
def test_each_recording_gives_what_it_gives_alone(
    mode: Mode, seed: int, lengths: list[int]
) -> None:
    """Values, masks and gradients, whatever is in the padding and in its time stamps."""
    x, times, _ = recording(seed, len(lengths), 9)
    times, clock = distinct(times), torch.arange(11, dtype=F64)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    for garbage in properties.GARBAGE:
        leaf = x.masked_fill(~mask[..., None], garbage).requires_grad_()
        dirty = times.masked_fill(~mask, garbage)
        ((y,), (valid,)) = align([leaf], [dirty], clock, mask, within=0.5, mode=mode)
        (gradient,) = torch.autograd.grad(y.sum(), leaf)
        assert torch.isfinite(y).all()
        assert not gradient[~mask].any()
        for b, length in enumerate(lengths):
            if length == 0:
                assert not valid[b].any()
                continue
            own = x[b : b + 1, :length], times[b, :length]
            ((alone,), (found,)) = align([own[0]], [own[1]], clock, within=0.5, mode=mode)
            properties.close(y[b : b + 1], alone, f"sample {b}", 1e-12)
            assert torch.equal(valid[b : b + 1], found)


@given(mode=modes, seed=st.integers(0, 999))
def test_the_order_of_the_steps_does_not_matter(mode: Mode, seed: int) -> None:
    x, times, mask = recording(seed, 2, 9)
    times, order = distinct(times), torch.randperm(9)
    clock = torch.arange(11, dtype=F64)
    expected = align([x], [times], clock, mask, within=1.0, mode=mode)
    found = align([x[:, order]], [times[:, order]], clock, mask[:, order], within=1.0, mode=mode)
    properties.close(found[0][0], expected[0][0], "permuted", 1e-12)
    assert torch.equal(found[1][0], expected[1][0])


@example(mode="linear", steps=1, far=True, seed=0)
@given(mode=modes, steps=st.integers(1, 12), far=st.booleans(), seed=st.integers(0, 999))
def test_on_its_own_clock_a_stream_stays_as_it_is(
    mode: Mode, steps: int, far: bool, seed: int
) -> None:
    """At the last step, too, which has none after it."""
    x, times, mask = recording(seed, 2, steps)
    times, within = distinct(times), 50.0 if far and mode != "average" else 1 / 128
    ((y,), (valid,)) = align([x], [times], times, mask, within=within, mode=mode)
    assert valid[mask].all()
    assert far or torch.equal(valid, mask)
    properties.close(y[mask], x[mask], "its own clock", 1e-12)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_of_equal_time_stamps_the_last_one_counts(mode: Mode) -> None:
    x, times = torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([4.0, 4.0, 7.0], dtype=F64)
    ((y,), _) = align([x], [times], torch.tensor([4.0], dtype=F64), within=5, mode=mode)
    assert y.item() == 2.0


@pytest.mark.parametrize(("mode", "within"), [("average", 0.5), ("nearest", 1.0), ("linear", 1.0)])
def test_time_stamps_at_a_constant_rate_give_what_the_rate_gives(mode: Mode, within: float) -> None:
    x = torch.randn(2, 40, 3, dtype=F64)
    times, clock = (torch.arange(40, dtype=F64) + 0.5) / 4, torch.arange(10, dtype=F64) + 0.5
    ((by_time,), _) = align([x], [times + 1 / 64], clock + 1 / 64, within=within, mode=mode)
    ((by_rate,), _) = resample([x], [4], 1, mode=mode)
    if mode == "nearest":  # the centre of a step of the clock is on the edge between two others
        by_time = by_time.where((by_time == by_rate), x[:, 1::4].where(by_time == x[:, 1::4], 9.0))
        by_rate = by_rate.where((by_time == by_rate), x[:, 1::4])
    properties.close(by_time, by_rate, "by time", 1e-12)


def test_steps_on_the_edge_of_two_averages_count_once() -> None:
    x, times = torch.arange(8.0)[None, :, None], torch.arange(8, dtype=F64) / 4
    ((y,), _) = align([x], [times], torch.tensor([0.5, 1.5], dtype=F64), within=0.5)
    assert y.flatten().tolist() == [1.5, 5.5]


def test_a_stream_can_be_the_clock_of_the_others() -> None:
    """With padding: its time stamps there are NaN, and so nothing is valid there."""
    face = torch.tensor([[0.0, 0.4, 1.0], [0.0, 0.5, 99.0]], dtype=F64)
    found = torch.tensor([[True, True, True], [True, True, False]])
    words = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    said = torch.tensor([0.1, 0.9], dtype=F64)
    clock = face.masked_fill(~found, float("nan"))
    ((y,), (mask,)) = align([words], [said], clock, within=0.2, mode="nearest")
    assert y[..., 0].tolist() == [[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]]
    assert mask.tolist() == [[True, False, True], [True, False, False]]


def test_unix_time_in_double_precision_resolves_frames() -> None:
    start = 1_790_000_000.0
    times = start + torch.arange(100, dtype=F64) / 100
    ((y,), _) = align([torch.arange(100.0)[None, :, None]], [times], times[3::4], within=1e-3)
    assert torch.equal(y.flatten(), torch.arange(3.0, 100, 4))


def test_the_structure_is_kept_and_the_missing_stay_missing() -> None:
    x, clock = {"a": torch.randn(2, 4, 3), "b": None}, torch.arange(3, dtype=F64)
    stamps = {"a": torch.arange(4, dtype=F64), "b": None, "c": None}
    y, mask = align(x, stamps, clock, within=0.5)
    assert list(y) == list(mask) == ["a", "b"]
    assert y["b"] is None
    assert mask["b"] is None
    assert type(align([x["a"]], [stamps["a"]], clock, within=0.5)[0]) is tuple


S = torch.arange(5, dtype=F64)


wrong: Any = align  # called as its types forbid


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda x: wrong({"a": x}, [S], S, within=1), TypeError, "modalities and times"),
        (lambda x: wrong([x], [None], S, within=1), TypeError, "times['0'] is not a tensor"),
        (lambda x: wrong([x], [S[:4]], S, within=1), ValueError, "times['0'] has not one"),
        (lambda x: wrong([x], [S], S.expand(3, 5), within=1), ValueError, "clock has not"),
        (lambda x: wrong([x], [S], 25.0, within=1), TypeError, "clock is not a tensor of times"),
        (lambda x: wrong([x], [S], S, within=0), ValueError, "within must be positive"),
        (lambda x: wrong([x], [S], S, within=1, mode="area"), ValueError, "unknown mode"),
        (lambda x: wrong([x], [S], S, x, within=1), TypeError, "mask is not a bool"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(
    call: Callable[[Tensor], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        call(torch.randn(2, 5, 3))
    assert f"align: {message}" in str(caught.value)
