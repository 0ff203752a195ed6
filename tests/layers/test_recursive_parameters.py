"""The parameters of RecursiveCrossModalAttention: names, shapes and initial values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from crossfuse import RecursiveCrossModalAttention
from tests.support import properties
from tests.support.recursive import (
    F64,
    Case,
    Form,
    cases,
    is_the_input,
)
from tests.support.strategies import plain


@pytest.mark.parametrize("kind", ["longest", "each", "none"])
def test_the_state_dict_is_the_whole_state(kind: str) -> None:
    case = Case(plain(), kind, gate=True)
    properties.state_dict_round_trip(case.layer, case.streams.inputs())


def test_parameter_names_are_the_contract() -> None:
    state = RecursiveCrossModalAttention(
        {"face": 2, "voice": 3}, 4, 2, form="paper", joint="others"
    ).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    expected = {
        f"recursions.{k}.{name}.{part}": shape
        for k in range(2)
        for name, d, joint in (("face", 2, 3), ("voice", 3, 2))
        for part, shape in (("temporal", (4, 4)), ("feature", (d, d)), ("output", (joint, d)))
    }
    assert shapes == expected


def test_parameter_names_of_the_stable_form() -> None:
    state = RecursiveCrossModalAttention({"face": 2, "voice": 3}, 4, 1).state_dict()
    expected = {
        f"recursions.0.{name}.{part}": shape
        for name, d in (("face", 2), ("voice", 3))
        for part, shape in (
            ("temporal", (4, 4)),
            ("key", (d, d)),
            ("value", (5, d)),
            ("feature", (d, d)),
            ("output", (d, d)),
            ("hidden", (d, d)),
            ("hidden_bias", (d,)),
            ("back", (d, d)),
        )
    }
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    timeless = RecursiveCrossModalAttention({"face": 2, "voice": 3}, None, 1).state_dict()
    assert set(timeless) == {name for name in expected if "temporal" not in name}


def test_parameter_names_of_the_other_forms() -> None:
    def names(form: str = "paper", **options: bool | str) -> set[str]:
        layer = RecursiveCrossModalAttention([2, 3], 4, form=form, **options)  # type: ignore[arg-type]  # drawn options
        return set(layer.state_dict())

    published = {
        f"recursions.{k}.{n}.{p}"
        for k in "01"
        for n in "01"
        for p in ("temporal", "feature", "output")
    }
    biases = {f"{name}_bias" for name in published}
    joints = {
        f"recursions.{k}.{n}.{p}" for k in "01" for n in "01" for p in ("joint", "joint_bias")
    }
    assert names() == published
    assert names(joint="all") == published
    assert names(share_weights=True) == {
        name for name in published if name.startswith("recursions.0")
    }
    assert names(form="released", joint="all") == published | biases
    assert names(form="released", joint="others") == published | biases | joints
    timeless = RecursiveCrossModalAttention([2, 3], form="paper")
    assert set(timeless.state_dict()) == {name for name in published if "temporal" not in name}


@given(case=cases())
def test_shared_weights_are_equal_weights(case: Case) -> None:
    shared = Case(case.streams, case.kind, case.spare, 3, case.joint, True, form=case.form)
    own = Case(case.streams, case.kind, case.spare, 3, case.joint, False, form=case.form)
    one, three = shared.layer(), own.layer()
    state = {
        f"recursions.{k}.{key.split('.', 2)[2]}": value
        for key, value in one.state_dict().items()
        for k in range(3)
    }
    three.load_state_dict(state)
    inputs, mask = case.streams.inputs(), case.streams.mask()
    for place, y in properties.places(one(inputs, mask)).items():
        properties.close(properties.places(three(inputs, mask))[place], y, place, 1e-12)


@given(case=cases())
def test_stable_starts_as_the_identity(case: Case) -> None:
    layer = RecursiveCrossModalAttention(
        case.streams.layer_dims,
        case.length,
        case.recursions,
        joint=case.joint,
        dtype=F64,
    )
    inputs, mask = case.streams.inputs(), case.streams.mask()
    is_the_input(layer(inputs, mask), inputs, mask)


def test_initialisation_is_xavier_and_seeded() -> None:
    def build() -> RecursiveCrossModalAttention:
        torch.manual_seed(1)
        return RecursiveCrossModalAttention({"a": 40, "b": 60}, 50, form="paper", joint="others")

    first, second = build(), build()
    for name, value in first.named_parameters():
        bound = (6 / sum(value.shape)) ** 0.5
        assert value.abs().max() <= bound, name
        assert value.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name
        assert torch.equal(value, second.get_parameter(name))
    torch.manual_seed(1)
    with torch.no_grad():
        for value in second.parameters():
            value.zero_()
    second.reset_parameters()
    for name, value in first.named_parameters():
        assert torch.equal(value, second.get_parameter(name)), name


def test_the_stable_form_starts_with_steps_of_the_same_time() -> None:
    layer = RecursiveCrossModalAttention([2, 3], 4)
    for name, value in layer.named_parameters():
        if name.endswith("temporal"):
            assert torch.equal(value, torch.eye(4)), name
        elif name.endswith(("output", "hidden_bias", "back")):
            assert not value.any(), name
        else:
            assert 0 < value.abs().max() <= (6 / sum(value.shape)) ** 0.5, name


@pytest.mark.parametrize("form", ["stable", "paper", "released"])
def test_factory_arguments_reach_every_parameter(
    form: Form,
) -> None:
    layer = RecursiveCrossModalAttention(
        [2, 3], 4, form=form, gate=True, device="meta", dtype=torch.bfloat16
    )
    for name, value in layer.named_parameters():
        assert value.device.type == "meta", name
        assert value.dtype == torch.bfloat16, name


def test_printing_explains_the_layer() -> None:
    layer = RecursiveCrossModalAttention({"face": 2, "voice": 3}, 7, 3)
    text = repr(layer)
    for part in (
        "RecursiveCrossModalAttention",
        "'face': 2",
        "length=7",
        "recursions=3",
        "joint='all'",
        "form='stable'",
    ):
        assert part in text, f"{part} is not in\n{text}"


def test_the_released_form_starts_as_linear_layers_do() -> None:
    """Uniformly, up to the inverse square root of the inputs of each map, for its bias too."""
    layer = RecursiveCrossModalAttention(
        {"face": 30, "voice": 90}, 200, form="released", joint="others"
    )
    for recursion in layer.recursions:
        for name, dim in (("face", 30), ("voice", 90)):
            inputs = {"temporal": 200, "feature": dim, "output": 120 - dim, "joint": 120 - dim}
            for key, parameter in recursion.get_submodule(name).named_parameters():
                bound = inputs[key.removesuffix("_bias")] ** -0.5
                assert 0.8 * bound < parameter.abs().max().item() <= bound, f"{name}: {key}"
