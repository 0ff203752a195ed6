"""Modules that the tests of PerModality share."""

from __future__ import annotations

from torch import Tensor, nn


class Cumulative(nn.Module):
    """A user's own wrapper, which keeps its module under a name that libraries use too."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Tensor, **options: Tensor) -> Tensor:
        y: Tensor = self.module(*args, **options)
        return y.cumsum(dim=1)
