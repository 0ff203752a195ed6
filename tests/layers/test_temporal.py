"""The laws of TemporalConvNet."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from crossfuse import TemporalConvNet
from tests.support import properties, released
from tests.support.temporal import F64, Case, cases


@example(case=Case(batch=0))
@example(case=Case(length=1))
@example(case=Case(kernel_size=1))
@example(case=Case(causal=False, invalid=(0b1100000, 0)))
@given(case=cases())
def test_agrees_with_the_paper(case: Case) -> None:
    properties.agrees_with(case.net(), case.twin, case.x(), case.mask())


def test_reproduces_the_published_numbers() -> None:
    data = released.load("tcn_release")
    theirs = released.weights(data)
    net = TemporalConvNet(5, [7, 7, 4], kernel_size=3, dtype=F64)
    state = {}
    for key in net.state_dict():
        _, k, conv, part = key.split(".", 3)
        old = {"first": "conv1", "second": "conv2", "residual": "downsample"}[conv]
        kind = {"original0": "weight_g", "original1": "weight_v"}.get(part.split(".")[-1], part)
        state[key] = theirs[f"network.{k}.{old}.{kind}"]
    net.load_state_dict(state)
    numbers = [{"x": data[n].mT} for n in ("input", "output", "cotangent", "input_grad")]
    released.reproduces(lambda x: {"x": net(x["x"])}, *numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@example(case=Case(dim=1, widths=(7,), kernel_size=1, causal=False, length=1, seed=103))  # |v|~1e-4
@given(case=cases(batch=(1, 3)))
def test_agrees_with_the_paper_in_every_dtype(dtype: torch.dtype, case: Case) -> None:
    properties.agrees_with(case.net(dtype), case.twin, case.x(dtype), case.mask())


@given(case=cases())
def test_mutates_nothing_and_keeps_the_shape(case: Case) -> None:
    net = case.net()
    properties.does_not_mutate(net, case.x(), case.mask())
    y = net(case.x(), case.mask())
    assert y.shape == (case.batch, case.length, case.widths[-1])
    assert y.dtype == F64


@given(case=cases(batch=(1, 3)))
def test_samples_do_not_mix(case: Case) -> None:
    properties.batch_independent(case.net(), case.x(), case.mask())


@example(case=Case(causal=False, batch=1))
@given(case=cases())
def test_masked_steps_are_padding(case: Case) -> None:
    properties.padding_invariant(case.net(), case.x(), case.mask(), padding=3)


@given(case=cases(batch=(1, 2)), padding=st.integers(1, 4))
def test_masked_steps_on_the_left_are_padding_too(case: Case, padding: int) -> None:
    """What a stream that begins late sees: the same as when it had begun with its first step."""
    net, x = case.net(), case.x()
    valid = torch.ones(x.shape[:2], dtype=torch.bool) if case.mask() is None else case.mask()
    assert valid is not None
    late = torch.cat([x.new_full((case.batch, padding, case.dim), float("nan")), x], dim=1)
    late_mask = torch.cat([valid.new_zeros(case.batch, padding), valid], dim=1)
    actual = net(late, late_mask)[:, padding:]
    properties.close(
        actual, net(x, valid), "padding on the left", properties.TOLERANCES[F64].output
    )


@given(case=cases(causal=True, masks=False))
def test_a_causal_net_does_not_see_the_future(case: Case) -> None:
    properties.causal(case.net(), case.x())


def test_a_net_that_is_not_causal_sees_it() -> None:
    case = Case(causal=False)
    with pytest.raises(AssertionError, match="NaN after it"):
        properties.causal(case.net(), case.x())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("kernel_size", "blocks"), [(1, 1), (1, 3), (3, 1), (3, 2), (5, 2)])
def test_the_receptive_field_is_what_an_output_depends_on(
    causal: bool, kernel_size: int, blocks: int
) -> None:
    case = Case(widths=(4,) * blocks, kernel_size=kernel_size, causal=causal, batch=1, length=61)
    net, x = case.net(), case.x().requires_grad_()
    middle = 60 if causal else 30
    (gradient,) = torch.autograd.grad(net(x)[0, middle].sum(), x)
    seen = gradient[0].abs().sum(dim=1).nonzero().flatten()
    assert seen.numel() == int(seen[-1] - seen[0]) + 1 == net.receptive_field
    assert int(seen[-1]) == (middle if causal else middle + net.receptive_field // 2)


@given(case=cases())
def test_gradients_are_finite(case: Case) -> None:
    properties.finite_gradients(case.net(), case.x(), case.mask())


@pytest.mark.parametrize("causal", [True, False])
def test_every_parameter_learns(causal: bool) -> None:
    case = Case(causal=causal, batch=3, length=9)
    properties.every_parameter_gets_a_gradient(case.net(), case.x())


def test_the_state_dict_is_the_whole_state() -> None:
    case = Case()
    properties.state_dict_round_trip(case.net, case.x(), case.mask())
