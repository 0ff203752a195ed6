"""A residual block of the temporal convolutional network: two dilated convolutions and a skip.

Shapes: B batch, L steps; (B, features, L) inside, as convolutions have it.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad
from torch.nn.utils.parametrize import (
    is_parametrized,
    register_parametrization,
    remove_parametrizations,
)
from typing_extensions import override

_SLOPE = 0.01  # of the LeakyReLU, as in the papers' code


class Convolution(nn.Conv1d):
    """:class:`torch.nn.Conv1d` with weight normalisation that can be copied and pickled.

    The parameters have the names of ``torch.nn.utils.parametrizations.weight_norm``. Checkpoints
    of the older ``torch.nn.utils.weight_norm`` load as well.
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - those of nn.Conv1d
        # Tools that extend a layer build another one of its class. That of a parametrised instance
        # cannot be built again, so they get a plain convolution.
        return (
            nn.Conv1d(*args, **options) if args and cls is not Convolution else object.__new__(cls)
        )

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - those of nn.Conv1d
        super().__init__(*args, **options)
        # Not torch's weight_norm, for which a filter of zeros is NaN.
        register_parametrization(self, "weight", _WeightNorm())

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
        # The parametrisation gives every instance its own class, which pickle cannot find again. A
        # new instance has such a class too, and takes the state.
        if is_parametrized(self):
            names = dict(self.get_submodule("parametrizations").named_children())
            return _parametrised, tuple(names), self.__dict__
        return Convolution.__new__, (Convolution,), self.__dict__

    def __deepcopy__(self, memo: dict[int, Any]) -> "Convolution":
        # torch's would share the class, and with it what removing a parametrisation removes.
        make, arguments, state = self.__reduce_ex__(4)
        copied: Convolution = make(*arguments)
        memo[id(self)] = copied
        copied.__dict__.update(deepcopy(state, memo))
        return copied

    @override
    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        *args: Any,
    ) -> None:
        if is_parametrized(self):
            for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
                if prefix + old in state_dict:
                    value = state_dict.pop(prefix + old)
                    state_dict[f"{prefix}parametrizations.weight.{new}"] = value
        super()._load_from_state_dict(state_dict, prefix, *args)


def _parametrised(*names: str) -> Convolution:
    """Makes a convolution whose class has these parametrised tensors, and lacks their values."""
    convolution = Convolution(1, 1, 1, device="meta")
    remove_parametrizations(convolution, "weight")
    for name in names:  # those of a tool too, on the bias
        register_parametrization(convolution, name, nn.Identity())
    return convolution


class _WeightNorm(nn.Module):
    """A filter as its norm g times the direction of v; a filter without direction is zero."""

    @override
    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        # The square of a norm leaves the range of half precision.
        wide = torch.promote_types(v.dtype, torch.float32)
        norm = torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True, dtype=wide)
        return (v * (g / torch.where(norm == 0, torch.ones_like(norm), norm))).to(v.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Splits a weight; zeros get a direction all the same, without which they cannot learn."""
        norm = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
        return norm, torch.where(norm == 0, torch.ones_like(weight), weight)


class ConvolutionBlock(nn.Module):
    """Two dilated convolutions and a skip connection; (B, features, L) in and out."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
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
        make = partial(
            Convolution,
            out_channels=out_channels,
            kernel_size=kernel_size,
            dilation=dilation,
            padding=0 if causal else reach // 2,
            device=device,
            dtype=dtype,
        )
        self.first: nn.Conv1d = make(in_channels)
        self.second: nn.Conv1d = make(out_channels)
        self.first_dropout = nn.Dropout(dropout)
        self.second_dropout = nn.Dropout(dropout)
        self.residual = (
            None
            if in_channels == out_channels
            else nn.Conv1d(in_channels, out_channels, 1, device=device, dtype=dtype)
        )

    @override
    def forward(
        self, x: Tensor, valid: Tensor | None, contexts: Sequence[Tensor] | None = None
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Returns the outputs; in a stream, which has contexts, also those of the next chunk."""
        inner, after = x, []
        layers = (self.first, self.first_dropout), (self.second, self.second_dropout)
        for k, (conv, dropout) in enumerate(layers):
            if contexts is None:
                inner = pad(inner, (self.reach, 0))
            else:
                inner = torch.cat([contexts[k], inner], dim=-1)
                after.append(inner[..., inner.shape[-1] - self.reach :].clone())
            # Not in place: hooks may hold what a convolution returned.
            inner = dropout(leaky_relu(conv(inner), _SLOPE))
            # Between the convolutions too: to the second, invalid steps are padding as well.
            inner = inner if valid is None else inner.masked_fill(~valid[:, None], 0.0)
        residual = x if self.residual is None else self.residual(x)
        outputs = leaky_relu(inner + residual, _SLOPE)
        outputs = outputs if valid is None else outputs.masked_fill(~valid[:, None], 0.0)
        # A tensor alone outside of streams: attribution tools take no list beside it.
        return outputs if contexts is None else (outputs, after)
