"""How the memory of a training step grows with the recursions, with and without checkpoint=True.

Run: python -m benchmarks.checkpoint_memory. Writes benchmarks/results/checkpoint_memory.json.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from crossfuse import RecursiveCrossModalAttention

BATCH, LENGTH, DIMS = 4, 300, {"video": 512, "audio": 128, "text": 512}
RECURSIONS = (1, 2, 4, 8, 16)
RESULT = Path(__file__).parent / "results" / "checkpoint_memory.json"


class Row(TypedDict):
    """What a forward pass keeps for the backward pass, in MiB."""

    recursions: int
    kept: float
    kept_with_checkpoint: float


def kept(recursions: int, *, checkpoint: bool) -> float:
    """Adds up what lives after the forward pass, without parameters, inputs and outputs.

    That is what autograd saves, and what checkpointing holds to start each recursion again. With
    checkpoint=True the backward pass needs, on top, what one step keeps without.
    """
    gc.collect()  # what the case before left
    torch.manual_seed(0)
    layer = RecursiveCrossModalAttention(
        DIMS, LENGTH, recursions, joint="others", checkpoint=checkpoint
    )
    x = {name: torch.randn(BATCH, LENGTH, dim) for name, dim in DIMS.items()}
    saved: list[Tensor] = []

    def pack(y: Tensor) -> Tensor:
        saved.append(y.detach())
        return saved[-1]  # y itself would keep its own history alive

    with saved_tensors_hooks(pack, lambda y: y):
        outputs = layer(x)
    held = [y for y in gc.get_objects() if type(y) is Tensor and y.device.type == "cpu"]
    users = {address(y) for y in (*layer.parameters(), *x.values(), *outputs.values())}
    sizes = {address(y): y.untyped_storage().nbytes() for y in (*saved, *held)}
    return round(sum(size for at, size in sizes.items() if at not in users) / 2**20, 1)


def address(x: Tensor) -> int:
    """Where the memory lies that a tensor, or a view of it, uses."""
    return x.untyped_storage().data_ptr()


def main() -> None:
    """Measures every case and writes the table."""
    rows: list[Row] = []
    for recursions in RECURSIONS:
        plain, recomputed = (
            kept(recursions, checkpoint=checkpoint) for checkpoint in (False, True)
        )
        rows.append({"recursions": recursions, "kept": plain, "kept_with_checkpoint": recomputed})
        print(rows[-1])
    about = {"torch": torch.__version__, "batch": BATCH, "length": LENGTH, "dims": DIMS}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({**about, "dtype": "float32", "MiB": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
