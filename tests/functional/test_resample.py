"""The laws of resample, against a twin that walks through time."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.export import Dim, export

from crossfuse import resample
from crossfuse._clock import Mode
from tests.support import properties

MODES: tuple[Mode, ...] = ("average", "linear", "nearest")
RATES = (1, 2, 3, 5, 7, 10, 25, 30, 50, 2.5, 29.97)
rates = st.sampled_from(RATES)
modes = st.sampled_from(MODES)
few = st.lists(st.integers(0, 9), min_size=1, max_size=3)


def weights(mode: str, ratio: Fraction, j: int) -> dict[int, Fraction]:
    """The steps that make step j of the clock; a step is one long, one of the clock 1/ratio."""
    begin, end = j / ratio, (j + 1) / ratio
    centre = (begin + end) / 2
    if mode == "nearest":
        return {centre.__floor__(): Fraction(1)}
    if mode == "linear":
        before = (centre - Fraction(1, 2)).__floor__()
        beyond = centre - Fraction(1, 2) - before
        return {before: 1 - beyond, before + 1: beyond}
    return {
        k: min(end, Fraction(k + 1)) - max(begin, Fraction(k))
        for k in range(begin.__floor__(), ceil(end))
    }


def twin(x: Tensor, valid: Tensor, mode: str, old: float, new: float, steps: int) -> Tensor:
    """One recording (L, d) of which some steps (L,) are valid; NaN where no result is valid."""
    ratio = (Fraction(new) / Fraction(old)).limit_denominator(1_000_000)
    rows = []
    for j in range(steps):
        found = weights(mode, ratio, j)
        good = {k: w for k, w in found.items() if 0 <= k < x.shape[0] and valid[k] and w}
        if 2 * sum(good.values()) >= sum(found.values()):
            parts = [x[k] * float(w / sum(good.values())) for k, w in good.items()]
            rows.append(torch.stack(parts).sum(dim=0))
        else:
            rows.append(torch.full_like(x[0], float("nan")))
    return torch.stack(rows)


def draw_stream(seed: int, batch: int, steps: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, steps, 2, generator=generator, dtype=torch.float64)
    return x, torch.rand(batch, steps, generator=generator) < 0.7


def covering(steps: int, old: float, new: float) -> int:
    return ceil(steps * (Fraction(new) / Fraction(old)).limit_denominator(1_000_000))


@given(
    old=rates, new=rates, mode=modes, batch=st.integers(1, 3), steps=st.integers(1, 13),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_it_agrees_with_the_twin(
    old: float, new: float, mode: Mode, batch: int, steps: int, seed: int
) -> None:
    x, valid = draw_stream(seed, batch, steps)
    ((y,), (mask,)) = resample([x], [old], new, [valid], mode=mode)
    for b in range(batch):
        expected = twin(x[b], valid[b], mode, old, new, covering(steps, old, new))
        assert torch.equal(mask[b], ~expected[:, 0].isnan())
        properties.close(y[b], expected.nan_to_num(0.0), f"sample {b}", 1e-12)


@given(old=rates, new=rates, mode=modes, seed=st.integers(0, 999), lengths=few)
def test_each_recording_gives_what_it_gives_alone(
    old: float, new: float, mode: Mode, seed: int, lengths: list[int]
) -> None:
    """Values, masks and gradients, whatever is in the padding."""
    x, _ = draw_stream(seed, len(lengths), 9)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    for garbage in properties.GARBAGE:
        leaf = x.masked_fill(~mask[..., None], garbage).requires_grad_()
        ((y,), (valid,)) = resample([leaf], [old], new, mask, mode=mode)
        (gradient,) = torch.autograd.grad(y.sum(), leaf)
        assert torch.isfinite(y).all()
        assert not gradient[~mask].any()
        for b, length in enumerate(lengths):
            if length == 0:
                assert not valid[b].any()
                continue
            ((alone,), (found,)) = resample([x[b : b + 1, :length]], [old], new, mode=mode)
            steps = alone.shape[1]
            properties.close(y[b : b + 1, :steps], alone, f"sample {b}", 1e-12)
            assert torch.equal(valid[b : b + 1, :steps], found)
            assert not valid[b, steps:].any()


@given(rate=rates, mode=modes, seed=st.integers(0, 999))
def test_the_same_rate_changes_nothing(rate: float, mode: Mode, seed: int) -> None:
    x, mask = draw_stream(seed, 2, 8)
    ((y,), (valid,)) = resample([x], [rate], rate, mask, mode=mode)
    assert torch.equal(valid, mask)
    assert torch.equal(y, x.masked_fill(~mask[..., None], 0.0))


@given(old=rates, new=rates, mode=modes)
def test_a_constant_stays_constant(old: float, new: float, mode: Mode) -> None:
    ((y,), (mask,)) = resample([torch.full((1, 11, 1), 3.0)], [old], new, mode=mode)
    properties.close(y[mask], torch.full_like(y[mask], 3.0), "a constant", 1e-6)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_averaging_keeps_the_mean_and_does_not_alias(factor: int) -> None:
    """A tone at half the old rate, which "nearest" folds onto a slow one, is averaged out."""
    x = torch.randn(2, 30, 3, dtype=torch.float64)
    ((y,), _) = resample([x], [factor], 1)
    properties.close(y.mean(dim=1), x.mean(dim=1), "the mean", 1e-12)
    tone = torch.cos(torch.pi * torch.arange(600.0, dtype=torch.float64))[None, :, None]
    ((slow,), _) = resample([tone], [2 * factor], 1)
    properties.close(slow, torch.zeros_like(slow), "the tone", 1e-12)
    ((folded,), _) = resample([tone], [2 * factor], 1, mode="nearest")
    assert folded.abs().min() == 1.0


@pytest.mark.parametrize("factor", [2, 3])
def test_raising_the_rate_and_lowering_it_again_changes_nothing(factor: int) -> None:
    x, mask = draw_stream(0, 2, 9)
    once, valid = resample([x], [1], factor, mask)
    ((back,), (found,)) = resample(once, [factor], 1, valid)
    assert torch.equal(found, mask)
    properties.close(back, x.masked_fill(~mask[..., None], 0.0), "there and back", 1e-12)


def test_a_line_stays_a_line_between_its_ends() -> None:
    x = torch.arange(10.0)[None, :, None]
    ((y,), _) = resample([x], [2], 5, mode="linear")
    centres = (torch.arange(25) + 0.5) / 5 * 2 - 0.5
    properties.close(y.flatten(), centres.clamp(0, 9), "the line", 1e-6)


def test_streams_come_to_the_steps_of_the_longest_in_their_own_structure() -> None:
    streams = {"voice": torch.randn(2, 100, 3), "face": torch.randn(2, 51, 4), "pulse": None}
    rates_of = {"voice": 50, "face": 25, "pulse": 1, "words": 3}
    outputs: Any
    masks: Any
    outputs, masks = resample(streams, rates_of, 25)
    assert list(outputs) == list(masks) == ["voice", "face", "pulse"]
    assert outputs["voice"].shape == (2, 51, 3)
    assert masks["voice"][0].tolist() == [True] * 50 + [False]
    assert masks["face"].all()
    assert outputs["pulse"] is None
    assert masks["pulse"] is None
    pair, _ = resample([torch.randn(2, 4, 3), None], [2, 1], 1, steps=7)
    assert type(pair) is tuple
    assert pair[0] is not None
    assert pair[0].shape == (2, 7, 3)


def test_frames_of_ntsc_video_do_not_drift() -> None:
    """An hour at 30000/1001 frames a second: a 10 Hz clock finds the right frame to the end."""
    rate = 30000 / 1001
    x = torch.arange(int(3600 * rate), dtype=torch.float64)[None, :, None]
    ((y,), _) = resample([x], [rate], 10, mode="nearest")
    for k in (0, 1, 999, 35_990):
        assert y[0, k, 0] == (Fraction(2 * k + 1, 20) * Fraction(30000, 1001)).__floor__()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_it_exports_as_one_graph_of_any_batch_and_length(mode: Mode) -> None:
    class Resampler(torch.nn.Module):
        def forward(self, streams: dict[str, Tensor], mask: dict[str, Tensor]) -> object:
            return resample(streams, {"voice": 50, "face": 30}, 25, mask, mode=mode)

    def example(batch: int, voice: int, face: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        x = {"voice": torch.randn(batch, voice, 3), "face": torch.randn(batch, face, 2)}
        return x, {name: torch.rand(batch, v.shape[1]) < 0.8 for name, v in x.items()}

    batch = Dim("batch", min=1)
    free = {"voice": {0: batch, 1: Dim("v", min=1)}, "face": {0: batch, 1: Dim("f", min=1)}}
    program = export(Resampler(), example(2, 10, 6), dynamic_shapes=(free, free)).module()
    for sizes in ((3, 20, 12), (1, 7, 9), (2, 50, 2)):
        inputs = example(*sizes)
        for ours, theirs in zip(program(*inputs), Resampler()(*inputs), strict=True):
            for name in ours:
                assert torch.equal(ours[name], theirs[name])


wrong: Any = resample  # called as its types forbid


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda x: wrong({"a": x}, [1], 1), TypeError, "modalities and rates are not of one"),
        (lambda x: wrong([x], {"a": 1}, 1), TypeError, "modalities and rates are not of one"),
        (lambda x: wrong({"b": x}, {"a": 1}, 1), ValueError, "modalities has unknown"),
        (lambda x: wrong([x], [0], 1), ValueError, "rates['0'] must be positive"),
        (lambda x: wrong({"a": x}, {"b": 1, "a": None}, 1), ValueError, "rates['a'] must be"),
        (lambda x: wrong([x], [1], -1), ValueError, "rate must be positive"),
        (lambda x: wrong([x], [1], 1, steps=0), ValueError, "steps must be a positive int"),
        (lambda x: wrong([x], [1], 1, mode="cubic"), ValueError, "unknown mode"),
        (lambda x: wrong([x], [1e9], 1), ValueError, "'0' is too fast for the clock"),
        (lambda x: wrong([None], [1], 1), ValueError, "every stream is missing"),
        (lambda x: wrong([x, x[:1]], [1, 1], 1), ValueError, "'1' has 1 samples on axis 0"),
        (lambda x: wrong([x[0]], [1], 1), ValueError, "'0' has 2 axes, not 3"),
        (lambda x: wrong([x], [1], 1, x), TypeError, "mask is not a bool tensor"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(
    call: Callable[[Tensor], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        call(torch.randn(2, 5, 3))
    assert f"resample: {message}" in str(caught.value)
