"""What real data needs around the layers: a module for each modality, and the missing."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, overload

from torch import Tensor, nn
from typing_extensions import override

from crossfuse._checks import fault
from crossfuse._modalities import Masks, Modalities, Structure, T, named_entries, zero_invalid


class PerModality(nn.Module):
    """Applies a module of its own to each modality.

    A module whose ``forward`` has a parameter called ``mask`` gets the modality's mask there.
    Whatever the module, invalid steps go in and come out as zeros.

    Args:
        modules: One module per modality: a mapping by name, or a sequence.

    Shape:
        - modality i: (B, L, ...); ``None`` or an absent key for one that is missing
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); one for all, or one for each modality
        - output i: what the module of modality i returns, (B, L, ...)

    Raises:
        TypeError: If a container or an element is of the wrong type.
        ValueError: If names or masks do not fit.

    Example:
        >>> from crossfuse import TemporalConvNet
        >>> encode = PerModality({"face": TemporalConvNet(20, [8]), "words": nn.Linear(30, 8)})
        >>> encoded = encode({"face": torch.randn(2, 9, 20), "words": torch.randn(2, 9, 30)})
        >>> encoded["words"].shape
        torch.Size([2, 9, 8])
    """

    def __init__(self, modules: Mapping[str, nn.Module] | Sequence[nn.Module]) -> None:
        super().__init__()
        self.structure: Structure = Structure("PerModality", "modules", modules)
        named = named_entries("PerModality", "modules", modules)
        for name, module in named.items():
            if not isinstance(module, nn.Module):
                raise fault(
                    TypeError,
                    "PerModality",
                    f"modules[{name!r}] is not a module",
                    got=type(module).__name__,
                    expected="a torch.nn.Module",
                    hint="nn.Identity() passes a modality through",
                )
        self.branches: nn.ModuleDict = nn.ModuleDict(named)
        self._takes_mask = {
            name: "mask" in signature(module.forward).parameters for name, module in named.items()
        }

    @overload
    def forward(self, modalities: Mapping[str, T], mask: Masks | None = None) -> dict[str, T]: ...
    @overload
    def forward(self, modalities: Sequence[T], mask: Masks | None = None) -> tuple[T, ...]: ...
    @override
    def forward(self, modalities: Modalities, mask: Masks | None = None) -> Any:
        """Applies each module to its modality.

        Args:
            modalities: (B, L, ...) each.
            mask: Valid steps, (B, L), True = valid; one for all or one for each.

        Returns:
            The outputs, in the structure of ``modalities``.
        """
        values = self.structure.ordered("modalities", modalities)
        masks = self.structure.masks(mask, values)
        outputs = [
            None if x is None else self._apply_to(name, x, valid)
            for (name, x), valid in zip(values.items(), masks, strict=True)
        ]
        return self.structure.restorer(modalities)(outputs)

    def _apply_to(self, name: str, x: Tensor, valid: Tensor | None) -> Tensor:
        module = self.branches[name]
        x = zero_invalid(x, valid)
        extra = {"mask": valid} if valid is not None and self._takes_mask[name] else {}
        outputs: Tensor = module(x, **extra)
        return zero_invalid(outputs, valid)
