r"""Recursive cross-modal attention in its stable form, equation by equation.

Shapes: B batch, L steps, d features of one modality :math:`X`, h heads of k = d / h features.
"""

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from crossfuse.functional._checks import check_stable_heads, checked
from crossfuse.functional._products import in_heads, split_heads, through_heads


@checked(key="BLd", value="BLd")
def rcma_stable_correlation(
    key: Tensor, value: Tensor, count: Tensor | int, heads: int = 1
) -> Tensor:
    r"""Correlates mapped features of a modality with mapped features of its joint, in each head.

    .. math:: C = \frac{\hat K^\top \hat V}{n} \qquad \hat k = \frac{k}{\mathrm{rms}(k)}

    for every column :math:`k` of :math:`K` and of :math:`V`, over the n valid steps. The stable
    form of RCMA (ours; a deviation from eqs. 2-4): an entry is a correlation coefficient (not
    centred), so it means the same in windows of any length.

    Args:
        key: The mapped features of the modality :math:`K`, (B, L, d), zero at its invalid steps.
        value: The mapped joint :math:`V`, (B, L, d), zero at the same steps.
        count: The number :math:`n` of valid steps, at least 1; an int, or one per sample (B,)
            (0 counts as 1).
        heads: The number of heads h, a divisor of d; features of different heads do not meet.

    Returns:
        The correlation :math:`C`, (B, h, k, k), in [-1, 1].

    Example:
        >>> key, value = torch.randn(2, 9, 8), torch.randn(2, 9, 8)
        >>> correlation = rcma_stable_correlation(key, value, 9, heads=4)
        >>> correlation.shape, bool(correlation.abs().max() <= 1)
        (torch.Size([2, 4, 2, 2]), True)
    """
    if isinstance(count, Tensor):
        # Added to features as integers, they would make tangents of forward mode double precision.
        count = count.clamp(min=1).to(torch.promote_types(key.dtype, torch.float32))
        count = count[:, None, None] if count.ndim == 1 else count
    # 1/n is the product of the two 1/sqrt(n) by which a norm is more than a root mean square.
    key = key * _inverse_norm(key, count)
    # The columns of V are divided where they are small: in C.
    size = split_heads(_inverse_norm(value, count), heads)
    # Copies, which are faster than the transposed ones that the product would make.
    key, value = (split_heads(x, heads).contiguous() for x in (key, value))
    return key.mT @ value * size  # (B, h, 1, k)


@checked(also=check_stable_heads, query="BLd", correlation="Bhkk")
def rcma_stable_attention_map(query: Tensor, correlation: Tensor) -> Tensor:
    r"""Spreads the correlation over the steps.

    .. math:: H = \frac{Q C}{\sqrt{k}}

    in each head. The stable form of RCMA (ours; a deviation from eqs. 5-7).

    Args:
        query: The mapped features of the modality :math:`Q`, (B, L, d).
        correlation: Their correlation :math:`C`, (B, h, k, k).

    Returns:
        The attention map :math:`H`, (B, L, d), the heads concatenated.

    Example:
        >>> query, correlation = torch.randn(2, 9, 8), torch.rand(2, 4, 2, 2)
        >>> rcma_stable_attention_map(query, correlation).shape
        torch.Size([2, 9, 8])
    """
    return in_heads(query, correlation * correlation.shape[2] ** -0.5)


def attended_features(
    x: Tensor,
    inner: Tensor,
    feature: Tensor,
    correlation: Tensor,
    output: Tensor,
    *,
    longest: int | None,
    dropout: float,
) -> Tensor:
    r"""Adds H O to X for the query X F of ``inner``, without H where that is less work.

    The numbers are those of ``rcma_stable_attention_map`` and ``rcma_attended_features``. A
    compiled graph is made for windows of ``longest`` steps.
    """
    correlation = correlation * correlation.shape[2] ** -0.5
    product = through_heads(inner, feature, correlation, output, longest)
    return x + torch.dropout(product, dropout, train=True)


@checked(x="BLd", value="BLm", hidden="dm", hidden_bias="m", back="md")
def rcma_feed_forward(
    x: Tensor,
    value: Tensor,
    hidden: Tensor,
    hidden_bias: Tensor,
    back: Tensor,
    *,
    dropout: float = 0.0,
) -> Tensor:
    r"""Adds what a feed-forward network finds in each step, of the modality and of its joint.

    .. math:: X' = X + \mathrm{dropout}(\mathrm{GELU}(\mathrm{LN}(X) A + V + a) B)

    The stable form of RCMA (ours; the paper has none). LN is a layer norm without weights.

    Args:
        x: The attended features :math:`X`, (B, L, d).
        value: The mapped joint :math:`V` of the correlation, (B, L, m).
        hidden: The weight of the hidden layer :math:`A`, (d, m).
        hidden_bias: Its bias :math:`a`, (m,).
        back: The weight of the output :math:`B`, (m, d).
        dropout: Probability of dropping an element of the product; 0 when not training.

    Returns:
        :math:`X'`, (B, L, d). Invalid steps are not zero.

    Example:
        >>> x = torch.randn(2, 9, 4)
        >>> value = torch.randn(2, 9, 8)
        >>> rcma_feed_forward(x, value, torch.randn(4, 8), torch.zeros(8), torch.randn(8, 4)).shape
        torch.Size([2, 9, 4])
    """
    scores = linear(layer_norm(x, x.shape[-1:]), hidden.mT, hidden_bias) + value
    return x + torch.dropout(gelu(scores) @ back, dropout, train=True)


def _inverse_norm(x: Tensor, count: Tensor | int) -> Tensor:
    """One over the norm of every column of x (B, L, d), over n steps: (B, 1, d)."""
    # Single precision holds the squares of half precision.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # The epsilon of LayerNorm; a literal, because compiled checkpoints cannot share a global float.
    power = torch.add(wide.square().sum(dim=1, keepdim=True), count, alpha=1e-5)
    return power.rsqrt().to(x.dtype)
