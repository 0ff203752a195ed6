"""Reading a foreign state dict by a table of keys, which must fit it exactly."""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from crossfuse._errors import check_dense, check_name, error, quoted


def check_names(layer: str, modalities: object, count: int | None) -> list[str]:
    """Reads the names of the modalities; None for any number of them."""
    given = list(modalities) if isinstance(modalities, Iterable) else []
    names = [] if isinstance(modalities, str) else [name for name in given if isinstance(name, str)]
    several = len(names) == len(given) and len(set(names)) == len(names)
    if not names or not several or len(names) != (count or len(names)):
        raise error(
            ValueError,
            layer,
            "modalities does not name those of the checkpoint",
            got=f"{modalities!r}",
            expected=f"{count or 'some'} different names, in the order of the authors' code",
            hint="the docstring states that order; the names are those in the layer's dims",
        )
    for name in names:
        check_name(layer, name)
    return names


def count_parts(layer: str, state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """Counts the recursions or blocks of a checkpoint; at least 1, whose keys are then missing."""
    check_tensors(layer, state_dict)
    return max(1, len({m.group(1) for key in state_dict if (m := re.match(pattern, key))}))


def read(
    layer: str,
    state_dict: Mapping[str, Tensor],
    table: Mapping[str, str],
    dropped: Mapping[str, str],
) -> dict[str, Tensor]:
    """Reads the values by our keys.

    Args:
        layer: Name of the function, for the messages.
        state_dict: The checkpoint.
        table: Their key by ours.
        dropped: Patterns of their keys that may be there and are left out.

    Raises:
        TypeError: If the checkpoint is not a mapping of tensors.
        ValueError: If it has other keys than the table and the patterns.
    """
    check_tensors(layer, state_dict)
    theirs = set(table.values())
    missing = [key for key in table.values() if key not in state_dict]
    unknown = [
        key
        for key in state_dict
        if key not in theirs and not any(re.fullmatch(pattern, key) for pattern in dropped)
    ]
    if missing or unknown:
        raise error(
            ValueError,
            layer,
            "the checkpoint has other keys than the authors' module",
            got=f"unknown {quoted(unknown)}; missing {quoted(missing)}",
            expected=f"keys such as {quoted(list(table.values())[:2])}",
            hint="give the state dict of that module alone, without a prefix such as 'module.'",
        )
    return {ours: state_dict[key] for ours, key in table.items()}


def in_order(names: Sequence[str]) -> list[str]:
    """Returns the names in the order of a layer: alphabetical, or by position in a sequence."""
    positions = [str(k) for k in range(len(names))]
    return positions if set(names) == set(positions) else sorted(names)


def check_axes(layer: str, key: str, x: Tensor, sizes: tuple[int | None, ...]) -> None:
    """Refuses a value whose leading axes do not have these sizes; None for any size."""
    fits = x.ndim >= len(sizes) and all(
        size in (None, found) for size, found in zip(sizes, x.shape, strict=False)
    )
    if not fits or (None in sizes and x.ndim != len(sizes)):
        shown = ", ".join("any" if size is None else str(size) for size in sizes)
        raise error(
            ValueError,
            layer,
            f"{key!r} does not have the shape of the authors' module",
            got=f"{tuple(x.shape)}",
            expected=f"({shown})" if None in sizes else f"({shown}, ...)",
            hint="give the state dict as their code saved it",
        )


def own_copies(converted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies the values, so that the checkpoint keeps its own."""
    return {
        key: x.detach().clone(memory_format=torch.contiguous_format) for key, x in converted.items()
    }


def check_tensors(layer: str, state_dict: object) -> None:
    """Refuses what is not a mapping of names to tensors."""
    items = state_dict.items() if isinstance(state_dict, Mapping) else [(None, state_dict)]
    for key, x in items:
        if isinstance(key, str) and isinstance(x, Tensor):
            check_dense(layer, key, x)
        else:
            raise error(
                TypeError,
                layer,
                "state_dict is not a mapping of names to tensors",
                got=type(x).__name__ if key is None else f"{key!r}: {type(x).__name__}",
                expected="the state dict of a module: str to tensor",
                hint="torch.load reads one from a file; it may be under a key such as 'net'",
            )
