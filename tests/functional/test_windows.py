"""The laws of windows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from crossfuse.windows import gather_windows, overlap_average, window_starts
from tests.support import properties

F64 = torch.float64


@st.composite
def cuttings(draw: st.DrawFn) -> tuple[int, int, int]:
    """Length, size and hop."""
    size = draw(st.integers(1, 12))
    return draw(st.integers(1, 40)), size, draw(st.integers(1, size))


@example(cutting=(5, 5, 5))
@example(cutting=(1, 12, 1))
@given(cutting=cuttings())
def test_windows_cover_the_recording_and_no_more(cutting: tuple[int, int, int]) -> None:
    length, size, hop = cutting
    starts = window_starts(*cutting)
    assert starts[0] == 0
    assert {f for s in starts for f in range(s, s + size)} >= set(range(length))
    steps = [after - before for before, after in pairwise(starts)]
    assert all(step == hop for step in steps[:-1])
    if length >= size:
        assert starts[-1] + size == length or (length - size) % hop == 0
        assert all(start + size <= length for start in starts), "a window that needs padding"
        assert all(0 < step <= hop for step in steps[-1:])
        assert len(starts) == -(-(length - size) // hop) + 1, "more windows than it takes"
    else:
        assert starts == [0]


def test_the_starts_of_the_protocol() -> None:
    """The examples of the Aff-Wild2 protocol: windows of 300, a hop of 200."""
    starts = {length: window_starts(length, 300, 200) for length in (120, 300, 450, 501, 700)}
    assert starts == {
        120: [0],
        300: [0],
        450: [0, 150],
        501: [0, 200, 201],
        700: [0, 200, 400],
    }


@given(cutting=cuttings(), tail=st.lists(st.integers(0, 3), max_size=3))
def test_a_window_is_its_part_of_the_recording(
    cutting: tuple[int, int, int], tail: list[int]
) -> None:
    length, size, _ = cutting
    x, starts = torch.randn(length, *tail, dtype=F64), window_starts(*cutting)
    windows, mask = gather_windows(x, starts, size)
    assert windows.shape == (len(starts), size, *tail)
    assert mask.shape == (len(starts), size)
    assert mask.dtype == torch.bool
    for start, window, valid in zip(starts, windows, mask, strict=True):
        inside = min(size, length - start)
        assert torch.equal(window[:inside], x[start : start + size])
        assert not window[inside:].any()
        assert valid.tolist() == [True] * inside + [False] * (size - inside)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(cutting=cuttings(), tail=st.lists(st.integers(0, 3), max_size=2))
def test_averaging_undoes_gathering(
    dtype: torch.dtype, cutting: tuple[int, int, int], tail: list[int]
) -> None:
    length, size, _ = cutting
    x, starts = torch.randn(length, *tail).to(dtype), window_starts(*cutting)
    back = overlap_average(gather_windows(x, starts, size).windows, starts, length)
    assert back.dtype == dtype
    # A sum of equal numbers over their count is rounded twice.
    properties.close(back, x, "the recording", 4 * torch.finfo(dtype).eps)


@given(cutting=cuttings())
def test_the_average_is_the_mean_over_the_windows_of_a_frame(cutting: tuple[int, int, int]) -> None:
    length, size, _ = cutting
    starts = window_starts(*cutting)
    y = torch.randn(len(starts), size, 2, dtype=F64)
    y[gather_windows(torch.ones(length), starts, size).mask.logical_not()] = float("nan")
    averaged = overlap_average(y, starts, length)
    for frame in range(length):
        seen = [y[n, frame - s] for n, s in enumerate(starts) if s <= frame < s + size]
        properties.close(averaged[frame], torch.stack(seen).mean(dim=0), f"frame {frame}", 1e-12)


@given(cutting=cuttings())
def test_the_order_of_the_windows_does_not_matter(cutting: tuple[int, int, int]) -> None:
    length, size, _ = cutting
    starts = window_starts(*cutting)
    y = torch.randn(len(starts), size, dtype=F64)
    backwards = overlap_average(y.flip(0), starts[::-1], length)
    properties.close(backwards, overlap_average(y, starts, length), "backwards", 1e-12)


@given(cutting=cuttings())
def test_gradients_go_back_to_the_frames(cutting: tuple[int, int, int]) -> None:
    """Gathering's gradient counts a frame's windows; averaging shares it among them."""
    length, size, _ = cutting
    starts = window_starts(*cutting)
    x = torch.randn(length, dtype=F64, requires_grad=True)
    windows = gather_windows(x, starts, size).windows
    (counts,) = torch.autograd.grad(windows.sum(), x, retain_graph=True)
    assert counts.tolist() == [sum(s <= f < s + size for s in starts) for f in range(length)]
    (ones,) = torch.autograd.grad(overlap_average(windows, starts, length).sum(), x)
    properties.close(ones, torch.ones(length, dtype=F64), "gradient", 1e-12)


def test_garbage_beyond_the_recording_stays_there() -> None:
    y = torch.ones(2, 4)
    y[1, 2:] = float("nan")
    assert overlap_average(y, [0, 3], 5).tolist() == [1.0] * 5


def test_labels_of_any_dtype() -> None:
    windows, mask = gather_windows(torch.tensor([3, 1, 2]), [0, 2], 2)
    assert windows.tolist() == [[3, 1], [2, 0]]
    assert mask.tolist() == [[True, True], [True, False]]
    flags, _ = gather_windows(torch.tensor([True, True, True]), [2], 2)
    assert flags.tolist() == [[True, False]]


def test_halves_are_summed_in_single_precision() -> None:
    """A hundred windows over one frame: in bfloat16 a running sum would stick at 256."""
    y = torch.full((1000, 1), 3.0, dtype=torch.bfloat16)
    assert overlap_average(y, [0] * 1000, 1).item() == 3.0


@pytest.mark.slow
def test_it_compiles() -> None:
    starts = window_starts(11, 4, 3)

    def there_and_back(x: torch.Tensor) -> torch.Tensor:
        return overlap_average(gather_windows(x, starts, 4).windows, starts, 11)

    x = torch.randn(11, 2, dtype=F64)
    compiled = torch.compile(there_and_back, backend="aot_eager", fullgraph=True)
    properties.close(compiled(x), x, "compiled", 1e-12)


@pytest.mark.parametrize("cutting", [(0, 3, 1), (9, 0, 1), (9, 3, 0), (9, 3.0, 1)])
def test_sizes_are_positive_ints(cutting: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"window_starts: .* must be a positive int"):
        window_starts(*cutting)
    with pytest.raises(ValueError, match="gather_windows: size must be a positive int"):
        gather_windows(torch.ones(3), [0], 0)
    with pytest.raises(ValueError, match="overlap_average: length must be a positive int"):
        overlap_average(torch.ones(1, 3), [0], 0)


def test_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="window_starts: windows would leave gaps"):
        window_starts(900, 200, 300)
    with pytest.raises(ValueError, match="overlap_average: frame 2 lies in no window"):
        overlap_average(torch.ones(2, 2), [0, 3], 5)
    with pytest.raises(ValueError, match="overlap_average: frame 4 lies in no window"):
        overlap_average(torch.ones(2, 2), [0, 2], 5)
    with pytest.raises(ValueError, match="overlap_average: frame 0 lies in no window"):
        overlap_average(torch.ones(1, 2), [1], 3)


@pytest.mark.parametrize("starts", [[-1], [0, 5], []])
def test_starts_lie_in_the_recording(starts: list[int]) -> None:
    says = "windows begin outside of the recording|there are no windows"
    with pytest.raises(ValueError, match=says):
        gather_windows(torch.ones(5), starts, 2)
    with pytest.raises(ValueError, match=says):
        overlap_average(torch.ones(len(starts), 2), starts, 5)


def test_wrong_types_are_named() -> None:
    x = torch.ones(4)
    with pytest.raises(TypeError, match="gather_windows: x is not a tensor"):
        gather_windows([1.0], [0], 2)  # type: ignore[arg-type]  # the wrong call
    with pytest.raises(ValueError, match="gather_windows: x has no frames on axis 0"):
        gather_windows(x[:0], [0], 2)
    with pytest.raises(TypeError, match="gather_windows: starts is not a sequence of ints"):
        gather_windows(x, torch.tensor([0]), 2)  # type: ignore[arg-type]  # the wrong call
    with pytest.raises(TypeError, match="overlap_average: windows is not of a floating-point"):
        overlap_average(torch.ones(1, 4, dtype=torch.long), [0], 4)
    with pytest.raises(ValueError, match="windows does not have one window for each start"):
        overlap_average(torch.ones(3, 4), [0, 1], 4)
