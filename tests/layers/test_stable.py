"""What ``form="stable"`` of the recursive layer promises."""

from __future__ import annotations

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
    scales=st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)),
)
def test_what_a_recursion_adds_ignores_the_scale_of_the_features(
    seed: int, length: int | None, scales: tuple[float, float]
) -> None:
    layer, inputs = drawn(seed, length), windows(seed)
    louder = {name: s * x for (name, x), s in zip(inputs.items(), scales, strict=True)}
    for name, y in layer(inputs).items():
        added = layer(louder)[name] - louder[name]
        # The share of silence in the mean square is 1e-5 at scale 1, and less above.
        torch.testing.assert_close(added, y - inputs[name], rtol=1e-2, atol=1e-3)


@given(seed=st.integers(0, 999), length=st.sampled_from([LENGTH, None]))
def test_features_grow_by_no_more_than_a_recursion_can_add(seed: int, length: int | None) -> None:
    layer, inputs = drawn(seed, length, 16), windows(seed)
    for step, seen in zip(layer.recursions, layer.inspect(inputs).recursions, strict=True):
        for name, dim in DIMS.items():
            branch = step.get_submodule(name)
            largest = [
                torch.linalg.matrix_norm(branch.get_parameter(key).detach(), 2)
                for key in ("feature", "output")
            ]
            # |H O| <= |X at unit scale| |F| |C| |O| / sqrt(d), and no element of C exceeds 1.
            joint_dim = sum(DIMS.values()) - dim
            bound = (LENGTH * dim) ** 0.5 * largest[0] * joint_dim**0.5 * largest[1]
            before = inputs[name]
            assert (seen.features[name] - before).norm(dim=(1, 2)).max() <= bound
        inputs = seen.features


@pytest.mark.parametrize("length", [LENGTH, None])
def test_sixteen_recursions_learn(length: int | None) -> None:
    layer = RecursiveCrossModalAttention(DIMS, length, 16)
    inputs = {name: x.float() for name, x in windows(0).items()}
    wanted = {name: torch.randn_like(x) for name, x in inputs.items()}
    optimiser = torch.optim.Adam(layer.parameters(), 1e-2)

    def loss() -> torch.Tensor:
        outputs = layer(inputs)
        return torch.stack([(outputs[name] - wanted[name]).square().mean() for name in DIMS]).sum()

    first = loss().item()
    for _ in range(60):
        optimiser.zero_grad()
        torch.autograd.backward(loss())
        optimiser.step()
    assert loss().item() < 0.5 * first
