"""What :func:`crossfuse.resample` and :func:`crossfuse.align` share: streams in, streams out."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

from crossfuse._errors import check_choice, check_layout, check_together, error
from crossfuse._masks import valid_steps, zero_invalid
from crossfuse._modalities import Masks, Modalities, Structure

Mode: TypeAlias = Literal["average", "linear", "nearest"]
"""How a step of the clock is made from the steps of a stream."""

Resampled: TypeAlias = tuple[Tensor, Tensor]
"""One stream on the clock, (B, T, d), and its valid steps, (B, T)."""


class Streams(NamedTuple):
    """The checked streams of one call."""

    structure: Structure
    features: dict[str, Tensor]  # (B, L_i, d_i) of those that are present, zero at invalid steps
    masks: dict[str, Tensor]  # (B, L_i) of the same
    parameters: dict[str, Any]  # the rates or the time stamps, of all


def read_streams(
    function: str,
    modalities: Modalities,
    what: str,
    parameters: object,
    mask: Masks | None,
    mode: str,
) -> Streams:
    """Checks streams, their masks, the mode, and that there is one parameter for each stream.

    Raises:
        TypeError: If a container or an element is of a wrong type or dtype.
        ValueError: If names, shapes, masks or the mode do not fit.
    """
    check_choice(function, "mode", mode, ("average", "linear", "nearest"))
    structure = Structure(function, what, parameters)
    if structure.named != isinstance(modalities, Mapping):
        # In order they could be meant in the order of the mapping or in that of its names.
        raise error(
            TypeError,
            function,
            f"modalities and {what} are not of one structure",
            got=f"{type(modalities).__name__} and {type(parameters).__name__}",
            expected="two mappings, or two sequences",
            hint=f"give {what} under the names of the modalities",
        )
    given = structure.ordered("modalities", modalities)
    present = {name: x for name, x in given.items() if x is not None}
    for name, x in present.items():
        check_layout(function, name, x, None)
        first_name, first = next(iter(present.items()))
        check_together(function, name, x, first_name, first, aligned=False)
    masks = dict(zip(given, structure.masks(mask, given), strict=True))
    return Streams(
        structure,
        {name: zero_invalid(x, masks[name]) for name, x in present.items()},
        {name: valid_steps(x, masks[name]) for name, x in present.items()},
        structure.ordered(what, parameters),
    )


def restored(
    structure: Structure, modalities: Modalities, outputs: Mapping[str, Resampled]
) -> tuple[Any, Any]:
    """Returns streams and masks in the caller's structure, ``None`` for the missing."""
    pairs = [outputs.get(name, (None, None)) for name in structure.names]
    restore = structure.restorer(modalities)
    return restore([x for x, _ in pairs]), restore([valid for _, valid in pairs])
