"""Wrong calls by kind: each is a clear error in the one grammar, or a right answer.

The rows of `test_messages` name one message each. Here every kind of mistake meets every layer and
every equation, whatever the message says of it: no error of torch or Python may come through, and
nothing may be allocated that cannot fit.
"""

from __future__ import annotations

import enum
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import crossfuse
from tests.project.test_messages import GRAMMAR
from tests.support.reference import Structure

HUGE = 10**12
FLOAT8 = torch.float8_e4m3fn
FACE, VOICE = torch.randn(2, 4, 3), torch.randn(2, 4, 5)
VALID = torch.ones(2, 4, dtype=torch.bool)
DIMS = {"face": 3, "voice": 5}
BOTH = {"face": FACE, "voice": VOICE}


def _leader(dims: Structure, **options: Structure) -> nn.Module:
    return crossfuse.LeaderFollowerAttention(dims, 4, leader="face", **options)


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "rcma": crossfuse.RecursiveCrossModalAttention,
    "jca": lambda dims, **options: crossfuse.JointCrossAttention(dims, 4, **options),
    "cross": crossfuse.CrossAttention,
    "transformer": lambda dims, **o: crossfuse.CrossModalTransformer(dims, 8, heads=2, **o),
    "leader": _leader,
    "concat": lambda dims, **options: crossfuse.ConcatFusion(dims, 4, **options),
    "tokens": crossfuse.MissingTokens,
    "pooling": crossfuse.AttentionPooling,
}


class Name(enum.StrEnum):
    """Names that are members of an enumeration."""

    FACE = "face"
    VOICE = "voice"


def quantised(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch will drop them
        return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


def nested(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(x), layout=torch.jagged)


# What a caller may put in the place of a floating-point tensor (B, L, d).
MISTAKEN: dict[str, Callable[[Tensor], Structure]] = {
    "None for what is needed": lambda x: None,
    "an array": lambda x: x.numpy(),
    "a list of numbers": lambda x: x.tolist(),
    "integers": lambda x: x.long(),
    "bools": lambda x: x > 0,
    "complex numbers": lambda x: x.to(torch.complex64),
    "float8": lambda x: x.to(FLOAT8),
    "double precision": lambda x: x.double(),
    "half precision": lambda x: x.bfloat16(),
    "a sparse tensor": lambda x: x.to_sparse(),
    "a quantised tensor": quantised,
    "an axis too few": lambda x: x[0],
    "an axis too many": lambda x: x[None],
    "no axes": lambda x: torch.tensor(1.0),
    "another device": lambda x: x.to("meta"),
    "a feature more": lambda x: torch.cat([x, x[..., :1]], -1),
    "a sample less": lambda x: x[:1],
    "a set": lambda x: {1.0},
    "a generator": lambda x: iter(x),
}
DIMS_MISTAKEN: dict[str, Structure] = {
    "a set": {3, 5},
    "None": None,
    "an array": np.array([3, 5]),
    "a tensor": torch.tensor([3, 5]),
    "bytes": b"\x03\x05",
    "a size that is a tensor": {"face": torch.tensor(3), "voice": 5},
    "a size in a list": {"face": [3], "voice": 5},
    "a negative size": {"face": -3, "voice": 5},
    "a bool": {"face": True, "voice": 5},
    "a NumPy bool": {"face": np.True_, "voice": 5},
    "a float": {"face": 3.0, "voice": 5},
    "NaN": {"face": math.nan, "voice": 5},
    "a size beyond memory": {"face": 2**31 - 1, "voice": 2**31 - 1, "words": 2**31 - 1},
    "a size beyond all": {"face": HUGE, "voice": 5},
    "names that are ints": {0: 3, 1: 5},
    "names that are tuples": {("face",): 3, ("voice",): 5},
    "names that are bytes": {b"face": 3, b"voice": 5},
    "a nameless one": {None: 3, "voice": 5},
}
OPTIONS_MISTAKEN: dict[str, dict[str, Structure]] = {
    "float8 parameters": {"dtype": FLOAT8},
    "complex parameters": {"dtype": torch.complex64},
    "integer parameters": {"dtype": torch.int32},
    "a dtype by name": {"dtype": "float32"},
    "NumPy's dtype": {"dtype": np.float32},
    "no such device": {"device": "gpu"},
    "a device that is a float": {"device": 1.5},
}
MASKS_MISTAKEN: dict[str, Structure] = {
    "integers": VALID.int(),
    "an array": VALID.numpy(),
    "a set": {1},
    "a str": "mask",
    "no axes": torch.tensor(True),
    "one axis": VALID[0],
    "features": VALID[..., None],
    "a dict in a dict": {"face": {"face": VALID}},
    "names that are ints": {0: VALID},
    "a list for names": [VALID, VALID],
    "sparse": VALID.to_sparse(),
    "another device": VALID.to("meta"),
}


def refused(call: Callable[[], object]) -> None:
    """Asserts that a call raises an error in the grammar."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert GRAMMAR.fullmatch(str(caught.value)), f"not in the grammar:\n{caught.value}"
    assert str(caught.value).count("\n") == 3, f"not four lines:\n{caught.value}"


@pytest.mark.parametrize("kind", DIMS_MISTAKEN)
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_refuse_wrong_dims(layer: str, kind: str) -> None:
    refused(lambda: LAYERS[layer](DIMS_MISTAKEN[kind]))


@pytest.mark.parametrize("kind", OPTIONS_MISTAKEN)
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_refuse_parameters_that_cannot_be(layer: str, kind: str) -> None:
    refused(lambda: LAYERS[layer](DIMS, **OPTIONS_MISTAKEN[kind]))


@pytest.mark.parametrize("kind", [k for k in MISTAKEN if not k.startswith("None")])
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_refuse_wrong_inputs(layer: str, kind: str) -> None:
    given = {**BOTH, "voice": MISTAKEN[kind](VOICE)}
    refused(lambda: LAYERS[layer](DIMS)(given))


@pytest.mark.parametrize("kind", ["double precision", "half precision", "another device"])
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_refuse_what_does_not_fit_their_parameters(layer: str, kind: str) -> None:
    given = {name: MISTAKEN[kind](x) for name, x in BOTH.items()}
    refused(lambda: LAYERS[layer](DIMS)(given))


@pytest.mark.parametrize("kind", MASKS_MISTAKEN)
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_refuse_wrong_masks(layer: str, kind: str) -> None:
    refused(lambda: LAYERS[layer](DIMS)(BOTH, MASKS_MISTAKEN[kind]))


@pytest.mark.parametrize("layer", LAYERS)
def test_what_stands_for_an_int_or_a_name_is_one(layer: str) -> None:
    """NumPy's integers, subclasses of int, and members of an enumeration of strings."""
    for three in (np.int64(3), np.uint8(3), enum.IntEnum("Three", {"THREE": 3}).THREE):  # type: ignore[attr-defined]  # mypy does not read the functional form
        LAYERS[layer]({"face": three, "voice": np.int32(5)})(BOTH)
    LAYERS[layer]({Name.FACE: 3, Name.VOICE: 5})({Name.FACE: FACE, Name.VOICE: VOICE})
