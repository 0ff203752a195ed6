"""Applies a separate module to each modality, on whole sequences or on streams."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, overload

from torch import Tensor, nn
from typing_extensions import override

from crossfuse import _encoders
from crossfuse._encoders import Way
from crossfuse._errors import check_dense, check_together, error, shapes
from crossfuse._masks import zero_invalid
from crossfuse._modalities import Masks, Modalities, Structure, T, named_entries

_NAME = "PerModality"


class _Streaming(Protocol):
    def stream(self, chunk: Tensor, state: object, **extra: Tensor) -> tuple[object, Any]: ...


class PerModality(nn.Module):
    """Applies a separate module to each modality.

    Invalid steps go in and come out as zeros, and a module never ignores a mask. How it takes one
    is read from its ``forward``, through wrappers such as those of :func:`torch.compile` and DDP:

    - a parameter ``mask`` gets the mask, **True = valid**;
    - ``src_key_padding_mask``, ``key_padding_mask`` or ``padding_mask`` get it inverted, as torch
      has it; ``attention_mask`` gets integers, 1 = valid, as Transformers has it;
    - :class:`torch.nn.GRU` and its siblings (not bidirectional ones) skip invalid steps;
    - modules known to treat each step alone need none: :class:`torch.nn.Linear`, normalisation
      over features, activations, dropout, embeddings and :class:`torch.nn.Sequential` of those.

    If a mask is given, any other module raises an error, unless ``takes`` states how it takes the
    mask.

    A module returns a tensor. Of what :class:`torch.nn.GRU` and its siblings return, the first
    element is taken; of a Transformers output, its ``last_hidden_state``.

    A module that changes the number of steps has a method ``mask_for(mask)``, which returns the
    mask (B, L') of its output. It is needed only if a mask is given.

    Args:
        modules: One module per modality: a mapping by name, or a sequence.
        takes: For a module that does not show how it takes a mask: ``"alone"`` if it treats each
            step alone, the name of the parameter of its ``forward`` that takes the mask, or that
            name after ``"~"`` if True means padding to it. A mapping by name, or a sequence with
            ``None`` for the other modules.

    Shape:
        - modality i: (B, L, ...); ``None`` or an absent key for one that is missing
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); one for all, or one for each modality
        - output i: what the module of modality i returns, (B, L, ...)

    Raises:
        TypeError: If a container, an element or an output is of the wrong type, or a mask is given
            to a module that does not show how it takes one.
        ValueError: If names, masks or shapes do not fit.

    Example:
        >>> from crossfuse import TemporalConvNet
        >>> encode = PerModality({"face": TemporalConvNet(20, [8]), "words": nn.Linear(30, 8)})
        >>> encoded = encode({"face": torch.randn(2, 9, 20), "words": torch.randn(2, 9, 30)})
        >>> encoded["words"].shape
        torch.Size([2, 9, 8])
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module] | Sequence[nn.Module],
        *,
        takes: Mapping[str, str | None] | Sequence[str | None] | None = None,
    ) -> None:
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
        stated = {} if takes is None else self.structure.ordered("takes", takes)
        self.takes: dict[str, str] = {name: how for name, how in stated.items() if how is not None}
        for name, how in self.takes.items():
            _encoders.check_stated(_NAME, name, self.branches[name], how)

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
        values = self._checked("modalities", modalities)
        masks = self.structure.masks(mask, values)
        outputs = [
            None if x is None else self._apply_to(name, x, valid)
            for (name, x), valid in zip(values.items(), masks, strict=True)
        ]
        return self.structure.restorer(modalities)(outputs)

    @overload
    def mask_for(
        self, modalities: Mapping[str, T], mask: Masks | None = None
    ) -> dict[str, Tensor | None]: ...
    @overload
    def mask_for(
        self, modalities: Sequence[T], mask: Masks | None = None
    ) -> tuple[Tensor | None, ...]: ...
    def mask_for(self, modalities: Modalities, mask: Masks | None = None) -> object:
        """Returns the masks of the outputs, which differ if a module changes the number of steps.

        Args:
            modalities: (B, L, ...) each, as given to ``forward``.
            mask: Valid steps, (B, L), True = valid; one for all or one for each.

        Returns:
            The mask of each output, bool (B, L'), in the structure of ``modalities``; ``None`` if
            all its steps are valid, or the modality is missing.

        Example:
            >>> encode = PerModality({"words": nn.Linear(30, 8)})
            >>> mask = torch.tensor([[True, True, False]])
            >>> encode.mask_for({"words": torch.randn(1, 3, 30)}, mask)
            {'words': tensor([[ True,  True, False]])}
        """
        values = self._checked("modalities", modalities)
        masks = self.structure.masks(mask, values)
        following = [
            None if valid is None else self._following(name, valid).clone()
            for name, valid in zip(values, masks, strict=True)
        ]
        return self.structure.restorer(modalities)(following)

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

        A module streams if it has a method ``stream(chunk, state) -> (output, state)`` that takes
        the mask as ``forward`` does, as :class:`TemporalConvNet` has, or if it treats each step
        alone. No other module can stream.

        A modality may join a stream late; earlier steps count as missing. It cannot drop out again,
        because the length of the gap would be unknown: pass zeros and an all-False mask instead.

        Args:
            chunks: The next steps (B, l, ...) of each; l may differ between modalities.
            state: State returned by the previous call; ``None`` to start a stream. It is not
                modified and may be reused.
            mask: Valid steps, (B, l), True = valid; one for all or one for each.

        Returns:
            The outputs at these steps, in the structure of ``chunks``, and the state for the next
            call: the modules' own states by name, or in order if the modules came in a sequence.

        Raises:
            TypeError: If a module cannot stream, or the state is not a container.
            ValueError: If the state is of other modalities, or a modality that was present before
                is missing.

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
        values = self._checked("chunks", chunks)
        masks = self.structure.masks(mask, values)
        before = dict.fromkeys(values) if state is None else self.structure.ordered("state", state)
        outputs, after = [], {}
        for (name, x), valid in zip(values.items(), masks, strict=True):
            output, after[name] = self._advance(name, x, valid, before[name])
            outputs.append(output)
        following = after if self.structure.named else tuple(after.values())
        return self.structure.restorer(chunks)(outputs), following

    @override
    def extra_repr(self) -> str:
        return f"takes={self.takes}" if self.takes else ""

    def _checked(self, what: str, given: Modalities) -> dict[str, Tensor | None]:
        """Brings the inputs into the order of the modules; refuses what has no batch and steps."""
        values = self.structure.ordered(what, given)
        first = None
        for name, x in values.items():
            if x is None:
                continue
            if isinstance(x, Tensor):
                check_dense(_NAME, name, x)
            if not isinstance(x, Tensor) or x.ndim < 2:
                raise error(
                    TypeError,
                    _NAME,
                    f"{name!r} has no axes for batch and steps",
                    got=shapes({name: x}) if isinstance(x, Tensor) else type(x).__name__,
                    expected=f"{name} (batch, steps, ...)",
                    hint="convert it with torch.as_tensor, or give None if it is missing",
                )
            first = (name, x) if first is None else first
            check_together(_NAME, name, x, *first, aligned=False)
        return values

    def _way(self, name: str, method: str, masked: bool) -> Way:
        """Finds how a module takes a mask, which may change: tools put modules into others."""
        module = self.branches[name]
        _encoders.check_batch_first(_NAME, name, module)
        found = _encoders.way_of(module, method)
        if name in self.takes:
            found = _encoders.stated(self.takes[name])
        if not masked:
            return found
        if found.kind == "recurrent":
            _encoders.check_recurrent(_NAME, name, module)
        if found.kind == "unknown":
            raise error(
                TypeError,
                _NAME,
                f"the module of {name!r} does not show how it takes a mask",
                got=f"a mask for {type(module).__name__}.{method}",
                expected="a parameter 'mask' (True = valid), a padding mask as in torch or "
                "Transformers, or a module that treats each step alone",
                hint=f"state it: takes={{{name!r}: 'alone'}} if it treats each step alone, or the "
                "name of the parameter, '~name' if True means padding",
            )
        return found

    # A compiler takes the answer as it is, and asks again when it compiles for another module. (By
    # the mark that torch.compiler.assume_constant_result sets; to import it takes seconds.)
    vars()["_way"]._dynamo_marked_constant = True

    def _apply_to(self, name: str, x: Tensor, valid: Tensor | None) -> Tensor:
        module = self.branches[name]
        way = self._way(name, "forward", valid is not None)
        x = zero_invalid(x, valid)
        outputs = module(x) if valid is None else _encoders.call(module, way, x, valid)
        return self._read(name, x, valid, outputs)

    def _read(self, name: str, x: Tensor, valid: Tensor | None, outputs: object) -> Tensor:
        """Takes the features out of what a module returned, zero at invalid steps."""
        y = outputs
        if not isinstance(y, Tensor):
            y = _encoders.features_of(self.branches[name], outputs)
        if not isinstance(y, Tensor):
            raise error(
                TypeError,
                _NAME,
                f"the module of {name!r} does not return a tensor",
                got=type(outputs).__name__,
                expected="a tensor (batch, steps, ...)",
                hint="wrap it in a module whose forward(x, mask) returns the features alone",
            )
        following = None if valid is None else self._following(name, valid)
        steps = x.shape[1] if following is None else following.shape[1]
        # Without a mask, another number of steps is no mistake; with two axes it would be one.
        free = valid is None and y.ndim > 2
        if y.ndim < 2 or y.shape[0] != x.shape[0] or (y.shape[1] != steps and not free):
            raise error(
                ValueError,
                _NAME,
                f"the module of {name!r} does not return the batch and steps of its input",
                got=shapes({"input": x, "output": y}),
                expected=f"an output ({x.shape[0]}, {steps}, ...)",
                hint="a module that changes the number of steps has a method mask_for(mask) that "
                "returns the mask of its output; pool after PerModality",
            )
        # Not the caller's tensor, which a module such as nn.Identity returns.
        return zero_invalid(y.clone() if y is x else y, following)

    def _following(self, name: str, valid: Tensor) -> Tensor:
        """Returns the mask of a module's output."""
        for module in _encoders.unwrapped(self.branches[name]):
            change = getattr(module, "mask_for", None)
            if callable(change):
                following: Tensor = change(valid)
                _encoders.check_following(_NAME, name, following, valid)
                return following
        return valid

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
        streaming = [m for m in _encoders.unwrapped(module) if hasattr(m, "stream")]
        if streaming:
            way = self._way(name, "stream", valid is not None)
            extra = {} if valid is None else _encoders.keywords(way, valid)
            method = cast(_Streaming, streaming[0]).stream
            outputs, state = method(zero_invalid(x, valid), state, **extra)
            return self._read(name, x, valid, outputs), state
        if self._way(name, "forward", False).kind != "alone":
            raise error(
                TypeError,
                _NAME,
                f"the module of {name!r} cannot stream",
                got=type(module).__name__,
                expected="a module with a method stream(chunk, state) -> (output, state), or one "
                "that treats each step alone, such as nn.Linear",
                hint="TemporalConvNet has one; takes={...: 'alone'} states that a module treats "
                "each step alone",
            )
        return self._apply_to(name, x, valid), None
