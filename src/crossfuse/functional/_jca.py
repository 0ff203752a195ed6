r"""Joint cross-attention, equation by equation.

Shapes: B batch, L steps, d features of one modality :math:`X`, D features of its joint :math:`J`,
K width of the attention map.
"""

import torch
from torch import Tensor

from crossfuse.functional._checks import checked
from crossfuse.functional._products import correlate, mix


@checked(x="BLd", joint="BLD", temporal="LL")
def jca_correlation(x: Tensor, joint: Tensor, temporal: Tensor) -> Tensor:
    r"""Correlates every feature of a modality with every feature of the joint, mixed over time.

    .. math:: C = \tanh\left(\frac{X^\top T J}{\sqrt{D}}\right)

    JCA, the joint correlation.

    Args:
        x: One modality :math:`X`, (B, L, d).
        joint: The joint of all modalities :math:`J`, (B, L, D).
        temporal: Learned mixing of the steps :math:`T`, (L, L).

    Returns:
        The correlation :math:`C`, (B, d, D), in (-1, 1).

    Example:
        >>> x, joint = torch.randn(2, 9, 4), torch.randn(2, 9, 7)
        >>> jca_correlation(x, joint, torch.randn(9, 9)).shape
        torch.Size([2, 4, 7])
    """
    return torch.tanh_(correlate(x, joint, temporal * joint.shape[-1] ** -0.5))


@checked(x="BLd", correlation="BdD", own="LK", joint="DK")
def jca_attention_map(x: Tensor, correlation: Tensor, own: Tensor, joint: Tensor) -> Tensor:
    r"""Combines a modality's features with its correlation, projected from the steps to width K.

    .. math:: H = \mathrm{relu}(X^\top S + C G)

    JCA, the attention maps.

    Args:
        x: One modality :math:`X`, (B, L, d).
        correlation: Its correlation :math:`C`, (B, d, D).
        own: Weight of the modality's own steps :math:`S`, (L, K).
        joint: Weight of the correlation :math:`G`, (D, K).

    Returns:
        The attention map :math:`H`, (B, d, K), not negative.

    Example:
        >>> x, correlation = torch.randn(2, 9, 4), torch.rand(2, 4, 7)
        >>> jca_attention_map(x, correlation, torch.randn(9, 5), torch.randn(7, 5)).shape
        torch.Size([2, 4, 5])
    """
    return torch.relu_(mix(own.mT, x).mT + correlation @ joint)


@checked(x="BLd", attention="BdK", output="KL")
def jca_attended_features(
    x: Tensor, attention: Tensor, output: Tensor, *, dropout: float = 0.0
) -> Tensor:
    r"""Adds the attention map, projected from width K to the steps, to the features.

    .. math:: X' = X + \mathrm{dropout}((H O)^\top)

    JCA, the attended features.

    Args:
        x: One modality :math:`X`, (B, L, d).
        attention: Its attention map :math:`H`, (B, d, K).
        output: Learned projection to the steps :math:`O`, (K, L).
        dropout: Probability of dropping an element of the product; 0 when not training.

    Returns:
        The attended features :math:`X'`, (B, L, d).

    Example:
        >>> x, attention = torch.randn(2, 9, 4), torch.rand(2, 4, 5)
        >>> jca_attended_features(x, attention, torch.randn(5, 9)).shape
        torch.Size([2, 9, 4])
    """
    return x + torch.dropout(mix(output.mT, attention.mT), dropout, train=True)
