r"""Recursive cross-modal attention, equation by equation.

Shapes: B batch, L steps, d features of one modality :math:`X`, D features of its joint :math:`J`.

The largest tensors here are C and H. To minimise memory traffic, scale factors are folded into the
smallest operand, and tanh and relu are applied in place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossfuse.functional._checks import check_blocks, checked
from crossfuse.functional._products import correlate, spread


@checked(features="*BL.")
def concat_features(features: Sequence[Tensor]) -> Tensor:
    r"""Concatenates features: the joint of a modality.

    .. math:: J_i = [X_j]_{j \ne i} \quad\text{or}\quad J_i = [X_1, \ldots, X_N]

    The joint of RCMA: all other modalities in arXiv v1, all of them in later versions and in JCA.

    Args:
        features: Those of the modalities in it, (B, L, d_j) each.

    Returns:
        The joint :math:`J`, (B, L, D), with D the sum of d_j.

    Example:
        >>> concat_features([torch.randn(2, 9, 5), torch.randn(2, 9, 2)]).shape
        torch.Size([2, 9, 7])
    """
    return torch.cat(list(features), dim=-1)


@checked(x="BLd", joint="BMD", temporal="LM")
def rcma_correlation(x: Tensor, joint: Tensor, temporal: Tensor) -> Tensor:
    r"""Correlates every feature of a modality with every feature of its joint, mixed over time.

    .. math:: C = \tanh\left(\frac{X^\top T J}{\sqrt{D}}\right)

    RCMA, eqs. 2-4; the joint correlation of JCA.

    Args:
        x: One modality :math:`X`, (B, L, d).
        joint: Its joint :math:`J`, (B, L, D).
        temporal: Learned mixing of the steps :math:`T`, (L, L).

    Returns:
        The correlation :math:`C`, (B, d, D), in (-1, 1).

    Example:
        >>> x, joint = torch.randn(2, 9, 4), torch.randn(2, 9, 7)
        >>> rcma_correlation(x, joint, torch.randn(9, 9)).shape
        torch.Size([2, 4, 7])
    """
    # M steps of the joint, which are L but where a layer has a length for each modality.
    return torch.tanh_(correlate(x, joint, temporal * joint.shape[-1] ** -0.5))


@checked(also=check_blocks, x="BLd", others="*B..", temporals="*L.")
def rcma_unaligned_correlation(
    x: Tensor, others: Sequence[Tensor], temporals: Sequence[Tensor]
) -> Tensor:
    r"""Correlates a modality with modalities of different lengths.

    .. math:: C = \tanh\left(\frac{[X^\top T_1 X_1, \ldots, X^\top T_n X_n]}{\sqrt{D}}\right)

    RCMA, eqs. 2-4, with one block of :math:`T` per modality of the joint. (A deviation from the
    paper, where all have the same steps.)

    Args:
        x: One modality :math:`X`, (B, L, d).
        others: The modalities :math:`X_j` of its joint, (B, L_j, d_j).
        temporals: The blocks :math:`T_j`, (L, L_j).

    Returns:
        The correlation :math:`C`, (B, d, D), in (-1, 1).

    Example:
        >>> x, others = torch.randn(2, 9, 4), [torch.randn(2, 30, 5), torch.randn(2, 6, 2)]
        >>> rcma_unaligned_correlation(x, others, [torch.randn(9, 30), torch.randn(9, 6)]).shape
        torch.Size([2, 4, 7])
    """
    scale = sum(other.shape[-1] for other in others) ** -0.5
    blocks = [correlate(x, other, t * scale) for other, t in zip(others, temporals, strict=True)]
    return torch.tanh_(torch.cat(blocks, dim=-1))


@checked(x="BLd", joint="BLD")
def rcma_timeless_correlation(x: Tensor, joint: Tensor, count: Tensor | int) -> Tensor:
    r"""Correlates a modality with its joint at equal steps, for windows of any length.

    .. math:: C = \tanh\left(\frac{X^\top J}{\sqrt{n}}\right)

    RCMA, eqs. 2-4, without :math:`T`; the divisor keeps the argument at unit scale at any length.
    (A deviation from the paper.)

    Args:
        x: One modality :math:`X`, (B, L, d).
        joint: Its joint :math:`J`, (B, L, D).
        count: The number :math:`n` of valid steps, at least 1; an int, or one per sample (B,)
            (0 counts as 1).

    Returns:
        The correlation :math:`C`, (B, d, D), in (-1, 1).

    Example:
        >>> x, joint = torch.randn(2, 9, 4), torch.randn(2, 9, 7)
        >>> rcma_timeless_correlation(x, joint, torch.tensor([9, 5])).shape
        torch.Size([2, 4, 7])
    """
    count = count.clamp(min=1) if isinstance(count, Tensor) else count
    if isinstance(count, Tensor) and count.ndim == 1:
        # Half precision holds no count above 2048 exactly: the root is taken in single precision.
        root = count.to(torch.promote_types(x.dtype, torch.float32)).rsqrt()
        return torch.tanh_((x * root.to(x.dtype)[:, None, None]).mT @ joint)
    return torch.tanh_((x * count**-0.5).mT @ joint)


@checked(x="BLd", correlation="BdD", feature="dd")
def rcma_attention_map(
    x: Tensor,
    correlation: Tensor,
    feature: Tensor,
    *,
    longest: int | None = None,
) -> Tensor:
    r"""Applies the correlation to the features of each step.

    .. math:: H = \mathrm{relu}(X F C)

    RCMA, eqs. 5-7.

    Args:
        x: One modality :math:`X`, (B, L, d).
        correlation: Its correlation :math:`C`, (B, d, D).
        feature: Learned mixing of the features :math:`F`, (d, d).
        longest: The number of steps that decides the order of the products, if that of ``x`` must
            not (it would be compiled into the graph); ``None`` for that of ``x``.

    Returns:
        The attention map :math:`H`, (B, L, D), not negative.

    Example:
        >>> x, correlation = torch.randn(2, 9, 4), torch.rand(2, 4, 7)
        >>> rcma_attention_map(x, correlation, torch.randn(4, 4)).shape
        torch.Size([2, 9, 7])
    """
    return torch.relu_(spread(x, correlation, feature, longest))


@checked(x="BLd", attention="BLD", output="Dd")
def rcma_attended_features(
    x: Tensor, attention: Tensor, output: Tensor, *, dropout: float = 0.0
) -> Tensor:
    r"""Adds the projected attention map to the features.

    .. math:: X' = X + \mathrm{dropout}(H O)

    RCMA, eqs. 8-13.

    Args:
        x: One modality :math:`X`, (B, L, d).
        attention: Its attention map :math:`H`, (B, L, D).
        output: Learned output projection :math:`O`, (D, d).
        dropout: Probability of dropping an element of the product; 0 when not training.

    Returns:
        The attended features :math:`X'`, (B, L, d).

    Example:
        >>> x, attention = torch.randn(2, 9, 4), torch.rand(2, 9, 7)
        >>> rcma_attended_features(x, attention, torch.randn(7, 4)).shape
        torch.Size([2, 9, 4])
    """
    return x + torch.dropout(attention @ output, dropout, train=True)
