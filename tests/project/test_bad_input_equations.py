"""Wrong calls of the equations: each tensor is put wrongly once, and a clear error says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crossfuse import functional
from tests.project.test_bad_input import MISTAKEN, refused
from tests.support.reference import Structure

X, JOINT, T = torch.randn(2, 9, 4), torch.randn(2, 9, 7), torch.randn(9, 9)
VALID = torch.ones(2, 9, dtype=torch.bool)
C, QUERY, SOURCE = torch.randn(2, 4, 7), torch.randn(2, 9, 8), torch.randn(2, 5, 8)
# By equation, its arguments: tensors, of which each is put wrongly once.
EQUATIONS: dict[str, dict[str, Structure]] = {
    "concordance": {"prediction": X[..., 0], "target": X[..., 1]},
    "cross_correlation": {"x": X, "other": JOINT, "weight": torch.randn(4, 7)},
    "cross_attention": {"x": X, "correlation": torch.randn(2, 9, 9)},
    "cross_modal_positions": {"x": X},
    "cross_modal_attention": {"query": QUERY, "key": SOURCE, "value": SOURCE},
    "jca_correlation": {"x": X, "joint": JOINT, "temporal": T},
    "jca_attention_map": {
        "x": X,
        "correlation": C,
        "own": torch.randn(9, 5),
        "joint": torch.randn(7, 5),
    },
    "jca_attended_features": {
        "x": X,
        "attention": torch.randn(2, 4, 5),
        "output": torch.randn(5, 9),
    },
    "leader_follower_attention": dict.fromkeys(("query", "key", "value"), torch.randn(2, 9, 3, 8)),
    "attention_pooling": {"x": X, "query": torch.randn(4)},
    "masked_mean": {"x": X},
    "rcma_attended_features": {"x": X, "attention": JOINT, "output": torch.randn(7, 4)},
    "rcma_attention_map": {"x": X, "correlation": C, "feature": torch.randn(4, 4)},
    "rcma_correlation": {"x": X, "joint": JOINT, "temporal": T},
    "rcma_timeless_correlation": {"x": X, "joint": JOINT, "count": 9},
    "rcma_released_correlation": {
        "x": X,
        "joint": JOINT,
        "temporal": T,
        "bias": torch.randn(9),
        "mapping": torch.randn(7, 7),
        "mapping_bias": torch.randn(7),
    },
    "rcma_released_attention_map": {
        "x": X,
        "correlation": C,
        "feature": torch.randn(4, 4),
        "bias": torch.randn(4),
    },
    "rcma_released_attended_features": {
        "x": X,
        "attention": JOINT,
        "output": torch.randn(7, 4),
        "bias": torch.randn(4),
    },
    "rcma_feed_forward": {
        "x": X,
        "value": torch.randn(2, 9, 8),
        "hidden": torch.randn(4, 8),
        "hidden_bias": torch.randn(8),
        "back": torch.randn(8, 4),
    },
    "rcma_stable_attention_map": {"query": QUERY, "correlation": torch.randn(2, 4, 2, 2)},
    "rcma_stable_correlation": {"key": QUERY, "value": QUERY, "count": 9, "heads": 4},
}
# What no other argument contradicts is no mistake.
NO_MISTAKE = {
    "a feature more": {
        ("cross_attention", "x"),
        ("cross_modal_positions", "x"),
        ("jca_correlation", "x"),
        ("jca_correlation", "joint"),
        ("masked_mean", "x"),
        ("rcma_attention_map", "correlation"),
        ("rcma_correlation", "x"),
        ("rcma_correlation", "joint"),
        ("rcma_timeless_correlation", "x"),
        ("rcma_timeless_correlation", "joint"),
        ("rcma_released_correlation", "x"),
        ("rcma_released_attention_map", "correlation"),
    },
    "a sample less": {
        ("attention_pooling", "x"),
        ("cross_modal_positions", "x"),
        ("masked_mean", "x"),
    },
    "None for what is needed": {
        ("rcma_released_correlation", "mapping"),
        ("rcma_released_correlation", "mapping_bias"),
    },
}
# By equation, its mask.
MASKS = {
    "attention_pooling": {"valid": VALID},
    "cross_attention": {"valid": VALID},
    "cross_modal_attention": {"valid": torch.ones(2, 5, dtype=torch.bool)},
    "leader_follower_attention": {"present": torch.ones(2, 9, 3, dtype=torch.bool)},
    "masked_mean": {"valid": VALID},
    "rcma_released_correlation": {"valid": VALID},
}
MASKS_MISTAKEN: dict[str, Callable[[Tensor], Structure]] = {
    "integers": lambda mask: mask.int(),
    "numbers": lambda mask: mask.float(),
    "an array": lambda mask: mask.numpy(),
    "a step less": lambda mask: mask[:, 1:],
    "a sample less": lambda mask: mask[:1],
    "an axis too few": lambda mask: mask[0],
    "an axis too many": lambda mask: mask[..., None],
    "sparse": lambda mask: mask.to_sparse(),
    "another device": lambda mask: mask.to("meta"),
}
# By equation, its arguments; one of them is a sequence of tensors, each of which is put wrongly.
SEQUENCES: dict[str, tuple[str, dict[str, Structure]]] = {
    "concat_features": ("features", {"features": [X, JOINT]}),
    "cross_attended_features": ("attended", {"x": X, "attended": [X, X]}),
    "rcma_unaligned_correlation": (
        "others",
        {"x": X, "others": [JOINT, SOURCE], "temporals": [T, T[:, :5]]},
    ),
    "rcma_unaligned_correlation, temporals": (
        "temporals",
        {"x": X, "others": [JOINT, SOURCE], "temporals": [T, T[:, :5]]},
    ),
}
FITS_OTHERS = ("concat_features", "rcma_unaligned_correlation")  # with a feature more
ALONE = {"cross_modal_positions", "masked_mean"}  # one tensor: any dtype and device are its own
ALSO_REAL = (
    "integers",
    "bools",
    "double precision",
    "half precision",
)  # numbers to the concordance


def _is_mistake(equation: str, argument: str, kind: str) -> bool:
    if equation == "concordance" and kind in ALSO_REAL:
        return False
    if equation in ALONE and kind in ("double precision", "half precision", "another device"):
        return False
    return (equation, argument) not in NO_MISTAKE.get(kind, set())


@pytest.mark.parametrize("equation", EQUATIONS)
def test_equations_refuse_wrong_tensors(equation: str) -> None:
    function, arguments = getattr(functional, equation), EQUATIONS[equation]
    function(**arguments)
    for name, x in arguments.items():
        for kind, mistaken in MISTAKEN.items():
            if isinstance(x, Tensor) and _is_mistake(equation, name, kind):
                refused(lambda: function(**{**arguments, name: mistaken(x)}))  # noqa: B023 - called at once


@pytest.mark.parametrize("kind", MASKS_MISTAKEN)
@pytest.mark.parametrize("equation", MASKS)
def test_equations_refuse_wrong_masks(equation: str, kind: str) -> None:
    function, arguments, masks = getattr(functional, equation), EQUATIONS[equation], MASKS[equation]
    function(**arguments, **masks)
    wrong = {name: MASKS_MISTAKEN[kind](mask) for name, mask in masks.items()}
    refused(lambda: function(**arguments, **wrong))


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("case", SEQUENCES)
def test_equations_refuse_wrong_tensors_in_sequences(case: str, place: int) -> None:
    name, arguments = SEQUENCES[case]
    function = getattr(functional, case.partition(",")[0])
    function(**arguments)
    for kind, mistaken in MISTAKEN.items():
        if kind != "a feature more" or case not in FITS_OTHERS:
            tensors = [*arguments[name]]
            tensors[place] = mistaken(tensors[place])
            refused(lambda: function(**{**arguments, name: tensors}))  # noqa: B023 - called at once


def test_the_least_that_fits_is_no_mistake() -> None:
    for equation in ("rcma_timeless_correlation", "rcma_stable_correlation"):
        function = getattr(functional, equation)
        assert torch.is_tensor(function(**{**EQUATIONS[equation], "count": 1}))
    assert torch.is_tensor(functional.rcma_unaligned_correlation(X, [JOINT], [T]))


@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_missing_argument_is_pythons_error(equation: str) -> None:
    _, *others = EQUATIONS[equation]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        getattr(functional, equation)(**{name: EQUATIONS[equation][name] for name in others})
