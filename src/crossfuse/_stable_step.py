"""One recursion of RCMA in its stable form, for one modality.

Shapes: B batch, L steps, d features of the modality, D features of its joint, h heads.
"""

import math

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse._masks import valid_count, zero_invalid
from crossfuse._modalities import leading_part
from crossfuse._parameters import new_parameter
from crossfuse._recursive_step import Attended, Joint, Sizes, init_temporal_
from crossfuse.functional import _equations as equations
from crossfuse.functional._rcma_stable import attended_features

_NAME = "RecursiveCrossModalAttention"
_HEADS = 4  # or the largest divisor that d shares with it


class StableBranch(nn.Module):
    """The equations of the stable form for one modality.

    Args:
        sizes: What it is built for.
        temporal_init: How T starts.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    normalised = True  # C and H are computed from features at unit scale

    def __init__(
        self,
        sizes: Sizes,
        *,
        temporal_init: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()

        def new(*size: int) -> nn.Parameter:
            return new_parameter(*size, device=device, dtype=dtype)

        self.sizes = sizes
        self.temporal_init = temporal_init
        self.heads = math.gcd(sizes.dim, _HEADS)
        dim = sizes.dim
        self.temporal = None if sizes.length is None else new(sizes.length, sum(sizes.columns))
        self.key, self.value = new(dim, dim), new(sizes.joint_dim, dim)
        self.feature, self.output = new(dim, dim), new(dim, dim)
        self.hidden, self.hidden_bias, self.back = new(dim, dim), new(dim), new(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialises the parameters: Xavier uniform; zero for O, a and B."""
        if self.temporal is not None:
            init_temporal_(self.temporal, self.sizes.columns, self.temporal_init)
        for weight in (self.key, self.value, self.feature, self.hidden):
            nn.init.xavier_uniform_(weight)
        for weight in (self.output, self.hidden_bias, self.back):
            nn.init.zeros_(weight)

    @override
    def forward(
        self, x: Tensor, inner: Tensor, joint: Joint, valid: Tensor | None, dropout: float
    ) -> Tensor:
        """Returns the attended features (B, L, d), zero at invalid steps."""
        return self._attended(x, inner, joint, valid, dropout)[0]

    def attend(
        self, x: Tensor, inner: Tensor, joint: Joint, valid: Tensor | None, dropout: float
    ) -> Attended:
        """Returns the attended features, C and H; arguments as for the paper's branch."""
        features, correlation = self._attended(x, inner, joint, valid, dropout)
        attention = equations.rcma_stable_attention_map(inner @ self.feature, correlation)
        return Attended(features, correlation, attention)

    def _attended(
        self, x: Tensor, inner: Tensor, joint: Joint, valid: Tensor | None, dropout: float
    ) -> tuple[Tensor, Tensor]:
        value = zero_invalid(self._value(joint, x.shape[1]), valid)
        correlation = equations.rcma_stable_correlation(
            inner @ self.key, value, valid_count(x, valid), self.heads
        )
        longest = self.sizes.length
        features = attended_features(
            x, inner, self.feature, correlation, self.output, longest=longest, dropout=dropout
        )
        features = equations.rcma_feed_forward(
            features, value, self.hidden, self.hidden_bias, self.back, dropout=dropout
        )
        return zero_invalid(features, valid), correlation

    def _value(self, joint: Joint, steps: int) -> Tensor:
        """Maps the joint to the width of the modality, and mixes its steps if there is a T."""
        if self.temporal is None:
            return joint[0] @ self.value
        if len(joint) == 1:
            return leading_part(self.temporal, steps, joint[0].shape[1]) @ (joint[0] @ self.value)
        blocks = torch.split(self.temporal, list(self.sizes.columns), dim=1)
        maps = torch.split(self.value, [part.shape[2] for part in joint], dim=0)
        mixed = [
            leading_part(block, steps, part.shape[1]) @ (part @ weight)
            for block, part, weight in zip(blocks, joint, maps, strict=True)
        ]
        return torch.stack(mixed).sum(dim=0)

    @override
    def extra_repr(self) -> str:
        shapes = ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())
        return f"heads={self.heads}, {shapes}"
