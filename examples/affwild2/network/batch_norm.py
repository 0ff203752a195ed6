"""Batch normalisation over the valid steps only, of all processes together.

Shapes: B windows, L steps, d features.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn


class MaskedBatchNorm(nn.Module):
    """Normalises each feature over the valid steps of the batch; padding neither counts nor gains.

    Where several processes train together their batches count as one, so that the numbers do not
    depend on how many processes there are.

    Args:
        dim: Features d.
        momentum: Weight of a batch in the running mean and variance.
        eps: Added to the variance.

    Shape:
        - ``x``: (B, L, d); ``mask``: bool (B, L), True = valid
        - output: (B, L, d), zero at invalid steps
    """

    def __init__(self, dim: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalises ``x``."""
        valid = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        valid = valid[..., None]
        mean, variance = self._measure(x, valid) if self.training else (self.mean, self.variance)
        scaled = (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return scaled.masked_fill(~valid, 0.0)

    def _measure(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (d,) of this batch; without a single valid step, the running ones."""
        kept = x.to(self.mean.dtype).masked_fill(~valid, 0.0)
        count = _everywhere(valid.sum().to(kept.dtype)[None])
        mean = _everywhere(kept.sum((0, 1))) / count.clamp(min=1)
        squares = (kept - mean).masked_fill(~valid, 0.0).square()
        variance = _everywhere(squares.sum((0, 1))) / count.clamp(min=1)
        share = self.momentum * (count > 0).to(kept.dtype)
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.mean.lerp_(mean, share)
            self.variance.lerp_(unbiased, share)
        return torch.where(count > 0, mean, self.mean), torch.where(
            count > 0, variance, self.variance
        )


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; every process's gradient reaches every summand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401  # torch's context
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401  # torch's context
        total = grad.clone()
        distributed.all_reduce(total)
        return total


def _everywhere(x: Tensor) -> Tensor:
    """Adds up over the processes, gradients included."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return x
    total: Tensor = _SumOverProcesses.apply(x)  # type: ignore[no-untyped-call]  # torch's
    return total
