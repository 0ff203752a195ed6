"""Cut recordings into windows, and merge windows back into recordings.

Shapes: L frames of the recording, n windows of S steps each. The recording has no batch axis: its
windows are the batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crossfuse import _errors

_BYTES_OF_INT = 40  # of one of Python's ints in a list
_TEXT = (str, bytes, bytearray)  # sequences that are meant as one thing


class Windows(NamedTuple):
    """Windows of one recording.

    Attributes:
        windows: (n, S, ...); zero at steps beyond the recording.
        mask: Bool (n, S), **True = valid**: the steps that lie in the recording.

    Example:
        >>> cut = gather_windows(torch.randn(5, 8), [0, 3], 3)
        >>> cut.windows.shape, cut.mask.shape
        (torch.Size([2, 3, 8]), torch.Size([2, 3]))
    """

    windows: Tensor
    mask: Tensor


def window_starts(length: int, size: int, hop: int) -> list[int]:
    """Lists where windows begin so that they cover a recording.

    Every ``hop`` frames, as long as a whole window fits; if frames are left at the end, one more
    window ends with the last frame. A recording shorter than a window has one that begins at 0
    and reaches beyond its end.

    Args:
        length: Frames L of the recording.
        size: Steps S of a window.
        hop: Frames from one start to the next, at most ``size``.

    Returns:
        The first frame of each window, ascending.

    Raises:
        ValueError: If a number is not a positive int, or windows would leave gaps.

    Example:
        >>> window_starts(700, size=300, hop=200)
        [0, 200, 400]
        >>> window_starts(701, size=300, hop=200)
        [0, 200, 400, 401]
        >>> window_starts(120, size=300, hop=200)
        [0]
    """
    length, size, hop = (
        _errors.check_size("window_starts", name, value)
        for name, value in (("length", length), ("size", size), ("hop", hop))
    )
    if hop > size:
        raise _errors.error(
            ValueError,
            "window_starts",
            "windows would leave gaps",
            got=f"hop={hop}, size={size}",
            expected="a hop of at most size",
            hint="if frames may be left out, take every second start of a smaller hop",
        )
    whole = range(0, max(length - size, 0) + 1, hop)
    _errors.check_memory("window_starts", "the starts", len(whole), _BYTES_OF_INT)
    starts = list(whole)
    return starts if starts[-1] + size >= length else [*starts, length - size]


def gather_windows(x: Tensor, starts: Sequence[int], size: int) -> Windows:
    """Cuts a recording into windows of one size.

    Args:
        x: The recording (L, ...): features (L, d), labels (L,), frames (L, C, H, W), of any dtype.
        starts: The first frame of each window, such as :func:`window_starts` gives.
        size: Steps S of a window. Steps beyond the recording are zero.

    Returns:
        The windows (n, S, ...) and their mask (n, S), True = valid.

    Raises:
        TypeError: If ``x`` is not a tensor, or the starts are not ints.
        ValueError: If ``x`` has no frames, or a window begins outside of it.

    Example:
        >>> x = torch.arange(5)
        >>> windows, mask = gather_windows(x, [0, 3], 3)
        >>> windows.tolist(), mask.tolist()
        ([[0, 1, 2], [3, 4, 0]], [[True, True, True], [True, True, False]])
    """
    size = _errors.check_size("gather_windows", "size", size)
    _check_tensor("gather_windows", "x", x)
    if x.ndim < 1 or x.shape[0] < 1:
        raise _errors.error(
            ValueError,
            "gather_windows",
            "x has no frames on axis 0",
            got=f"{tuple(x.shape)}",
            expected="(frames, ...), at least one frame",
            hint="give one recording without a batch axis; its windows become the batch",
        )
    starts = _read_starts("gather_windows", starts, x.shape[0])
    # The windows, before and after masking, and the frame of each of their steps.
    count = len(starts) * size * 2 * (x[0].numel() * x.itemsize + 8)
    _errors.check_memory("gather_windows", "the windows", count, 1, x.device)
    frames = _frames(starts, size, x.device)
    mask = frames < x.shape[0]
    windows = x[frames.clamp(max=x.shape[0] - 1)]
    outside = ~mask.reshape(*mask.shape, *[1] * (x.ndim - 1))
    # Not masked_fill, which some dtypes lack.
    return Windows(torch.where(outside, windows.new_zeros(()), windows), mask)


def overlap_average(windows: Tensor, starts: Sequence[int], length: int) -> Tensor:
    """Overlap-averages windows back into one recording.

    This undoes :func:`gather_windows`. It accepts model outputs per step (a scalar or vector) and
    discards steps past the end of the recording.

    Args:
        windows: (n, S, ...), of a floating-point dtype. Half precision is summed in single.
        starts: The first frame of each window, as they were gathered.
        length: Frames L of the recording.

    Returns:
        (L, ...), of the dtype of ``windows``.

    Raises:
        TypeError: If ``windows`` is not a floating-point tensor, or the starts are not ints.
        ValueError: If there are not as many starts as windows, one lies outside of the recording,
            or a frame lies in no window.

    Example:
        >>> x = torch.randn(950, 8)
        >>> starts = window_starts(950, size=300, hop=200)
        >>> windows, mask = gather_windows(x, starts, 300)
        >>> torch.allclose(overlap_average(windows, starts, 950), x)
        True
    """
    length = _errors.check_size("overlap_average", "length", length)
    _check_tensor("overlap_average", "windows", windows)
    if windows.dtype not in _errors.DTYPES:
        raise _errors.error(
            TypeError,
            "overlap_average",
            "windows is not of a floating-point dtype that can be computed with",
            got=windows.dtype,
            expected="float32, float64, bfloat16 or float16",
            hint="average scores rather than classes; convert them with .to(torch.float32)",
        )
    starts = _read_starts("overlap_average", starts, length)
    if windows.ndim < 2 or windows.shape[0] != len(starts):
        raise _errors.error(
            ValueError,
            "overlap_average",
            "windows does not have one window for each start on axis 0",
            got=f"{tuple(windows.shape)} for {len(starts)} starts",
            expected=f"({len(starts)}, steps, ...)",
            hint="join the batches of one recording with torch.cat first",
        )
    _check_covered(starts, windows.shape[1], length)
    frames = _frames(starts, windows.shape[1], windows.device).flatten()
    values = windows.flatten(0, 1).to(torch.promote_types(windows.dtype, torch.float32))
    # Long enough for every window; what lies beyond the recording is cut off.
    total = values.new_zeros(max(starts) + windows.shape[1], *values.shape[1:])
    count = values.new_zeros(total.shape[0], *[1] * (total.ndim - 1))
    total = total.index_add(0, frames, values)[:length]
    count = count.index_add(0, frames, values.new_ones(1).expand(frames.shape[0], *count.shape[1:]))
    return (total / count[:length]).to(windows.dtype)


def _frames(starts: list[int], size: int, device: torch.device) -> Tensor:
    """The frame (n, S) at which each step of each window lies."""
    first = torch.tensor(starts, dtype=torch.long, device=device)
    return first[:, None] + torch.arange(size, device=device)


def _check_tensor(layer: str, name: str, x: object) -> None:
    """Refuses what is not a dense tensor."""
    if isinstance(x, Tensor):
        _errors.check_dense(layer, name, x)
    else:
        raise _errors.error(
            TypeError,
            layer,
            f"{name} is not a tensor",
            got=type(x).__name__,
            expected="a tensor",
            hint="convert it with torch.as_tensor",
        )


def _read_starts(layer: str, starts: object, length: int) -> list[int]:
    """Reads a sequence of frames in a recording."""
    ints = starts if isinstance(starts, Sequence) and not isinstance(starts, _TEXT) else [None]
    found = [start for start in map(_errors.as_int, ints) if start is not None]
    if len(found) != len(ints):
        raise _errors.error(
            TypeError,
            layer,
            "starts is not a sequence of ints",
            got=type(starts).__name__,
            expected="a list of ints",
            hint="window_starts gives one; a tensor of starts becomes one with .tolist()",
        )
    outside = [start for start in found if not 0 <= start < length]
    if outside or not found:
        raise _errors.error(
            ValueError,
            layer,
            "windows begin outside of the recording" if outside else "there are no windows",
            got=f"starts {outside[:5]}",
            expected=f"at least one start, each from 0 to {length - 1}",
            hint=f"the recording has {length} frames; window_starts fits windows to it",
        )
    return found


def _check_covered(starts: Sequence[int], size: int, length: int) -> None:
    """Refuses windows that leave a frame out."""
    reached = 0
    for start in [*sorted(starts), length]:
        if start > reached:
            raise _errors.error(
                ValueError,
                "overlap_average",
                f"frame {reached} lies in no window",
                got=f"windows of {size} steps that begin at {sorted(starts)[:8]}",
                expected=f"every frame from 0 to {length - 1} in at least one window",
                hint="take the starts from window_starts, with the same length and size",
            )
        reached = start + size
