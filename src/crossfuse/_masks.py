"""What a mask means: the one place that knows that False is an invalid step.

Shapes: B batch, L steps. A mask is bool (B, L), True = valid; ``None`` means that all are valid.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def zero_invalid(x: Tensor, valid: Tensor | None) -> Tensor:
    """Writes zeros (over NaN too) to the invalid steps of x (B, L, ...)."""
    if valid is None:
        return x
    return x.masked_fill(~valid.reshape(*valid.shape, *[1] * (x.ndim - valid.ndim)), 0.0)


def valid_steps(x: Tensor, valid: Tensor | None) -> Tensor:
    """Returns the valid steps (B, L) of x (B, L, ...), also if all are valid."""
    return x.new_ones(x.shape[:2], dtype=torch.bool) if valid is None else valid


def any_valid(masks: Sequence[Tensor | None]) -> Tensor | None:
    """Returns the steps (B, L) at which any of the modalities is valid; None if all are."""
    known = [valid for valid in masks if valid is not None]
    return torch.stack(known).any(dim=0) if len(known) == len(masks) else None


def is_present(valid: Tensor) -> Tensor:
    """Returns in which samples (B, 1) a modality has a valid step: where it is not missing."""
    return valid.any(dim=1, keepdim=True)


def valid_count(x: Tensor, valid: Tensor | None) -> Tensor | int:
    """Counts the valid steps of x (B, L, ...): one number for all, or one per sample (B,).

    At least 1, so that it can be divided by where a modality is missing.
    """
    return x.shape[1] if valid is None else valid.sum(dim=1).clamp(min=1)
