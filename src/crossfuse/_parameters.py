"""Parameters, allocated only if they can be."""

import math
import os
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from crossfuse._errors import error


def new_parameter(
    layer: str, *size: int, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Parameter:
    """Allocates a parameter, without values.

    Raises:
        TypeError: If the dtype is not one of floating-point numbers.
        ValueError: If the device is unknown, or the parameter does not fit into memory.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not getattr(dtype, "is_floating_point", False):
        raise error(
            TypeError,
            layer,
            "dtype must be a floating-point dtype",
            got=f"{dtype!r}",
            expected="such as torch.float32",
            hint="omit it for torch's default dtype",
        )
    try:
        place = torch.get_default_device() if device is None else torch.device(device)
    except (RuntimeError, TypeError) as reason:
        raise error(
            ValueError,
            layer,
            "unknown device",
            got=f"{device!r}",
            expected="such as 'cpu' or 'cuda'",
            hint="omit it for torch's default device",
        ) from reason
    if place.type == "cpu" and math.prod(size) * dtype.itemsize > _memory():
        raise error(
            ValueError,
            layer,
            "a parameter does not fit into memory",
            got=f"{size}, {math.prod(size) * dtype.itemsize / 2**30:.3g} GiB",
            expected=f"at most {_memory() / 2**30:.3g} GiB",
            hint="choose smaller sizes, or device='meta' to allocate nothing",
        )
    return nn.Parameter(torch.empty(*size, device=place, dtype=dtype))


@torch.no_grad()
def copy_leading_(
    new: nn.Module, old: nn.Module, blocks: Mapping[str, tuple[Sequence[int], Sequence[int]]]
) -> None:
    """Copies the parameters of a module into one of other sizes, as far as both reach.

    Args:
        new: Where to.
        old: Where from, with the same names.
        blocks: The columns of each block, new and old, of parameters that consist of blocks.
    """
    sources = dict(old.named_parameters())
    for name, target in new.named_parameters():
        widths = blocks.get(name, ([target.shape[-1]], [sources[name].shape[-1]]))
        parts = (
            torch.split(x, list(w), -1)
            for x, w in zip((target, sources[name]), widths, strict=True)
        )
        for into, source in zip(*parts, strict=True):
            reach = tuple(slice(min(sizes)) for sizes in zip(into.shape, source.shape, strict=True))
            into[reach].copy_(source[reach])


def _memory() -> float:
    """The bytes of memory of this machine, if it says."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf
