"""ConcordanceLoss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given

from crossfuse import ConcordanceLoss
from crossfuse.functional import concordance
from tests.support import properties, reference
from tests.support.concordance import (
    DARK,
    F64,
    NOTHING,
    OVER,
    TIGHT,
    Case,
    cases,
    options,
)


@options
@pytest.mark.parametrize("over", OVER)
@example(case=NOTHING)
@example(case=DARK)
@given(case=cases())
def test_the_loss_is_the_mean_over_what_counts(over: str, moments: str, case: Case) -> None:
    both, valid = case.series(), case.valid()
    agreement = concordance(*both, case.mask(), over=over, moments=moments)
    if over == "window":
        agreement = agreement[valid.any(dim=1)]
    elif not valid.any():
        agreement = agreement[:0] if case.more else agreement.reshape(1)[:0]
    expected = (1 - agreement).mean() if agreement.numel() else torch.zeros((), dtype=F64)
    loss = ConcordanceLoss(over=over, moments=moments)(*both, case.mask())
    properties.close(loss, expected, "loss", TIGHT)


def test_windows_without_a_valid_step_leave_the_loss_alone() -> None:
    x, y = (series.requires_grad_() for series in Case(3, 6).series())
    mask = torch.tensor([True, False, True])[:, None].expand(3, 6)
    loss = ConcordanceLoss()
    properties.close(loss(x, y, mask), loss(x[[0, 2]], y[[0, 2]]), "loss", TIGHT)
    (gradient,) = torch.autograd.grad(loss(x, y, mask), x)
    assert not gradient[1].any()
    assert gradient[0].any()


def test_training_on_the_loss_reaches_agreement() -> None:
    _, target = Case(4, 20, (2,)).series(torch.float32)
    prediction = torch.nn.Parameter(torch.randn_like(target))
    loss = ConcordanceLoss()
    first = loss(prediction, target).item()
    for _ in range(100):
        (slope,) = torch.autograd.grad(loss(prediction, target), prediction)
        with torch.no_grad():  # by their signs; an optimiser of torch takes long to import
            prediction.sub_(0.05 * slope.sign())
    assert loss(prediction, target) < 0.01 < first


def test_nothing_is_written_to() -> None:
    (x, y), mask = Case(2, 5, (), (3, 0)).series(), Case(2, 5, (), (3, 0)).mask()
    assert mask is not None
    watched = [x, y, mask]
    before = [(one.clone(), one._version) for one in watched]
    ConcordanceLoss()(x, y, mask)
    for one, (copy, version) in zip(watched, before, strict=True):
        assert torch.equal(one, copy)
        assert one._version == version


def test_printing_explains_the_loss() -> None:
    text = repr(ConcordanceLoss(over="batch", moments="mixed", eps=1e-6))
    assert text == "ConcordanceLoss(over='batch', moments='mixed', eps=1e-06)"
    assert not ConcordanceLoss().state_dict()


def test_wrong_calls_are_answered() -> None:
    x = torch.randn(2, 4)
    numbers: reference.Structure = x.numpy()
    wrong: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: concordance(x, x, over="step"), ValueError, "concordance: unknown over"),
        (lambda: concordance(x, x, moments="raw"), ValueError, "concordance: unknown moments"),
        (lambda: concordance(x, x, eps=0.0), ValueError, "concordance: eps must be positive"),
        (lambda: ConcordanceLoss(over="all"), ValueError, "ConcordanceLoss: unknown over"),
        (lambda: ConcordanceLoss(moments=""), ValueError, "ConcordanceLoss: unknown moments"),
        (lambda: ConcordanceLoss(eps=-1), ValueError, "ConcordanceLoss: eps must be positive"),
        (lambda: concordance(numbers, x), TypeError, "'prediction' is not a tensor of real"),
        (lambda: concordance(x, x * 1j), TypeError, "'target' is not a tensor of real numbers"),
        (lambda: concordance(x[0], x[0]), ValueError, "are not of one shape"),
        (lambda: concordance(x, x[..., None]), ValueError, "are not of one shape"),
        (lambda: concordance(x, x[:1]), ValueError, "are not of one shape"),
        (lambda: concordance(x, x.to("meta")), ValueError, "'prediction' is on another device"),
        (lambda: concordance(x, x, x), TypeError, "mask is not a bool tensor"),
        (lambda: concordance(x, x, x[0] > 0), ValueError, "mask does not have the batch and steps"),
        (lambda: ConcordanceLoss()(x, x[:, :3]), ValueError, "are not of one shape"),
    ]
    for call, kind, says in wrong:
        with pytest.raises(kind, match=says) as caught:
            call()
        assert str(caught.value).count("\n") == 3, caught.value


@pytest.mark.slow
@pytest.mark.parametrize(("over", "moments"), [("window", "biased"), ("batch", "mixed")])
def test_one_compiled_graph_serves_every_batch_and_length(over: str, moments: str) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend  # takes long to import

    # The first sizes differ: equal ones share a symbol.
    torch.compiler.reset()
    loss, counter = (
        ConcordanceLoss(over=over, moments=moments),
        CompileCounterWithBackend("aot_eager"),
    )
    compiled, graphs = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True), 0
    for batch, length in ((4, 7), (2, 9), (5, 3)):
        both = Case(batch, length, (2,)).series(torch.float32)
        mask = torch.rand(batch, length) > 0.3
        properties.close(compiled(*both, mask), loss(*both, mask), "compiled", 1e-6)
        graphs = graphs or counter.frame_count  # a first call may start over to fix a number
    assert counter.frame_count == graphs


@pytest.mark.slow
def test_an_exported_loss_takes_any_batch_and_length() -> None:
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    loss, both = ConcordanceLoss(), Case(3, 7).series(torch.float32)
    mask = torch.rand(3, 7) > 0.3
    exported = torch.export.export(loss, (*both, mask), dynamic_shapes=(free,) * 3).module()
    both, mask = Case(2, 11).series(torch.float32), torch.rand(2, 11) > 0.3
    properties.close(exported(*both, mask), loss(*both, mask), "exported", 1e-6)
