"""Products of several matrices, in the cheaper of their orders, chosen from the shapes."""

import torch
from torch import Tensor
from torch.nn.functional import linear


def correlate(x: Tensor, joint: Tensor, temporal: Tensor) -> Tensor:
    """Multiplies X' T J; both orders share L d D, and T meets the narrower of X and J."""
    if x.shape[-1] <= joint.shape[-1]:
        return mix(temporal.mT, x).mT @ joint
    return x.mT @ mix(temporal, joint)


def spread(
    x: Tensor,
    correlation: Tensor,
    feature: Tensor,
    longest: int | None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiplies (X F + f) C; both orders share L d D, and F meets the smaller of X and C."""
    if longest is None:
        # A compiled graph must serve any number of steps, and windows without a limit are long.
        longest = correlation.shape[-1] + 1 if torch.compiler.is_compiling() else x.shape[1]
    if longest <= correlation.shape[-1]:
        return linear(x, feature.mT, bias) @ correlation
    scores = x @ mix(feature, correlation)
    return scores if bias is None else scores + bias.expand(x.shape[0], 1, -1) @ correlation


def through_heads(
    x: Tensor, feature: Tensor, correlation: Tensor, output: Tensor, longest: int | None = None
) -> Tensor:
    """Multiplies X F C O, C in heads (B, h, k, k); F C O is smaller than X where steps are many.

    All may have one more leading dimension, that of the modalities.
    """
    steps = x.shape[-2]
    if torch.compiler.is_compiling():
        # A compiled graph must serve any number of steps, and most windows have some hundreds.
        steps = 256 if longest is None else longest
    if steps < x.shape[-1]:
        return _mapped(in_heads(_mapped(x, feature), correlation), output)
    maps = torch.unflatten(output, -2, (correlation.shape[-3], -1)).unsqueeze(-4)
    return x @ (feature.unsqueeze(-3) @ (correlation @ maps).flatten(-3, -2))


def in_heads(x: Tensor, correlation: Tensor) -> Tensor:
    """Multiplies X C, with C in heads (B, h, k, k)."""
    product = split_heads(x, correlation.shape[-3]) @ correlation
    return product.transpose(-3, -2).flatten(-2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Splits the features: (B, L, d) as (B, h, L, k)."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(-3, -2)


def _mapped(x: Tensor, weight: Tensor) -> Tensor:
    """Multiplies X A, in one product for all samples."""
    return (x.flatten(-3, -2) @ weight).view_as(x)


def mix(weight: Tensor, x: Tensor) -> Tensor:
    """Multiplies every sample of x (B, n, m) by the same weight (k, n) from the left."""
    if not torch.compiler.is_compiling() and x.shape[1] > x.shape[2]:
        return weight @ x
    # Saves the transposed copies of x that matmul makes to put the batch into one product; the
    # gradient of the weight is then summed over (B, k, n), so it pays only where x is wide.
    return torch.bmm(weight.expand(x.shape[0], -1, -1), x)
