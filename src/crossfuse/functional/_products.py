"""Products of three matrices, in the cheaper of their two orders, chosen from the shapes."""

import torch
from torch import Tensor


def correlate(x: Tensor, joint: Tensor, temporal: Tensor) -> Tensor:
    """Multiplies X' T J; both orders share L d D, and T meets the narrower of X and J."""
    if x.shape[-1] <= joint.shape[-1]:
        return x.mT @ temporal @ joint
    return x.mT @ (temporal @ joint)


def spread(x: Tensor, correlation: Tensor, feature: Tensor, longest: int | None) -> Tensor:
    """Multiplies X F C; both orders share L d D, and F meets the smaller of X and C."""
    if longest is None:
        # A compiled graph must serve any number of steps, and windows without a limit are long.
        longest = correlation.shape[-1] + 1 if torch.compiler.is_compiling() else x.shape[1]
    if longest <= correlation.shape[-1]:
        return x @ feature @ correlation
    return x @ (feature @ correlation)
