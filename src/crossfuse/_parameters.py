"""Parameters, allocated only if they can be."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from crossfuse._errors import DTYPES, check_memory, error


def check_parameters(
    layer: str, count: int, *, device: torch.device | str | None, dtype: torch.dtype | None
) -> None:
    """Refuses parameters that could not be allocated or computed with, before any of them is.

    Args:
        layer: Name of the layer, for the messages.
        count: The least number of elements that all parameters of the layer have together.
        device: Their device, as the caller gave it.
        dtype: Their dtype, as the caller gave it.

    Raises:
        TypeError: If the dtype is not one of those that layers compute with.
        ValueError: If the device is unknown, or the parameters do not fit into memory.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in DTYPES:
        raise error(
            TypeError,
            layer,
            "dtype must be a floating-point dtype that can be computed with",
            got=f"{dtype!r}",
            expected="torch.float32, float64, bfloat16 or float16",
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
    check_memory(layer, "the parameters", count, dtype.itemsize, place)


def new_parameter(
    *size: int, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Parameter:
    """Allocates a parameter, without values."""
    return nn.Parameter(torch.empty(*size, device=device, dtype=dtype))


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
