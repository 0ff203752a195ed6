r"""Pooling over the steps of a window, equation by equation.

Shapes: B batch, L steps, d features of :math:`X`. Invalid steps of :math:`X` are zeros.
"""

import torch
from torch import Tensor

from crossfuse.functional._checks import checked


@checked(x="BLd", valid="BL bool none")
def masked_mean(x: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""Averages features over the valid steps.

    .. math:: y = \frac{1}{|V|} \sum_{t \in V} x_t

    Args:
        x: Features :math:`X`, (B, L, d), zero at invalid steps.
        valid: Valid steps :math:`V`, bool (B, L), True = valid; ``None`` for all.

    Returns:
        (B, d); zeros for a sample without valid steps.

    Example:
        >>> masked_mean(torch.tensor([[[2.0], [4.0], [0.0]]]), torch.tensor([[True, True, False]]))
        tensor([[3.]])
    """
    # A sum of many steps can leave the range of half precision, although their mean does not.
    total = x.sum(dim=1, dtype=torch.promote_types(x.dtype, torch.float32))
    count = x.shape[1] if valid is None else valid.sum(dim=1, keepdim=True).clamp(min=1)
    return (total / count).to(x.dtype)


@checked(x="BLd", query="d", valid="BL bool none")
def attention_pooling(x: Tensor, query: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""Averages features over the valid steps, weighted by their product with a query.

    .. math:: y = \mathrm{softmax}\left(\frac{X q}{\sqrt{d}}\right)^{\!\top} X

    Args:
        x: Features :math:`X`, (B, L, d), zero at invalid steps.
        query: Learned query :math:`q`, (d,).
        valid: Steps over which the softmax runs, bool (B, L), True = valid; ``None`` for all.

    Returns:
        (B, d); zeros for a sample without valid steps.

    Example:
        >>> x = torch.randn(2, 9, 4)
        >>> torch.allclose(attention_pooling(x, torch.zeros(4)), x.mean(dim=1), atol=1e-6)
        True
    """
    scores = x @ (query / query.shape[0] ** 0.5)
    if valid is not None:
        # The lowest number rather than -inf: where no step is valid the weights stay finite.
        scores = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
    return (torch.softmax(scores, dim=1)[:, None] @ x)[:, 0]
