"""One recursion of RCMA as the authors' released code computes it.

Shapes: B batch, L steps, d features of a modality, D features of its joint.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse._masks import any_valid, zero_invalid
from crossfuse._modalities import leading_part
from crossfuse._parameters import new_parameter
from crossfuse._recursive_step import Attended, Sizes
from crossfuse.functional import _equations as equations

_NAME = "RecursiveCrossModalAttention"


class ReleasedBranch(nn.Module):
    """The equations of the released code for one modality.

    Args:
        sizes: What it is built for.
        length: The longest window.
        map_joint: Whether the joint goes through an affine map.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        sizes: Sizes,
        length: int,
        *,
        map_joint: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.length = length
        dim, joint_dim = sizes.dim, sizes.joint_dim

        def new(*size: int) -> nn.Parameter:
            return new_parameter(*size, device=device, dtype=dtype)

        self.temporal, self.temporal_bias = new(length, length), new(length)
        self.feature, self.feature_bias = new(dim, dim), new(dim)
        self.output, self.output_bias = new(joint_dim, dim), new(dim)
        self.joint = new(joint_dim, joint_dim) if map_joint else None
        self.joint_bias = new(joint_dim) if map_joint else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialises the parameters as nn.Linear does."""
        parameters = dict(self.named_parameters())
        for name, parameter in parameters.items():
            bound = parameters[name.removesuffix("_bias")].shape[0] ** -0.5
            nn.init.uniform_(parameter, -bound, bound)

    @override
    def forward(
        self,
        x: Tensor,
        joint: Tensor,
        valid: Tensor | None,
        joint_valid: Tensor | None,
        dropout: float,
    ) -> Tensor:
        """Returns the attended features (B, L, d), zero at invalid steps."""
        return self.attend(x, joint, valid, joint_valid, dropout).features

    def attend(
        self,
        x: Tensor,
        joint: Tensor,
        valid: Tensor | None,
        joint_valid: Tensor | None,
        dropout: float,
    ) -> Attended:
        """Returns the attended features, C and H.

        Args:
            x: The features (B, L, d).
            joint: The joint (B, L, D).
            valid: Valid steps (B, L).
            joint_valid: Steps (B, L) at which any modality of the joint is valid.
            dropout: Probability of dropping an element of C, and of relu(H O + o).
        """
        steps = x.shape[1]
        correlation = equations.rcma_released_correlation(
            x,
            joint,
            leading_part(self.temporal, steps, steps),
            self.temporal_bias[:steps],
            self.joint,
            self.joint_bias,
            joint_valid,
            dropout=dropout,
            longest=self.length,
        )
        attention = equations.rcma_released_attention_map(
            x, correlation, self.feature, self.feature_bias, longest=self.length
        )
        # The biases reach invalid steps.
        attention = zero_invalid(attention, valid)
        features = equations.rcma_released_attended_features(
            x, attention, self.output, self.output_bias, dropout=dropout
        )
        return Attended(zero_invalid(features, valid), correlation, attention)

    @override
    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())


class ReleasedStep(nn.ModuleDict):
    """One recursion, a :class:`ReleasedBranch` per modality in the layer's order."""

    @override
    def forward(
        self, features: Sequence[Tensor], masks: Sequence[Tensor | None], dropout: float
    ) -> tuple[Tensor, ...]:
        """Returns the attended features of every modality."""
        # One after the other: C and H of a modality are freed before those of the next are made.
        return tuple(branch(*inputs, dropout) for branch, *inputs in self._inputs(features, masks))

    def attend(
        self, features: Sequence[Tensor], masks: Sequence[Tensor | None], dropout: float
    ) -> list[Attended]:
        """Returns the attended features, C and H of every modality."""
        return [
            branch.attend(*inputs, dropout) for branch, *inputs in self._inputs(features, masks)
        ]

    def _inputs(
        self, features: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> Iterator[tuple[Any, Tensor, Tensor, Tensor | None, Tensor | None]]:
        """Yields what each branch needs, when it is its turn."""
        branches: list[Any] = list(self.values())  # also if they are wrapped
        for branch, x, valid in zip(branches, features, masks, strict=True):
            members = branch.sizes.members
            joint = equations.concat_features([features[m] for m in members])
            yield branch, x, joint, valid, any_valid([masks[m] for m in members])
