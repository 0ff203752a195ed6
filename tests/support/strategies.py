"""Hypothesis strategies. They draw structure; tensors come from a drawn seed, so shapes shrink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.reference import Structure

M = TypeVar("M", bound=nn.Module)
PRIMES = (2, 3, 5, 7, 11)
NAMES = ("video", "audio", "text", "gyro", "face")


@dataclass(frozen=True)
class Streams:
    """A drawn set of modalities: sizes, masks, missing modalities, the seed of the numbers."""

    dims: tuple[int, ...]
    batch: int
    lengths: tuple[int, ...]  # one per modality; all equal unless drawn unaligned
    named: bool
    masked: str  # "none", "one" (a tensor for all) or "each"
    invalid: tuple[tuple[int, ...], ...]  # per modality and sample, a bit set of invalid steps
    missing: frozenset[int]
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        return (
            NAMES[: len(self.dims)] if self.named else tuple(str(n) for n in range(len(self.dims)))
        )

    @property
    def length(self) -> int:
        return max(self.lengths)

    @property
    def layer_dims(self) -> dict[str, int] | tuple[int, ...]:
        """What the layer's constructor takes."""
        declared = dict(zip(self.names, self.dims, strict=True))
        return declared if self.named else self.dims

    @property
    def by_name(self) -> dict[str, int]:
        """Features by name, in the order of the layers: alphabetical if named."""
        each = dict(zip(self.names, self.dims, strict=True))
        return dict(sorted(each.items())) if self.named else each

    def declared(self, order: Sequence[int]) -> dict[str, int]:
        """Features by name, declared in another order."""
        return {self.names[n]: self.dims[n] for n in order}

    def whole(self) -> Streams:
        """The same with nothing masked or missing."""
        return replace(self, masked="none", missing=frozenset())

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        return [
            torch.randn(self.batch, length, dim, generator=generator, dtype=torch.float64).to(dtype)
            for dim, length in zip(self.dims, self.lengths, strict=True)
        ]

    def inputs(self, dtype: torch.dtype = torch.float64) -> Structure:
        """A dict if named, else a tuple; missing modalities are None."""
        tensors = [None if n in self.missing else x for n, x in enumerate(self.tensors(dtype))]
        return dict(zip(self.names, tensors, strict=True)) if self.named else tuple(tensors)

    def mask(self) -> Structure:
        """The mask argument: None, one tensor, or the structure of the inputs."""
        if self.masked == "none":
            return None
        if self.masked == "one":
            return self._rows(0)
        rows = [None if self.seed % 7 == n else self._rows(n) for n in range(len(self.dims))]
        return dict(zip(self.names, rows, strict=True)) if self.named else tuple(rows)

    def _rows(self, modality: int) -> Tensor:
        steps = range(self.lengths[modality])
        rows = [[not (bits >> t) & 1 for t in steps] for bits in self.invalid[modality]]
        return torch.tensor(rows, dtype=torch.bool).reshape(self.batch, self.lengths[modality])


def plain(
    dims: tuple[int, ...] = (2, 3, 5), batch: int = 2, length: int = 4, *, named: bool = True
) -> Streams:
    """Streams without masks or gaps."""
    empty = ((0,) * batch,) * len(dims)
    return Streams(dims, batch, (length,) * len(dims), named, "none", empty, frozenset(), 3)


DARK = replace(plain((2, 3), length=3), masked="each", invalid=((7, 7), (7, 7)), seed=2)
GAPS = replace(DARK, invalid=((7, 0), (4, 1)))  # one sample lacks a modality
EDGES = {
    "one step": plain(length=1),
    "no samples": plain(batch=0),
    "everything masked": DARK,
    "gaps": GAPS,
}


@st.composite
def streams(
    draw: st.DrawFn,
    *,
    least: int = 2,
    most: int = 5,
    batch: tuple[int, int] = (0, 3),
    steps: tuple[int, int] = (1, 9),
    named: bool | None = None,
    masks: bool = True,
    missing: bool = True,
    aligned: bool = True,
    equal_dims: bool = False,
) -> Streams:
    """Draws modalities; at least one is always present."""
    count = draw(st.integers(least, most), label="modalities")
    if equal_dims:
        dims = (draw(st.sampled_from(PRIMES)),) * count
    else:
        dims = tuple(
            draw(st.lists(st.sampled_from(PRIMES), min_size=count, max_size=count, unique=True))
        )
    size = draw(st.integers(*batch), label="batch")
    if aligned:
        lengths = (draw(st.integers(*steps), label="length"),) * count
    else:
        lengths = tuple(draw(st.lists(st.integers(*steps), min_size=count, max_size=count)))
    kinds = ["none", "each", "one"] if aligned else ["none", "each"]
    kind = draw(st.sampled_from(kinds if masks else ["none"]), label="masked")
    bits = tuple(
        tuple(draw(st.integers(0, 2**length - 1)) if kind != "none" else 0 for _ in range(size))
        for length in lengths
    )
    gone = draw(st.sets(st.integers(0, count - 1), max_size=count - 1)) if missing else set()
    return Streams(
        dims=dims,
        batch=size,
        lengths=lengths,
        named=draw(st.booleans(), label="named") if named is None else named,
        masked=kind,
        invalid=bits,
        missing=frozenset(gone),
        seed=draw(st.integers(0, 2**16), label="seed"),
    )


@st.composite
def cuts(draw: st.DrawFn, steps: int) -> list[int]:
    """Where to cut a sequence of that many steps: any set of inner edges."""
    bits = draw(st.integers(0, 2 ** (steps - 1) - 1), label="cuts")
    return [t for t in range(1, steps) if (bits >> (t - 1)) & 1]


def every_cutting(steps: int) -> list[list[int]]:
    """All 2^(steps-1) ways to cut a sequence into chunks of at least one step."""
    return [
        [t for t in range(1, steps) if (bits >> (t - 1)) & 1] for bits in range(2 ** (steps - 1))
    ]


def filled(module: M, seed: int, scale: float = 1.0) -> M:
    """Gives every parameter seeded values that keep the features near one; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            spread = scale / max(parameter.shape[0], 1) ** 0.5 if parameter.ndim > 1 else scale / 2
            parameter.copy_((noise * spread).to(parameter.dtype))
    return module


def permuted_rows(dims: Sequence[int], order: Sequence[int]) -> list[int]:
    """Row indices that reorder blocks of `dims` rows into `order`."""
    starts = [sum(dims[:n]) for n in range(len(dims))]
    return [starts[n] + row for n in order for row in range(dims[n])]
