"""Streams with time stamps onto one clock.

Shapes: B batch, L_i steps of stream i, T steps of the clock.
"""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from crossfuse._clock import Mode, Resampled, read_streams, restored
from crossfuse._errors import check_dense, check_device, check_positive, error, is_real
from crossfuse._masks import zero_invalid
from crossfuse._modalities import Masks, Modalities, T


@overload
def align(
    modalities: Mapping[str, T],
    times: Mapping[str, Tensor | None],
    clock: Tensor,
    mask: Masks | None = None,
    *,
    within: float,
    mode: Mode = "average",
) -> tuple[dict[str, T], dict[str, T]]: ...
@overload
def align(
    modalities: Sequence[T],
    times: Sequence[Tensor | None],
    clock: Tensor,
    mask: Masks | None = None,
    *,
    within: float,
    mode: Mode = "average",
) -> tuple[tuple[T, ...], tuple[T, ...]]: ...
def align(
    modalities: Modalities,
    times: Mapping[str, Tensor | None] | Sequence[Tensor | None],
    clock: Tensor,
    mask: Masks | None = None,
    *,
    within: float,
    mode: Mode = "average",
) -> tuple[Any, Any]:
    """Brings streams with time stamps onto one clock.

    A step of the clock at time c is

    - ``"average"``: the mean of the steps from c - ``within`` up to, not including, c + ``within``.
      With half the distance between the steps of the clock, every step of the stream counts once.
    - ``"linear"``: on the line between the last step at or before c and the first one after it. If
      only one of them is within reach, that one.
    - ``"nearest"``: the step nearest to c; the earlier one of two.

    Only valid steps at most ``within`` away from c count; if there is none, the step of the clock
    is invalid. So neither padding nor a gap reaches a value, and a recording in a batch gives the
    same result as alone. For streams at constant rates, :func:`resample` needs no time stamps, and
    its graph exports to ONNX.

    Args:
        modalities: Streams (B, L_i, d_i), a mapping by name or a sequence; ``None`` or an absent
            key for one that is missing.
        times: Time stamps of each stream, (L_i,) or (B, L_i), in the same structure, in any unit
            and any order. A step whose time stamp is NaN is invalid. Keep time stamps in double
            precision: single precision resolves Unix time to two minutes.
        clock: Times of the clock, (T,) or (B, T), such as the time stamps of one of the streams.
            A step at NaN is invalid for every stream.
        mask: Valid steps, bool (B, L_i), **True = valid** (the opposite of the ``key_padding_mask``
            of :class:`torch.nn.MultiheadAttention`); one for all, or one for each stream.
        within: Greatest distance in time between a step of the clock and the steps it is made of.
        mode: ``"average"``, ``"linear"`` or ``"nearest"``.

    Returns:
        The streams (B, T, d_i), zero at invalid steps, and a mask (B, T) for each of them, both in
        the structure of ``modalities``; ``None`` for a missing stream.

    Raises:
        TypeError: If a container, a stream, a mask or time stamps are of the wrong type or dtype.
        ValueError: If names, shapes or masks do not fit, or ``within`` is not positive.

    Example:
        >>> pulse = torch.tensor([[[60.0], [64.0], [90.0]]])
        >>> seconds = torch.tensor([0.1, 1.1, 9.0], dtype=torch.float64)
        >>> clock = torch.arange(4, dtype=torch.float64)
        >>> streams, mask = align([pulse], [seconds], clock, within=1.2, mode="linear")
        >>> mask[0]
        tensor([[ True,  True,  True, False]])
        >>> streams[0].flatten()
        tensor([60.0000, 63.6000, 64.0000,  0.0000])
    """
    given = read_streams("align", modalities, "times", times, mask, mode)
    within = check_positive("align", "within", within)
    outputs = {}
    for name, x in given.features.items():
        stamps = _read_times(f"times[{name!r}]", given.parameters[name], x, x.shape[1])
        instants = _read_times("clock", clock, x, None)
        valid = given.masks[name] & stamps.isfinite()
        # Valid steps in the order of time, all others after them at the end of time.
        stamps, order = stamps.masked_fill(~valid, torch.inf).sort(dim=1, stable=True)
        x = zero_invalid(x, valid).gather(1, order[..., None].expand_as(x))
        pick = _average if mode == "average" else _between
        outputs[name] = pick(x, stamps, instants, within, mode)
    return restored(given.structure, modalities, outputs)


def _average(x: Tensor, stamps: Tensor, clock: Tensor, within: float, _: Mode) -> Resampled:
    """Averages the steps (B, L, d) whose stamps (B, L) are within reach of the clock (B, T)."""
    first = torch.searchsorted(stamps, clock - within)
    last = torch.searchsorted(stamps, clock + within)
    # The difference of two running sums, which needs their double precision.
    sums = torch.nn.functional.pad(x.cumsum(dim=1, dtype=torch.float64), (0, 0, 1, 0))
    total = _steps_at(sums, last) - _steps_at(sums, first)
    count = last - first
    outputs = (total / count.clamp(min=1)[..., None]).to(x.dtype)
    return zero_invalid(outputs, count > 0), count > 0


def _between(x: Tensor, stamps: Tensor, clock: Tensor, within: float, mode: Mode) -> Resampled:
    """Takes the steps (B, L, d) whose stamps (B, L) come before and after the clock (B, T)."""
    after = torch.searchsorted(stamps, clock, right=True)
    before, after = (after - 1).clamp(min=0), after.clamp(max=x.shape[1] - 1)
    past = (clock - stamps.gather(1, before)).abs()
    ahead = (stamps.gather(1, after) - clock).abs()
    reached, seen = past <= within, ahead <= within
    if mode == "nearest":
        share = torch.where(past <= ahead, 0.0, 1.0)
    else:
        # If only one of the two is within reach, it has the whole weight.
        both, gap = reached & seen, past + ahead
        share = torch.where(both & (gap > 0), past / gap, torch.where(seen & ~reached, 1.0, 0.0))
    share = share.to(x.dtype)[..., None]
    outputs = (1 - share) * _steps_at(x, before) + share * _steps_at(x, after)
    return zero_invalid(outputs, reached | seen), reached | seen


def _steps_at(x: Tensor, index: Tensor) -> Tensor:
    """Takes steps (B, T) of x (B, L, d)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def _read_times(name: str, times: object, x: Tensor, steps: int | None) -> Tensor:
    """Reads times (L,) or (B, L) for a stream (B, L, d) as (B, L), in double precision."""
    batch = x.shape[0]
    expected = f"(T,) or ({batch}, T)" if steps is None else f"({steps},) or ({batch}, {steps})"
    if isinstance(times, Tensor):
        check_dense("align", name, times)
        check_device("align", name, times, "its stream", x)
    if not isinstance(times, Tensor) or not is_real(times.dtype) or times.dtype == torch.bool:
        raise error(
            TypeError,
            "align",
            f"{name} is not a tensor of times",
            got=times.dtype if isinstance(times, Tensor) else type(times).__name__,
            expected=f"{expected}, of float64",
            hint="convert it with torch.as_tensor(times, dtype=torch.float64)",
        )
    fits = times.ndim in (1, 2) and (times.ndim == 1 or times.shape[0] == batch)
    if not fits or steps not in (None, times.shape[-1]) or times.shape[-1] < 1:
        raise error(
            ValueError,
            "align",
            f"{name} has not one time for each step",
            got=f"{tuple(times.shape)}",
            expected=expected,
            hint="recordings of one batch may share their times (steps,), or have a row each",
        )
    return times.to(torch.float64).expand(batch, -1).contiguous()
