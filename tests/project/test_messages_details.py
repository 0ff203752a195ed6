"""What was found and what was expected, in the messages that read both from the call."""

from __future__ import annotations

import pytest

from tests.project.test_bad_input_functions import REFUSED
from tests.project.test_messages import WRONG_CALLS

CALLS = {name: wrong.call for name, wrong in WRONG_CALLS.items()} | REFUSED
# By wrong call, what was found and what was expected.
DETAILS: dict[str, tuple[str, str]] = {
    # sizes and options
    "too few modalities for the others' joint": ("'face'", "at least 2"),
    "no modality": ("nothing", "at least 1"),
    "dims that is one int": ("int", "a dict by name, or a list or tuple in order"),
    "a dim of zero": ("0", "an int of at least 1"),
    "a length that is a str": ("'300'", "an int of at least 1"),
    "a length beyond all counters": (f"{10**30}", "at most 2147483647"),
    "a billion recursions": ("1000000000", "at most 1000"),
    "a billion blocks": ("1000000000", "at most 1000"),
    "too few lengths": ("1 elements", "one for each of '0', '1'"),
    "a length for an unknown modality": ("'face', 'words'", "names among 'face', 'voice'"),
    "the released form without a length": ("length=None", "an int as length"),
    "a length of another kind": (
        "length={'face': 8, 'voice': 8}",
        "another length in the place of 4",
    ),
    "dropout that is NaN": ("nan", "a number from 0 to 1"),
    "an unknown form": ("'v2'", "one of 'stable', 'paper', 'released'"),
    "a leader that is not there": ("'words'", "one of 'face', 'voice'"),
    "a flag that is a str": ("'False'", "True or False"),
    "a dtype of integers": ("torch.int32", "torch.float32, float64, bfloat16 or float16"),
    "a temperature below zero": ("-1", "a finite number of at least 1e-30"),
    "no reach": ("nan", "a finite number above 0"),
    "a width that the heads do not divide": (
        "width=6, heads=4",
        "heads of one whole number of features",
    ),
    "an even kernel, centred": ("4", "an odd int"),
    # modalities
    "names for a layer without": ("a mapping with 'face', 'voice'", "a sequence of 2"),
    "a sequence for a layer with names": ("list", "a mapping with 'face', 'voice'"),
    "a nested tensor": (
        "a nested tensor",
        "a tensor with one number of steps for all samples",
    ),
    "a sparse tensor": (
        "torch.sparse_coo",
        "a tensor with one number of steps for all samples",
    ),
    "a quantised stream": (
        "torch.qint8",
        "a tensor with one number of steps for all samples",
    ),
    "an unknown name": ("'face', 'voice', 'words'", "names among 'face', 'voice'"),
    "nothing but None": (
        "face missing, voice missing",
        "at least one tensor, for the batch size and the number of steps",
    ),
    "a numpy array": ("ndarray", "face (batch, steps, 3)"),
    "no batch axis": ("face (4, 3)", "face (batch, steps, 3)"),
    "features before steps": ("face (2, 3, 4)", "face (batch, steps, 3)"),
    "no steps at all": ("face (2, 0, 3)", "face (batch, steps, 3)"),
    "whole numbers": ("torch.int64", "float32, float64, bfloat16 or float16"),
    "another dtype than the parameters": ("torch.float64", "torch.float32"),
    "another device than the parameters": ("meta", "cpu"),
    "other samples": ("face (2, 4, 3), voice (1, 4, 5)", "one batch size for every modality"),
    "other steps": ("face (2, 4, 3), voice (2, 3, 5)", "one number of steps for every modality"),
    "too many steps": ("face (2, 5, 3)", "at most 4 steps"),
    "tokens for unknown steps": (
        "face (2, 4, 3), voice (2, 3, 5), words missing",
        "the same steps on axis 1 of all that are present, or none missing",
    ),
    "one axis for PerModality": ("face (3,)", "face (batch, steps, ...)"),
    "a module that pools": ("input (2, 4, 3), output (24,)", "an output (2, 4, ...)"),
    # masks
    "a mask of another kind": ("ndarray", "bool (2, 4), True = valid"),
    "a mask of other steps for PerModality": (
        "mask (2, 3) for features (2, 4, 3)",
        "bool (2, 4), True = valid",
    ),
    "a mask elsewhere": ("meta", "cpu"),
    "a mask without an axis": ("(4,) of torch.bool", "bool (2, steps), True = valid"),
    # states
    "a state of another net": (
        "[(2, 3, 4), (2, 4, 4), (2, 4, 8), (2, 4, 8)]",
        "[(2, 3, 4), (2, 4, 4)]",
    ),
    "a state of nothing": ("no masks", "face (2, 10), voice (2, 10), steps (2,)"),
    "no count": ("face (2, 10), voice (2, 10)", "face (2, 10), voice (2, 10), steps (2,)"),
    "windows that are ints": ("int", "face (2, 10, 4)"),
    "windows of other features": ("face (2, 10, 1)", "face (2, 10, 4)"),
    # windows, batches and clocks
    "a hop beyond the window": ("hop=4, size=3", "a hop of at most size"),
    "a recording of no frames": ("(0, 4, 3)", "(frames, ...), at least one frame"),
    "a start beyond the end": ("starts [4]", "at least one start, each from 0 to 3"),
    "no windows": ("starts []", "at least one start, each from 0 to 3"),
    "a window too few": ("(2, 4, 3) for 1 starts", "(1, steps, ...)"),
    "a frame left out": (
        "windows of 4 steps that begin at [0, 5]",
        "every frame from 0 to 8 in at least one window",
    ),
    "labels of two kinds": (
        "int, str",
        "tensors, arrays, numbers or strings, of one kind and shape in all samples",
    ),
    "time stamps that are bools": ("torch.bool", "(4,) or (2, 4), of float64"),
    # equations
    "integers": ("torch.int64", "x (B, L, d)"),
    "one sample alone": ("x (9, 4)", "x (B, L, d)"),
    "a mask of floats": ("torch.float32", "valid (B, L)"),
    "a mask of other steps": ("valid (2, 8) as (B, L)", "L = 9"),
    "no modalities attended to": ("an empty one", "a list of at least one tensor"),
    "a tensor for a list": ("Tensor", "a list of at least one tensor"),
    "a list of numbers": ("int", "attended[0] (B, L, d)"),
    "features of other steps": ("features[1] (2, 3, 7) as (B, L, .)", "L = 9"),
    "heads that do not divide": ("8 features for 3 heads", "a divisor of the number of features"),
    "heads of other features": ("4 heads of 3 for 8 features", "heads times their features"),
    "no steps": ("0", "an int of at least 1, or a tensor (batch,) of integers"),
    "steps of other samples": (
        "(3,) of torch.int64",
        "an int of at least 1, or a tensor (batch,) of integers",
    ),
    "a block too many": ("2 blocks for 1 modalities", "1 blocks (L, L_j)"),
    "a block of other steps": ("temporals[0] (9, 8) as (L, M)", "M = 9"),
}


@pytest.mark.parametrize("name", DETAILS)
def test_a_message_says_what_was_found_and_expected(name: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        CALLS[name]()
    _, got, expected, _ = str(caught.value).splitlines()
    assert (got.removeprefix("  got       "), expected.removeprefix("  expected  ")) == (
        DETAILS[name]
    )
