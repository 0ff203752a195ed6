"""Streams at different rates onto one clock.

Shapes: B batch, L_i steps of stream i, T steps of the clock, K steps of a stream under one of them.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import reduce
from typing import Any, overload

import torch
from torch import Tensor

from crossfuse._clock import Mode, Resampled, Streams, read_streams, restored
from crossfuse._errors import check_memory, check_positive, check_size, error
from crossfuse._masks import zero_invalid
from crossfuse._modalities import Masks, Modalities, T

FINEST = 1_000_000


@overload
def resample(
    modalities: Mapping[str, T],
    rates: Mapping[str, float],
    rate: float,
    mask: Masks | None = None,
    *,
    mode: Mode = "average",
    steps: int | None = None,
) -> tuple[dict[str, T], dict[str, T]]: ...
@overload
def resample(
    modalities: Sequence[T],
    rates: Sequence[float],
    rate: float,
    mask: Masks | None = None,
    *,
    mode: Mode = "average",
    steps: int | None = None,
) -> tuple[tuple[T, ...], tuple[T, ...]]: ...
def resample(
    modalities: Modalities,
    rates: Mapping[str, float] | Sequence[float],
    rate: float,
    mask: Masks | None = None,
    *,
    mode: Mode = "average",
    steps: int | None = None,
) -> tuple[Any, Any]:
    """Brings streams that begin together and differ in rate onto one clock.

    Step k of a stream at rate r covers the time from k/r to (k+1)/r. A step of the clock is

    - ``"average"``: the mean of the steps that it covers, weighted by the overlap. If the rate
      falls, this keeps whatever is faster than the new rate from aliasing.
    - ``"linear"``: on the line between the two steps whose centres are next to its centre.
    - ``"nearest"``: the step in which its centre lies, so no new value appears.

    Invalid steps have no weight, so neither padding nor a gap reaches a value: a recording in a
    batch gives the same result as alone. A step of the clock is valid if at least half of its
    weight is on valid steps; their weights are then scaled to a sum of one.

    Two other habits are not resampling. Stacking k frames, ``x.unflatten(1, (-1, k)).flatten(2)``,
    divides the rate by k and keeps all values, as k times the features. Cutting all streams to the
    shortest, ``x[:, :n]``, changes no rate: streams at different rates drift apart.

    Args:
        modalities: Streams (B, L_i, d_i), a mapping by name or a sequence; ``None`` or an absent
            key for one that is missing.
        rates: Steps per second of each stream, in the same structure. Only their ratios to ``rate``
            matter, which are rounded to fractions with a denominator of at most a million.
        rate: Steps per second of the clock.
        mask: Valid steps, bool (B, L_i), **True = valid** (the opposite of the ``key_padding_mask``
            of :class:`torch.nn.MultiheadAttention`); one for all, or one for each stream.
        mode: ``"average"``, ``"linear"`` or ``"nearest"``.
        steps: Steps T of the clock; ``None`` for as many as cover the longest stream.

    Returns:
        The streams (B, T, d_i), zero at invalid steps, and a mask (B, T) for each of them, both in
        the structure of ``modalities``; ``None`` for a missing stream.

    Raises:
        TypeError: If a container, a stream or a mask is of the wrong type or dtype.
        ValueError: If names, shapes, masks or rates do not fit, or nothing gives the steps.

    Example:
        >>> streams = {"voice": torch.randn(2, 500, 8), "face": torch.randn(2, 250, 4)}
        >>> streams, mask = resample(streams, {"voice": 50, "face": 25}, 25)
        >>> streams["voice"].shape, mask["voice"].shape
        (torch.Size([2, 250, 8]), torch.Size([2, 250]))
        >>> x = torch.tensor([[[1.0], [3.0], [5.0], [9.0]]])
        >>> resample([x], [2], 1)[0][0].flatten()
        tensor([2., 7.])
    """
    given = read_streams("resample", modalities, "rates", rates, mask, mode)
    rate = check_positive("resample", "rate", rate)
    ratios = {name: _ratio(name, given.parameters[name], rate) for name in given.features}
    count = _steps(given, ratios) if steps is None else check_size("resample", "steps", steps)
    for name, x in given.features.items():
        _check_memory(name, x, mode, ratios[name], count)
    outputs = {
        name: _onto_clock(x, given.masks[name], *_weights(mode, ratios[name], count, x.device))
        for name, x in given.features.items()
    }
    return restored(given.structure, modalities, outputs)


def _ratio(name: str, stream: object, clock: float) -> Fraction:
    """Divides the clock's rate by that of a stream, exactly enough for integer arithmetic."""
    own = check_positive("resample", f"rates[{name!r}]", stream)
    ratio = (Fraction(clock) / Fraction(own)).limit_denominator(FINEST)
    if not ratio:
        raise error(
            ValueError,
            "resample",
            f"{name!r} is too fast for the clock",
            got=f"{stream} steps per second for a clock of {clock}",
            expected=f"at most {FINEST} steps of a stream under one of the clock",
            hint="if this is meant, pool the stream: MaskedMean",
        )
    return ratio


def _steps(given: Streams, ratios: Mapping[str, Fraction]) -> int:
    """Counts the steps of a clock that covers the longest stream."""
    if not given.features:
        raise error(
            ValueError,
            "resample",
            "every stream is missing",
            got="no stream, and no steps",
            expected="at least one stream, or the number of steps of the clock",
            hint="give steps, or leave out the batches in which nothing was recorded",
        )
    lengths = [
        -(-x.shape[1] * ratios[name].numerator // ratios[name].denominator)
        for name, x in given.features.items()
    ]
    # torch's maximum, because a length is a symbol while a graph is exported.
    return reduce(torch.sym_max, lengths)


def _check_memory(name: str, x: Tensor, mode: str, ratio: Fraction, steps: int) -> None:
    """Refuses a clock whose steps, with those of the stream under them, do not fit into memory."""
    under = steps * (_steps_under(ratio) if mode == "average" else 2)
    # For each of them an index and a weight, and its features in every sample.
    size = under * (16 + x.shape[0] * (x.shape[2] * x.itemsize + 16))
    check_memory("resample", f"{name!r} on the clock", size, 1, x.device)


def _steps_under(ratio: Fraction) -> int:
    """Counts the steps of a stream that a step of the clock can overlap."""
    return (ratio.denominator + 2 * ratio.numerator - 2) // ratio.numerator


def _weights(
    mode: Mode, ratio: Fraction, steps: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Lists which steps of a stream make each step of the clock.

    All in integers, in which no boundary moves by rounding: a step of the stream is 2n units long
    and one of the clock 2m, for a ratio of n/m.

    Returns:
        The steps (T, K) of the stream, some outside of it, and their weights (T, K).
    """
    n, m = ratio.numerator, ratio.denominator
    j = torch.arange(steps, device=device)[:, None]
    begin, centre, end = 2 * m * j, 2 * m * j + m, 2 * m * (j + 1)
    if mode == "nearest":
        index = centre // (2 * n)
        return index, torch.ones_like(index)
    if mode == "linear":
        before = (centre - n) // (2 * n)
        beyond = centre - n - 2 * n * before
        return torch.cat([before, before + 1], dim=1), torch.cat([2 * n - beyond, beyond], dim=1)
    index = begin // (2 * n) + torch.arange(_steps_under(ratio), device=device)
    overlap = end.minimum(2 * n * (index + 1)) - begin.maximum(2 * n * index)
    return index, overlap.clamp(min=0)


def _onto_clock(x: Tensor, valid: Tensor, index: Tensor, weight: Tensor) -> Resampled:
    """Averages the steps (T, K) of a stream (B, L, d) with weights (T, K), the valid ones."""
    inside = (index >= 0) & (index < x.shape[1])
    index = index.clamp(0, x.shape[1] - 1)
    share = torch.where(valid[:, index] & inside, weight, 0)  # (B, T, K)
    total = share.sum(dim=2)
    taken = 2 * total >= weight.sum(dim=1)
    # Not in half precision, in which the integers would overflow.
    exact = torch.promote_types(x.dtype, torch.float32)
    share = share.to(exact) / total.clamp(min=1)[..., None].to(exact)
    outputs = (share.to(x.dtype)[:, :, None] @ x[:, index])[:, :, 0]
    return zero_invalid(outputs, taken), taken
