"""Recognises exercises live: frames come one at a time, a prediction follows each.

    python -m examples.watch --quick          # trains the network, once
    python -m examples.live                   # replays a recording at its own rate
    python -m examples.live --fast            # without waiting

The encoders stream, so a frame costs the same whatever came before it; the fusion, whose attention
looks over a window, sees the newest four seconds. What comes out equals what the offline network
says of the same windows.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from examples.watch.data import EVERY, SAMPLE_RATE, SENSORS, WINDOW, Recordings, load_recordings
from examples.watch.models import WatchNet, load_model

RATE = SAMPLE_RATE / EVERY  # frames a second


@dataclass(frozen=True)
class Options:
    """Recognises exercises from a replayed recording, frame by frame.

    Attributes:
        model: The network that `python -m examples.watch` trained.
        recording: Which of the 140 recordings to replay.
        fast: Replay without waiting for each frame's time.
        frames: How many frames to replay; all of them if there are fewer.
    """

    model: Path = Path("watch-results/rcma-stable.pt")
    recording: int = 0
    fast: bool = False
    frames: int = 1000


class Recogniser:
    """Holds what a network remembers of a stream: the encoders' state and the newest features."""

    def __init__(self, model: WatchNet) -> None:
        self.model = model
        self.state: object = None
        self.newest: dict[str, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, frame: dict[str, Tensor]) -> Tensor:
        """Takes the next frame of each sensor, (1, 1, d), and scores the exercises, (classes,)."""
        features, self.state = self.model.stream(frame, self.state)
        self.newest = {
            name: torch.cat([self.newest[name], x], dim=1)[:, -WINDOW:] if self.newest else x
            for name, x in features.items()
        }
        return self.model.classify(self.newest)[0]


@torch.inference_mode()
def offline(model: WatchNet, streams: dict[str, Tensor]) -> Tensor:
    """Scores the window that ends at each frame: (1, L, d) of each sensor in, (L, classes) out."""
    features = model.encode(streams)
    length = next(iter(features.values())).shape[1]
    windows = [
        {name: x[:, max(0, end - WINDOW) : end] for name, x in features.items()}
        for end in range(1, length + 1)
    ]
    return torch.cat([model.classify(window) for window in windows])


def replay(streams: dict[str, Tensor], *, fast: bool) -> Iterator[dict[str, Tensor]]:
    """Yields a recording (1, L, d) frame by frame, each at its time unless fast."""
    start = time.perf_counter()
    for k in range(next(iter(streams.values())).shape[1]):
        if not fast:
            time.sleep(max(0.0, start + k / RATE - time.perf_counter()))
        yield {name: x[:, k : k + 1] for name, x in streams.items()}


def recording(recordings: Recordings, index: int, frames: int) -> dict[str, Tensor]:
    """Takes the first frames of one recording, (1, L, d) for each sensor."""
    start = recordings.starts[index]
    signal = recordings.signal[start : start + min(frames, recordings.lengths[index])]
    parts = torch.split(signal[None], list(SENSORS.values()), dim=-1)
    return dict(zip(SENSORS, parts, strict=True))


def run(options: Options, console: Console) -> float:
    """Replays a recording, prints what was recognised and how fast; returns the largest error."""
    if not options.model.exists():
        raise SystemExit(
            f"examples.live: there is no {options.model}; "
            "run `python -m examples.watch --quick` first, or name a network with --model"
        )
    recordings = load_recordings()
    if not 0 <= options.recording < len(recordings.lengths):
        raise SystemExit(
            f"examples.live: there is no recording {options.recording}; "
            f"they are numbered 0 to {len(recordings.lengths) - 1}"
        )
    model, saved = load_model(options.model)
    streams = recording(recordings, options.recording, options.frames)
    recognise, scores, seconds = Recogniser(model), [], []
    length = next(iter(streams.values())).shape[1]
    frames = replay(streams, fast=options.fast)
    for frame in track(frames, "frames", total=length, console=console):
        start = time.perf_counter()
        scores.append(recognise(frame))
        seconds.append(time.perf_counter() - start)

    live = torch.stack(scores)
    error = float((live - offline(model, streams)).abs().max())
    truth = recordings.exercises[options.recording]
    right = float((live.argmax(dim=1) == truth).float().mean())
    console.print(_table(np.array(seconds), right, saved.names[truth], error))
    return error


def _table(seconds: np.ndarray, right: float, truth: str, error: float) -> Table:
    table = Table("figure", "value", title=f"{len(seconds)} frames of the exercise {truth}")
    for percent in (50, 90, 99):
        table.add_row(f"latency, {percent} %", f"{np.percentile(seconds, percent) * 1e3:.2f} ms")
    factor = seconds.sum() / (len(seconds) / RATE)
    table.add_row("real-time factor", f"{factor:.4f} (below 1 keeps up)")
    table.add_row("frames recognised", f"{right:.0%}")
    table.add_row("largest difference from offline", f"{error:.1e}")
    return table


if __name__ == "__main__":
    run(tyro.cli(Options), Console())
