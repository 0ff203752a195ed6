"""The naive twins reproduce the numbers of the papers' released modules (tests/data)."""

from __future__ import annotations

import pytest
import torch

from tests import asserts, parity, reference


@pytest.mark.parametrize("joint", ["others", "all"])
def test_rcma(joint: str) -> None:
    data = parity.load(f"rcma_release_{joint}")
    state = parity.rcma_state(data, joint)
    parity.reproduces(
        lambda x: reference.recursive_cross_modal_attention(
            state, x, dims=parity.DIMS, length=13, joint=joint, variant="released"
        ),
        *parity.numbers(data),
    )


def test_jca() -> None:
    data = parity.load("jca_release")
    state = parity.jca_state(data)
    encoded = parity.jca_encoded(data, parity.part(data, "input"))
    for name, x in parity.part(data, "encoded").items():
        asserts.close(encoded[name], x, f"encoded {name}", asserts.TOLERANCES[torch.float64].output)
    parity.reproduces(
        lambda x: reference.joint_cross_attention(
            state, parity.jca_encoded(data, x), dims={"audio": 6, "video": 6}
        ),
        *parity.numbers(data),
    )


def test_tcn() -> None:
    data = parity.load("tcn_release")
    blocks = parity.tcn_blocks(data)
    parity.reproduces(
        lambda x: {"x": reference.temporal_conv_net(blocks, x["x"])},
        *({"x": data[name].mT} for name in ("input", "output", "cotangent", "input_grad")),
    )


def test_leader_follower() -> None:
    data = parity.load("leader_follower_release")
    maps, norm = parity.leader_follower_maps(data)
    parity.reproduces(
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
