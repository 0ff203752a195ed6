"""Masks, missing modalities and samples in CrossModalTransformer."""

from __future__ import annotations

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import properties
from tests.support.cross_modal_transformer import Case, cases
from tests.support.strategies import GAPS


@given(case=cases(batch=(1, 3)))
def test_samples_do_not_mix(case: Case) -> None:
    properties.batch_independent(case.layer(), case.streams.inputs(), case.streams.mask())


@example(case=Case(GAPS))
@given(case=cases())
def test_masked_steps_do_not_matter(case: Case) -> None:
    properties.padding_invariant(
        case.layer(), case.streams.inputs(), case.streams.mask(), padding=2
    )


@given(case=cases(missing=False), data=st.data())
def test_a_missing_modality_is_a_masked_one(case: Case, data: st.DataObject) -> None:
    inputs = case.streams.inputs()
    name = data.draw(st.sampled_from(list(inputs) if case.streams.named else range(len(inputs))))
    properties.missing_equals_masked(case.layer(), inputs, name, case.streams.mask())


@given(case=cases(masks=False, missing=False, batch=(1, 2)))
def test_a_source_that_is_missing_adds_nothing_to_a_target(case: Case) -> None:
    """However its attention maps are set: the outputs do not depend on them."""
    layer, inputs = case.layer(), case.streams.inputs()
    source = next(iter(inputs)) if case.streams.named else 0
    alone = properties.replace(inputs, {str(source): None})
    before = properties.places(layer(alone))
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if f".pairs.{source}." in name and name.split(".")[-2] in {"key", "value", "output"}:
                parameter.mul_(-7)
    for place, y in properties.places(layer(alone)).items():
        assert torch.equal(y, before[place])
