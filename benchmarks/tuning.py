"""What threads, batch, precision and compilation change for one layer on the CPU.

Run: ``python -m benchmarks.tuning``. Writes ``results/tuning.json``; the report tabulates it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import crossfuse
from benchmarks.cases import drawn
from benchmarks.layers import RESULTS
from benchmarks.timing import Call, header, interleaved
from crossfuse import RecursiveCrossModalAttention

DIMS, LENGTH, BATCH = (128, 128, 128), 300, 12
BATCHES = (1, 4, 12, 48)


def build(form: str = "stable") -> nn.Module:
    """The layer of the case default-128, or that of rcma-128."""
    torch.manual_seed(0)
    if form == "paper":
        return RecursiveCrossModalAttention(DIMS, LENGTH, form="paper", joint="others")
    return drawn(RecursiveCrossModalAttention(DIMS))


def draw(batch: int) -> list[Tensor]:
    return [torch.randn(batch, LENGTH, d, requires_grad=True) for d in DIMS]


def training_step(layer: nn.Module, batch: int) -> Call:
    """Forward and backward, with the gradients of all inputs and weights."""
    inputs = draw(batch)
    weights = [torch.randn_like(x) for x in inputs]
    sources = [*inputs, *layer.parameters()]
    return lambda: torch.autograd.grad(list(layer(inputs)), sources, weights)


def of_threads(seconds: float) -> dict[str, float]:
    """Seconds of a training step by the number of threads: one, all cores, twice the cores."""
    cores, step = os.cpu_count() or 1, training_step(build(), BATCH)

    def on(threads: int) -> Call:
        def call() -> object:
            torch.set_num_threads(threads)
            return step()

        return call

    before = torch.get_num_threads()
    try:
        timings = interleaved({str(n): on(n) for n in (1, cores, 2 * cores)}, seconds=seconds)
    finally:
        torch.set_num_threads(before)
    return {threads: timing.median_s for threads, timing in timings.items()}


def of_batch(seconds: float) -> dict[str, float]:
    """Samples a second in training by the batch."""
    layer = build()
    timings = interleaved({str(n): training_step(layer, n) for n in BATCHES}, seconds=seconds)
    return {batch: int(batch) / timing.median_s for batch, timing in timings.items()}


def of_precision() -> dict[str, dict[str, float]]:
    """Distance of the outputs from float64, as a share of their norm, by form and setting."""
    found: dict[str, dict[str, float]] = {}
    inputs = draw(BATCH)
    for form in ("paper", "stable"):
        layer = build(form)
        with torch.no_grad():
            truth = torch.cat(deepcopy(layer).double()([x.double() for x in inputs]), dim=-1)
            found[form] = {}
            for name, setting in PRECISIONS.items():
                with setting():
                    made = torch.cat(layer(inputs), dim=-1)
                found[form][name] = ((made - truth).norm() / truth.norm()).item()
    return found


@contextmanager
def _medium() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


PRECISIONS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "float32": nullcontext,
    'float32, "medium"': _medium,
    "bfloat16 autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def of_compilation() -> float:
    """Seconds of the first training step of a compiled layer, with nothing kept from before."""
    torch.compiler.reset()
    with torch._inductor.utils.fresh_cache():
        begin = time.perf_counter()
        training_step(crossfuse.compile(build()), BATCH)()
        return time.perf_counter() - begin


def main(folder: Path = RESULTS, seconds: float = 4.0) -> Path:
    """Measures everything and writes the results file."""
    report: dict[str, Any] = {
        "header": header("cpu"),
        "case": "RCMA in its default form, B 12, L 300, 128/128/128, two recursions",
        "threads_s": of_threads(seconds),
        "samples_a_second": of_batch(seconds),
        "error": of_precision(),
        "compilation_s": of_compilation(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tuning.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


if __name__ == "__main__":
    main()
