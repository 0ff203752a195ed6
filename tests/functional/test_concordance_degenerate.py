"""functional.concordance for windows without variance, in one series or in both."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crossfuse import ConcordanceLoss
from crossfuse.functional import concordance
from tests.support.concordance import (
    F64,
    HALF_PRECISION,
    OVER,
    Case,
    options,
)

# Each gives prediction and target from noise: windows without variance, in one or both.
DEGENERATE: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "both zero": lambda x: (x * 0, x * 0),
    "equal constants": lambda x: (x * 0 + 0.3, x * 0 + 0.3),
    "other constants": lambda x: (x * 0 + 0.3, x * 0 - 0.3),
    "nearly equal constants": lambda x: (x * 0 + 0.3, x * 0 + 0.3001),
    "a constant target": lambda x: (x, x * 0 + 0.3),
    "a constant prediction": lambda x: (x * 0, x),
    "almost no noise": lambda x: (x * 1e-5, x.flip(1) * 1e-5),
    "tiny numbers": lambda x: (x * 1e-7, x.flip(1) * 1e-7),
    "far from zero": lambda x: (x * 0 + 6e4, x * 0 + 6e4),
    "equal": lambda x: (x, x),
}


@options
@pytest.mark.parametrize("dtype", [F64, torch.float32, *HALF_PRECISION], ids=str)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_windows_have_finite_values_and_gradients(
    kind: str, dtype: torch.dtype, moments: str
) -> None:
    for case in (Case(2, 5), Case(2, 5, (2,), (31, 12)), Case(2, 1), Case(0, 3), Case(2, 300)):
        x, y = (one.to(dtype).requires_grad_() for one in DEGENERATE[kind](case.series()[0]))
        for over in OVER:
            found = concordance(x, y, case.mask(), over=over, moments=moments)
            assert found.isfinite().all()
            assert found.abs().le(1).all()
            loss = ConcordanceLoss(over=over, moments=moments)(x, y, case.mask())
            for total in (found.sum(), loss):
                for gradient in torch.autograd.grad(total, (x, y), retain_graph=True):
                    assert gradient.isfinite().all(), f"{case}, over {over}"


def test_constant_windows_agree_only_if_equal() -> None:
    constant, noise = torch.full((1, 5), 0.3), torch.randn(1, 5)
    assert concordance(constant, constant) == 1
    assert concordance(constant, -constant).abs() < 1e-6
    assert concordance(constant, noise).abs() < 1e-6
    assert concordance(noise, constant).abs() < 1e-6
    assert concordance(constant, constant, torch.zeros(1, 5, dtype=torch.bool)) == 0
