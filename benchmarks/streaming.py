"""A step on one frame: our stream, recomputing the receptive field, and pytorch-tcn's stream.

And of a whole model (two encoders, fusion, head): a LiveWindow, and recomputing the newest window.

Run: python -m benchmarks.streaming. Writes benchmarks/results/streaming.json. Batch 1, the only one
that pytorch-tcn streams; the same sizes for both. Rounds are interleaved, medians are reported, and
each contender first has to give, frame by frame, what it gives for the whole sequence.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from pytorch_tcn import TCN
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from crossfuse import (
    ConcatFusion,
    LiveWindow,
    PerModality,
    RecursiveCrossModalAttention,
    TemporalConvNet,
)

DIM, WIDTHS, KERNEL = 64, [64] * 4, 5
FRAMES_BEFORE = (1, 100, 10_000)
WINDOW = 100
ROUNDS, CALLS = 15, 20
RESULT = Path(__file__).parent / "results" / "streaming.json"
Step = Callable[[Tensor], Tensor]


def contenders(before: int) -> dict[str, Step]:
    """Functions of the newest frame (1, 1, d), after so many frames."""
    ours = TemporalConvNet(DIM, WIDTHS, kernel_size=KERNEL).eval()
    theirs = TCN(
        DIM, WIDTHS, kernel_size=KERNEL, dropout=0.0, activation="leaky_relu", input_shape="NLC"
    ).eval()
    past = torch.randn(1, before, DIM)
    _, state = ours.stream(past)
    recent = past[:, -ours.receptive_field + 1 :]
    for frame in past[:, -ours.receptive_field :].unbind(1):
        theirs(frame[:, None], inference=True)
    _check(ours, theirs, past)
    return {
        "crossfuse.stream": lambda frame: ours.stream(frame, state)[0],
        "crossfuse, recomputed": lambda frame: ours(torch.cat([recent, frame], dim=1))[:, -1:],
        "pytorch-tcn, inference=True": lambda frame: theirs(frame, inference=True),
    }


class Readout(nn.Module):
    """Fusion and head."""

    def __init__(self, widths: dict[str, int]) -> None:
        super().__init__()
        self.fuse = RecursiveCrossModalAttention(widths)
        self.head = ConcatFusion(widths, 1)

    def forward(self, features: dict[str, Tensor], mask: dict[str, Tensor]) -> Tensor:
        outputs: Tensor = self.head(self.fuse(features, mask), mask)
        return outputs


def live_contenders(before: int) -> dict[str, Step]:
    """A model of two modalities, which get the same newest frame (1, 1, d)."""
    dims = {"face": DIM, "voice": DIM}
    nets = {name: TemporalConvNet(dim, WIDTHS, kernel_size=KERNEL) for name, dim in dims.items()}
    live = LiveWindow(
        PerModality(nets), Readout(dict.fromkeys(dims, WIDTHS[-1])), dims, WINDOW
    ).eval()
    reach = WINDOW + nets["face"].receptive_field - 1  # frames that the newest window depends on
    past, state = {name: torch.randn(1, before, DIM) for name in dims}, None
    for begin in range(0, before, WINDOW):
        chunk = {name: x[:, begin : begin + WINDOW] for name, x in past.items()}
        _, state = live.stream(chunk, state)
    recent = {name: x[:, max(0, before + 1 - reach) :] for name, x in past.items()}

    def streamed(frame: Tensor) -> Tensor:
        outputs: Tensor = live.stream(dict.fromkeys(dims, frame), state)[0]
        return outputs

    def recomputed(frame: Tensor) -> Tensor:
        whole = {name: torch.cat([x, frame], dim=1) for name, x in recent.items()}
        newest = {name: x[:, -WINDOW:] for name, x in live.encode(whole).items()}
        valid = frame.new_ones(1, newest["face"].shape[1], dtype=torch.bool)
        outputs: Tensor = live.readout(newest, dict.fromkeys(dims, valid))[:, -1:]
        return outputs

    frame = torch.randn(1, 1, DIM)
    torch.testing.assert_close(streamed(frame), recomputed(frame), rtol=1e-4, atol=1e-5)
    return {"LiveWindow.stream": streamed, "model, recomputed": recomputed}


def _check(ours: TemporalConvNet, theirs: TCN, past: Tensor) -> None:
    """Streams a few frames through fresh states and compares with the whole."""
    frames, state, pieces = past[:, :20], None, []
    for frame in frames.unbind(1):
        y, state = ours.stream(frame[:, None], state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), ours(frames), rtol=1e-4, atol=1e-5)
    theirs.reset_buffers()
    streamed = [theirs(frame[:, None], inference=True) for frame in frames.unbind(1)]
    torch.testing.assert_close(torch.cat(streamed, dim=1), theirs(frames), rtol=1e-4, atol=1e-5)


def measure(steps: dict[str, Step]) -> dict[str, list[float]]:
    """Seconds per call, one number for each round, the contenders taking turns."""
    frame = torch.randn(1, 1, DIM)
    timers = {
        name: Timer("step(frame)", globals={"step": step, "frame": frame}, num_threads=1)
        for name, step in steps.items()
    }
    for timer in timers.values():
        timer.timeit(CALLS)
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(ROUNDS):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(CALLS).median)
    return seconds


def main() -> None:
    torch.manual_seed(0)
    rows = []
    for before in FRAMES_BEFORE:
        with torch.inference_mode():
            seconds = measure(contenders(before) | live_contenders(before))
        for name, rounds in seconds.items():
            microseconds = [1e6 * value for value in rounds]
            middle = median(microseconds)
            spread = {"least": min(microseconds), "most": max(microseconds)}
            rows.append({"before": before, "step": name, "microseconds": middle, **spread})
            print(f"{before:>6} {name:<28} {middle:9.1f} µs")
    sizes = {"dim": DIM, "widths": WIDTHS, "kernel_size": KERNEL, "window": WINDOW}
    about = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1, **sizes}
    RESULT.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
