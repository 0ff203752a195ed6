"""What ModalityDropout and MissingTokens do to each sample, and on which device."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossfuse import MissingTokens, ModalityDropout


@given(rows=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4))
def test_samples_of_streams_that_are_not_aligned_are_filled_one_by_one(
    rows: list[tuple[bool, bool]],
) -> None:
    """All steps of both modalities count where any is present, and none where none is."""
    here = torch.tensor(rows)
    inputs = [torch.randn(len(rows), steps, 2) for steps in (3, 5)]
    masks = [here[:, [k]].expand(-1, steps) for k, steps in enumerate((3, 5))]
    _, filled = MissingTokens([2, 2])(inputs, masks)
    for valid in filled:
        assert torch.equal(valid, here.any(dim=1, keepdim=True).expand_as(valid))


def test_masks_are_drawn_on_the_device_of_the_inputs() -> None:
    inputs = [torch.empty(2, 3, 4, device="meta"), torch.empty(2, 3, 5, device="meta")]
    for mask in ModalityDropout(0.5)(inputs):
        assert mask is not None
        assert mask.device.type == "meta"


def test_dropout_refuses_modalities_on_two_devices() -> None:
    with pytest.raises(ValueError, match="ModalityDropout: '1' is on another device than '0'"):
        ModalityDropout(0.5)([torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, device="meta")])
