"""The authors' numbers (tests/data), read by name, with a twin's parameters filled from them.

The keys are translated here by hand, apart from crossfuse.convert, so that neither can hide a slip
of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.support import properties, reference

DATA = Path(__file__).parents[1] / "data"
DIMS = {"video": 7, "audio": 5, "text": 11}
# Modality i of the released code attends to these, in this order, through a map of this name.
CYCLE = {
    "video": ("at", ["audio", "text"]),
    "audio": ("tv", ["text", "video"]),
    "text": ("va", ["video", "audio"]),
}


def load(name: str) -> dict[str, Tensor]:
    """Every array of one file."""
    with np.load(DATA / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def weights(data: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in one file."""
    head = "weights/"
    return {key.removeprefix(head): value for key, value in data.items() if key.startswith(head)}


def part(data: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The arrays of one kind by modality, such as those of "input"."""
    return {
        key.removeprefix(f"{name}/"): value
        for key, value in data.items()
        if key.startswith(f"{name}/")
    }


def rcma_state(data: dict[str, Tensor], joint: str) -> dict[str, Tensor]:
    """The released RCMA's parameters under crossfuse's keys."""
    theirs, ours = weights(data), {}
    for k in range(2):
        layer = f"dcn_layers.{k}"
        for i, name in enumerate(DIMS):
            key = f"recursions.{k}.{name}"
            for new, old in (
                ("temporal", f"{layer}.dense_coattn.key{i + 1}_linear"),
                ("feature", f"{layer}.dense_coattn.value{i + 1}_linear"),
                ("output", f"{layer}.linears.{i}.0"),
            ):
                ours[f"{key}.{new}"] = theirs[f"{old}.weight"].T
                ours[f"{key}.{new}_bias"] = theirs[f"{old}.bias"]
            suffix, cyclic = CYCLE[name]
            theirs_order = cyclic if joint == "others" else list(DIMS)
            rows = _places(theirs_order, sorted(theirs_order))
            ours[f"{key}.output"] = ours[f"{key}.output"][rows]
            if joint == "others":
                old = f"{layer}.dense_coattn.query_linear_{suffix}"
                ours[f"{key}.joint"] = theirs[f"{old}.weight"].T[rows][:, rows]
                ours[f"{key}.joint_bias"] = theirs[f"{old}.bias"][rows]
    return ours


def _places(theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
    """For each feature of the joint in our order, its place in theirs."""
    starts = {name: sum(DIMS[o] for o in theirs[:k]) for k, name in enumerate(theirs)}
    return [starts[name] + n for name in ours for n in range(DIMS[name])]


def jca_state(data: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released JCA's parameters under crossfuse's keys.

    `affine` maps the steps of the joint, not of the modality, so its weight is T as it stands.
    """
    theirs, ours = weights(data), {}
    for name, letter, cross in (("audio", "a", "ca"), ("video", "v", "cv")):
        ours[f"recursions.0.{name}.temporal"] = theirs[f"affine_{letter}.weight"]
        ours[f"recursions.0.{name}.own"] = theirs[f"W_{letter}.weight"].T
        ours[f"recursions.0.{name}.joint"] = theirs[f"W_{cross}.weight"].T
        ours[f"recursions.0.{name}.output"] = theirs[f"W_h{letter}.weight"].T
    return ours


def jca_encoded(data: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layer's inputs: what the linear encoders in front of it make of the file's inputs."""
    w = weights(data)
    return {
        name: inputs[name] @ w[f"encoder{n}.weight"].T + w[f"encoder{n}.bias"]
        for name, n in (("audio", 1), ("video", 2))
    }


def tcn_blocks(data: dict[str, Tensor]) -> list[reference.ConvBlock]:
    """The released TCN's blocks for the twin."""
    w, blocks = weights(data), []
    for k in range(3):
        head = f"network.{k}"
        first, second = (
            reference.weight_norm(w[f"{head}.conv{n}.weight_g"], w[f"{head}.conv{n}.weight_v"])
            for n in (1, 2)
        )
        residual = (
            (w[f"{head}.downsample.weight"], w[f"{head}.downsample.bias"])
            if f"{head}.downsample.weight" in w
            else None
        )
        biases = (w[f"{head}.conv1.bias"], w[f"{head}.conv2.bias"])
        blocks.append(reference.ConvBlock((first, second), biases, residual))
    return blocks


def leader_follower_maps(data: dict[str, Tensor]) -> tuple[dict[str, Any], reference.Affine]:
    """The released leader-follower's maps and layer norm for the twin."""
    w = weights(data)
    maps = {
        name: {
            kind: reference.Affine(
                w[f"encoder{letter}.{name}.weight"], w[f"encoder{letter}.{name}.bias"]
            )
            for kind, letter in (("query", "Q"), ("key", "K"), ("value", "V"))
        }
        for name in DIMS
    }
    return maps, reference.Affine(w["ln.weight"], w["ln.bias"])


def reproduces(
    run: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    cotangents: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
) -> None:
    """Asserts that `run` gives the outputs and the gradients of sum(cotangent * output)."""
    __tracebackhide__ = True
    # The files hold float64 results of the same formulas, so only rounding may differ.
    allowed = properties.TOLERANCES[torch.float64]
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    found = run(leaves)
    total = torch.stack([(cotangents[name] * found[name]).sum() for name in outputs]).sum()
    slopes = torch.autograd.grad(total, list(leaves.values()))
    for name, y in outputs.items():
        properties.close(found[name], y, f"output {name}", allowed.output)
    for name, slope in zip(leaves, slopes, strict=True):
        properties.close(slope, gradients[name], f"gradient of {name}", allowed.gradient)


def numbers(data: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Inputs, outputs, cotangents and gradients by modality, as `reproduces` takes them."""
    return [part(data, name) for name in ("input", "output", "cotangent", "input_grad")]
