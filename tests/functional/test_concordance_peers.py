"""functional.concordance against torchmetrics, which takes long to import."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from torchmetrics.functional.regression import concordance_corrcoef

from crossfuse.functional import concordance
from tests.support import properties
from tests.support.concordance import (
    TIGHT,
    Case,
    cases,
)


@given(case=cases(batch=(1, 3), least=3))
def test_unbiased_moments_are_those_of_torchmetrics(case: Case) -> None:
    case = replace(case, invalid=None)
    x, y = case.series()
    found = concordance(x, y, moments="unbiased").reshape(case.batch, -1)
    for b in range(case.batch):
        theirs = concordance_corrcoef(
            *(one[b].reshape(case.length, -1).squeeze(1) for one in (x, y))
        )
        properties.close(found[b], theirs.reshape(-1), "against torchmetrics", TIGHT)
    apart = concordance(x, y).reshape(case.batch, -1)
    assert (apart - found).abs().max() > 1e-9, "the two conventions do not differ here"
