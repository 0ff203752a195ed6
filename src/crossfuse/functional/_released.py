r"""Recursive cross-modal attention as the authors' released code computes it.

Shapes: B batch, L steps, d features of one modality :math:`X`, D features of its joint :math:`J`.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from crossfuse.functional._products import correlate, spread


def released_correlation(
    x: Tensor, joint: Tensor, temporal: Tensor, bias: Tensor, *, dropout: float = 0.0
) -> Tensor:
    r"""Correlates as the authors' released code does: with a bias over the steps, and dropout.

    .. math:: C = \mathrm{dropout}\left(\tanh\left(\frac{(X^\top T + t) J}{\sqrt{D}}\right)\right)

    Args:
        x: One modality :math:`X`, (B, L, d).
        joint: Its joint :math:`J`, (B, L, D), zero at invalid steps.
        temporal: Learned mixing of the steps :math:`T`, (L, L).
        bias: Its bias :math:`t`, (L,).
        dropout: Probability of dropping an element; 0 when not training.

    Returns:
        The correlation :math:`C`, (B, d, D), in (-1, 1) without dropout.
    """
    # The bias is the same in every row of X'T, so its share of the product is one row for all.
    scale = joint.shape[-1] ** -0.5
    scores = correlate(x, joint, temporal * scale).add_((bias * scale @ joint)[:, None])
    return torch.dropout(torch.tanh_(scores), dropout, train=True)


def released_attention_map(
    x: Tensor,
    correlation: Tensor,
    feature: Tensor,
    bias: Tensor,
    *,
    longest: int | None = None,
) -> Tensor:
    r"""Spreads the correlation over the steps as the authors' released code does.

    .. math:: H = \mathrm{relu}(\tanh((X F + f) C))

    Args:
        x: One modality :math:`X`, (B, L, d).
        correlation: Its correlation :math:`C`, (B, d, D).
        feature: Learned mixing of the features :math:`F`, (d, d).
        bias: Its bias :math:`f`, (d,).
        longest: As in :func:`attention_map`.

    Returns:
        The attention map :math:`H`, (B, L, D), in [0, 1). Invalid steps are not zero.
    """
    scores = spread(x, correlation, feature, longest).add_((bias @ correlation)[:, None])
    return torch.relu(torch.tanh_(scores))


def released_attended_features(
    x: Tensor, attention: Tensor, output: Tensor, bias: Tensor, *, dropout: float = 0.0
) -> Tensor:
    r"""Adds what the attention map found as the authors' released code does.

    .. math:: X' = X + \mathrm{dropout}(\mathrm{relu}(H O + o))

    Args:
        x: One modality :math:`X`, (B, L, d).
        attention: Its attention map :math:`H`, (B, L, D).
        output: Learned way back to the modality's features :math:`O`, (D, d).
        bias: Its bias :math:`o`, (d,).
        dropout: Probability of dropping an element of the product; 0 when not training.

    Returns:
        The attended features :math:`X'`, (B, L, d). Invalid steps are not zero.
    """
    found = linear(attention, output.mT, bias)
    return x + torch.dropout(torch.relu_(found), dropout, train=True)
