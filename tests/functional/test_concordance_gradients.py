"""The gradients of functional.concordance, against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossfuse.functional import concordance
from tests.support.concordance import (
    OVER,
    Case,
    options,
)


@options
@pytest.mark.parametrize("over", OVER)
def test_gradcheck(over: str, moments: str) -> None:
    case = Case(2, 4, (2,), (3, 0), seed=4)

    def run(x: Tensor, y: Tensor) -> Tensor:
        return concordance(x, y, case.mask(), over=over, moments=moments)

    both = [series.requires_grad_() for series in case.series()]
    assert torch.autograd.gradcheck(run, both)
    assert torch.autograd.gradgradcheck(run, both)
