r"""The equations, one function each: pure, parameter-free, batch first.

Shapes: B batch, L steps, d features of one modality :math:`X`, D features of its joint :math:`J`,
K width of the joint attention. Weights act on rows, so features stay on the last axis.

A product of three matrices is computed in the cheaper of its two orders, chosen from the shapes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def joint_features(features: Sequence[Tensor]) -> Tensor:
    """Puts features (B, L, d_j) side by side: the joint J (B, L, D), with D the sum of d_j."""
    return features[0] if len(features) == 1 else torch.cat(list(features), dim=-1)


def joint_correlation(x: Tensor, joint: Tensor, temporal: Tensor) -> Tensor:
    r"""Correlates every feature of a modality with every feature of its joint, mixed over time.

    .. math:: C = \tanh\left(\frac{X^\top T J}{\sqrt{D}}\right)

    RCMA, eqs. 2-4; the joint correlation of JCA.

    Args:
        x: One modality :math:`X`, (B, L, d).
        joint: Its joint :math:`J`, (B, L, D).
        temporal: Learned mixing of the steps :math:`T`, (L, L).

    Returns:
        The correlation :math:`C`, (B, d, D), in (-1, 1).
    """
    return torch.tanh(_correlate(x, joint, temporal) * joint.shape[-1] ** -0.5)


def unaligned_correlation(
    x: Tensor, others: Sequence[Tensor], temporals: Sequence[Tensor]
) -> Tensor:
    r"""Correlates a modality with others that have numbers of steps of their own.

    .. math:: C = \tanh\left(\frac{[X^\top T_1 X_1, \ldots, X^\top T_n X_n]}{\sqrt{D}}\right)

    RCMA, eqs. 2-4, with one block of :math:`T` per modality of the joint. (A deviation from the
    paper, where all have the same steps.)

    Args:
        x: One modality :math:`X`, (B, L, d).
        others: The modalities :math:`X_j` of its joint, (B, L_j, d_j).
        temporals: The blocks :math:`T_j`, (L, L_j).

    Returns:
        The correlation :math:`C`, (B, d, D), in (-1, 1).
    """
    blocks = [_correlate(x, other, t) for other, t in zip(others, temporals, strict=True)]
    scores = torch.cat(blocks, dim=-1)
    return torch.tanh(scores * scores.shape[-1] ** -0.5)


def timeless_correlation(x: Tensor, joint: Tensor, count: Tensor | int) -> Tensor:
    r"""Correlates a modality with its joint at equal steps, for windows of any length.

    .. math:: C = \tanh\left(\frac{X^\top J}{\sqrt{n}}\right)

    RCMA, eqs. 2-4, without :math:`T`; the divisor keeps the argument at unit scale at any length.
    (A deviation from the paper.)

    Args:
        x: One modality :math:`X`, (B, L, d).
        joint: Its joint :math:`J`, (B, L, D).
        count: The number :math:`n` of valid steps, at least 1; an int, or one per sample (B,).

    Returns:
        The correlation :math:`C`, (B, d, D), in (-1, 1).
    """
    scores = x.mT @ joint
    if isinstance(count, Tensor):
        # Halves hold no count above 2048 exactly, so the root is taken in single precision.
        root = count.to(torch.promote_types(scores.dtype, torch.float32)).rsqrt()
        return torch.tanh(scores * root.to(scores.dtype)[:, None, None])
    return torch.tanh(scores * count**-0.5)


def attention_map(
    x: Tensor,
    correlation: Tensor,
    feature: Tensor,
    *,
    scale: float = 1.0,
    longest: int | None = None,
) -> Tensor:
    r"""Spreads the correlation over the steps.

    .. math:: H = \mathrm{relu}(X F C)

    RCMA, eqs. 5-7.

    Args:
        x: One modality :math:`X`, (B, L, d).
        correlation: Its correlation :math:`C`, (B, d, D).
        feature: Learned mixing of the features :math:`F`, (d, d).
        scale: A factor of the argument; 1 in the paper.
        longest: The number of steps that decides the order of the products, where that of ``x``
            must not (it would be compiled into the graph); ``None`` for that of ``x``.

    Returns:
        The attention map :math:`H`, (B, L, D), not negative.
    """
    return torch.relu(_spread(x, correlation, feature, longest) * scale)


def attended_features(
    x: Tensor, attention: Tensor, output: Tensor, *, dropout: float = 0.0
) -> Tensor:
    r"""Adds what the attention map found to the features.

    .. math:: X' = X + \mathrm{dropout}(H O)

    RCMA, eqs. 8-13.

    Args:
        x: One modality :math:`X`, (B, L, d).
        attention: Its attention map :math:`H`, (B, L, D).
        output: Learned way back to the modality's features :math:`O`, (D, d).
        dropout: Probability of dropping an element of the product; 0 when not training.

    Returns:
        The attended features :math:`X'`, (B, L, d).
    """
    return x + torch.dropout(attention @ output, dropout, train=True)


def joint_attention_map(
    x: Tensor, correlation: Tensor, own: Tensor, joint: Tensor, *, scale: float = 1.0
) -> Tensor:
    r"""Combines a modality's own features with its correlation, step axis to width K.

    .. math:: H = \mathrm{relu}(X^\top S + C G)

    JCA, the attention maps.

    Args:
        x: One modality :math:`X`, (B, L, d).
        correlation: Its correlation :math:`C`, (B, d, D).
        own: Weight of the modality's own steps :math:`S`, (L, K).
        joint: Weight of the correlation :math:`G`, (D, K).
        scale: A factor of the argument; 1 in the paper.

    Returns:
        The attention map :math:`H`, (B, d, K), not negative.
    """
    return torch.relu((x.mT @ own + correlation @ joint) * scale)


def joint_attended_features(
    x: Tensor, attention: Tensor, output: Tensor, *, dropout: float = 0.0
) -> Tensor:
    r"""Adds what the joint attention map found to the features, width K back to steps.

    .. math:: X' = X + \mathrm{dropout}((H O)^\top)

    JCA, the attended features.

    Args:
        x: One modality :math:`X`, (B, L, d).
        attention: Its attention map :math:`H`, (B, d, K).
        output: Learned way back to the steps :math:`O`, (K, L).
        dropout: Probability of dropping an element of the product; 0 when not training.

    Returns:
        The attended features :math:`X'`, (B, L, d).
    """
    return x + torch.dropout(output.mT @ attention.mT, dropout, train=True)


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
    scores = _correlate(x, joint, temporal) + (bias @ joint)[:, None]
    return torch.dropout(torch.tanh(scores * joint.shape[-1] ** -0.5), dropout, train=True)


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
    return torch.relu(
        torch.tanh(_spread(x, correlation, feature, longest) + (bias @ correlation)[:, None])
    )


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
    return x + torch.dropout(torch.relu(attention @ output + bias), dropout, train=True)


def _correlate(x: Tensor, joint: Tensor, temporal: Tensor) -> Tensor:
    """Multiplies X' T J; both orders share L d D, and T meets the narrower of X and J."""
    if x.shape[-1] <= joint.shape[-1]:
        return x.mT @ temporal @ joint
    return x.mT @ (temporal @ joint)


def _spread(x: Tensor, correlation: Tensor, feature: Tensor, longest: int | None) -> Tensor:
    """Multiplies X F C; both orders share L d D, and F meets the smaller of X and C."""
    if longest is None:
        # A compiled graph must serve any number of steps, and windows without a limit are long.
        longest = correlation.shape[-1] + 1 if torch.compiler.is_compiling() else x.shape[1]
    if longest <= correlation.shape[-1]:
        return x @ feature @ correlation
    return x @ (feature @ correlation)
