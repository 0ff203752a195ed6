"""How time and memory grow with length, modalities, recursions and batch.

Run: ``python -m benchmarks.growth``. Writes ``results/growth-DEVICE.json``; the report draws it.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.layers import RESULTS
from benchmarks.timing import Call, header, interleaved, peak_bytes
from crossfuse import RecursiveCrossModalAttention

WIDTH = 64  # features of each modality


@dataclass(frozen=True)
class Curve:
    """One layer against one size; ``build`` gives the layer, ``shape`` batch, modalities, steps."""

    name: str
    against: str
    sizes: tuple[int, ...]
    build: Callable[[int], nn.Module]
    shape: Callable[[int], tuple[int, int, int]]


def rcma(
    count: int = 3, length: int | None = None, recursions: int = 2, *, checkpoint: bool = False
) -> nn.Module:
    """The default form, or with T for windows of a length."""
    return RecursiveCrossModalAttention([WIDTH] * count, length, recursions, checkpoint=checkpoint)


CURVES = (
    Curve("with T", "L", (75, 150, 300, 600, 1200), lambda n: rcma(length=n), lambda n: (2, 3, n)),
    Curve(
        "default",
        "L",
        (75, 150, 300, 600, 1200, 2400, 4800),
        lambda _: rcma(),
        lambda n: (2, 3, n),
    ),
    Curve("default", "N", (2, 3, 4, 6, 8, 12), lambda n: rcma(n), lambda n: (2, n, 300)),
    Curve(
        "default",
        "recursions",
        (1, 2, 4, 8, 16),
        lambda n: rcma(recursions=n),
        lambda _: (2, 3, 300),
    ),
    Curve(
        "checkpoint=True",
        "recursions",
        (1, 2, 4, 8, 16),
        lambda n: rcma(recursions=n, checkpoint=True),
        lambda _: (2, 3, 300),
    ),
    Curve("default", "B", (1, 2, 4, 8, 16, 32), lambda _: rcma(), lambda n: (n, 3, 300)),
)


def training_step(layer: nn.Module, shape: tuple[int, int, int], device: str) -> Call:
    """Forward and backward on random inputs of a shape (B, N, L)."""
    batch, count, length = shape
    layer = layer.to(device)
    inputs = [
        torch.randn(batch, length, WIDTH, device=device, requires_grad=True) for _ in range(count)
    ]
    weights = [torch.randn_like(x) for x in inputs]
    sources = [*inputs, *layer.parameters()]
    return lambda: torch.autograd.grad(list(layer(inputs)), sources, weights)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope of log(value) over log(size) by least squares, over the larger half of sizes."""
    upper = slice(len(sizes) // 2 - (len(sizes) < 4), None)
    x = [math.log(n) for n in sizes[upper]]
    y = [math.log(v) for v in values[upper]]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def measure(curve: Curve, device: str, seconds: float, sizes: Sequence[int]) -> dict[str, Any]:
    """Time and peak memory at every size, and the exponents of both."""
    torch.manual_seed(0)
    calls = {str(n): training_step(curve.build(n), curve.shape(n), device) for n in sizes}
    timings = interleaved(calls, seconds=seconds, least=3, device=device)
    peaks = [peak_bytes(call, device) for call in calls.values()]
    times = [timings[str(n)].median_s for n in sizes]
    gc.collect()
    return {
        "name": curve.name,
        "against": curve.against,
        "sizes": list(sizes),
        "median_s": times,
        "spread_s": [timings[str(n)].spread_s for n in sizes],
        "peak_bytes": peaks,
        "time_exponent": round(exponent(sizes, times), 2),
        "memory_exponent": round(exponent(sizes, peaks), 2),
    }


def run(*, device: str = "cpu", quick: bool = False, folder: Path = RESULTS) -> Path:
    """Measures every curve and writes the results file."""
    about = header(device)
    curves = [
        measure(c, device, 0.1 if quick else 6.0, c.sizes[:2] if quick else c.sizes) for c in CURVES
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"growth-{device}.json"
    report = {"header": about, "dims": WIDTH, "direction": "forward+backward", "curves": curves}
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


if __name__ == "__main__":
    print(run())
