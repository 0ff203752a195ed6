"""One step of recursive cross-modal attention for one modality: its weights and their use.

Shapes: B batch, L steps, d features of the modality, D features of its joint.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse import functional
from crossfuse._errors import check_size
from crossfuse._masks import any_valid, valid_count, zero_invalid
from crossfuse._modalities import ModalitySet, leading_part

_SILENCE = 1e-5  # mean square below which a window is not brought to unit scale, as in LayerNorm


class Attended(NamedTuple):
    """What one step made of one modality."""

    features: Tensor  # (B, L, d)
    correlation: Tensor  # (B, d, D)
    attention_map: Tensor  # (B, L, D)


class RecursionStep(NamedTuple):
    """What one step made of every modality, each in the caller's structure.

    Attributes:
        features: The attended features, each (B, L, d_i).
        correlations: C of each modality, (B, d_i, D_i).
        attention_maps: H of each modality, (B, L, D_i).
    """

    features: Any
    correlations: Any
    attention_maps: Any


class Recursion(NamedTuple):
    """The outputs of :class:`crossfuse.RecursiveCrossModalAttention` and how it came to them.

    Attributes:
        outputs: What ``forward`` returns.
        steps: One :class:`RecursionStep` per recursion.
    """

    outputs: Any
    steps: tuple[RecursionStep, ...]


class Branch(nn.Module):
    """The step as the paper prints it.

    Args:
        dim: Features d of the modality.
        joint_dim: Features D of its joint.
        length: Longest window of the modality; ``None`` for no temporal weight.
        columns: Longest window of each part of the joint: one part if all are aligned.
        stable: See :class:`crossfuse.RecursiveCrossModalAttention`.
        device: Where the parameters are made.
        dtype: Their dtype.
    """

    def __init__(
        self,
        dim: int,
        joint_dim: int,
        length: int | None,
        columns: Sequence[int],
        *,
        stable: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.length = length
        self.columns = list(columns)
        self.stable = stable
        self.temporal = (
            None
            if length is None
            else nn.Parameter(torch.empty(length, sum(columns), device=device, dtype=dtype))
        )
        self.feature = nn.Parameter(torch.empty(dim, dim, device=device, dtype=dtype))
        self.output = nn.Parameter(torch.empty(joint_dim, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew, after Xavier."""
        if self.temporal is not None:
            for block in torch.split(self.temporal.detach(), self.columns, dim=1):
                nn.init.xavier_uniform_(block)
        nn.init.xavier_uniform_(self.feature)
        if self.stable:
            nn.init.zeros_(self.output)
        else:
            nn.init.xavier_uniform_(self.output)

    @override
    def forward(
        self,
        x: Tensor,
        inner: Tensor,
        joint: Sequence[Tensor],
        valid: Tensor | None,
        joint_masks: Sequence[Tensor | None],
        dropout: float,
    ) -> Attended:
        """Attends to the joint: (B, L, d) in, (B, L, d) out, zero at invalid steps.

        C and H are made from ``inner`` and the joint, and what they find is added to ``x``; the
        two differ where the layer is stable (see :func:`unit_scale`).
        """
        correlation = self._correlation(inner, joint, valid)
        scale = x.shape[-1] ** -0.5 if self.stable else 1.0
        attention = functional.rcma_attention_map(
            inner, correlation, self.feature, scale=scale, longest=self.length
        )
        features = functional.rcma_attended_features(x, attention, self.output, dropout=dropout)
        return Attended(features, correlation, attention)

    def _correlation(self, x: Tensor, joint: Sequence[Tensor], valid: Tensor | None) -> Tensor:
        if self.temporal is None:
            return functional.rcma_timeless_correlation(x, joint[0], valid_count(x, valid))
        steps = x.shape[1]
        if len(joint) == 1:
            temporal = leading_part(self.temporal, steps, joint[0].shape[1])
            return functional.rcma_correlation(x, joint[0], temporal)
        blocks = zip(torch.split(self.temporal, self.columns, dim=1), joint, strict=True)
        temporals = [leading_part(block, steps, part.shape[1]) for block, part in blocks]
        return functional.rcma_unaligned_correlation(x, joint, temporals)

    @override
    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())


class ReleasedBranch(nn.Module):
    """The step as the authors' released code computes it.

    Args:
        dim: Features d of the modality.
        joint_dim: Features D of its joint.
        length: Longest window.
        map_joint: Whether the joint goes through an affine map of its own.
        device: Where the parameters are made.
        dtype: Their dtype.
    """

    def __init__(
        self,
        dim: int,
        joint_dim: int,
        length: int,
        *,
        map_joint: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.length = length

        def empty(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*size, device=device, dtype=dtype))

        self.temporal, self.temporal_bias = empty(length, length), empty(length)
        self.feature, self.feature_bias = empty(dim, dim), empty(dim)
        self.output, self.output_bias = empty(joint_dim, dim), empty(dim)
        self.joint = empty(joint_dim, joint_dim) if map_joint else None
        self.joint_bias = empty(joint_dim) if map_joint else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew, as nn.Linear does."""
        for name, parameter in self.named_parameters():
            weight = self.get_parameter(name.removesuffix("_bias"))
            bound = weight.shape[0] ** -0.5
            nn.init.uniform_(parameter, -bound, bound)

    @override
    def forward(
        self,
        x: Tensor,
        inner: Tensor,
        joint: Sequence[Tensor],
        valid: Tensor | None,
        joint_masks: Sequence[Tensor | None],
        dropout: float,
    ) -> Attended:
        """Attends to the joint: (B, L, d) in, (B, L, d) out, zero at invalid steps."""
        steps = x.shape[1]
        correlation = functional.rcma_released_correlation(
            inner,
            joint[0],
            leading_part(self.temporal, steps, steps),
            self.temporal_bias[:steps],
            self.joint,
            self.joint_bias,
            any_valid(joint_masks),
            dropout=dropout,
            longest=self.length,
        )
        attention = zero_invalid(
            functional.rcma_released_attention_map(
                inner, correlation, self.feature, self.feature_bias, longest=self.length
            ),
            valid,
        )
        features = zero_invalid(
            functional.rcma_released_attended_features(
                x, attention, self.output, self.output_bias, dropout=dropout
            ),
            valid,
        )
        return Attended(features, correlation, attention)

    @override
    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())


def read_length(
    layer: str, modalities: ModalitySet, length: object
) -> tuple[int | dict[str, int] | list[int] | None, dict[str, int] | None, bool]:
    """Reads the length as given: what to show, the longest per modality, whether aligned."""
    if length is None:
        return None, None, True
    if isinstance(length, Mapping | Sequence) and not isinstance(length, str):
        each = modalities.each("length", length)
        return each if modalities.structure.named else list(each.values()), each, False
    check_size(layer, "length", length)
    longest = cast(int, length)
    return longest, dict.fromkeys(modalities.dims, longest), True


def unit_scale(features: Sequence[Tensor], masks: Sequence[Tensor | None]) -> list[Tensor]:
    """Divides each window (B, L, d) by the root mean square of its valid part."""
    return [_unit_scale(x, valid) for x, valid in zip(features, masks, strict=True)]


def _unit_scale(x: Tensor, valid: Tensor | None) -> Tensor:
    count = valid_count(x, valid)
    # Squares of halves overflow early, so the sum is taken in single precision.
    wide = torch.promote_types(x.dtype, torch.float32)
    size: Tensor = torch.linalg.vector_norm(x, dim=(1, 2), dtype=wide)
    power = size.square() / (count * x.shape[2])
    return x * (power + _SILENCE).rsqrt().to(x.dtype)[:, None, None]
