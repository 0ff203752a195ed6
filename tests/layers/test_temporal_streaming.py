"""TemporalConvNet in chunks: pieces join up to the whole."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import properties
from tests.support.strategies import cuts, every_cutting
from tests.support.temporal import F64, Case, cases


@example(case=Case(batch=0), data=None)
@given(case=cases(causal=True, masks=False), data=st.data())
def test_a_stream_equals_the_whole(case: Case, data: st.DataObject | None) -> None:
    drawn = [2, 3] if data is None else data.draw(cuts(case.length))
    properties.stream_equals_whole(case.net(), case.x(), drawn)


@pytest.mark.parametrize("cutting", every_cutting(6), ids=str)
def test_every_way_of_cutting_gives_the_whole(cutting: list[int]) -> None:
    case = Case(kernel_size=3, widths=(5, 2), length=6)
    properties.stream_equals_whole(case.net(), case.x(), cutting)


@given(case=cases(causal=True, batch=(1, 3)), data=st.data())
def test_a_masked_stream_equals_the_masked_whole(case: Case, data: st.DataObject) -> None:
    net, x = case.net(), case.x()
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if case.mask() is None else case.mask()
    assert mask is not None
    edges = [0, *data.draw(cuts(case.length)), case.length]
    state, pieces = None, []
    for start, stop in pairwise(edges):
        chunk = x[:, start:stop].masked_fill(~mask[:, start:stop, None], float("nan"))
        y, state = net.stream(chunk, state, mask[:, start:stop])
        pieces.append(y)
    whole = net(x, mask)
    properties.close(
        torch.cat(pieces, dim=1), whole, "masked stream", properties.TOLERANCES[F64].output
    )


def test_streams_side_by_side_do_not_meet() -> None:
    """The state is a value: two streams through one net, interleaved."""
    case = Case(batch=1, length=8)
    net, x, other = case.net(), case.x(), Case(batch=1, length=8, seed=1).x()
    first, second, pieces = None, None, []
    for t in range(8):
        y, first = net.stream(x[:, t : t + 1], first)
        _, second = net.stream(other[:, t : t + 1], second)
        pieces.append(y)
    properties.close(torch.cat(pieces, dim=1), net(x), "interleaved", 1e-12)


def test_the_state_does_not_hold_on_to_the_chunk() -> None:
    """A long chunk's memory must be free once it is done: the state has what is still needed."""
    case = Case(kernel_size=3, widths=(4,), length=500)
    with torch.no_grad():
        _, state = case.net().stream(case.x())
    for context in state.contexts:
        assert context.untyped_storage().nbytes() == context.nbytes
