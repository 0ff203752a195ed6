"""The naive twins reproduce the numbers of the papers' released modules (tests/data)."""

from __future__ import annotations

import pytest
import torch

from tests.support import properties, reference, released


@pytest.mark.parametrize("joint", ["others", "all"])
def test_rcma(joint: str) -> None:
    data = released.load(f"rcma_release_{joint}")
    state = released.rcma_state(data, joint)
    released.reproduces(
        lambda x: reference.recursive_cross_modal_attention(
            state,
            x,
            dims=dict(sorted(released.DIMS.items())),
            length=13,
            joint=joint,
            form="released",
        ),
        *released.numbers(data),
    )


def test_jca() -> None:
    data = released.load("jca_release")
    state = released.jca_state(data)
    encoded = released.jca_encoded(data, released.part(data, "input"))
    for name, x in released.part(data, "encoded").items():
        properties.close(
            encoded[name], x, f"encoded {name}", properties.TOLERANCES[torch.float64].output
        )
    released.reproduces(
        lambda x: reference.joint_cross_attention(
            state, released.jca_encoded(data, x), dims={"audio": 6, "video": 6}
        ),
        *released.numbers(data),
    )


def test_tcn() -> None:
    data = released.load("tcn_release")
    blocks = released.tcn_blocks(data)
    released.reproduces(
        lambda x: {"x": reference.temporal_conv_net(blocks, x["x"])},
        *({"x": data[name].mT} for name in ("input", "output", "cotangent", "input_grad")),
    )


def test_leader_follower() -> None:
    data = released.load("leader_follower_release")
    maps, norm = released.leader_follower_maps(data)
    released.reproduces(
        lambda x: {
            "fused": reference.leader_follower_attention(
                maps, norm, x, dims=released.DIMS, leader="video"
            )
        },
        released.part(data, "input"),
        {"fused": data["output"]},
        {"fused": data["cotangent"]},
        released.part(data, "input_grad"),
    )
