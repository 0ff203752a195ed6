"""RecursiveCrossModalAttention in other dtypes, and far from the scale at which it begins."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given

from crossfuse import RecursiveCrossModalAttention
from tests.support import properties
from tests.support.recursive import (
    Case,
    Form,
    cases,
)
from tests.support.strategies import plain


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(case=cases(most=3, batch=(1, 3)))
def test_agrees_with_the_paper_in_every_dtype(dtype: torch.dtype, case: Case) -> None:
    """Two steps without gates, whose temperature of 0.1 would magnify the rounding tenfold."""
    case = replace(case, recursions=min(case.recursions, 2), gate=False)
    if case.form == "stable":
        # A layer norm over two features and a correlation over two steps magnify rounding too.
        dims = tuple(dim + 8 for dim in case.streams.dims)
        lengths = tuple(length + 8 for length in case.streams.lengths)
        case = replace(case, streams=replace(case.streams, dims=dims, lengths=lengths))
    layer = case.layer(dtype)
    properties.agrees_with(layer, case.twin, case.streams.inputs(dtype), case.streams.mask())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["longest", "each", "none"])
def test_gradients_in_half_precision_agree_as_a_whole(kind: str, dtype: torch.dtype) -> None:
    """Single slopes flip where a relu's argument rounds across zero; the vector hardly turns.

    How many flip is chance (a few of thousands), so this is about the median of several draws.
    """
    errors: dict[str, list[float]] = {"inputs": [], "parameters": []}
    for seed in range(9):
        streams = replace(plain(dims=(11, 13, 17), batch=5, length=9), seed=seed)
        case = Case(streams, kind, recursions=1)
        inputs = case.streams.inputs(dtype)
        half = properties.evaluate(case.layer(dtype), inputs)
        layer = case.layer(dtype).double()
        exact = properties.evaluate(layer, {name: x.double() for name, x in inputs.items()})
        for part, found in errors.items():
            ours = torch.cat([g.flatten().double() for g in getattr(half, part).values()])
            true = torch.cat([g.flatten() for g in getattr(exact, part).values()])
            found.append(((ours - true).norm() / true.norm()).item())
    for part, found in errors.items():
        error = sorted(found)[len(found) // 2]
        assert error <= properties.TOLERANCES[dtype].output, f"{part}: off by {error:.3g} in norm"


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("length", [30, None, {"a": 30, "b": 30, "c": 30}], ids=str)
@pytest.mark.parametrize(
    "recursions",
    [pytest.param(n, marks=[pytest.mark.slow] if n in {2, 8} else []) for n in (1, 2, 4, 8, 16)],
)
def test_stable_stays_finite(
    recursions: int, length: int | dict[str, int] | None, autocast: bool
) -> None:
    """At the start, and with O re-initialised, as if training had moved it far from zero."""
    torch.manual_seed(recursions)
    dims = {"a": 64, "b": 16, "c": 32}
    layer = RecursiveCrossModalAttention(dims, length, recursions)
    inputs = {name: 3 * torch.randn(2, 30, dim) for name, dim in dims.items()}
    mask = torch.rand(2, 30) < 0.8
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        properties.finite_gradients(layer, inputs, mask)
        for name, weight in layer.named_parameters():
            if name.endswith("output"):
                torch.nn.init.xavier_uniform_(weight)
        properties.finite_gradients(layer, inputs, mask)


def test_the_published_form_grows_and_the_stable_one_hardly() -> None:
    """What benchmarks/saturation.py measures, small."""
    dims, growth = [64, 16, 32], {}
    forms: tuple[Form, ...] = ("paper", "stable")
    x = [torch.randn(4, 50, dim) for dim in dims]
    for form in forms:
        torch.manual_seed(0)
        layer = RecursiveCrossModalAttention(dims, 50, 8, form=form)
        for name, weight in layer.named_parameters():
            if name.endswith("output"):
                torch.nn.init.xavier_uniform_(weight)
        norms = [torch.cat(s.features, dim=-1).norm().item() for s in layer.inspect(x).recursions]
        growth[form] = [after / before for before, after in pairwise(norms)]
    assert min(growth["paper"]) > 2, f"paper: {growth['paper']}"
    assert max(growth["stable"]) < 2, f"stable: {growth['stable']}"
