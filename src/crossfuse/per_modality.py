"""Applies a separate module to each modality, on whole sequences or on streams."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, Protocol, overload, runtime_checkable

from torch import Tensor, nn
from typing_extensions import override

from crossfuse._errors import error
from crossfuse._masks import zero_invalid
from crossfuse._modalities import Masks, Modalities, Structure, T, named_entries

_NAME = "PerModality"


@runtime_checkable
class _Streaming(Protocol):
    def stream(
        self, chunk: Tensor, state: object, **extra: Tensor | None
    ) -> tuple[Tensor, Any]: ...


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
        self.structure: Structure = Structure(_NAME, "modules", modules)
        named = named_entries(_NAME, "modules", modules)
        for name, module in named.items():
            if not isinstance(module, nn.Module):
                raise error(
                    TypeError,
                    _NAME,
                    f"modules[{name!r}] is not a module",
                    got=type(module).__name__,
                    expected="a torch.nn.Module",
                    hint="nn.Identity() passes a modality through",
                )
        self.branches: nn.ModuleDict = nn.ModuleDict(named)
        self._takes_mask = {
            name: "mask" in signature(module.forward).parameters for name, module in named.items()
        }
        self._stream_takes_mask = {
            name: "mask" in signature(module.stream).parameters
            for name, module in named.items()
            if isinstance(module, _Streaming)
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

    @overload
    def stream(
        self, chunks: Mapping[str, T], state: object = None, mask: Masks | None = None
    ) -> tuple[dict[str, T], Any]: ...
    @overload
    def stream(
        self, chunks: Sequence[T], state: object = None, mask: Masks | None = None
    ) -> tuple[tuple[T, ...], Any]: ...
    def stream(
        self, chunks: Modalities, state: object = None, mask: Masks | None = None
    ) -> tuple[Any, Any]:
        """Applies each module to the next chunk of its modality's stream.

        A module streams by its own method ``stream(chunk, state) -> (output, state)``, which gets
        the mask too if it has a parameter of that name, as :class:`TemporalConvNet` has.
        :class:`torch.nn.Linear` and :class:`torch.nn.Identity` treat each step alone and need
        none. No other module can stream.

        A modality may join a stream late; earlier steps count as missing. It cannot drop out again,
        because the length of the gap would be unknown: pass zeros and an all-False mask instead.

        Args:
            chunks: The next steps (B, l, ...) of each; modalities may have an l of their own.
            state: State returned by the previous call; ``None`` to start a stream. It is not
                modified and may be reused.
            mask: Valid steps, (B, l), True = valid; one for all or one for each.

        Returns:
            The outputs at these steps, in the structure of ``chunks``, and the state for the next
            call: the modules' own states by name, or in order if the modules came in a sequence.

        Raises:
            TypeError: If a module cannot stream, or the state is not a container.
            ValueError: If the state is of other modalities, or one that was there is missing.

        Example:
            >>> from crossfuse import TemporalConvNet
            >>> encode = PerModality({"face": TemporalConvNet(3, [4]), "words": nn.Linear(2, 4)})
            >>> x, state, faces = {"face": torch.randn(1, 9, 3)}, None, []
            >>> for chunk in x["face"].split(4, dim=1):
            ...     encoded, state = encode.stream({"face": chunk}, state)
            ...     faces.append(encoded["face"])
            >>> torch.allclose(torch.cat(faces, dim=1), encode(x)["face"], atol=1e-6)
            True
        """
        values = self.structure.ordered("chunks", chunks)
        masks = self.structure.masks(mask, values)
        before = dict.fromkeys(values) if state is None else self.structure.ordered("state", state)
        outputs, after = [], {}
        for (name, x), valid in zip(values.items(), masks, strict=True):
            output, after[name] = self._advance(name, x, valid, before[name])
            outputs.append(output)
        following = after if self.structure.named else tuple(after.values())
        return self.structure.restorer(chunks)(outputs), following

    def _apply_to(self, name: str, x: Tensor, valid: Tensor | None) -> Tensor:
        module = self.branches[name]
        x = zero_invalid(x, valid)
        extra = {"mask": valid} if valid is not None and self._takes_mask[name] else {}
        outputs: Tensor = module(x, **extra)
        return zero_invalid(outputs, valid)

    def _advance(
        self, name: str, x: Tensor | None, valid: Tensor | None, state: object
    ) -> tuple[Tensor | None, Any]:
        """Applies one module to the next chunk; returns its output and its state after that."""
        if x is None and state is not None:
            raise error(
                ValueError,
                _NAME,
                f"{name!r} was in the stream before and is missing now",
                got=f"no chunk, but a state for {name!r}",
                expected="a chunk of every modality that the stream has had",
                hint="while it is away, give zeros with a mask of False, so that its time passes",
            )
        if x is None:
            return None, None
        module = self.branches[name]
        if isinstance(module, _Streaming):
            takes_mask = valid is not None and self._stream_takes_mask[name]
            extra = {"mask": valid} if takes_mask else {}
            output, state = module.stream(zero_invalid(x, valid), state, **extra)
            return zero_invalid(output, valid), state
        if not isinstance(module, nn.Linear | nn.Identity):
            raise error(
                TypeError,
                _NAME,
                f"the module of {name!r} cannot stream",
                got=type(module).__name__,
                expected="a module with a method stream(chunk, state) -> (output, state), "
                "nn.Linear or nn.Identity",
                hint="TemporalConvNet has one; wrap what treats each step alone in a module whose "
                "stream returns (output, None)",
            )
        return self._apply_to(name, x, valid), None
