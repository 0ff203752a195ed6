"""Recognises exercises live: frames come one at a time, a prediction follows each.

    python -m examples.live                   # replays a recording at its own rate
    python -m examples.live --fast            # without waiting

`crossfuse.LiveWindow` runs the network: the encoders stream, so the cost of a frame does not grow
with the recording, and the fusion sees the newest four seconds of their features. The predictions
equal those of the offline network for the same windows.
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
from torch import Tensor, nn

from crossfuse import LiveWindow
from examples.common.network import SensorNet, load_model
from examples.common.recordings import EVERY, SAMPLE_RATE, SENSORS, WINDOW, Recordings
from examples.watch.data import load_recordings

RATE = SAMPLE_RATE / EVERY  # frames a second


@dataclass(frozen=True)
class Options:
    """Recognises exercises from a replayed recording, frame by frame.

    Attributes:
        model: A network that `python -m examples.watch` trained; by default the one that is kept
            here, which was trained on fold 0 with seed 0.
        recording: Which of the 140 recordings to replay; by default the first of a person whom the
            network has not seen.
        fast: Replay without waiting for each frame's time.
        frames: How many frames to replay; all of them if there are fewer.
    """

    model: Path = Path(__file__).parents[1] / "watch" / "results" / "rcma.safetensors"
    recording: int | None = None
    fast: bool = False
    frames: int = 1000


class Encoders(nn.Module):
    """The part of a network that streams."""

    def __init__(self, model: SensorNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, streams: dict[str, Tensor], mask: dict[str, Tensor]) -> dict[str, Tensor]:
        features: dict[str, Tensor] = self.model.encoders(self.model.normalised(streams), mask)
        return features

    def stream(
        self, chunks: dict[str, Tensor], state: object, mask: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], object]:
        return self.model.encoders.stream(self.model.normalised(chunks), state, mask)


class Readout(nn.Module):
    """The part of a network that sees a window: fusion, pooling, classifier."""

    def __init__(self, model: SensorNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: dict[str, Tensor], mask: dict[str, Tensor]) -> Tensor:
        # The sensors of one watch are valid together.
        return self.model.classify(features, mask[self.model.sensors[0]])


def live_model(model: SensorNet) -> LiveWindow:
    """Makes a network of windows one of streams, with one output for the newest window."""
    dims = {name: SENSORS[name] for name in model.sensors}
    return LiveWindow(Encoders(model), Readout(model), dims, WINDOW, per_step=False).eval()


@torch.inference_mode()
def offline(model: SensorNet, streams: dict[str, Tensor]) -> Tensor:
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
            "run `python -m examples.watch --quick --out DIR` for one, and name it with --model"
        )
    recordings = load_recordings()
    model, saved = load_model(options.model)
    unseen = recordings.of(saved.held_out)
    index = (*unseen, 0)[0] if options.recording is None else options.recording
    if not 0 <= index < len(recordings.lengths):
        raise SystemExit(
            f"examples.live: there is no recording {index}; "
            f"they are numbered 0 to {len(recordings.lengths) - 1}"
        )
    streams = recording(recordings, index, options.frames)
    streams = {name: streams[name] for name in model.sensors}
    live, state, predictions, seconds = live_model(model), None, [], []
    length = next(iter(streams.values())).shape[1]
    frames = replay(streams, fast=options.fast)
    for frame in track(frames, "frames", total=length, console=console):
        start = time.perf_counter()
        with torch.inference_mode():
            prediction, state = live.stream(frame, state)
        seconds.append(time.perf_counter() - start)
        predictions.append(prediction)

    scores = torch.cat(predictions)
    error = float((scores - offline(model, streams)).abs().max())
    truth = int(recordings.labels[recordings.starts[index]])
    right = float((scores.argmax(dim=1) == truth).float().mean())
    person = f"person {recordings.people[index]}, {'' if index in unseen else 'not '}held out"
    title = f"{len(seconds)} frames of the exercise {saved.names[truth]} ({person})"
    console.print(_table(np.array(seconds), right, title, error))
    return error


def _table(seconds: np.ndarray, right: float, title: str, error: float) -> Table:
    table = Table("figure", "value", title=title)
    for percent in (50, 90, 99):
        table.add_row(f"latency, {percent} %", f"{np.percentile(seconds, percent) * 1e3:.2f} ms")
    factor = seconds.sum() / (len(seconds) / RATE)
    table.add_row("real-time factor", f"{factor:.4f} (below 1 keeps up)")
    table.add_row("frames recognised", f"{right:.0%}")
    table.add_row("largest difference from offline", f"{error:.1e}")
    return table


if __name__ == "__main__":
    run(tyro.cli(Options), Console())
