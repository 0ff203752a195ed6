"""RecursiveCrossModalAttention recomputed in the backward pass, compiled, and against finite
differences."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from crossfuse import RecursiveCrossModalAttention
from tests.support import properties
from tests.support.recursive import (
    F64,
    Case,
    cases,
)
from tests.support.strategies import Streams, filled, plain


@given(case=cases())
def test_recomputing_gives_the_same_numbers(case: Case) -> None:
    inputs, mask = case.streams.inputs(), case.streams.mask()
    kept, recomputed = case.layer(), case.layer(checkpoint=True)
    expected = properties.evaluate(kept, inputs, mask)
    actual = properties.evaluate(recomputed, inputs, mask)
    properties.same_result(actual, expected, "checkpoint", properties.Tolerance(0.0, 0.0))


def test_recomputing_repeats_the_dropout() -> None:
    """With dropout, the recomputed step must drop what the first pass dropped."""
    streams_ = plain()
    layer = filled(
        RecursiveCrossModalAttention(
            streams_.layer_dims, 4, dropout=0.5, checkpoint=True, dtype=F64
        ),
        1,
    )
    same = filled(RecursiveCrossModalAttention(streams_.layer_dims, 4, dropout=0.5, dtype=F64), 1)
    torch.manual_seed(0)
    actual = properties.evaluate(layer, streams_.inputs())
    torch.manual_seed(0)
    expected = properties.evaluate(same, streams_.inputs())
    properties.same_result(actual, expected, "checkpoint", properties.TOLERANCES[F64])


def kept_bytes(recursions: int, *, checkpoint: bool) -> int:
    """What lives after the forward pass, without parameters, inputs and outputs."""
    gc.collect()
    layer = RecursiveCrossModalAttention([16, 8, 12], 64, recursions, checkpoint=checkpoint)
    x = [torch.randn(4, 64, dim) for dim in (16, 8, 12)]
    saved: list[Tensor] = []

    def pack(y: Tensor) -> Tensor:
        saved.append(y.detach())
        return saved[-1]  # y itself would keep its own history alive

    with saved_tensors_hooks(pack, lambda y: y):
        outputs = layer(x)
    known = (y for y in gc.get_objects() if type(y) is Tensor and y.device.type == "cpu")
    held = [y for y in known if y.layout == torch.strided and not y.is_nested]
    users = {address(y) for y in (*layer.parameters(), *x, *outputs)}
    sizes = {address(y): y.untyped_storage().nbytes() for y in (*saved, *held)}
    return sum(size for at, size in sizes.items() if at not in users)


def address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


@pytest.mark.slow
def test_checkpointing_keeps_one_set_of_features_for_each_recursion() -> None:
    floor = kept_bytes(1, checkpoint=True)
    features = 4 * 64 * (16 + 8 + 12) * 4
    generator = torch.get_rng_state().nbytes  # to drop the same again
    for count in (2, 4, 8):
        plain = kept_bytes(count, checkpoint=False) - floor
        recomputed = kept_bytes(count, checkpoint=True) - floor
        assert recomputed <= (count - 1) * (features + generator), f"{count}: {recomputed} bytes"
        assert recomputed < plain / 3, f"{count}: {recomputed} bytes, {plain} without"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["longest", "none"])
def test_the_compiled_layer_is_the_layer(kind: str) -> None:
    case = Case(
        Streams((2, 3), 2, (4, 4), True, "each", ((1, 0), (0, 6)), frozenset(), 2), kind, spare=3
    )
    layer = case.layer()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for mask in (None, case.streams.mask()):
        properties.eager_equals_compiled(layer, compiled, case.streams.inputs(), mask)


def test_gradcheck() -> None:
    """Autograd against finite differences, once, in the smallest case that has everything."""
    case = Case(plain(dims=(2, 3), batch=1, length=2), recursions=1)
    layer = case.layer()

    def run(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer({"video": a, "audio": b}).values())

    inputs = [x.requires_grad_() for x in case.streams.tensors()]
    assert torch.autograd.gradcheck(run, inputs)
