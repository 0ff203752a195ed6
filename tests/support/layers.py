"""Every public module in its smallest interesting size, with inputs of any batch and length."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import crossfuse
from tests.support.strategies import filled

DIMS = {"face": 3, "voice": 5}
LENGTH = 7
Sizes = tuple[int, int]
Arguments = tuple[Any, ...]


def streams(sizes: Sizes, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Features of two modalities, (batch, length, d_i)."""
    generator = torch.Generator().manual_seed(10 * sizes[0] + sizes[1])
    return {
        name: torch.randn(*sizes, dim, generator=generator, dtype=torch.float64).to(dtype)
        for name, dim in DIMS.items()
    }


def masks(sizes: Sizes) -> dict[str, Tensor]:
    """A mask for each modality, tensors of their own: one ends early, one begins late."""
    steps = torch.arange(sizes[1])
    ends = {"face": steps < max(sizes[1] - 1, 1), "voice": steps >= min(1, sizes[1] - 1)}
    return {name: row.repeat(sizes[0], 1) for name, row in ends.items()}


def _fused(sizes: Sizes, masked: bool) -> Arguments:
    return (streams(sizes), masks(sizes)) if masked else (streams(sizes),)


def _face(sizes: Sizes, masked: bool) -> Arguments:
    face = streams(sizes)["face"]
    return (face, masks(sizes)["face"]) if masked else (face,)


def _gated(sizes: Sizes, masked: bool) -> Arguments:
    face = streams(sizes)["face"]
    return face, face.flip(1).contiguous()


def _scored(sizes: Sizes, masked: bool) -> Arguments:
    series = streams(sizes)["face"]
    return (*_gated(sizes, masked), masks(sizes)["face"]) if masked else (series, series.exp())


@contextmanager
def foreign_warnings_silenced() -> Iterator[None]:
    """Warnings of torch's compilers and of Lightning that our code can do nothing about."""
    with warnings.catch_warnings():
        # torch copies its own tree specs, which it deprecates in favour of their base class.
        warnings.filterwarnings(
            "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning, "copyreg"
        )
        # Lightning does so too, and advises on the number of workers.
        warnings.filterwarnings(
            "ignore",
            r"`isinstance\(treespec, LeafSpec\)` is deprecated",
            FutureWarning,
            r"lightning\.pytorch\.utilities|typing_extensions",
        )
        warnings.filterwarnings("ignore", ".*does not have many workers", UserWarning)
        # inductor imports what is left of TorchScript.
        warnings.filterwarnings(
            "ignore", "`torch.jit.script", DeprecationWarning, r"torch\.jit\._script"
        )
        # FSDP2 draws the shards of a weight on the CPU from the global generator.
        warnings.filterwarnings("ignore", "DTensor random operators", UserWarning, r"torch\.")
        yield


class Specimen(NamedTuple):
    """How to build a module, and its arguments for sizes (batch, length), masked or not."""

    build: Callable[..., nn.Module]
    arguments: Callable[[Sizes, bool], Arguments] = _fused
    takes_mask: bool = True

    def module(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """In evaluation mode, with seeded parameters."""
        return filled(self.build(), 0).to(dtype).eval()


class Pipeline(nn.Module):
    """A whole model: a TCN for each modality, recursive fusion, one output per step."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = crossfuse.PerModality(
            {name: crossfuse.TemporalConvNet(dim, [4], kernel_size=3) for name, dim in DIMS.items()}
        )
        self.fuse = crossfuse.RecursiveCrossModalAttention(dict.fromkeys(DIMS, 4), LENGTH, 1)
        self.head = crossfuse.ConcatFusion(dict.fromkeys(DIMS, 4), 2)

    def forward(
        self, modalities: dict[str, Tensor], mask: dict[str, Tensor] | None = None
    ) -> Tensor:
        outputs: Tensor = self.head(self.fuse(self.encode(modalities, mask), mask), mask)
        return outputs


def _rcma(*sizes: Any, **options: Any) -> Callable[[], nn.Module]:  # noqa: ANN401 - passed on
    return lambda: crossfuse.RecursiveCrossModalAttention(DIMS, *sizes, **options)


class Readout(nn.Module):
    """Recursive fusion with a weight for each step, and one output for each step."""

    def __init__(self) -> None:
        super().__init__()
        widths = dict.fromkeys(DIMS, 4)
        self.fuse = crossfuse.RecursiveCrossModalAttention(widths, LENGTH, 1, form="paper")
        self.head = crossfuse.ConcatFusion(widths, 2)

    def forward(self, features: Any, mask: Any = None) -> Tensor:  # noqa: ANN401 - modalities
        outputs: Tensor = self.head(self.fuse(features, mask), mask)
        return outputs


def live_window(readout: nn.Module | None = None, **options: Any) -> crossfuse.LiveWindow:  # noqa: ANN401 - passed on
    """A TCN for each modality and what reads out a window of `LENGTH` steps."""
    encode = crossfuse.PerModality(
        {name: crossfuse.TemporalConvNet(dim, [4], kernel_size=3) for name, dim in DIMS.items()}
    )
    return crossfuse.LiveWindow(encode, readout or Readout(), DIMS, LENGTH, **options)


SPECIMENS = {
    "RecursiveCrossModalAttention": Specimen(_rcma()),
    "RecursiveCrossModalAttention-paper": Specimen(_rcma(LENGTH, form="paper", joint="others")),
    "RecursiveCrossModalAttention-gated": Specimen(_rcma(None, 1, gate=True)),
    "RecursiveCrossModalAttention-released": Specimen(
        _rcma(LENGTH, 1, form="released", joint="others")
    ),
    "JointCrossAttention": Specimen(lambda: crossfuse.JointCrossAttention(DIMS, LENGTH, 4)),
    "JointCrossAttention-paper": Specimen(
        lambda: crossfuse.JointCrossAttention(DIMS, LENGTH, 4, recursions=2, form="paper")
    ),
    "TemporalConvNet": Specimen(lambda: crossfuse.TemporalConvNet(3, [4, 5], kernel_size=3), _face),
    "PerModality": Specimen(
        lambda: crossfuse.PerModality(
            {"face": crossfuse.TemporalConvNet(3, [4], causal=False), "voice": nn.Linear(5, 2)}
        )
    ),
    "DynamicGate": Specimen(lambda: crossfuse.DynamicGate(3), _gated, takes_mask=False),
    "MissingTokens": Specimen(lambda: crossfuse.MissingTokens(DIMS)),
    "ModalityDropout": Specimen(lambda: crossfuse.ModalityDropout(0.5)),
    "ConcatFusion": Specimen(lambda: crossfuse.ConcatFusion(DIMS, 4)),
    "CrossAttention": Specimen(lambda: crossfuse.CrossAttention(DIMS)),
    "CrossModalTransformer": Specimen(
        lambda: crossfuse.CrossModalTransformer(DIMS, 4, heads=2, depth=2)
    ),
    "LeaderFollowerAttention": Specimen(
        lambda: crossfuse.LeaderFollowerAttention(DIMS, 4, leader="face")
    ),
    "MaskedMean": Specimen(crossfuse.MaskedMean),
    "MaskedMean-one": Specimen(crossfuse.MaskedMean, _face),
    "AttentionPooling": Specimen(lambda: crossfuse.AttentionPooling(DIMS)),
    "AttentionPooling-one": Specimen(lambda: crossfuse.AttentionPooling(3), _face),
    "LiveWindow": Specimen(lambda: live_window()),
    "ConcordanceLoss": Specimen(crossfuse.ConcordanceLoss, _scored),
}
