"""The cases: sizes, our layer, its peers and the matrix products it cannot do without."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from benchmarks import peers
from crossfuse import (
    CrossModalTransformer,
    JointCrossAttention,
    RecursiveCrossModalAttention,
    TemporalConvNet,
)

Product = tuple[int, int, int, int]
"""Samples b, rows m, inner k, columns n; b = 1 is one product of two matrices."""


@dataclass(frozen=True)
class Peer:
    """Somebody else's layer.

    ``same`` says that it computes what ours does; ``settings`` where it runs, None for all.
    """

    build: Callable[[nn.Module], nn.Module]
    same: bool = False
    settings: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Case:
    """One size of one layer; the first peer marked ``same`` is the reference."""

    name: str
    batch: int
    length: int
    dims: tuple[int, ...]
    build: Callable[[], nn.Module]
    products: tuple[Product, ...]
    peers: dict[str, Peer] = field(default_factory=dict)
    settings: tuple[str, ...] = ("float32", "medium", "bfloat16")
    compiled: tuple[str, ...] = ("float32",)

    @property
    def flops(self) -> int:
        """Floating-point operations of the products, forward."""
        return operations(self.products)


def recursive_products(
    batch: int, length: int, dims: Sequence[int], joint: str = "others", *, mapped: bool = False
) -> tuple[Product, ...]:
    """The products of one step of RCMA in the cheaper order of each; ``mapped``: also J P."""
    found: list[Product] = []
    for d in dims:
        joint_dim = sum(dims) - (d if joint == "others" else 0)
        narrow = min(d, joint_dim)
        found += [(batch, narrow, length, length), (batch, d, length, joint_dim)]
        if length <= joint_dim:
            found += [(1, batch * length, d, d)]
        else:
            found += [(batch, d, d, joint_dim)]
        found += [(batch, length, d, joint_dim), (1, batch * length, joint_dim, d)]
        found += [(1, batch * min(d, length), joint_dim, joint_dim)] * mapped
    return tuple(found)


def joint_products(
    batch: int, length: int, dims: Sequence[int], width: int = 32
) -> tuple[Product, ...]:
    """The products of JCA."""
    joint_dim, found = sum(dims), []
    for d in dims:
        found += [
            (batch, d, length, length),
            (batch, d, length, joint_dim),
            (batch, d, length, width),
            (1, batch * d, joint_dim, width),
            (1, batch * d, width, length),
        ]
    return tuple(found)


def convolution_products(
    batch: int, length: int, dim: int, widths: Sequence[int], taps: int = 5
) -> tuple[Product, ...]:
    """The convolutions of a TCN as products, whose operand is given."""
    found: list[Product] = []
    for before, after in zip((dim, *widths), widths, strict=False):
        found += [(1, after, taps * n, batch * length) for n in (before, after)]
        found += [(1, after, before, batch * length)] * (before != after)
    return tuple(found)


def recursive_case(
    name: str,
    batch: int,
    length: int,
    dims: tuple[int, ...],
    recursions: int = 2,
    **more: Any,  # noqa: ANN401  # fields of Case
) -> Case:
    count, plain = len(dims), ("float32",)
    return Case(
        name,
        batch,
        length,
        dims,
        lambda: RecursiveCrossModalAttention(
            dims, length, recursions, form="paper", joint="others"
        ),
        recursive_products(batch, length, dims) * recursions,
        {
            "transcription": Peer(lambda ours: peers.Published(ours, count, recursions), same=True),
            "MultiheadAttention": Peer(lambda _: peers.PairwiseAttention(dims, recursions)),
            "x-transformers": Peer(lambda _: peers.XTransformers(dims, recursions), settings=plain),
            # Its branches are pairs of modalities: at eight a call takes seven seconds.
            "LinMulT": Peer(
                lambda _: peers.LinearTransformer(dims), settings=plain if count < 8 else ()
            ),
            "concatenation + MLP": Peer(lambda _: peers.Concatenation(dims), settings=plain),
        },
        **more,
    )


def stable_products(batch: int, length: int, dims: Sequence[int]) -> tuple[Product, ...]:
    """The products of one step of the default form, the stable one with ``length=None``.

    The columns of U P and J Q are divided by their root mean squares, so these two cannot be
    multiplied in another order. U F C O can, and so is in the order of the fewest operations.
    """
    found: list[Product] = []
    for d in dims:
        heads = math.gcd(d, 4)
        k = d // heads
        flat, small = (1, batch * length, d, d), (batch * heads, d, k, k)
        found += [flat, (1, batch * length, sum(dims), d), (batch * heads, k, length, k)]
        orders: list[list[Product]] = [
            [flat, (batch * heads, length, k, k), flat],  # ((U F) C) O
            [small, (batch, length, d, d), flat],  # (U (F C)) O, and as many for (U F) (C O)
            [small, (1, batch * d, d, d), (batch, length, d, d)],  # U ((F C) O)
        ]
        found += [*min(orders, key=operations), flat, flat]
    return tuple(found)


def operations(products: Iterable[Product]) -> int:
    """Floating-point operations of products."""
    return sum(2 * b * m * k * n for b, m, k, n in products)


def drawn(layer: nn.Module) -> nn.Module:
    """Draws the weights that start at zero: with them a new layer is the identity."""
    for name, weight in layer.named_parameters():
        if name.endswith(("output", "back")):
            nn.init.xavier_uniform_(weight)
        elif name.endswith("hidden_bias"):
            nn.init.normal_(weight)
    return layer


def default_case(
    name: str,
    batch: int,
    length: int,
    dims: tuple[int, ...],
    recursions: int = 2,
    **more: Any,  # noqa: ANN401  # fields of Case
) -> Case:
    count, plain = len(dims), ("float32",)
    return Case(
        name,
        batch,
        length,
        dims,
        lambda: drawn(RecursiveCrossModalAttention(dims, recursions=recursions)),
        stable_products(batch, length, dims) * recursions,
        {
            "restatement": Peer(lambda ours: peers.Stable(ours, count, recursions), same=True),
            "encoder layer": Peer(lambda _: peers.EncoderLayer(dims)),
            "encoder layer, 2048": Peer(lambda _: peers.EncoderLayer(dims, 2048), settings=plain),
            "CrossModalTransformer": Peer(lambda _: CrossModalTransformer(dims), settings=plain),
            "MultiheadAttention": Peer(lambda _: peers.SelfAttention(dims)),
            "concatenation + MLP": Peer(lambda _: peers.Concatenation(dims), settings=plain),
        },
        **more,
    )


def released_case(
    name: str,
    batch: int,
    length: int,
    dims: tuple[int, ...],
    joint: Literal["all", "others"],
    recursions: int = 2,
) -> Case:
    return Case(
        name,
        batch,
        length,
        dims,
        lambda: RecursiveCrossModalAttention(
            dims, length, recursions, form="released", joint=joint
        ),
        recursive_products(batch, length, dims, joint, mapped=joint == "others") * recursions,
        {"released": Peer(lambda ours: peers.Released(ours, dims, recursions, joint), same=True)},
        settings=("float32", "bfloat16"),
        compiled=(),
    )


def joint_case(
    name: str,
    batch: int,
    length: int,
    dims: tuple[int, ...],
    **more: Any,  # noqa: ANN401  # fields of Case
) -> Case:
    return Case(
        name,
        batch,
        length,
        dims,
        lambda: JointCrossAttention(dims, length, form="paper"),
        joint_products(batch, length, dims),
        {
            "released": Peer(lambda ours: peers.ReleasedJoint(ours, len(dims)), same=True),
            "MultiheadAttention": Peer(lambda _: peers.PairwiseAttention(dims, 1)),
        },
        **more,
    )


def tcn_case(
    name: str,
    batch: int,
    length: int,
    dim: int,
    widths: Sequence[int],
    **more: Any,  # noqa: ANN401  # fields of Case
) -> Case:
    def theirs(ours: nn.Module) -> nn.Module:
        return peers.PyTorchTCN(ours.get_submodule("module"), dim, widths)

    return Case(
        name,
        batch,
        length,
        (dim,),
        lambda: peers.Alone(TemporalConvNet(dim, widths)),
        convolution_products(batch, length, dim, widths),
        {"pytorch-tcn": Peer(theirs, same=True)},
        **more,
    )


def head_case(
    name: str, batch: int, length: int, dims: tuple[int, ...], widths: Sequence[Sequence[int]]
) -> Case:
    ends, total = [w[-1] for w in widths], sum(w[-1] for w in widths)

    def ours() -> nn.Module:
        pairs = zip(dims, widths, strict=True)
        encoders = [peers.Alone(TemporalConvNet(dim, w)) for dim, w in pairs]
        fuse = RecursiveCrossModalAttention(ends, length, form="paper", joint="others")
        return peers.Head(encoders, fuse, nn.Linear(total, 2))

    def theirs(made: nn.Module) -> nn.Module:
        assert isinstance(made, peers.Head)
        nets = [encode.get_submodule("module") for encode in made.encoders]
        parts = zip(nets, dims, widths, strict=True)
        encoders = [peers.PyTorchTCN(net, dim, w) for net, dim, w in parts]
        fuse = peers.Published(made.fuse, len(dims), 2)
        return peers.Head(encoders, fuse, made.regress)

    convolutions = [
        product
        for dim, w in zip(dims, widths, strict=True)
        for product in convolution_products(batch, length, dim, w)
    ]
    return Case(
        name,
        batch,
        length,
        dims,
        ours,
        (*convolutions, *recursive_products(batch, length, ends) * 2),
        {"pytorch-tcn + transcription": Peer(theirs, same=True)},
        settings=("float32", "bfloat16"),
        compiled=(),
    )


def all_cases() -> list[Case]:
    """Every case of the benchmark, the paper's size first."""
    paper, plain = (512, 128, 512), ("float32", "bfloat16")
    return [
        default_case("default-paper", 12, 300, paper, settings=plain),
        default_case("default-128", 12, 300, (128, 128, 128), settings=plain),
        default_case("default-one-sample", 1, 300, (128, 128, 128), settings=("float32",)),
        default_case("default-eight", 12, 300, (64,) * 8, 1, settings=("float32",)),
        recursive_case("rcma-paper", 12, 300, paper, compiled=("float32", "bfloat16")),
        released_case("rcma-released-v1", 12, 300, paper, "others"),
        released_case("rcma-released-v2", 12, 300, paper, "all"),
        recursive_case("rcma-128", 12, 300, (128, 128, 128), settings=plain),
        recursive_case("rcma-one-sample", 1, 300, (128, 128, 128), settings=("float32",)),
        # One recursion: compiling grows with modalities times recursions.
        recursive_case("rcma-eight", 12, 300, (64,) * 8, 1, settings=("float32",)),
        joint_case("jca-16", 12, 16, (512, 512)),
        joint_case("jca-300", 12, 300, (512, 512), compiled=()),
        tcn_case("tcn-audio", 12, 300, 128, [128] * 4),
        tcn_case("tcn-video", 4, 300, 512, [512] * 4, settings=plain, compiled=()),
        head_case("head", 2, 300, (512, 128, 768), ([512] * 4, [128] * 4, [512] * 4)),
    ]


def small_cases() -> list[Case]:
    """The same kinds at sizes that take no time, for ``--quick`` and the tests."""
    return [
        default_case("default-small", 2, 12, (16, 8, 16), compiled=()),
        recursive_case("rcma-small", 2, 12, (16, 8, 16), compiled=()),
        released_case("rcma-released-v1-small", 2, 12, (16, 8, 16), "others"),
        released_case("rcma-released-v2-small", 2, 12, (16, 8, 16), "all"),
        joint_case("jca-small", 2, 12, (16, 8), compiled=()),
        tcn_case("tcn-small", 2, 30, 6, [8, 8], compiled=()),
        head_case("head-small", 2, 12, (6, 5, 7), ([16, 16], [8, 8], [16, 16])),
    ]
