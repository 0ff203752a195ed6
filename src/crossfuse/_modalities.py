"""Modalities in, modalities out: names, structure, masks and the missing.

Shapes: N modalities, B batch, L_i steps and d_i features of modality i.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from crossfuse._errors import (
    check_layout,
    check_like,
    check_longest,
    check_mask,
    check_name,
    check_size,
    check_together,
    error,
    quoted,
    shapes,
)
from crossfuse._masks import zero_invalid

Dims: TypeAlias = Mapping[str, int] | Sequence[int]
"""Features per modality, by name or in order."""

Modalities: TypeAlias = Mapping[str, Tensor | None] | Sequence[Tensor | None]
"""Tensors (B, L, d_i) by name or in order; ``None`` (or an absent key) is a missing modality."""

Masks: TypeAlias = Tensor | Mapping[str, Tensor | None] | Sequence[Tensor | None]
"""Bool tensors (B, L), True = valid: one for all modalities, or one for each (None = all valid)."""

T = TypeVar("T", Tensor, Tensor | None)
"""What a container holds: an output can be None exactly where the input can."""


class Inputs(NamedTuple):
    """The checked inputs of a layer in the layer's order, and the way back."""

    features: list[Tensor]  # N × (B, L_i, d_i); zero at invalid steps and for the missing
    masks: list[Tensor | None]  # N × (B, L_i); None where every step is valid
    restore: Callable[[Sequence[Any]], Any]  # N outputs -> the caller's structure, None if missing


class Structure:
    """Knows the names of a layer's modalities, or that they have none but their order.

    Args:
        layer: Name of the layer, for the messages.
        what: Name of the argument that lists the modalities, for the messages.
        entries: One of anything per modality: a mapping by name, or a sequence.

    Raises:
        TypeError: If ``entries`` is neither a mapping nor a sequence.
        ValueError: If there are too few, or a name cannot be part of a parameter's name.
    """

    def __init__(self, layer: str, what: str, entries: object, *, least: int = 1) -> None:
        self.layer = layer
        self.what = what
        self.named: bool = isinstance(entries, Mapping)
        # The order in which a mapping was written never matters: files that store it may sort it.
        names = named_entries(layer, what, entries)
        self.names: tuple[str, ...] = tuple(sorted(names, key=str) if self.named else names)
        if len(self.names) < least:
            raise error(
                ValueError,
                layer,
                "too few modalities",
                got=quoted(self.names),
                expected=f"at least {least}",
                hint=f"{what} lists every modality",
            )
        for name in self.names:
            check_name(layer, name)

    def restorer(self, modalities: Modalities) -> Callable[[Sequence[Any]], Any]:
        order = {name: k for k, name in enumerate(self.names)}
        if isinstance(modalities, Mapping):
            keys = [(name, order[name], x is None) for name, x in modalities.items()]
            return lambda outputs: {
                name: None if missing else outputs[k] for name, k, missing in keys
            }
        gone = [x is None for x in modalities]
        return lambda outputs: tuple(
            None if missing else y for missing, y in zip(gone, outputs, strict=True)
        )

    def ordered(self, what: str, given: object) -> dict[str, Any]:
        """Brings a mapping or a sequence into the layer's order; an absent key becomes None."""
        values = named_entries(self.layer, what, given)
        if isinstance(given, Mapping) != self.named:
            sequence = f"a sequence of {len(self.names)}"
            raise error(
                TypeError,
                self.layer,
                f"{what} is given by name, but the modalities have none"
                if not self.named
                else f"{what} is given in order, but the modalities have names",
                got=f"a mapping with {quoted(values)}" if not self.named else type(given).__name__,
                expected=f"a mapping with {quoted(self.names)}" if self.named else sequence,
                hint="build the layer and call it with the same kind of container",
            )
        if not isinstance(given, Mapping):
            if len(values) != len(self.names):
                raise error(
                    ValueError,
                    self.layer,
                    f"{what} has {len(values)} elements for {len(self.names)} modalities",
                    got=f"{len(values)} elements",
                    expected=f"one for each of {quoted(self.names)}",
                    hint="put None in the place of what is missing",
                )
            return dict(zip(self.names, values.values(), strict=True))
        if unknown := [name for name in values if name not in self.names]:
            raise error(
                ValueError,
                self.layer,
                f"{what} has unknown names: {quoted(unknown)}",
                got=quoted(values),
                expected=f"names among {quoted(self.names)}",
                hint=f"use the names in {self.what}",
            )
        return {name: values.get(name) for name in self.names}

    def masks(
        self, mask: Masks | None, features: Mapping[str, Tensor | None]
    ) -> list[Tensor | None]:
        """Reads one mask per modality in the layer's order; None for the missing.

        Args:
            mask: As the caller gave it.
            features: The features (B, L, ...) that the masks must fit, by name.

        Raises:
            TypeError: If a mask is not a bool tensor.
            ValueError: If a mask does not fit its features.
        """
        shared = mask is None or isinstance(mask, Tensor)
        masks: dict[str, Any] = (
            dict.fromkeys(self.names, mask) if shared else self.ordered("mask", mask)
        )
        for name, x in features.items():
            if x is None:
                masks[name] = None
            elif masks[name] is not None:
                check_mask(self.layer, "mask" if shared else f"mask[{name!r}]", masks[name], x)
        return [masks[name] for name in self.names]


class ModalitySet:
    """Knows the modalities that a layer was built for, and checks what it is given.

    Args:
        layer: Name of the layer, for the messages.
        dims: Features per modality.
        least: The smallest number of modalities that the layer makes sense for.

    Raises:
        TypeError: If ``dims`` is neither a mapping nor a sequence.
        ValueError: If there are too few modalities, a width is not a positive int, or a name
            cannot be part of a parameter's name.
    """

    def __init__(self, layer: str, dims: Dims, *, least: int = 1) -> None:
        self.layer = layer
        self.structure: Structure = Structure(layer, "dims", dims, least=least)
        self.dims: dict[str, int] = self.each("dims", dims)

    def __repr__(self) -> str:
        return repr(self.declared)

    @property
    def declared(self) -> Dims:
        """The features per modality, in a container of the kind that was given."""
        return dict(self.dims) if self.structure.named else list(self.dims.values())

    def each(self, what: str, values: Mapping[str, int] | Sequence[int]) -> dict[str, int]:
        """Reads one positive int per modality, such as a length for each.

        Raises:
            TypeError: If ``values`` is neither a mapping nor a sequence.
            ValueError: If there is not exactly one positive int for each modality.
        """
        found = self.structure.ordered(what, values)
        return {
            name: check_size(self.layer, f"{what}[{name!r}]", value)
            for name, value in found.items()
        }

    def lengths(
        self, length: int | Mapping[str, int] | Sequence[int] | None
    ) -> tuple[int | dict[str, int] | list[int] | None, dict[str, int] | None, bool]:
        """Reads the length of a layer.

        Returns:
            The length to show, the longest window per modality, and whether all are aligned.

        Raises:
            ValueError: If it is not a positive int, or one for each modality.
        """
        if length is None:
            return None, None, True
        if isinstance(length, Mapping | Sequence) and not isinstance(length, str | bytes):
            each = self.each("length", length)
            return each if self.structure.named else list(each.values()), each, False
        longest = check_size(self.layer, "length", length)
        return longest, dict.fromkeys(self.dims, longest), True

    def flatten(
        self,
        modalities: Modalities,
        mask: Masks | None = None,
        *,
        like: Tensor | None = None,
        longest: Mapping[str, int] | None = None,
        aligned: bool = True,
    ) -> Inputs:
        """Checks the inputs and brings them into the layer's order.

        Args:
            modalities: As the caller gave them.
            mask: As the caller gave it.
            like: A parameter of the layer; the inputs must have its dtype and device.
            longest: The most steps per modality; ``None`` for no limit.
            aligned: Whether all modalities must have the same number of steps.

        Raises:
            TypeError: If a container or an element is of a wrong type or dtype.
            ValueError: If names, shapes, devices or masks do not fit the layer.
        """
        given = self.structure.ordered("modalities", modalities)
        present = {name: x for name, x in given.items() if x is not None}
        if not present:
            raise error(
                ValueError,
                self.layer,
                "every modality is missing",
                got=shapes(given),
                expected="at least one tensor, for the batch size and the number of steps",
                hint="skip batches in which no modality was recorded",
            )
        self._check(present, like, longest or {}, aligned)
        masks = self.structure.masks(mask, given)
        first = next(iter(present.values()))
        # The outputs of a missing modality are discarded, so one zero step suffices unless all
        # modalities must have the same number of steps.
        batch, steps = first.shape[0], first.shape[1] if aligned else 1
        features = [
            first.new_zeros(batch, steps, dim) if x is None else x
            for x, dim in zip(given.values(), self.dims.values(), strict=True)
        ]
        masks = [
            first.new_zeros(batch, steps, dtype=torch.bool) if x is None else valid
            for x, valid in zip(given.values(), masks, strict=True)
        ]
        features = [zero_invalid(x, valid) for x, valid in zip(features, masks, strict=True)]
        return Inputs(features, masks, self.structure.restorer(modalities))

    def _check(
        self,
        present: Mapping[str, Tensor],
        like: Tensor | None,
        longest: Mapping[str, int],
        aligned: bool,
    ) -> None:
        for name, x in present.items():
            check_layout(self.layer, name, x, self.dims[name])
        first_name, first = next(iter(present.items()))
        for name, x in present.items():
            other = (repr(first_name), first) if like is None else ("the parameters", like)
            check_like(self.layer, name, x, *other)
            check_together(self.layer, name, x, first_name, first, aligned=aligned)
            check_longest(self.layer, name, x, longest.get(name))


def named_entries(layer: str, what: str, given: object) -> dict[str, Any]:
    """Turns a mapping or a sequence into a dict; positions become the keys "0", "1", ...

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, Sequence) and not isinstance(given, str | bytes | bytearray):
        return {str(k): value for k, value in enumerate(given)}
    raise error(
        TypeError,
        layer,
        f"{what} must be a mapping or a sequence",
        got=type(given).__name__,
        expected="a dict by name, or a list or tuple in order",
        hint=f"give {what} one element per modality",
    )


def leading_part(weight: Tensor, rows: int, columns: int) -> Tensor:
    """Takes the part of a weight that inputs shorter than the longest window use."""
    if torch.compiler.is_compiling():
        # Keep one graph for all lengths. A full slice is contiguous and a partial one is not, which
        # would specialise the graph; padding by a column makes both non-contiguous, and the copy
        # stops inductor from baking the first length's strides into the backward pass.
        part = pad(weight, (0, 1))[:rows, :columns]
        return part.clone(memory_format=torch.contiguous_format)
    tracing = torch._C._get_tracing_state() is not None  # a trace serves all sizes
    if not tracing and weight.shape == (rows, columns):
        return weight
    return weight[:rows, :columns]
