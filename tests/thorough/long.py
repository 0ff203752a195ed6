"""Long runs: `python -m tests.thorough.long`, or with the name of a part, such as `train`.

A part fails if memory or the number of Python's objects grows, a value is not finite, a loss does
not fall, or threads that share a module disagree. It prints what it measured.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.export import Dim, export

import crossfuse
from crossfuse import _compile
from tests.support.layers import foreign_warnings_silenced, live_window

DIMS = {"face": 3, "voice": 5}
LENGTH = 7
MEMORY, OBJECTS = 4 << 20, 100  # how much more a part may hold at its end than after a tenth
THREADS = 8

Rcma = partial(crossfuse.RecursiveCrossModalAttention, DIMS)
Jca = partial(crossfuse.JointCrossAttention, DIMS, LENGTH, 4)
TRAINED: dict[str, Callable[[], nn.Module]] = {
    "RCMA, stable": Rcma,
    "RCMA, paper": partial(Rcma, LENGTH, form="paper"),
    "RCMA, released": partial(Rcma, LENGTH, form="released", gate=True),
    "JCA, stable": Jca,
    "JCA, paper": partial(Jca, form="paper", gate=True),
    "CrossAttention": lambda: crossfuse.CrossAttention(DIMS),
    "CrossModalTransformer": lambda: crossfuse.CrossModalTransformer(DIMS, 4, heads=2, depth=2),
    "LeaderFollowerAttention": lambda: crossfuse.LeaderFollowerAttention(DIMS, 4, leader="face"),
    "ConcatFusion": lambda: crossfuse.ConcatFusion(DIMS, 4),
    "MissingTokens": lambda: crossfuse.MissingTokens(DIMS),
    "TemporalConvNet": lambda: crossfuse.PerModality(
        {name: crossfuse.TemporalConvNet(dim, [dim, dim]) for name, dim in DIMS.items()}
    ),
    "AttentionPooling": lambda: crossfuse.AttentionPooling(DIMS),
}


class Held(NamedTuple):
    """What this process holds (Linux)."""

    memory: int  # bytes
    objects: int  # Python's

    @staticmethod
    def now() -> Held:
        gc.collect()
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return Held(int(line.split()[1]) * 1024, len(gc.get_objects()))
        raise OSError("no VmRSS in /proc/self/status")


def flat(rounds: int, body: Callable[[int], None]) -> str:
    """Runs a body many times; what is held after a tenth is what is held at the end."""
    early = Held(0, 0)
    for index in range(rounds):
        body(index)
        if index == rounds // 10:
            early = Held.now()
    end = Held.now()
    memory, objects = end.memory - early.memory, end.objects - early.objects
    grown = f"{memory / 1024:+.0f} KiB and {objects:+d} objects after the first tenth"
    assert memory < MEMORY, grown
    assert objects < OBJECTS, grown
    return grown


def frames(count: int) -> Iterator[str]:
    """One frame per call of a convolutional network, and of a window with fusion."""
    net = crossfuse.TemporalConvNet(16, [16, 16]).eval()
    live = live_window().eval()
    streams: dict[str, tuple[Any, Callable[[], Any]]] = {
        "TemporalConvNet": (net, lambda: torch.randn(1, 1, 16)),
        "LiveWindow": (live, lambda: {n: torch.randn(1, 1, dim) for n, dim in DIMS.items()}),
    }
    for name, (model, frame) in streams.items():
        state: Any = None

        @torch.inference_mode()
        def step(index: int, model: Any = model, frame: Callable[[], Any] = frame) -> None:  # noqa: ANN401 - any with a stream
            nonlocal state
            y, state = model.stream(frame(), state)
            assert y.isfinite().all(), f"frame {index} is not finite"

        yield f"{count} frames of {name}: {flat(count, step)}"


def train(steps: int) -> Iterator[str]:
    """Each layer under bfloat16 autocast; lengths, masks and missing modalities vary."""
    for name, build in TRAINED.items():
        torch.manual_seed(0)
        layer = build()
        head = nn.LazyLinear(1)
        estimate(layer, head, *batch(0))
        parameters = [*layer.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)
        losses: list[float] = []

        def step(
            index: int,
            layer: nn.Module = layer,
            head: nn.Module = head,
            optimizer: torch.optim.Optimizer = optimizer,
            losses: list[float] = losses,
        ) -> None:
            x, mask = batch(index)
            with torch.autocast("cpu", torch.bfloat16):
                y = estimate(layer, head, x, mask)
            wanted = sum(
                value[..., :1].masked_fill(~mask[..., None], 0.0)
                for value in x.values()
                if value is not None
            )
            assert isinstance(wanted, Tensor)
            if y.ndim == 2:  # of pooled features
                wanted = wanted.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
            loss = (y.float() - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            for owner in (layer, head):
                for key, parameter in owner.named_parameters():
                    slope = parameter.grad
                    assert slope is None or slope.isfinite().all(), f"step {index}: {key}"
            optimizer.step()
            losses.append(loss.item())

        grown = flat(steps, step)
        assert all(p.isfinite().all() for p in parameters), "a parameter is not finite"
        part = max(1, steps // 100)
        first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
        assert last < first, f"{name}: the loss rose from {first} to {last}"
        yield f"{steps} steps of {name}: all finite, loss {first:.3f} to {last:.3f}; {grown}"


def batch(index: int) -> tuple[dict[str, Tensor | None], Tensor]:
    """Inputs of a drawn length with a mask; every third batch lacks a modality."""
    length = int(torch.randint(1, LENGTH + 1, ()))
    x: dict[str, Tensor | None] = {n: torch.randn(8, length, dim) for n, dim in DIMS.items()}
    if index % 3 == 2:
        x["voice"] = None
    return x, torch.arange(length) < torch.randint(0, LENGTH + 1, (8, 1))


def estimate(
    layer: nn.Module, head: nn.Module, x: dict[str, Tensor | None], mask: Tensor
) -> Tensor:
    """One number from what a layer returns: a tensor, modalities, or modalities and masks."""
    fused = layer(x, mask)
    fused = fused[0] if isinstance(fused, tuple) else fused
    if isinstance(fused, dict):
        like = fused["face"]
        missing = like.new_zeros(*like.shape[:-1], DIMS["voice"])
        fused = torch.cat([like, missing if fused["voice"] is None else fused["voice"]], dim=-1)
    estimated: Tensor = head(fused)
    return estimated


def compilation(rounds: int) -> Iterator[str]:
    """New layers, compiled and exported; none of them stays."""

    def compiled(index: int) -> None:
        layer = Rcma()
        run = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
        for x in inputs():
            out = run(x)
            torch.stack([y.sum() for y in out.values()]).sum().backward()
        torch.compiler.reset()

    def exported(index: int) -> None:
        sizes = {0: Dim("batch", min=1), 1: Dim("steps", min=1)}
        shapes = (dict.fromkeys(DIMS, sizes),)
        program = export(Rcma().eval(), (inputs()[0],), dynamic_shapes=shapes)
        program.module()(inputs()[1])

    for what in (compiled, exported):
        with foreign_warnings_silenced():
            yield f"{rounds} times {what.__name__}: {flat(rounds, what)}"


def threads(calls: int) -> Iterator[str]:
    """Threads that share a module get what one thread gets: of an eager one, bit for bit."""
    layer = Rcma().eval()
    with mock.patch.object(_compile, "_recomputing", "aot_eager"):  # in the place of inductor
        compiled = crossfuse.compile(layer)
    given = inputs()
    for name, module, tolerance in (("module", layer, 0.0), ("compiled module", compiled, 1e-5)):
        alone = [layer(x) for x in given]

        def wrong(index: int, module: Any = module, alone: Any = alone) -> float:  # noqa: ANN401 - of torch.compile
            n = index % THREADS
            shared = module(given[n])
            return max(float((shared[key] - alone[n][key]).detach().abs().max()) for key in DIMS)

        with ThreadPoolExecutor(THREADS) as pool, foreign_warnings_silenced():
            off = max(pool.map(wrong, range(calls)))
        assert off <= tolerance, f"an output of the {name} is off by {off}"
        yield f"{calls} calls of one {name} by {THREADS} threads: off by at most {off:.1g}"


def inputs() -> list[dict[str, Tensor]]:
    """Modalities of a different length for each thread."""
    generator = torch.Generator().manual_seed(0)
    return [
        {name: torch.randn(2, 10 + n, dim, generator=generator) for name, dim in DIMS.items()}
        for n in range(THREADS)
    ]


PARTS: dict[str, tuple[Callable[[int], Iterator[str]], int]] = {
    "threads": (threads, 4_000),
    "compilation": (compilation, 30),
    "frames": (frames, 100_000),
    "train": (train, 10_000),
}


def main() -> None:
    """Runs the parts one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.thorough.long", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all")
    parser.add_argument("--size", type=int, help="how many frames, steps, rounds or calls")
    parser.add_argument("--layer", action="append", choices=list(TRAINED), help="to train")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in set(TRAINED) - set(arguments.layer or TRAINED):
        del TRAINED[name]
    for part in arguments.parts or PARTS:
        run, size = PARTS[part]
        start = time.monotonic()
        for line in run(arguments.size or size):
            sys.stdout.write(f"{line} ({time.monotonic() - start:.0f} s)\n")
            sys.stdout.flush()
            start = time.monotonic()


if __name__ == "__main__":
    main()
