"""What a stream's state is: a value. (That pieces join up to the whole: test_temporal.)"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from crossfuse import TemporalConvNet, TemporalState
from tests.support import properties
from tests.support.strategies import filled


def net(dtype: torch.dtype = torch.float32) -> TemporalConvNet:
    return filled(TemporalConvNet(3, [4, 5], kernel_size=3, dtype=dtype), 0).eval()


def frames(batch: int, steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(100 * batch + steps)
    return torch.randn(batch, steps, 3, generator=generator, dtype=torch.float64).to(dtype)


@torch.no_grad()
def state_of(batch: int = 2) -> TemporalState:
    return net().stream(frames(batch, 5))[1]


def same(ours: TemporalState, theirs: TemporalState) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours.contexts, theirs.contexts, strict=True))


@given(steps=st.lists(st.integers(1, 9), min_size=1, max_size=4), batch=st.integers(0, 3))
def test_its_size_depends_on_the_net_and_the_batch_alone(steps: list[int], batch: int) -> None:
    """However long the stream: an input of each convolution for every step that it looks back."""
    state = None
    for n in steps:
        _, state = net().stream(frames(batch, n), state)
        assert [tuple(c.shape) for c in state.contexts] == [
            (batch, 3, 2),
            (batch, 4, 2),
            (batch, 4, 4),
            (batch, 5, 4),
        ]


def test_a_stream_is_taken_up_from_one_state_as_often_as_one_likes() -> None:
    """Two futures of one past, each as if the other had not been."""
    tcn, past = net(), frames(2, 6)
    _, state = tcn.stream(past)
    kept = TemporalState(tuple(context.detach().clone() for context in state.contexts))
    for future in (frames(2, 3), frames(2, 4), frames(2, 3)):
        y, _ = tcn.stream(future, state)
        whole = tcn(torch.cat([past, future], dim=1))[:, 6:]
        properties.close(y, whole, "a future", 1e-5)
    assert same(state, kept), "the state was changed"


def test_nothing_hides_in_the_net() -> None:
    """A state goes on in another net of the same weights; streaming leaves the net as it was."""
    tcn, other, x = net(), net(), frames(2, 9)
    before = {key: value.clone() for key, value in tcn.state_dict().items()}
    _, state = tcn.stream(x[:, :4])
    y, _ = other.stream(x[:, 4:], state)
    properties.close(y, tcn(x)[:, 4:], "in another net", 1e-5)
    assert not list(tcn.buffers())
    assert all(torch.equal(value, before[key]) for key, value in tcn.state_dict().items())


def test_streams_leave_and_join_a_batch() -> None:
    """The rows of a state are the streams' own: rows of several states make one."""
    tcn, x, late = net(), frames(3, 8), frames(1, 8)
    _, state = tcn.stream(x[:, :4])
    _, begun = tcn.stream(late[:, :1])
    pairs = zip(state.contexts, begun.contexts, strict=True)
    mixed = TemporalState(tuple(torch.cat([a[[0, 2]], b]) for a, b in pairs))
    y, _ = tcn.stream(torch.cat([x[[0, 2], 4:], late[:, 1:5]]), mixed)
    properties.close(y[:2], tcn(x)[[0, 2], 4:], "those that stayed", 1e-5)
    properties.close(y[2:], tcn(late)[:, 1:5], "the one that joined", 1e-5)


@pytest.mark.parametrize("way", ["pickle", "torch", "safetensors"])
def test_a_state_is_saved_and_taken_up(way: str, tmp_path: Path) -> None:
    state, file = state_of(), tmp_path / "state"
    if way == "pickle":
        file.write_bytes(pickle.dumps(state))
        again = pickle.loads(file.read_bytes())
    elif way == "torch":
        torch.save(list(state.contexts), file)
        again = TemporalState(tuple(torch.load(file, weights_only=True)))
    else:
        safetensors = pytest.importorskip("safetensors.torch", reason="saves without pickle")
        safetensors.save_file({str(k): c for k, c in enumerate(state.contexts)}, file)
        loaded = safetensors.load_file(file)
        again = TemporalState(tuple(loaded[str(k)] for k in range(len(loaded))))
    assert same(again, state)
    assert torch.equal(net().stream(frames(2, 3), again)[0], net().stream(frames(2, 3), state)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_state_has_the_dtype_of_the_stream(dtype: torch.dtype) -> None:
    tcn, x = net(dtype), frames(2, 7, dtype)
    y, state = tcn.stream(x[:, :3])
    z, state = tcn.stream(x[:, 3:], state)
    assert {context.dtype for context in state.contexts} == {y.dtype} == {dtype}
    joined = torch.cat([y, z], dim=1)
    properties.close(joined, tcn(x), "in pieces", properties.TOLERANCES[dtype].output)


def test_a_stream_under_autocast_is_the_whole_under_autocast() -> None:
    tcn, x, state, pieces = net(), frames(2, 8), None, []
    with torch.autocast("cpu", torch.bfloat16):
        for chunk in x.tensor_split([1, 5], dim=1):
            y, state = tcn.stream(chunk, state)
            pieces.append(y)
        whole = tcn(x)
    properties.close(
        torch.cat(pieces, dim=1), whole, "in pieces", properties.TOLERANCES[torch.bfloat16].output
    )


def test_gradients_flow_back_through_the_state() -> None:
    """As long as the caller does not detach it."""
    tcn, x = net(), frames(1, 5).requires_grad_()
    _, state = tcn.stream(x[:, :4])
    y, _ = tcn.stream(x[:, 4:], state)
    (through,) = torch.autograd.grad(y.sum(), x)
    (whole,) = torch.autograd.grad(tcn(x)[:, 4:].sum(), x)
    properties.close(through, whole, "through the state", 1e-5)
    assert through[:, :4].any()


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a bare tuple": (lambda: tuple(state_of().contexts), TypeError, "not a TemporalState"),
    "another batch": (lambda: state_of(3), ValueError, "of another batch size or another net"),
    "too few contexts": (
        lambda: TemporalState(state_of().contexts[:2]),
        ValueError,
        "of another batch size or another net",
    ),
    "another dtype": (
        lambda: TemporalState(tuple(c.double() for c in state_of().contexts)),
        TypeError,
        "'state' has another dtype than the chunk",
    ),
    "another device": (
        lambda: TemporalState(tuple(c.to("meta") for c in state_of().contexts)),
        ValueError,
        "'state' is on another device than the chunk",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_state_is_refused(name: str) -> None:
    state, kind, says = WRONG[name]
    with pytest.raises(kind, match=says):
        net().stream(frames(2, 1), state())  # type: ignore[arg-type]  # the wrong call
