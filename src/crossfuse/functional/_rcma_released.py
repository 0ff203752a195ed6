r"""Recursive cross-modal attention as the authors' released code computes it.

Shapes: B batch, L steps, d features of one modality :math:`X`, D features of its joint :math:`J`.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from crossfuse.functional._checks import checked
from crossfuse.functional._products import mix, spread


@checked(
    x="BLd",
    joint="BLD",
    temporal="LL",
    bias="L",
    mapping="DD none",
    mapping_bias="D none",
    valid="BL bool none",
)
def rcma_released_correlation(
    x: Tensor,
    joint: Tensor,
    temporal: Tensor,
    bias: Tensor,
    mapping: Tensor | None = None,
    mapping_bias: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    dropout: float = 0.0,
    longest: int | None = None,
) -> Tensor:
    r"""Correlates as the authors' released code does: with biases, a map of the joint, and dropout.

    .. math::
        C = \mathrm{dropout}\left(\tanh\left(\frac{(X^\top T + t) J'}{\sqrt{D}}\right)\right)
        \qquad J' = J P + p

    Args:
        x: One modality :math:`X`, (B, L, d).
        joint: Its joint :math:`J`, (B, L, D), zero at invalid steps.
        temporal: Learned mixing of the steps :math:`T`, (L, L).
        bias: Its bias :math:`t`, (L,).
        mapping: Learned map of the joint :math:`P`, (D, D); ``None`` for :math:`J' = J`.
        mapping_bias: Its bias :math:`p`, (D,).
        valid: Steps at which :math:`J'` is not zero, bool (B, L), True = valid; ``None`` for all.
        dropout: Probability of dropping an element; 0 when not training.
        longest: As in :func:`rcma_attention_map`.

    Returns:
        The correlation :math:`C`, (B, d, D), in (-1, 1) without dropout.

    Example:
        >>> x, joint = torch.randn(2, 9, 4), torch.randn(2, 9, 7)
        >>> rcma_released_correlation(x, joint, torch.randn(9, 9), torch.randn(9)).shape
        torch.Size([2, 4, 7])
    """
    scale = joint.shape[-1] ** -0.5
    if mapping is not None and x.shape[-1] < (longest or x.shape[1]):
        # Fewer features than steps: P comes after the product, and p where the steps are summed.
        mixed = _mixed(x, temporal * scale, bias * scale)
        scores = mixed.mT @ joint @ mapping
        if mapping_bias is not None:
            scores.add_(_kept(mixed, valid).sum(dim=1)[..., None] * mapping_bias)
    else:
        if mapping is not None:
            joint = _kept(linear(joint, mapping.mT, mapping_bias), valid)
        if x.shape[-1] <= joint.shape[-1]:
            scores = _mixed(x, temporal * scale, bias * scale).mT @ joint
        else:
            rows = torch.bmm((bias * scale).expand(joint.shape[0], 1, -1), joint)
            scores = (x.mT @ mix(temporal * scale, joint)).add_(rows)
    return torch.dropout(torch.tanh_(scores), dropout, train=True)


def _mixed(x: Tensor, temporal: Tensor, bias: Tensor) -> Tensor:
    """The transpose of X'T + t: (B, L, d)."""
    return torch.baddbmm(bias[:, None], temporal.mT.expand(x.shape[0], -1, -1), x)


def _kept(x: Tensor, valid: Tensor | None) -> Tensor:
    return x if valid is None else x * valid[..., None]


@checked(x="BLd", correlation="BdD", feature="dd", bias="d")
def rcma_released_attention_map(
    x: Tensor,
    correlation: Tensor,
    feature: Tensor,
    bias: Tensor,
    *,
    longest: int | None = None,
) -> Tensor:
    r"""Applies the correlation to each step as the authors' released code does.

    .. math:: H = \mathrm{relu}(\tanh((X F + f) C))

    Args:
        x: One modality :math:`X`, (B, L, d).
        correlation: Its correlation :math:`C`, (B, d, D).
        feature: Learned mixing of the features :math:`F`, (d, d).
        bias: Its bias :math:`f`, (d,).
        longest: As in :func:`rcma_attention_map`.

    Returns:
        The attention map :math:`H`, (B, L, D), in [0, 1). Invalid steps are not zero.

    Example:
        >>> x, correlation = torch.randn(2, 9, 4), torch.rand(2, 4, 7)
        >>> rcma_released_attention_map(x, correlation, torch.randn(4, 4), torch.randn(4)).shape
        torch.Size([2, 9, 7])
    """
    scores = spread(x, correlation, feature, longest, bias)
    return torch.relu(torch.tanh_(scores))


@checked(x="BLd", attention="BLD", output="Dd", bias="d")
def rcma_released_attended_features(
    x: Tensor, attention: Tensor, output: Tensor, bias: Tensor, *, dropout: float = 0.0
) -> Tensor:
    r"""Adds the projected attention map as the authors' released code does.

    .. math:: X' = X + \mathrm{dropout}(\mathrm{relu}(H O + o))

    Args:
        x: One modality :math:`X`, (B, L, d).
        attention: Its attention map :math:`H`, (B, L, D).
        output: Learned output projection :math:`O`, (D, d).
        bias: Its bias :math:`o`, (d,).
        dropout: Probability of dropping an element of the product; 0 when not training.

    Returns:
        The attended features :math:`X'`, (B, L, d). Invalid steps are not zero.

    Example:
        >>> x, attention = torch.randn(2, 9, 4), torch.rand(2, 9, 7)
        >>> rcma_released_attended_features(x, attention, torch.randn(7, 4), torch.randn(4)).shape
        torch.Size([2, 9, 4])
    """
    found = linear(attention, output.mT, bias)
    return x + torch.dropout(torch.relu_(found), dropout, train=True)
