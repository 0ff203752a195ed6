"""One recursion of RCMA in the form of the paper, for one modality, and what all forms share.

Shapes: B batch, L steps, d features of a modality, D features of its joint.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse._masks import valid_count
from crossfuse._modalities import leading_part
from crossfuse._parameters import new_parameter
from crossfuse.functional import _equations as equations

_NAME = "RecursiveCrossModalAttention"

MOST_RECURSIONS = 1000  # many more than are of use, and few enough to build

Joint: TypeAlias = Sequence[Tensor]
"""The joint (B, L, D); with a length per modality, the modalities in it, (B, L_j, d_j) each."""


class Attended(NamedTuple):
    """What a branch computed."""

    features: Tensor  # (B, L, d)
    correlation: Tensor  # C, (B, d, D); (B, h, k, k) in the stable form
    attention_map: Tensor  # H, (B, L, D); (B, L, d) in the stable form


class Sizes(NamedTuple):
    """What a branch is built for."""

    dim: int  # d
    members: tuple[int, ...]  # which modalities are in the joint
    joint_dim: int  # D
    length: int | None  # the longest window; None for no temporal weight
    columns: tuple[int, ...]  # that of the joint, or of each modality in it


def size_of(sizes: Sizes) -> int:
    """Counts the elements of the parameters that a branch has in every form."""
    return (sizes.length or 0) * sum(sizes.columns) + sizes.dim * (sizes.dim + sizes.joint_dim)


class Branch(nn.Module):
    """The equations of the paper for one modality.

    Args:
        sizes: What it is built for.
        temporal_init: How T starts.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    normalised = False  # C and H are computed from the features as they are

    def __init__(
        self,
        sizes: Sizes,
        *,
        temporal_init: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.temporal_init = temporal_init
        dim, joint_dim, length = sizes.dim, sizes.joint_dim, sizes.length
        self.temporal = (
            None
            if length is None
            else new_parameter(length, sum(sizes.columns), device=device, dtype=dtype)
        )
        self.feature = new_parameter(dim, dim, device=device, dtype=dtype)
        self.output = new_parameter(joint_dim, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialises the parameters (Xavier uniform)."""
        if self.temporal is not None:
            init_temporal_(self.temporal, self.sizes.columns, self.temporal_init)
        nn.init.xavier_uniform_(self.feature)
        nn.init.xavier_uniform_(self.output)

    @override
    def forward(
        self, x: Tensor, inner: Tensor, joint: Joint, valid: Tensor | None, dropout: float
    ) -> Tensor:
        """Returns the attended features (B, L, d), zero at invalid steps."""
        return self.attend(x, inner, joint, valid, dropout).features

    def attend(
        self, x: Tensor, inner: Tensor, joint: Joint, valid: Tensor | None, dropout: float
    ) -> Attended:
        """Returns the attended features, C and H.

        Args:
            x: The features (B, L, d) that the result is added to.
            inner: The features (B, L, d) that C and H are computed from.
            joint: The joint, computed from the features like ``inner``.
            valid: Valid steps (B, L).
            dropout: Probability of dropping an element of H O.
        """
        correlation = self._correlation(inner, joint, valid)
        attention = equations.rcma_attention_map(
            inner, correlation, self.feature, longest=self.sizes.length
        )
        features = equations.rcma_attended_features(x, attention, self.output, dropout=dropout)
        return Attended(features, correlation, attention)

    def _correlation(self, x: Tensor, joint: Joint, valid: Tensor | None) -> Tensor:
        if self.temporal is None:
            return equations.rcma_timeless_correlation(x, joint[0], valid_count(x, valid))
        steps = x.shape[1]
        if len(joint) == 1:
            temporal = leading_part(self.temporal, steps, joint[0].shape[1])
            return equations.rcma_correlation(x, joint[0], temporal)
        blocks = zip(
            torch.split(self.temporal, list(self.sizes.columns), dim=1), joint, strict=True
        )
        temporals = [leading_part(block, steps, part.shape[1]) for block, part in blocks]
        return equations.rcma_unaligned_correlation(x, joint, temporals)

    @override
    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())


def unit_scale(x: Tensor, valid: Tensor | None) -> Tensor:
    """Divides each window (B, L, d) by the root mean square of its valid part."""
    count = valid_count(x, valid)
    if isinstance(count, Tensor) and count.ndim:  # in a trace, a number of steps is a tensor too
        count = count[:, None, None]
    # Squares of half precision overflow early, so they are summed in single precision.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    power = wide.square().sum(dim=(1, 2), keepdim=True) / (count * x.shape[2])
    # The epsilon of LayerNorm; a literal, because compiled checkpoints cannot share a global float.
    return x * (power + 1e-5).rsqrt().to(x.dtype)


def init_temporal_(temporal: Tensor, columns: Sequence[int], init: str) -> None:
    """Writes the start of T, (L, sum of columns), block by block."""
    for block in torch.split(temporal.detach(), list(columns), dim=1):
        if init == "identity":
            start_as_identity_(block)
        else:
            nn.init.xavier_uniform_(block)


def start_as_identity_(block: Tensor) -> None:
    """Writes a start into a temporal block (L, M) at which steps of the same time meet.

    For L = M it is the identity. Otherwise step s of L lasts from s/L to (s + 1)/L of the window,
    and an element is the time that both steps share, as a part of the shorter step.
    """
    rows, columns = block.shape
    edges = [torch.arange(n + 1, device=block.device, dtype=torch.float64) / n for n in block.shape]
    ends = torch.minimum(edges[0][1:, None], edges[1][None, 1:])
    starts = torch.maximum(edges[0][:-1, None], edges[1][None, :-1])
    block.copy_((ends - starts).clamp(min=0) * max(rows, columns))
