"""The naive twins reproduce the numbers of the papers' released modules (tests/data)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from tests import asserts, parity, reference

# The files hold float64 results of the same formulas, so only rounding may differ.
OUTPUT, GRADIENT = asserts.TOLERANCES[torch.float64]


def check(
    run: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    cotangents: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
) -> None:
    """Compares outputs and the gradients of sum(cotangent * output)."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    found = run(leaves)
    total = torch.stack([(cotangents[name] * found[name]).sum() for name in outputs]).sum()
    for name, y in outputs.items():
        asserts.close(found[name], y, f"output {name}", OUTPUT)
    for name, gradient in zip(
        leaves, torch.autograd.grad(total, list(leaves.values())), strict=True
    ):
        asserts.close(gradient, gradients[name], f"gradient of {name}", GRADIENT)


@pytest.mark.parametrize("joint", ["others", "all"])
def test_rcma(joint: str) -> None:
    data = parity.load(f"rcma_release_{joint}")
    state = parity.rcma_state(data, joint)
    check(
        lambda x: reference.recursive_cross_modal_attention(
            state, x, dims=parity.DIMS, length=13, joint=joint, variant="released"
        ),
        *(parity.part(data, name) for name in ("input", "output", "cotangent", "input_grad")),
    )


def test_jca() -> None:
    data = parity.load("jca_release")
    state = parity.jca_state(data)
    encoded = parity.jca_encoded(data, parity.part(data, "input"))
    for name, x in parity.part(data, "encoded").items():
        asserts.close(encoded[name], x, f"encoded {name}", OUTPUT)
    check(
        lambda x: reference.joint_cross_attention(
            state, parity.jca_encoded(data, x), dims={"audio": 6, "video": 6}
        ),
        *(parity.part(data, name) for name in ("input", "output", "cotangent", "input_grad")),
    )


def test_tcn() -> None:
    data = parity.load("tcn_release")
    blocks = parity.tcn_blocks(data)
    check(
        lambda x: {"x": reference.temporal_conv_net(blocks, x["x"])},
        *({"x": data[name].mT} for name in ("input", "output", "cotangent", "input_grad")),
    )


def test_leader_follower() -> None:
    data = parity.load("leader_follower_release")
    maps, norm = parity.leader_follower_maps(data)
    check(
        lambda x: {
            "fused": reference.leader_follower_attention(
                maps, norm, x, dims=parity.DIMS, leader="video"
            )
        },
        parity.part(data, "input"),
        {"fused": data["output"]},
        {"fused": data["cotangent"]},
        parity.part(data, "input_grad"),
    )
