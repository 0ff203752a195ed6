"""How the memory of a training step grows with the recursions, with and without checkpoint=True.

And, at the paper's size, the peak of a training step beside that of other layers.

Run: python -m benchmarks.checkpoint_memory. Writes benchmarks/results/checkpoint_memory.json; the
report tabulates it.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks import peers
from benchmarks.layers import BOTH, RESULTS, Entry, call_of
from benchmarks.timing import peak_bytes
from crossfuse import CrossModalTransformer, RecursiveCrossModalAttention

LENGTH, DIMS = 300, (512, 128, 512)
BATCH = 4  # 12 for the comparison at the paper's size
RECURSIONS = (1, 2, 4, 8, 16)


class Row(TypedDict):
    """Memory by the number of recursions, in MiB."""

    recursions: int
    kept: float  # by a forward pass for the backward pass
    kept_with_checkpoint: float  # the features between, and the state of the random generator
    peak: float  # of forward and backward, beyond inputs and parameters
    peak_with_checkpoint: float
    features_between: float  # the inputs of all recursions but the first, which checkpoint keeps
    weight_gradients: float  # the result of the backward pass, as large as the weights


def layer_of(recursions: int, *, checkpoint: bool) -> nn.Module:
    return RecursiveCrossModalAttention(DIMS, recursions=recursions, checkpoint=checkpoint)


def draw(batch: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(batch, LENGTH, d, requires_grad=True) for d in DIMS]


def kept(layer: nn.Module, x: list[Tensor]) -> float:
    """Adds up what lives after the forward pass, without parameters, inputs and outputs.

    That is what autograd saves, and what checkpointing holds to start each recursion again. With
    checkpoint=True the backward pass needs, in addition, what one recursion keeps without.
    """
    gc.collect()
    before = {address(y) for y in living()}  # of whoever else is in this process
    saved: list[Tensor] = []

    def pack(y: Tensor) -> Tensor:
        saved.append(y.detach())
        return saved[-1]  # y itself would keep its own history alive

    with saved_tensors_hooks(pack, lambda y: y):
        outputs = layer(x)
    users = before | {address(y) for y in (*layer.parameters(), *x, *outputs)}
    sizes = {address(y): y.untyped_storage().nbytes() for y in (*saved, *living())}
    return mebibytes(sum(size for at, size in sizes.items() if at not in users))


def living() -> list[Tensor]:
    """The dense tensors on the CPU that Python knows of."""
    known = (y for y in gc.get_objects() if type(y) is Tensor and y.device.type == "cpu")
    return [y for y in known if y.layout == torch.strided and not y.is_nested]


def peak(layer: nn.Module, x: list[Tensor]) -> float:
    """The peak of forward and backward, with the gradients of all inputs and weights."""
    call = call_of(Entry(layer, same=False), x, BOTH)
    call()
    return mebibytes(peak_bytes(call, "cpu"))


def address(x: Tensor) -> int:
    """The memory that a tensor, or a view of it, uses."""
    return x.untyped_storage().data_ptr()


def mebibytes(size: int) -> float:
    return round(size / 2**20, 2)


def over_recursions() -> list[Row]:
    """One row for each number of recursions."""
    rows: list[Row] = []
    for recursions in RECURSIONS:
        x = draw(BATCH)
        plain, recomputed = (layer_of(recursions, checkpoint=flag) for flag in (False, True))
        rows.append(
            {
                "recursions": recursions,
                "kept": kept(plain, x),
                "kept_with_checkpoint": kept(recomputed, x),
                "peak": peak(plain, x),
                "peak_with_checkpoint": peak(recomputed, x),
                "features_between": mebibytes((recursions - 1) * sum(y.nbytes for y in x)),
                "weight_gradients": mebibytes(sum(p.nbytes for p in plain.parameters())),
            }
        )
        print(rows[-1])
    return rows


def at_the_papers_size() -> dict[str, float]:
    """The peak of each layer."""
    x, peaks = draw(12), {}
    layers: dict[str, Callable[[], nn.Module]] = {
        "RCMA": lambda: layer_of(2, checkpoint=False),
        "RCMA, checkpoint=True": lambda: layer_of(2, checkpoint=True),
        "encoder layer": lambda: peers.EncoderLayer(DIMS),
        "encoder layer, 2048": lambda: peers.EncoderLayer(DIMS, 2048),
        "CrossModalTransformer": lambda: CrossModalTransformer(DIMS),
        "MultiheadAttention": lambda: peers.SelfAttention(DIMS),
        "concatenation + MLP": lambda: peers.Concatenation(DIMS),
    }
    for name, build in layers.items():
        peaks[name] = peak(build(), x)
        print(name, peaks[name])
    return peaks


def main(folder: Path = RESULTS) -> Path:
    """Measures every case and writes the results file."""
    about = {"torch": torch.__version__, "length": LENGTH, "dims": DIMS, "dtype": "float32"}
    path = folder / "checkpoint_memory.json"
    report = {
        **about,
        "batch": BATCH,
        "MiB": over_recursions(),
        "peak_MiB_at_batch_12": at_the_papers_size(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


if __name__ == "__main__":
    main()
