"""Few modalities of one width are computed at once; that changes the time and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from crossfuse import RecursiveCrossModalAttention, _stable_together, _step
from tests.support.strategies import filled

LAYER = RecursiveCrossModalAttention


def results(layer: LAYER, inputs: list[Tensor | None]) -> list[Tensor | None]:
    """Outputs, and gradients of inputs and parameters."""
    outputs = [x for x in layer(inputs) if x is not None]
    total = torch.stack([(x * torch.linspace(1, 2, x.shape[-1])).square().sum() for x in outputs])
    given = [x for x in inputs if x is not None]
    gradients = torch.autograd.grad(
        total.sum(), [*given, *layer.parameters()], allow_unused=True, materialize_grads=False
    )
    return [*outputs, *gradients]


def apart(
    layer: LAYER, inputs: list[Tensor | None], monkeypatch: pytest.MonkeyPatch
) -> list[Tensor | None]:
    """The results of one branch after the other."""
    with monkeypatch.context() as patch:
        patch.setattr(_stable_together, "_FEW", -1)
        return results(layer, inputs)


@given(
    st.integers(0, 999),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(1, 7),
    st.sampled_from(["all", "others"]),
    st.booleans(),
    st.booleans(),
)
def test_equals_one_after_the_other(
    seed: int,
    count: int,
    dim: int,
    batch: int,
    steps: int,
    joint: str,
    share_weights: bool,
    missing: bool,
) -> None:
    count = max(count, 2) if joint == "others" else count
    layer = LAYER([dim] * count, joint=joint, share_weights=share_weights, dtype=torch.float64)  # type: ignore[arg-type]
    filled(layer, seed)
    generator = torch.Generator().manual_seed(seed)
    inputs: list[Tensor | None] = [
        torch.randn(batch, steps, dim, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(count)
    ]
    if missing and count > 1:
        inputs[seed % count] = None
    with pytest.MonkeyPatch.context() as patch:
        expected = apart(layer, inputs, patch)
    for one, other in zip(results(layer, inputs), expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@given(
    st.integers(0, 999), st.integers(1, 3), st.integers(1, 9), st.integers(0, 3), st.integers(1, 7)
)
def test_inspecting_shows_the_same_numbers(
    seed: int, count: int, dim: int, batch: int, steps: int
) -> None:
    """The outputs bit for bit, in single precision; C and H as one branch after the other."""
    layer = filled(LAYER([dim] * count), seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(batch, steps, dim, generator=generator) for _ in range(count)]
    seen = layer.inspect(inputs)
    for x, y in zip(seen.outputs, layer(inputs), strict=True):
        assert torch.equal(x, y)
    double = [x.double() for x in inputs]
    layer.double()
    seen = layer.inspect(double)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_stable_together, "_FEW", -1)
        expected = layer.inspect(double)
    for one, other in zip(seen.recursions, expected.recursions, strict=True):
        for part in ("features", "correlations", "attention_maps"):
            found = getattr(one, part)
            for x, y in zip(found, getattr(other, part), strict=True):
                torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)
            kept = [x.clone() for x in found]
            found[0].add_(1)  # they share no memory
            assert all(map(torch.equal, found[1:], kept[1:]))


def test_dropout_drops() -> None:
    """The shared calls have none, so training with it takes the branches."""
    layer = filled(LAYER([4, 4], dropout=1.0), 0)
    inputs = [torch.randn(2, 5, 4), torch.randn(2, 5, 4)]
    for kept, seen, x in zip(layer(inputs), layer.inspect(inputs).outputs, inputs, strict=True):
        assert torch.equal(kept, x)
        assert torch.equal(seen, x)
    layer.eval()
    assert not torch.equal(layer(inputs)[0], inputs[0])


def test_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the law above compares one way with itself."""
    layer = LAYER([4, 4])
    seen: list[int] = []

    def counted(branches: Sequence[nn.Module], features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        seen.append(len(branches))
        return _stable_together.attended_together(branches, features)

    monkeypatch.setattr(_step, "attended_together", counted)
    layer([torch.randn(2, 3, 4), torch.randn(2, 3, 4)])
    assert seen == [2, 2]
    layer([torch.randn(2, 3, 4), torch.randn(2, 3, 4)], torch.ones(2, 3, dtype=torch.bool))
    layer([torch.randn(2, 3, 4), None])
    assert seen == [2, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_sum_in_single_precision(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window's size must not decide the dtype of the outputs."""
    layer = filled(LAYER([4, 4]), 0)
    # Numbers that half precision would round, and weights that add nothing to them.
    for name, weight in layer.named_parameters():
        if name.endswith(("output", "back")):
            nn.init.zeros_(weight)
    inputs = [torch.rand(2, 3, 4) + 1, torch.rand(2, 3, 4) + 1]
    for few in (2**18, -1):
        monkeypatch.setattr(_stable_together, "_FEW", few)
        with torch.autocast("cpu", dtype):
            outputs = layer(inputs)
        torch.testing.assert_close(outputs, tuple(inputs), rtol=0, atol=0)


def test_outputs_are_tensors_of_their_own() -> None:
    """A caller changes one in place and goes on with the others."""
    layer = filled(LAYER([4, 4]), 0)
    one, other = layer([torch.randn(2, 3, 4), torch.randn(2, 3, 4)])
    kept, loss = other.detach().clone(), other.square().sum()
    one.mul_(2)
    torch.testing.assert_close(other, kept, rtol=0, atol=0)
    (loss + one.sum()).backward()


class Scaled(nn.Module):
    """What a tool wraps around a branch."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.normalised, self.sizes = branch.normalised, branch.sizes
        self.feature = branch.feature

    def forward(self, *inputs: object) -> Tensor:
        result: Tensor = self.branch(*inputs)
        return result * 3


def hooked(layer: LAYER) -> None:
    layer.recursions[0]["0"].register_forward_hook(lambda m, a, out: out * 3)  # type: ignore[index]


def prehooked(layer: LAYER) -> None:
    layer.recursions[0]["0"].register_forward_pre_hook(  # type: ignore[index]
        lambda m, a: (a[0] * 3, *a[1:])
    )


def wrapped(layer: LAYER) -> None:
    layer.recursions[0]["0"] = Scaled(layer.recursions[0]["0"])  # type: ignore[operator, index]


def replaced(layer: LAYER) -> None:
    branch = layer.recursions[0]["0"]  # type: ignore[index]
    forward = branch.forward
    branch.forward = lambda *a: forward(*a) * 3


@pytest.mark.parametrize("change", [hooked, prehooked, wrapped, replaced])
def test_what_others_hang_on_a_branch_runs(change: object, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = filled(LAYER([4, 4], dtype=torch.float64), 0)
    inputs: list[Tensor | None] = [
        torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)
    ]
    before = results(layer, inputs)
    change(layer)  # type: ignore[operator]
    after = results(layer, inputs)
    assert not torch.allclose(after[0], before[0])  # type: ignore[arg-type]
    for one, other in zip(after, apart(layer, inputs, monkeypatch), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_hooks_of_all_modules_see_each_branch() -> None:
    layer, seen = LAYER([4, 4]), []
    hook = register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        layer([torch.randn(2, 3, 4) for _ in range(2)])
    finally:
        hook.remove()
    assert seen.count("StableBranch") == 4


@pytest.mark.parametrize("full", [False, True])
def test_backward_hooks_of_a_branch_run(full: bool) -> None:
    layer, seen = filled(LAYER([4, 4]), 0), []
    branch = layer.recursions[0]["0"]  # type: ignore[index]
    if full:
        branch.register_full_backward_hook(lambda m, i, o: seen.append(1))
    else:
        branch.register_full_backward_pre_hook(lambda m, o: seen.append(1))
    x = [torch.randn(2, 3, 4, requires_grad=True) for _ in range(2)]
    layer(x)[0].sum().backward()
    assert seen == [1]
