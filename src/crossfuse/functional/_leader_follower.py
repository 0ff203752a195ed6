r"""Leader-follower attention.

Shapes: B batch, L steps, N modalities, K width of the queries, keys and values.
"""

import torch
from torch import Tensor

from crossfuse.functional._checks import checked


@checked(query="BLNK", key="BLNK", value="BLNK", present="BLN bool none")
def leader_follower_attention(
    query: Tensor, key: Tensor, value: Tensor, present: Tensor | None = None
) -> Tensor:
    r"""Computes attention among the modalities, at each step separately.

    .. math:: \mathrm{softmax}\left(\frac{K Q^\top}{\sqrt{k}}\right) V + V

    Leader-follower attention (ICCVW 2021), k the width; the softmax runs over the last axis.

    Args:
        query: :math:`Q`, (B, L, N, K).
        key: :math:`K`, (B, L, N, K).
        value: :math:`V`, (B, L, N, K).
        present: Modalities that take part, bool (B, L, N), True = present; ``None`` for all.

    Returns:
        The attended values, (B, L, N, K), zero for a modality that takes no part.

    Example:
        >>> query, key, value = torch.randn(3, 2, 9, 3, 8)  # three modalities, width 8
        >>> leader_follower_attention(query, key, value).shape
        torch.Size([2, 9, 3, 8])
    """
    scores = key @ query.mT * query.shape[-1] ** -0.5
    if present is None:
        return torch.softmax(scores, dim=-1) @ value + value
    # As in cross_attention: finite if no modality is present.
    scores = scores.masked_fill(~present[..., None, :], torch.finfo(scores.dtype).min)
    attended = torch.softmax(scores, dim=-1) @ value + value
    return attended.masked_fill(~present[..., None], 0.0)
