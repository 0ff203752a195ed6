"""Long runs: `python -m tests.thorough.long`. Fails if memory grows, a value is not finite, or
threads that share a module disagree; prints what it measured.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from crossfuse import RecursiveCrossModalAttention, TemporalConvNet


@torch.inference_mode()
def stream(frames: int) -> str:
    """One frame per call: what the process holds after a tenth is what it holds at the end."""
    net = TemporalConvNet(16, [16, 16]).eval()
    state, early = None, (0, 0)
    for index in range(frames):
        y, state = net.stream(torch.randn(1, 1, 16), state)
        assert y.isfinite().all(), f"frame {index} is not finite"
        if index == frames // 10:
            early = _held()
    (memory, objects), (start, first) = _held(), early
    assert memory - start < 4 << 20, f"resident memory grew from {start} to {memory} bytes"
    assert objects - first < 100, f"Python's objects grew from {first} to {objects}"
    grown = f"{(memory - start) / 1024:+.0f} KiB resident, {objects - first:+d} objects"
    return f"{frames} frames: {grown} since frame {frames // 10}"


def train(steps: int) -> str:
    """The stable form with bfloat16 parameters and inputs; masks and a missing modality vary."""
    torch.manual_seed(0)
    layer = RecursiveCrossModalAttention([8, 12, 4], dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        x = [torch.randn(4, 20, dim, dtype=torch.bfloat16) for dim in (8, 12, 4)]
        mask = torch.arange(20) < torch.randint(0, 21, (4, 1))
        out = layer([*x[:2], None] if step % 3 == 2 else x, mask)
        # A target that the layer can partly learn: the features of each step in another order.
        pairs = [(y, a.roll(1, -1)) for y, a in zip(out, x, strict=True) if y is not None]
        loss = torch.stack([(y.float() - a.float()).square().mean() for y, a in pairs]).sum()
        optimizer.zero_grad()
        loss.backward()
        grads = [p.grad for p in layer.parameters() if p.grad is not None]
        assert all(g.isfinite().all() for g in grads), f"a gradient of step {step} is not finite"
        optimizer.step()
        losses.append(loss.item())
    assert all(p.isfinite().all() for p in layer.parameters()), "a parameter is not finite"
    first, last = (sum(part) / len(part) for part in (losses[:100], losses[-100:]))
    assert last < first, f"the loss rose from {first} to {last}"
    return f"{steps} steps in bfloat16: all finite, loss {first:.3f} to {last:.3f}"


@torch.inference_mode()
def share(calls: int, threads: int = 8) -> str:
    """Threads that share a module get, bit for bit, what one thread alone gets."""
    layer = RecursiveCrossModalAttention([8, 12]).eval()
    inputs = [[torch.randn(2, 10 + n, dim) for dim in (8, 12)] for n in range(threads)]
    alone = [layer(x) for x in inputs]

    def run(index: int) -> int:
        n = index % threads
        with torch.inference_mode():  # a mode of the thread
            shared = layer(inputs[n])
        return sum(not torch.equal(a, b) for a, b in zip(shared, alone[n], strict=True))

    with ThreadPoolExecutor(threads) as pool:
        wrong = sum(pool.map(run, range(calls)))
    assert not wrong, f"{wrong} outputs differ"
    return f"{calls} calls of one module by {threads} threads: all equal to those of one thread"


def main() -> None:
    """Runs all three."""
    parser = argparse.ArgumentParser(prog="python -m tests.thorough.long", description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--calls", type=int, default=4_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes: dict[Callable[[int], str], int] = {
        share: arguments.calls,
        train: arguments.steps,
        stream: arguments.frames,
    }
    for run, size in sizes.items():
        start = time.monotonic()
        sys.stdout.write(f"{run(size)} ({time.monotonic() - start:.0f} s)\n")
        sys.stdout.flush()


def _held() -> tuple[int, int]:
    """Bytes of this process in memory (Linux), and Python's objects."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024, len(gc.get_objects())
    raise OSError("no VmRSS in /proc/self/status")


if __name__ == "__main__":
    main()
