r"""Cross-modal transformer, equation by equation.

Shapes: B batch, L steps of the target modality, S steps of the source modality, K width.
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from crossfuse.functional._checks import checked

_PERIOD = 10000.0  # longest period of the positions, in steps and over 2 pi


@checked(x="BLK")
def cross_modal_positions(x: Tensor) -> Tensor:
    r"""Adds the sinusoidal encoding of its position to each step.

    .. math::
        x_{t,2j} + \sin\left(t / 10000^{2j/k}\right) \qquad
        x_{t,2j+1} + \cos\left(t / 10000^{2j/k}\right)

    Cross-modal transformer (ACL 2019), the positional embedding; t counts from 0.

    Args:
        x: Embedded features of one modality, (B, L, K).

    Returns:
        The same with positions, (B, L, K).

    Example:
        >>> cross_modal_positions(torch.zeros(1, 3, 4))[0, 0]
        tensor([0., 1., 0., 1.])
    """
    width = x.shape[-1]
    # Half precision cannot count the steps of a long window.
    wide = torch.promote_types(x.dtype, torch.float32)
    steps = torch.arange(x.shape[1], device=x.device, dtype=wide)
    even = torch.arange(0, width, 2, device=x.device, dtype=wide)
    angle = steps[:, None] * torch.exp(even * -(torch.log(even.new_tensor(_PERIOD)) / width))
    waves = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]
    return x + waves.to(x.dtype)


@checked(query="BLK", key="BSK", value="BSK", valid="BS bool none")
def cross_modal_attention(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None = None, *, heads: int = 1
) -> Tensor:
    r"""Averages the steps of a source modality for each step of a target modality.

    .. math:: \mathrm{softmax}\left(\frac{Q_\alpha K_\beta^\top}{\sqrt{k_h}}\right) V_\beta

    Cross-modal transformer (ACL 2019), the cross-modal attention from source β to target α, with
    :math:`k_h` = K / heads; each head has its own part of the last axis.

    Args:
        query: :math:`Q_\alpha`, (B, L, K).
        key: :math:`K_\beta`, (B, S, K).
        value: :math:`V_\beta`, (B, S, K).
        valid: Steps of the source that take part, bool (B, S), True = valid; ``None`` for all.
        heads: Number of heads; it divides K.

    Returns:
        The attended values, (B, L, K). Zero for a sample without a valid step in the source.

    Example:
        >>> query, key, value = torch.randn(2, 9, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
        >>> cross_modal_attention(query, key, value, heads=2).shape
        torch.Size([2, 9, 8])
    """
    q, k, v = (rearrange(x, "b l (h k) -> b h l k", h=heads) for x in (query, key, value))
    if valid is None:
        return rearrange(scaled_dot_product_attention(q, k, v), "b h l k -> b l (h k)")
    # A softmax over nothing is NaN on some backends: a source without a valid step is attended to
    # everywhere, and what that gives is zeroed.
    present = valid.any(dim=1)[:, None, None]
    among = valid[:, None, None, :] | ~present[..., None]
    attended = scaled_dot_product_attention(q, k, v, attn_mask=among)
    return rearrange(attended, "b h l k -> b l (h k)").masked_fill(~present, 0.0)
