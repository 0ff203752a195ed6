"""The temporal convolutional network."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse._errors import (
    check_dense,
    check_flag,
    check_layout,
    check_like,
    check_mask,
    check_memory,
    check_probability,
    check_size,
    error,
)
from crossfuse._masks import zero_invalid
from crossfuse._parameters import check_parameters
from crossfuse._temporal_block import ConvolutionBlock

_NAME = "TemporalConvNet"
_MOST_BLOCKS = 64  # whose dilation leaves the range of integers


class TemporalState(NamedTuple):
    """Streaming state of a :class:`TemporalConvNet`, carried from one chunk to the next.

    Attributes:
        contexts: The last inputs of each convolution, (B, features, steps) each: two for each
            block, of ``(kernel_size - 1) * dilation`` steps. Zeros start a stream.

    Example:
        >>> _, state = TemporalConvNet(3, [4]).stream(torch.randn(2, 10, 3))
        >>> [context.shape for context in state.contexts]
        [torch.Size([2, 3, 4]), torch.Size([2, 4, 4])]
    """

    contexts: tuple[Tensor, ...]


class TemporalConvNet(nn.Module):
    r"""Encodes a stream with blocks of dilated convolutions over its steps.

    Block k has two convolutions of dilation :math:`2^k`, with weight normalisation, each followed
    by LeakyReLU(0.01) and dropout; the block's input is added (through a 1×1 convolution if widths
    differ) and a last LeakyReLU follows. A causal convolution with s taps of weights :math:`W_n` is

    .. math:: y_t = b + \sum_{n=0}^{s-1} W_n\, x_{t - 2^k (s - 1 - n)}

    Args:
        dim: Features d of the input.
        widths: Features of each block's output.
        kernel_size: Taps of each convolution; odd unless causal.
        causal: Whether an output depends on its own and earlier steps only.
        dropout: Probability of dropping an element after each convolution.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        - ``x``: (B, L, d)
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`)
        - output: (B, L, widths[-1]), zero at invalid steps; invalid steps are treated as padding,
          so their values affect no output

    Raises:
        TypeError: If an input or a mask is of the wrong type or dtype.
        ValueError: If sizes or shapes do not fit; if a net that is not causal has an even kernel
            or is asked to stream.

    Note:
        ``weight`` of a convolution is computed from a norm and a direction, as with
        :func:`torch.nn.utils.parametrizations.weight_norm`, so writing into it in place
        (``nn.init.zeros_(conv.weight)``) has no effect. Assign a tensor to it:
        ``conv.weight = torch.zeros_like(conv.weight)``.

    References:
        | S. Bai, J. Z. Kolter, V. Koltun, "An Empirical Evaluation of Generic Convolutional and
          Recurrent Networks for Sequence Modeling", 2018, section 3
        | https://arxiv.org/abs/1803.01271

    Example:
        >>> tcn = TemporalConvNet(40, [64, 64, 32])
        >>> tcn(torch.randn(2, 100, 40)).shape
        torch.Size([2, 100, 32])
        >>> tcn.receptive_field
        57
    """

    def __init__(
        self,
        dim: int,
        widths: Sequence[int],
        *,
        kernel_size: int = 5,
        causal: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim = check_size(_NAME, "dim", dim)
        kernel_size = check_size(_NAME, "kernel_size", kernel_size)
        check_flag(_NAME, "causal", causal)
        given: object = widths
        if not isinstance(given, Sequence) or isinstance(given, str | bytes | bytearray):
            raise error(
                TypeError,
                _NAME,
                "widths must be a sequence",
                got=type(widths).__name__,
                expected="a list or tuple of ints, one for each block",
                hint="for a single block write [width]",
            )
        check_size(_NAME, "the number of widths", len(widths), most=_MOST_BLOCKS)
        widths = [check_size(_NAME, f"widths[{k}]", width) for k, width in enumerate(widths)]
        check_probability(_NAME, "dropout", dropout)
        if not causal and kernel_size % 2 == 0:
            raise error(
                ValueError,
                _NAME,
                "kernel_size must be odd where causal=False",
                got=f"{kernel_size}",
                expected="an odd int",
                hint="an even kernel has no centre; take one more or one less",
            )
        self.dim = dim
        self.widths: tuple[int, ...] = tuple(widths)
        self.kernel_size = kernel_size
        self.causal = causal
        sizes = list(zip((dim, *widths), widths, strict=False))
        weights = sum(kernel_size * outputs * (inputs + outputs) for inputs, outputs in sizes)
        check_parameters(_NAME, weights, device=device, dtype=dtype)
        # A block pads its input by its reach, which doubles from one block to the next.
        padding = (kernel_size - 1) * 2 ** (len(widths) - 1) * max(sizes[-1])
        check_memory(_NAME, "the padding of the last block", padding, 4)
        self.blocks: nn.ModuleList = nn.ModuleList(
            ConvolutionBlock(
                inputs, outputs, kernel_size, 2**k, causal, dropout, device=device, dtype=dtype
            )
            for k, (inputs, outputs) in enumerate(sizes)
        )

    def reset_parameters(self) -> None:
        """Re-initialises all parameters."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                module.reset_parameters()

    @property
    def dropout(self) -> float:
        """The probability of dropping an element; setting it changes every block's."""
        return next((layer.p for layer in self._dropouts()), 0.0)

    @dropout.setter
    def dropout(self, p: float) -> None:
        check_probability(_NAME, "dropout", p)
        for layer in self._dropouts():
            layer.p = p

    @property
    def receptive_field(self) -> int:
        """The number of input steps that an output depends on."""
        return 1 + sum(2 * (self.kernel_size - 1) * (1 << k) for k in range(len(self.widths)))

    @override
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encodes a whole sequence.

        Args:
            x: Features (B, L, d).
            mask: Valid steps, (B, L), True = valid.

        Returns:
            (B, L, widths[-1]).
        """
        self._check(x, mask)
        x = zero_invalid(x, mask).mT
        for block in self.blocks:
            x = block(x, mask)
        return x.mT

    def stream(
        self, chunk: Tensor, state: TemporalState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, TemporalState]:
        """Encodes the next chunk of a stream; joined outputs equal those of the whole sequence.

        Args:
            chunk: The next steps (B, l, d), l of at least 1.
            state: State returned by the previous call; ``None`` to start a stream. It is not
                modified and may be reused.
            mask: Valid steps, (B, l), True = valid.

        Returns:
            The outputs (B, l, widths[-1]) at these steps, and the state for the next call.

        Raises:
            ValueError: If the net is not causal, or the state is of another batch or net.

        Example:
            >>> tcn = TemporalConvNet(3, [4, 4])
            >>> x, state, ys = torch.randn(1, 10, 3), None, []
            >>> for chunk in x.split([1, 6, 3], dim=1):
            ...     y, state = tcn.stream(chunk, state)
            ...     ys.append(y)
            >>> torch.allclose(torch.cat(ys, dim=1), tcn(x), atol=1e-6)
            True
        """
        self._check(chunk, mask)
        if not self.causal:
            raise error(
                ValueError,
                _NAME,
                "a net that is not causal cannot stream",
                got="causal=False",
                expected="causal=True",
                hint="its outputs depend on future steps; run it on windows instead",
            )
        contexts = self._contexts(chunk, state)
        x, after = zero_invalid(chunk, mask).mT, []
        for k, block in enumerate(self.blocks):
            x, pair = block(x, mask, contexts[2 * k : 2 * k + 2])
            after.extend(pair)
        return x.mT, TemporalState(tuple(after))

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.dim}, {list(self.widths)}, kernel_size={self.kernel_size}, "
            f"causal={self.causal}, dropout={self.dropout}"
        )

    def _dropouts(self) -> list[nn.Dropout]:
        names = ("first_dropout", "second_dropout")
        layers = [getattr(block, name, None) for block in self.blocks for name in names]
        return [layer for layer in layers if isinstance(layer, nn.Dropout)]

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        check_layout(_NAME, "x", x, self.dim)
        # By name: replicas of DataParallel and shards of FSDP have no list of parameters. A tool
        # may also have put another module in the place of a block or of a convolution.
        like = getattr(getattr(self.blocks[0], "first", None), "bias", None)
        if isinstance(like, Tensor):
            check_like(_NAME, "x", x, "the parameters", like)
        if mask is not None:
            check_mask(_NAME, "mask", mask, x)

    def _contexts(self, chunk: Tensor, state: TemporalState | None) -> tuple[Tensor, ...]:
        widths = [
            n for pair in zip((self.dim, *self.widths), self.widths, strict=False) for n in pair
        ]
        reach = [(self.kernel_size - 1) * 2 ** (k // 2) for k in range(len(widths))]
        expected = [(chunk.shape[0], n, steps) for n, steps in zip(widths, reach, strict=True)]
        if state is None:
            return tuple(chunk.new_zeros(shape) for shape in expected)
        contexts: Any = getattr(state, "contexts", None)
        if not isinstance(contexts, Sequence) or any(not isinstance(c, Tensor) for c in contexts):
            raise error(
                TypeError,
                _NAME,
                "'state' is not a TemporalState of tensors",
                got=type(state).__name__,
                expected="what stream returned beside the outputs, or None",
                hint="from a list of saved tensors make TemporalState(tuple(tensors))",
            )
        found = [tuple(context.shape) for context in state.contexts]
        if found != expected:
            raise error(
                ValueError,
                _NAME,
                "'state' is of another batch size or another net",
                got=found,
                expected=expected,
                hint="give the state that the last call returned, or None to begin a stream",
            )
        for context in state.contexts:
            check_dense(_NAME, "state", context)
            check_like(_NAME, "state", context, "the chunk", chunk)
        return state.contexts
