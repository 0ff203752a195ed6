"""Records the matrix products that a module performs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases import Product

aten = torch.ops.aten
Call = Callable[[], object]


class Recorder(TorchDispatchMode):
    """Keeps the shapes of the products that are performed inside it, as ``products``.

    FlopCounterMode of torch adds them up, without the shapes and without attention on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  # an overload of an operator
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Notes what the operator multiplies, and performs it."""
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in (aten.mm, aten.bmm):
            self.products.append(_product(args[0], args[1]))
        elif packet in (aten.addmm, aten.baddbmm):
            self.products.append(_product(args[1], args[2]))
        elif packet in (aten.convolution, aten._convolution):
            self.products.append(_convolution(result, args[1]))
        elif packet.__name__.startswith("_scaled_dot_product"):
            self.products += _attention(*args[:3])
        return result


def products_of(call: Call) -> list[Product]:
    """The products of a call."""
    recorder = Recorder()
    with recorder:
        call()
    return recorder.products


def _product(left: Tensor, right: Tensor) -> Product:
    return (math.prod(left.shape[:-2]), left.shape[-2], left.shape[-1], right.shape[-1])


def _convolution(result: Tensor, weight: Tensor) -> Product:
    """A convolution without groups, as one product of the weight and the unfolded input."""
    return (1, weight.shape[0], math.prod(weight.shape[1:]), result.numel() // result.shape[1])


def _attention(query: Tensor, key: Tensor, value: Tensor) -> list[Product]:
    """The scores of all queries and keys, and the sums of the values."""
    many, queries, keys = math.prod(query.shape[:-2]), query.shape[-2], key.shape[-2]
    scores = (many, queries, query.shape[-1], keys)
    return [scores, (many, queries, keys, value.shape[-1])]
