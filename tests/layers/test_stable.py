"""What ``form="stable"`` of the recursive layer promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from crossfuse import RecursiveCrossModalAttention

DIMS = {"face": 5, "voice": 3}
LENGTH = 11


def drawn(seed: int, length: int | None, recursions: int = 1) -> RecursiveCrossModalAttention:
    """A stable layer with O away from zero, as after training."""
    layer = RecursiveCrossModalAttention(
        DIMS, length, recursions, joint="others", dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    return layer


def windows(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(2, LENGTH, dim, generator=generator, dtype=torch.float64)
        for name, dim in DIMS.items()
    }


@given(
    seed=st.integers(0, 999),
    length=st.sampled_from([LENGTH, None]),
    scales=st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)),
)
def test_what_a_recursion_adds_is_bounded_at_any_scale_of_the_features(
    seed: int, length: int | None, scales: tuple[float, float]
) -> None:
    """|C| <= 1 in every entry, and features enter at unit scale or through a layer norm."""
    layer = drawn(seed, length, recursions=4)
    inputs = {name: s * x for (name, x), s in zip(windows(seed).items(), scales, strict=True)}
    for step, seen in zip(layer.recursions, layer.inspect(inputs).recursions, strict=True):
        for name, dim in DIMS.items():
            branch = step.get_submodule(name)
            size = {
                key: torch.linalg.matrix_norm(weight.detach(), 2)
                for key, weight in branch.named_parameters()
                if weight.ndim == 2
            }
            unit, heads = (LENGTH * dim) ** 0.5, math.gcd(dim, 4)
            others = (LENGTH * (sum(DIMS.values()) - dim)) ** 0.5
            value = others * size["value"] * size.get("temporal", 1.0)
            bias = LENGTH**0.5 * branch.get_parameter("hidden_bias").detach().norm()
            attended = unit * size["feature"] * (dim // heads) ** 0.5 * size["output"]
            forward = (unit * size["hidden"] + value + bias) * size["back"]
            added = (seen.features[name] - inputs[name]).norm(dim=(1, 2)).max()
            assert added <= (attended + forward) * (1 + 1e-9)
        inputs = dict(seen.features)


@given(seed=st.integers(0, 999), scale=st.floats(1, 1e6))
def test_the_first_correlation_ignores_the_scale_of_the_features(seed: int, scale: float) -> None:
    layer, inputs = drawn(seed, None), windows(seed)
    louder = {name: scale * x for name, x in inputs.items()}
    before, after = (layer.inspect(x).recursions[0].correlations for x in (inputs, louder))
    for name in DIMS:
        # The share of silence in the mean square is 1e-5 at scale 1, and less above.
        assert (after[name] - before[name]).abs().le(1e-3 + 1e-2 * before[name].abs()).all()


@pytest.mark.parametrize("length", [LENGTH, None])
def test_sixteen_recursions_learn(length: int | None) -> None:
    layer = RecursiveCrossModalAttention(DIMS, length, 16)
    inputs = {name: x.float() for name, x in windows(0).items()}
    wanted = {name: torch.randn_like(x) for name, x in inputs.items()}

    def loss() -> torch.Tensor:
        outputs = layer(inputs)
        return torch.stack([(outputs[name] - wanted[name]).square().mean() for name in DIMS]).sum()

    first = loss().item()
    for _ in range(12):
        slopes = torch.autograd.grad(loss(), list(layer.parameters()))
        with torch.no_grad():  # by their signs; an optimiser of torch takes long to import
            for parameter, slope in zip(layer.parameters(), slopes, strict=True):
                parameter.sub_(2e-2 * slope.sign())
    assert loss().item() < 0.5 * first
