r"""Cross-attention, equation by equation.

Shapes: B batch, L steps, d features of one modality :math:`X`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossfuse.functional._checks import checked


@checked(x="BLd", other="BLe", weight="de")
def cross_correlation(x: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    r"""Correlates every step of a modality with every step of another.

    .. math:: Z_{ij} = X_i W_{ij} X_j^\top

    Cross-attention (FG 2021), the cross-correlation. :math:`Z_{ji}` is its transpose.

    Args:
        x: One modality :math:`X_i`, (B, L, d_i).
        other: Another :math:`X_j`, (B, L, d_j).
        weight: Learned map between their features :math:`W_{ij}`, (d_i, d_j).

    Returns:
        The correlation :math:`Z_{ij}`, (B, L, L), steps of i by steps of j.

    Example:
        >>> x, other = torch.randn(2, 9, 4), torch.randn(2, 9, 3)
        >>> cross_correlation(x, other, torch.randn(4, 3)).shape
        torch.Size([2, 9, 9])
    """
    return x @ weight @ other.mT


@checked(x="BLd", correlation="BLL", valid="BL bool none")
def cross_attention(
    x: Tensor, correlation: Tensor, valid: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    r"""Averages a modality's own steps, weighted by their correlation with another's steps.

    .. math:: A_{ij}^\top X_i \qquad A_{ij} = \mathrm{softmax}_i(Z_{ij} / \tau)

    Cross-attention (FG 2021), the attention weights; the softmax runs over the steps of i.

    Args:
        x: One modality :math:`X_i`, (B, L, d_i), zero at its invalid steps.
        correlation: :math:`Z_{ij}`, (B, L, L), steps of i by steps of j.
        valid: Steps of i that take part, bool (B, L), True = valid; ``None`` for all.
        temperature: Temperature :math:`\tau` of the softmax; lower is sharper.

    Returns:
        :math:`A_{ij}^\top X_i`, (B, L, d_i), one row for each step of j.

    Example:
        >>> x = torch.randn(2, 9, 4)
        >>> found = cross_attention(x, torch.zeros(2, 9, 9))
        >>> torch.allclose(found[:, 0], x.mean(dim=1))  # no correlation: the mean over the steps
        True
    """
    scores = correlation / temperature
    if valid is not None:
        # The lowest number rather than -inf: the weights stay finite if no step is valid.
        scores = scores.masked_fill(~valid[..., None], torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=1).mT @ x


@checked(x="BLd", attended="*BLd")
def cross_attended_features(x: Tensor, attended: Sequence[Tensor]) -> Tensor:
    r"""Adds the mean of the attended features over the other modalities.

    .. math:: X_i' = \tanh\left(X_i + \frac{1}{N - 1} \sum_{j \ne i} A_{ij}^\top X_i\right)

    Cross-attention (FG 2021), the attended features; the paper has N = 2.

    Args:
        x: One modality :math:`X_i`, (B, L, d_i).
        attended: :math:`A_{ij}^\top X_i` for each other modality j, (B, L, d_i).

    Returns:
        The attended features :math:`X_i'`, (B, L, d_i), in (-1, 1).

    Example:
        >>> x = torch.randn(2, 9, 4)
        >>> torch.equal(cross_attended_features(x, [-x, -x]), torch.zeros(2, 9, 4))
        True
    """
    total = attended[0]
    for one in attended[1:]:
        total = total + one
    return torch.tanh(x + total / len(attended))
