"""LiveWindow: frame by frame it gives what the model gives for the same window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim, export
from torch.utils._pytree import tree_leaves, tree_map

from crossfuse import ConcatFusion, LiveState, LiveWindow, MaskedMean, PerModality, TemporalConvNet
from crossfuse._modalities import Masks
from tests.support import properties
from tests.support.layers import DIMS, LENGTH, foreign_warnings_silenced, live_window
from tests.support.strategies import cuts, filled

F64 = torch.float64
TOTAL = 2 * LENGTH + 4  # the window fills, and then moves on by more than its length


class Scores(nn.Module):
    """One output for each window."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = MaskedMean()
        self.head = nn.Linear(8, 3)

    def forward(self, features: Mapping[str, Tensor], mask: Masks | None = None) -> Tensor:
        pooled = self.pool(features, mask)
        scores: Tensor = self.head(torch.cat([pooled["face"], pooled["voice"]], dim=-1))
        return scores


def model(per_step: bool = True, dtype: torch.dtype = F64) -> LiveWindow:
    built = live_window() if per_step else live_window(Scores(), per_step=False)
    return filled(built, 0).to(dtype).eval()


def recording(seed: int, batch: int, dtype: torch.dtype = F64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(batch, TOTAL, dim, generator=generator, dtype=F64).to(dtype)
        for name, dim in DIMS.items()
    }


def gaps(seed: int, batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(batch, TOTAL, generator=generator) < 0.8 for name in DIMS}


def part(values: Mapping[str, Tensor], begin: int, end: int) -> dict[str, Tensor]:
    return {name: x[:, begin:end] for name, x in values.items()}


def offline(live: LiveWindow, x: dict[str, Tensor], mask: dict[str, Tensor], end: int) -> Tensor:
    """The model on the window that ends there, without padding and without a stream."""
    begin = max(0, end - live.length)
    features = live.encode(part(x, 0, end), part(mask, 0, end))
    outputs: Tensor = live.readout(part(features, begin, end), part(mask, begin, end))
    return outputs


@given(
    edges=cuts(TOTAL), batch=st.integers(0, 3), seed=st.integers(0, 999), per_step=st.booleans(),
    masked=st.booleans(),
)  # fmt: skip
@torch.no_grad()
def test_every_chunk_gives_what_the_model_gives_for_its_window(
    edges: list[int], batch: int, seed: int, per_step: bool, masked: bool
) -> None:
    live, x, state = model(per_step), recording(seed, batch), None
    mask = gaps(seed, batch) if masked else {n: torch.ones(batch, TOTAL).bool() for n in DIMS}
    begin = 0
    # With an output for each step, a chunk is at most as long as the window.
    for end in sorted({*edges, TOTAL, *(range(LENGTH, TOTAL, LENGTH) if per_step else ())}):
        chunk, valid = part(x, begin, end), part(mask, begin, end)
        y, state = live.stream(chunk, state, valid if masked else None)
        expected = offline(live, x, mask, end)
        expected = expected[:, begin - end :] if per_step else expected
        properties.close(y, expected, f"steps {begin} to {end}", 1e-10)
        if end <= LENGTH:
            whole = live(part(x, 0, end), part(mask, 0, end))
            properties.close(y, whole[:, begin - end :] if per_step else whole, "forward", 1e-10)
        begin = end


@torch.no_grad()
def test_every_single_frame_equals_the_model() -> None:
    """Steps one by one, with gaps, from the first one on."""
    live, x, mask, state = model(), recording(1, 2), gaps(1, 2), None
    for t in range(TOTAL):
        y, state = live.stream(part(x, t, t + 1), state, part(mask, t, t + 1))
        properties.close(y, offline(live, x, mask, t + 1)[:, -1:], f"frame {t}", 1e-10)
        assert state.steps.tolist() == [min(t + 1, LENGTH)] * 2


@pytest.mark.parametrize("absent", [True, False])
@torch.no_grad()
def test_a_modality_that_comes_and_goes_is_masked_while_it_is_missing(absent: bool) -> None:
    """At the beginning, in between, and in the structure of the state, which never changes."""
    live, x, state, masked = model(), recording(2, 2), None, None
    for t in range(TOTAL):
        frame = part(x, t, t + 1)
        here = not (t < 3 or 8 <= t < 12)
        valid = {"face": torch.ones(2, 1).bool(), "voice": torch.full((2, 1), here)}
        given_frame: dict[str, Tensor | None] = dict(frame)
        if not here:
            given_frame |= {"voice": None}
            if absent:
                del given_frame["voice"]
        y, state = live.stream(given_frame, state)
        expected, masked = live.stream(frame, masked, valid)
        assert torch.equal(y, expected)
        for ours, theirs in zip(tree_leaves(state), tree_leaves(masked), strict=True):
            assert torch.equal(ours, theirs)


@torch.no_grad()
def test_streams_leave_and_join_a_batch() -> None:
    """Rows that are at different steps of their streams go on together."""
    live, x, mask = model(), recording(3, 2), gaps(3, 2)
    states = []
    for row, seen in enumerate((9, 2)):
        alone = {name: v[row : row + 1, :seen] for name, v in x.items()}
        valid = {name: v[row : row + 1, :seen] for name, v in mask.items()}
        state = None
        for t in range(seen):
            _, state = live.stream(part(alone, t, t + 1), state, part(valid, t, t + 1))
        states.append(state)
    both = tree_map(lambda *rows: torch.cat(rows), *states)
    assert both.steps.tolist() == [LENGTH, 2]
    frame = {name: torch.stack([v[0, 9], v[1, 2]])[:, None] for name, v in x.items()}
    valid = {name: torch.stack([v[0, 9], v[1, 2]])[:, None] for name, v in mask.items()}
    y, _ = live.stream(frame, both, valid)
    properties.close(y[:1], offline(live, x, mask, 10)[:1, -1:], "the older stream", 1e-10)
    properties.close(y[1:], offline(live, x, mask, 3)[1:, -1:], "the newer stream", 1e-10)


@torch.no_grad()
def test_the_state_is_a_value_and_zeros_begin_a_stream() -> None:
    live, x = model(), recording(4, 2)
    _, state = live.stream(part(x, 0, 5))
    kept = tree_map(torch.clone, state)
    first, _ = live.stream(part(x, 5, 9), state)
    again, _ = live.stream(part(x, 5, 9), state)
    assert torch.equal(first, again)
    for ours, theirs in zip(tree_leaves(state), tree_leaves(kept), strict=True):
        assert torch.equal(ours, theirs)
    begin = tree_map(torch.zeros_like, state)
    assert torch.equal(live.stream(part(x, 0, 3), begin)[0], live.stream(part(x, 0, 3))[0])
    assert not list(live.buffers())


def test_gradients_flow_through_the_stream() -> None:
    live, x, state, ys = model(), recording(5, 1), None, []
    for begin in range(0, LENGTH - 1, 2):
        y, state = live.stream(part(x, begin, begin + 2), state)
        ys.append(y)
    total = torch.cat(ys, dim=1).square().sum()
    for gradient in torch.autograd.grad(total, list(live.parameters())):
        assert torch.isfinite(gradient).all()
        assert gradient.any()


@torch.no_grad()
def test_readouts_of_several_modalities_and_models_in_order() -> None:
    """A readout may return modalities; modalities may come in a sequence."""

    class Both(nn.Module):
        def forward(self, features: tuple[Tensor, ...], mask: Masks) -> dict[str, Any]:
            return {"sum": features[0] + features[1], "all": list(features), "none": None}

    encode = PerModality([TemporalConvNet(3, [4]), TemporalConvNet(5, [4])])
    live = LiveWindow(encode, Both(), [3, 5], 6).eval()
    x = [torch.randn(2, 4, 3), torch.randn(2, 4, 5)]
    y, state = live.stream(x)
    expected = live(x)
    properties.close(y["sum"], expected["sum"], "sum", 1e-5)
    properties.close(y["all"][1], expected["all"][1], "all", 1e-5)
    assert y["none"] is None
    y, _ = live.stream([v[:, :1] for v in x], state)
    assert y["sum"].shape == (2, 1, 4)


@torch.no_grad()
def test_chunks_longer_than_the_window_warm_up_a_readout_of_windows() -> None:
    live, x = model(per_step=False), recording(6, 2)
    whole = {name: torch.ones(2, TOTAL).bool() for name in DIMS}
    y, state = live.stream(x)
    properties.close(y, offline(live, x, whole, TOTAL), "a long chunk", 1e-10)
    assert state.windows["face"].shape == (2, LENGTH, 4)


class Step(nn.Module):
    def __init__(self, live: LiveWindow) -> None:
        super().__init__()
        self.live = live

    def forward(
        self, chunk: dict[str, Tensor], state: LiveState, mask: dict[str, Tensor]
    ) -> tuple[Tensor, LiveState]:
        return self.live.stream(chunk, state, mask)


@pytest.mark.slow
@torch.no_grad()
def test_a_step_is_one_graph_of_any_batch_and_chunk() -> None:
    live, x, mask = model(), recording(7, 3), gaps(7, 3)
    _, state = live.stream(part(x, 0, 2), None, part(mask, 0, 2))
    batch, chunk = Dim("batch", min=1), Dim("chunk", min=1, max=LENGTH)
    arguments = part(x, 2, 4), state, part(mask, 2, 4)
    free = {name: {0: batch, 1: chunk} for name in DIMS}
    shapes = (free, tree_map(lambda _: {0: batch}, state), free)
    step = export(Step(live), arguments, dynamic_shapes=shapes).module()
    state, begin = tree_map(torch.zeros_like, state), 0
    for end in (1, 4, 11, 12, 15):
        y, state = step(part(x, begin, end), state, part(mask, begin, end))
        expected = offline(live, x, mask, end)[:, begin - end :]
        properties.close(y, expected, f"steps {begin} to {end}", 1e-10)
        begin = end


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_onnxruntime_runs_a_stream_from_its_first_frame(batch: int, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs what is exported to ONNX")
    pytest.importorskip("onnxscript", reason="torch exports to ONNX through it")
    live, x, mask = model(dtype=torch.float32), recording(8, batch, torch.float32), gaps(8, batch)
    frame, valid = part(x, 0, 1), part(mask, 0, 1)
    _, state = live.stream(frame, None, valid)
    with foreign_warnings_silenced():
        program = export(Step(live), (frame, state, valid))
        onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    onnx.save(tmp_path / "live.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "live.onnx")
    names = [node.name for node in session.get_inputs()]
    assert all(isinstance(size, int) for node in session.get_inputs() for size in node.shape)
    begin = tree_leaves(tree_map(torch.zeros_like, state))
    memory = [leaf.numpy() for leaf in begin]
    for t in range(TOTAL):
        leaves = [*tree_leaves(part(x, t, t + 1)), *tree_leaves(part(mask, t, t + 1))]
        frames, found = [v.numpy() for v in leaves[:2]], [v.numpy() for v in leaves[2:]]
        feed = dict(zip(names, [*frames, *memory, *found], strict=True))
        y, *memory = session.run(None, feed)
        expected = offline(live, x, mask, t + 1)[:, -1:]
        properties.close(torch.from_numpy(y), expected, f"frame {t}", 1e-5)


def test_a_stream_stays_on_its_device() -> None:
    live, state = model().to("meta"), None
    x = {name: v.to("meta") for name, v in recording(9, 2).items()}
    for begin in range(0, TOTAL, 3):
        y, state = live.stream(part(x, begin, begin + 3), state)
        assert all(leaf.device.type == "meta" for leaf in tree_leaves((y, state)))


FRAME = {"face": torch.randn(2, 1, 3), "voice": torch.randn(2, 1, 5)}


class Halving(nn.Module):
    def stream(
        self, chunks: dict[str, Tensor], state: None, mask: Masks
    ) -> tuple[dict[str, Tensor], None]:
        return {name: x[:, :0] for name, x in chunks.items()}, None


def beginning(batch: int = 2) -> LiveState:
    live = model(dtype=torch.float32)
    return live.stream({name: x[:1].repeat(batch, 1, 1) for name, x in FRAME.items()})[1]


def subject() -> LiveWindow:
    """What the wrong calls are made on."""
    return model(dtype=torch.float32)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda live: LiveWindow(nn.Linear(1, 1), live.readout, DIMS, 3),
            TypeError,
            "encode is not",
        ),
        (
            lambda live: LiveWindow(live.encode, cast(nn.Module, len), DIMS, 3),
            TypeError,
            "readout is not a module",
        ),
        (
            lambda live: LiveWindow(live.encode, live.readout, DIMS, 0),
            ValueError,
            "length must be a",
        ),
        (lambda live: live.stream({"face": None}), ValueError, "every modality is missing"),
        (lambda live: live.stream({"gyro": FRAME["face"]}), ValueError, "modalities has unknown"),
        (lambda live: live.stream({"face": FRAME["voice"]}), ValueError, "'face' has 5 features"),
        (lambda live: live.stream(FRAME, None, FRAME["face"]), TypeError, "mask is not a bool"),
        (lambda live: live.stream(FRAME, (1, 2)), TypeError, "'state' is not a LiveState"),
        (lambda live: live.stream(FRAME, beginning(3)), ValueError, "'state' is of another batch"),
        (
            lambda live: live.stream({n: x.repeat(1, 9, 1) for n, x in FRAME.items()}),
            ValueError,
            "the chunk has more steps than the window",
        ),
        (
            lambda live: LiveWindow(Halving(), live.readout, DIMS, 3).stream(FRAME),
            ValueError,
            "for each step of the chunk\n"
            "  got       face (2, 0, 3), voice (2, 0, 5)\n"
            "  expected  (2, 1, features) for each modality",
        ),
        (
            lambda live: LiveWindow(live.encode, Scores(), DIMS, 7).stream(FRAME),
            ValueError,
            "readout did not return one output for each step of the window\n  got       (2, 3)\n",
        ),
        (
            lambda live: live.stream(FRAME, beginning()._replace(encoders={"gyro": None})),
            ValueError,
            "state has unknown names",
        ),
    ],
)
def test_a_mistake_is_named(
    call: Callable[[LiveWindow], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        call(subject())
    assert message in str(caught.value)


def test_printing_explains() -> None:
    text = repr(live_window())
    assert "{'face': 3, 'voice': 5}, length=7, per_step=True" in text
    assert ConcatFusion.__name__ in text
