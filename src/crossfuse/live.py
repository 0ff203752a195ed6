"""A model on a stream: streaming encoders, and a window of their newest outputs.

Shapes: B batch, l steps of a chunk, W steps of the window.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse._errors import check_flag, check_like, check_memory, check_size, error, shapes
from crossfuse._masks import valid_steps, zero_invalid
from crossfuse._modalities import Dims, Masks, Modalities, ModalitySet

_NAME = "LiveWindow"


class LiveState(NamedTuple):
    """Streaming state of a :class:`LiveWindow`, carried from one chunk to the next.

    All tensors have the batch on axis 0 and keep their shapes while the stream goes on. A state of
    zeros starts a stream if it does so for the encoders, as for :class:`TemporalConvNet`.

    Attributes:
        encoders: The state of the encoders, as they return it.
        windows: The newest features of each modality, (B, W, w_i) each, from the oldest on; zeros
            at steps that are not filled yet.
        masks: Their valid steps, bool (B, W) each, **True = valid**.
        steps: How many steps the window holds, (B,), at most W.

    Example:
        >>> from crossfuse import ConcatFusion, PerModality, TemporalConvNet
        >>> encode = PerModality({"face": TemporalConvNet(3, [4])})
        >>> live = LiveWindow(encode, ConcatFusion({"face": 4}), {"face": 3}, 10)
        >>> _, state = live.stream({"face": torch.randn(2, 3, 3)})
        >>> state.windows["face"].shape, state.steps
        (torch.Size([2, 10, 4]), tensor([3, 3]))
    """

    encoders: Any
    windows: dict[str, Tensor]
    masks: dict[str, Tensor]
    steps: Tensor


class _Encoders(Protocol):
    def stream(
        self,
        chunks: Modalities,
        state: object,
        mask: Masks | None,
    ) -> tuple[Any, Any]: ...


class LiveWindow(nn.Module):
    """Runs a model over a stream, chunk by chunk: encodes, then reads out the newest window.

    A model that encodes causally, fuses and reads out is ``readout(encode(x, mask), mask)``, which
    is what ``forward`` computes for a whole window. ``stream`` encodes each new chunk from where
    the encoders left off, and reads out the newest ``length`` steps of what they have encoded. Up
    to ``length`` steps this equals ``forward`` on all steps so far, from the first step on; after
    that it equals the readout of the newest ``length`` steps of the whole encoded stream.

    While the window fills, its steps come first and the rest is invalid, as in a padded batch.

    Args:
        encode: The encoders, with a method ``stream(chunks, state, mask)`` that returns features
            and the next state, such as :class:`PerModality`.
        readout: All that follows them, called as ``readout(features, mask)`` with the features
            (B, L, w_i) and a mask (B, L) for each modality: fusion, pooling, head.
        dims: Features d_i of each modality of the stream: a mapping by name, or a sequence.
        length: Steps W of the window.
        per_step: Whether the readout has one output for each step, (B, L, ...). If so, ``stream``
            returns those of the chunk's steps; if not, it returns what the readout returns.

    Shape:
        - modality i: (B, L, d_i) for ``forward``, (B, l, d_i) for ``stream``; ``None`` or an absent
          key for one that is missing
        - ``mask``: bool (B, L) or (B, l), **True = valid** (the opposite of the
          ``key_padding_mask`` of :class:`torch.nn.MultiheadAttention`); one for all, or one for
          each modality
        - output of ``stream``: the readout's for the chunk's steps, (B, l, ...), in a tensor or in
          a mapping or a sequence of tensors; the readout's own if not ``per_step``

    Raises:
        TypeError: If a container, an input, a mask or the state is of the wrong type or dtype.
        ValueError: If sizes, names or shapes do not fit, or all modalities are missing.

    Example:
        >>> from crossfuse import ConcatFusion, PerModality, TemporalConvNet
        >>> dims, widths = {"face": 20, "voice": 12}, {"face": 8, "voice": 8}
        >>> encode = PerModality({name: TemporalConvNet(dim, [8]) for name, dim in dims.items()})
        >>> live = LiveWindow(encode, ConcatFusion(widths, 2), dims, 50)
        >>> state = None
        >>> for _ in range(3):
        ...     frame = {"face": torch.randn(1, 1, 20), "voice": torch.randn(1, 1, 12)}
        ...     output, state = live.stream(frame, state)
        >>> output.shape
        torch.Size([1, 1, 2])
    """

    def __init__(
        self,
        encode: nn.Module,
        readout: nn.Module,
        dims: Dims,
        length: int,
        *,
        per_step: bool = True,
    ) -> None:
        super().__init__()
        parts: Sequence[tuple[str, Any, str]] = (
            ("encode", encode, "stream"),
            ("readout", readout, "forward"),
        )
        for name, module, method in parts:
            found = getattr(module, method, None)
            if (
                not isinstance(module, nn.Module)
                or not callable(found)
                or getattr(found, "__func__", None) is nn.Module.forward  # which no container has
            ):
                raise error(
                    TypeError,
                    _NAME,
                    f"{name} is not a module with a method {method}",
                    got=type(module).__name__,
                    expected=f"a torch.nn.Module with {method}",
                    hint="PerModality streams encoders; a module of your own can fuse and read out",
                )
        self.modalities: ModalitySet = ModalitySet(_NAME, dims)
        self.length: int = check_size(_NAME, "length", length)
        check_flag(_NAME, "per_step", per_step)
        self.per_step = per_step
        self.encode = encode
        self.readout = readout

    @override
    def forward(self, modalities: Modalities, mask: Masks | None = None) -> Any:
        """Computes the model on whole windows (B, L, d_i); returns what the readout returns."""
        inputs, masks = self._read(modalities, mask)
        given = self._arranged(masks)
        return self.readout(self.encode(self._arranged(inputs), given), given)

    def stream(
        self, chunk: Modalities, state: LiveState | None = None, mask: Masks | None = None
    ) -> tuple[Any, LiveState]:
        """Computes the model on the window that ends with the next chunk of a stream.

        A modality may be missing in one chunk and present in the next: its time goes on. If all of
        them are, give one as zeros with a mask of False.

        Args:
            chunk: The next steps (B, l, d_i) of each modality, l of at least 1.
            state: State returned by the previous call; ``None`` to start a stream. It is not
                modified and may be reused.
            mask: Valid steps, (B, l), True = valid; one for all or one for each.

        Returns:
            The output, and the state for the next call.
        """
        inputs, masks = self._read(chunk, mask)
        first = next(iter(inputs.values()))
        self._check(first, state)
        memory = None if state is None else state.encoders
        encoded, memory = cast(_Encoders, self.encode).stream(
            self._arranged(inputs), memory, self._arranged(masks)
        )
        features = self._features(encoded, first)
        if state is None:
            state = self._beginning(features)
        else:
            self._check_windows(state, features)
        source, steps = _newest(state.steps, first.shape[1], self.length)
        held = torch.arange(self.length, device=first.device) < steps[:, None]
        windows = {
            name: zero_invalid(_gathered(torch.cat([state.windows[name], x], dim=1), source), held)
            for name, x in features.items()
        }
        valid = {
            name: _gathered(torch.cat([state.masks[name], row], dim=1), source) & held
            for name, row in masks.items()
        }
        output = self.readout(self._arranged(windows), self._arranged(valid))
        if self.per_step:
            ago = torch.arange(first.shape[1] - 1, -1, -1, device=first.device)
            output = _at(output, steps[:, None] - 1 - ago, self.length)
        return output, LiveState(memory, windows, valid, steps)

    @override
    def extra_repr(self) -> str:
        return f"{self.modalities}, length={self.length}, per_step={self.per_step}"

    def _read(
        self, modalities: Modalities, mask: Masks | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Checks the inputs; a missing modality becomes zeros with a mask of False."""
        inputs = self.modalities.flatten(modalities, mask)
        features = dict(zip(self.modalities.dims, inputs.features, strict=True))
        pairs = zip(features.items(), inputs.masks, strict=True)
        return features, {name: valid_steps(x, valid) for (name, x), valid in pairs}

    def _arranged(self, values: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - dict or tuple
        """Arranges one tensor per modality as the encoders and the readout expect them."""
        return dict(values) if self.modalities.structure.named else tuple(values.values())

    def _features(self, encoded: object, chunk: Tensor) -> dict[str, Tensor]:
        """Reads what the encoders returned, and refuses other steps than those of the chunk."""
        features = self.modalities.structure.ordered("encoded", encoded)
        if any(
            not isinstance(x, Tensor) or x.ndim < 2 or x.shape[1] != chunk.shape[1]
            for x in features.values()
        ):
            raise error(
                ValueError,
                _NAME,
                "encode did not return one feature vector for each step of the chunk",
                got=shapes(features),
                expected=f"({chunk.shape[0]}, {chunk.shape[1]}, features) for each modality",
                hint="encoders of a live model keep the number of steps",
            )
        return features

    def _beginning(self, features: Mapping[str, Tensor]) -> LiveState:
        """Makes an empty window."""
        for name, x in features.items():
            count = self.length * x[:, 0].numel()
            check_memory(_NAME, f"the window of {name!r}", count, x.itemsize, x.device)
        windows = {
            name: x.new_zeros(x.shape[0], self.length, *x.shape[2:]) for name, x in features.items()
        }
        first = next(iter(windows.values()))
        empty = first.new_zeros(first.shape[:2], dtype=torch.bool)
        masks = {name: empty.clone() for name in windows}
        return LiveState(None, windows, masks, first.new_zeros(first.shape[0], dtype=torch.long))

    def _check(self, chunk: Tensor, state: object) -> None:
        """Refuses a chunk that the window cannot hold, and a state of another stream."""
        if self.per_step and chunk.shape[1] > self.length:
            raise error(
                ValueError,
                _NAME,
                "the chunk has more steps than the window",
                got=f"{chunk.shape[1]} steps",
                expected=f"at most length={self.length}",
                hint="cut it with x.split(length, dim=1); per_step=False takes it whole",
            )
        if state is None:
            return
        if not isinstance(state, LiveState):
            raise error(
                TypeError,
                _NAME,
                "'state' is not a LiveState",
                got=type(state).__name__,
                expected="what stream returned beside the output, or None",
                hint="from saved parts make LiveState(encoders, windows, masks, steps)",
            )
        expected = dict.fromkeys(self.modalities.dims, (chunk.shape[0], self.length))
        masks: Mapping[str, Any] = _mapping(state.masks)
        # Size by size: a compiler cannot compare mappings of sizes.
        fit = masks.keys() == expected.keys() and all(
            isinstance(mask, Tensor)
            and mask.dtype == torch.bool
            and mask.ndim == 2
            and mask.shape[0] == chunk.shape[0]
            and mask.shape[1] == self.length
            for mask in masks.values()
        )
        if not fit or not _counts(state.steps, chunk.shape[0]):
            raise error(
                ValueError,
                _NAME,
                "'state' is of another batch size, window or model",
                got=shapes(masks) or "no masks",
                expected=", ".join(f"{name} {size}" for name, size in expected.items())
                + f", steps ({chunk.shape[0]},)",
                hint="give the state that the last call returned, or None to begin a stream",
            )

    def _check_windows(self, state: LiveState, features: Mapping[str, Tensor]) -> None:
        """Refuses a state whose windows do not hold such features as the encoders return."""
        windows = _mapping(state.windows)
        for name, x in features.items():
            held, expected = windows.get(name), (x.shape[0], self.length, *x.shape[2:])
            if not isinstance(held, Tensor) or tuple(held.shape) != expected:
                raise error(
                    ValueError,
                    _NAME,
                    f"'state' has no window of {name!r} with features as the encoders return",
                    got=shapes({name: held}) if isinstance(held, Tensor) else type(held).__name__,
                    expected=f"{name} {expected}",
                    hint="give the state that the last call returned, or None to begin a stream",
                )
            check_like(_NAME, f"state.windows[{name!r}]", held, "the encoded features", x)


def _mapping(given: object) -> Mapping[str, Any]:
    """Reads a part of a state that a caller put together."""
    return given if isinstance(given, Mapping) else {}


def _counts(steps: object, batch: int) -> bool:
    """Whether these can be the steps that the windows of a state hold."""
    return (
        isinstance(steps, Tensor) and steps.dtype == torch.long and tuple(steps.shape) == (batch,)
    )


def _newest(held: Tensor, chunk: int, length: int) -> tuple[Tensor, Tensor]:
    """Finds the steps of the next window in the last one, with ``held`` (B,) steps, and the chunk.

    Returns:
        Their index (B, length) in the two concatenated, and how many steps it holds, (B,).
    """
    held = held.clamp(0, length)  # also where a caller made up the state
    total = held + chunk
    steps = total.clamp(max=length)
    place = (total - steps)[:, None] + torch.arange(length, device=held.device)
    # The last window holds its steps at its beginning, the rest of it is skipped.
    index = torch.where(place < held[:, None], place, place + length - held[:, None])
    return index.clamp(max=length + chunk - 1), steps


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """Takes steps (B, n) of x (B, L, ...)."""
    index = index.reshape(*index.shape, *[1] * (x.ndim - 2))
    return x.gather(1, index.expand(-1, -1, *x.shape[2:]))


def _at(output: object, index: Tensor, length: int) -> Any:  # noqa: ANN401 - the readout's
    """Takes steps (B, l) of a readout's output, (B, W, ...) in any mapping or sequence."""
    if output is None:
        return None
    if isinstance(output, Mapping):
        return {name: _at(value, index, length) for name, value in output.items()}
    if isinstance(output, Sequence):
        return tuple(_at(value, index, length) for value in output)
    if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[1] != length:
        raise error(
            ValueError,
            _NAME,
            "readout did not return one output for each step of the window",
            got=tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__,
            expected=f"({index.shape[0]}, {length}, ...)",
            hint="if it has one output for a whole window, build LiveWindow with per_step=False",
        )
    return _gathered(output, index)
