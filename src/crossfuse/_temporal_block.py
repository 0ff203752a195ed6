"""A residual block of the temporal convolutional network: two dilated convolutions and a skip.

Shapes: B batch, L steps; (B, features, L) inside, as convolutions have it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized
from typing_extensions import override

_SLOPE = 0.01  # of the LeakyReLU, as in the papers' code


class Convolution(nn.Conv1d):
    """A convolution with weight normalisation that can be pickled, as torch's cannot."""

    def __init__(
        self,
        before: int,
        after: int,
        kernel_size: int,
        *,
        dilation: int = 1,
        padding: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            before,
            after,
            kernel_size,
            dilation=dilation,
            padding=padding,
            device=device,
            dtype=dtype,
        )
        weight_norm(self)

    @override
    def reset_parameters(self) -> None:
        """Re-initialises the parameters (He normal)."""
        weight = self.weight.detach()
        nn.init.kaiming_normal_(weight, a=_SLOPE, nonlinearity="leaky_relu")
        if is_parametrized(self):
            self.weight = weight  # writing into it does not get through the parametrisation
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @override
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The parametrisation gives every instance a class and a hook that pickle cannot find
        # again. A new one has both of its own, and takes the rest.
        state = {k: v for k, v in self.__dict__.items() if k != "_load_state_dict_pre_hooks"}
        if is_parametrized(self):
            return partial(Convolution, 1, 1, 1, device="meta"), (), state
        return Convolution.__new__, (Convolution,), state


class ConvolutionBlock(nn.Module):
    """Two dilated convolutions and the way around them; (B, features, L) in and out."""

    def __init__(
        self,
        before: int,
        after: int,
        kernel_size: int,
        dilation: int,
        causal: bool,
        dropout: float,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        reach = (kernel_size - 1) * dilation
        self.reach = reach if causal else 0
        self.dropout = dropout
        make = partial(
            Convolution,
            after=after,
            kernel_size=kernel_size,
            dilation=dilation,
            padding=0 if causal else reach // 2,
            device=device,
            dtype=dtype,
        )
        self.first, self.second = make(before), make(after)
        self.residual = (
            None if before == after else nn.Conv1d(before, after, 1, device=device, dtype=dtype)
        )

    @override
    def forward(
        self, x: Tensor, valid: Tensor | None, contexts: Sequence[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns the outputs and the contexts of the next chunk."""
        inner, after = x, []
        for k, conv in enumerate((self.first, self.second)):
            if contexts is None:
                inner = pad(inner, (self.reach, 0))
            else:
                inner = torch.cat([contexts[k], inner], dim=-1)
                after.append(inner[..., inner.shape[-1] - self.reach :].clone())
            inner = leaky_relu(conv(inner), _SLOPE, inplace=True)
            inner = torch.dropout(inner, self.dropout, self.training)
            # Between the convolutions too: to the second, invalid steps are padding as well.
            inner = inner if valid is None else inner.masked_fill(~valid[:, None], 0.0)
        around = x if self.residual is None else self.residual(x)
        outputs = leaky_relu(inner + around, _SLOPE, inplace=True)
        return (outputs if valid is None else outputs.masked_fill(~valid[:, None], 0.0)), after
