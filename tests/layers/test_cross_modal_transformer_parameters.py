"""The parts of CrossModalTransformer: positions, attention, parameters, wrong calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crossfuse import CrossModalTransformer, functional
from tests.support import properties
from tests.support.cross_modal_transformer import F64, Case, uneven
from tests.support.strategies import filled


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_positions_are_the_sinusoids_of_the_paper(width: int) -> None:
    found = functional.cross_modal_positions(torch.zeros(2, 7, width, dtype=F64))
    for t in range(7):
        for feature in range(width):
            angle = torch.tensor(t / 10000 ** (feature // 2 * 2 / width), dtype=F64)
            expected = angle.cos() if feature % 2 else angle.sin()
            assert found[1, t, feature].item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_positions_tell_late_steps_apart_in_half_precision(dtype: torch.dtype) -> None:
    late = functional.cross_modal_positions(torch.zeros(1, 70_000, 8, dtype=dtype))[0, -9:]
    exact = functional.cross_modal_positions(torch.zeros(1, 70_000, 8, dtype=F64))[0, -9:]
    assert (late.double() - exact).abs().max() <= 2.0**-7


def test_attention_to_equal_keys_is_the_mean_and_to_nothing_is_zero() -> None:
    query, value = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    valid = torch.tensor([[True, True, False, True, False], [False] * 5])
    found = functional.cross_modal_attention(query, torch.zeros_like(value), value, valid, heads=2)
    properties.close(found[0], value[0, [0, 1, 3]].mean(dim=0).expand(3, 4), "the mean", 1e-6)
    assert not found[1].any()


def test_every_parameter_learns() -> None:
    case = Case(uneven((5, 7, 11), batch=3, length=6), depth=2)
    properties.every_parameter_gets_a_gradient(case.layer(), case.streams.inputs())


def test_the_state_dict_is_the_whole_state() -> None:
    case = Case(uneven(), depth=2)
    properties.state_dict_round_trip(case.layer, case.streams.inputs())


def test_parameter_names_are_the_contract() -> None:
    layer = CrossModalTransformer({"face": 2, "voice": 3, "words": 5}, 4, heads=2, depth=2)
    found = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {}

    def block(key: str, width: int) -> None:
        for norm in ("target_norm", "source_norm", "hidden_norm"):
            expected.update({f"{key}.{norm}.weight": (width,), f"{key}.{norm}.bias": (width,)})
        for part in ("query", "key", "value", "output"):
            expected[f"{key}.{part}.weight"] = (width, width)
        expected[f"{key}.expand.weight"] = (4 * width, width)
        expected[f"{key}.expand.bias"] = (4 * width,)
        expected[f"{key}.contract.weight"] = (width, 4 * width)
        expected[f"{key}.contract.bias"] = (width,)

    for name, dim in {"face": 2, "voice": 3, "words": 5}.items():
        expected |= {f"embed.{name}.weight": (4, dim), f"embed.{name}.bias": (4,)}
        for n in range(2):
            for source in {"face", "voice", "words"} - {name}:
                block(f"targets.{name}.pairs.{source}.{n}", 4)
            block(f"targets.{name}.self_attention.{n}", 8)
        expected |= {f"targets.{name}.norm.weight": (8,), f"targets.{name}.norm.bias": (8,)}
        expected[f"targets.{name}.output.weight"] = (dim, 8)
        expected[f"targets.{name}.output.bias"] = (dim,)
    assert found == expected


def test_initialisation_is_seeded_and_can_be_repeated() -> None:
    first, again = (CrossModalTransformer({"a": 40, "b": 60}) for _ in range(2))
    filled(again, 0)
    for layer in (first, again):
        torch.manual_seed(1)
        layer.reset_parameters()
    for name, value in first.named_parameters():
        assert torch.equal(value, again.get_parameter(name)), name
        if "norm" in name:
            assert (value == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias") or name in {
            "targets.a.output.weight",
            "targets.b.output.weight",
        }:
            assert not value.any(), name
        else:
            bound = (6 / sum(value.shape)) ** 0.5
            assert 0.9 * bound < value.abs().max() <= bound, name


def test_a_new_layer_is_the_identity() -> None:
    inputs = uneven().inputs(torch.float32)
    for name, y in CrossModalTransformer({"video": 2, "audio": 3})(inputs).items():
        assert torch.equal(y, inputs[name])


def test_factory_arguments_reach_every_parameter() -> None:
    layer = CrossModalTransformer([2, 3], device="meta", dtype=torch.bfloat16)
    for name, value in layer.named_parameters():
        assert value.device.type == "meta", name
        assert value.dtype == torch.bfloat16, name


def test_dropout_is_random_in_training_only() -> None:
    inputs = uneven().inputs(torch.float32)
    layer = filled(CrossModalTransformer({"video": 2, "audio": 3}, 8, dropout=0.5), 0)
    assert not torch.equal(layer(inputs)["video"], layer(inputs)["video"])
    assert torch.equal(layer.eval()(inputs)["video"], layer(inputs)["video"])


def test_printing_explains_the_layer() -> None:
    text = repr(CrossModalTransformer({"face": 2, "voice": 3}, 8, heads=2, depth=3, dropout=0.1))
    for part in ("'face': 2", "width=8", "heads=2", "depth=3", "dropout=0.1"):
        assert part in text, f"{part} is not in\n{text}"
    assert "width=64, heads=4, depth=1, dropout=0.0" in repr(CrossModalTransformer([2, 3]))


def test_wrong_calls_are_answered() -> None:
    dims = {"face": 3, "voice": 5}
    answers: list[tuple[dict[str, Any], str]] = [
        ({"width": 0}, "width must be a positive int"),
        ({"heads": 0}, "heads must be a positive int"),
        ({"depth": 0}, "depth must be a positive int"),
        ({"dropout": 2}, "dropout must be a probability"),
        ({"width": 6}, "width is not a multiple of heads"),
    ]
    for wrong, message in answers:
        with pytest.raises(ValueError, match=f"CrossModalTransformer: {message}"):
            CrossModalTransformer(dims, **wrong)
    with pytest.raises(ValueError, match="use width=12,"):
        CrossModalTransformer(dims, 9)
    with pytest.raises(ValueError, match="CrossModalTransformer: too few modalities"):
        CrossModalTransformer([3])
    with pytest.raises(ValueError, match="mask does not have the batch and steps"):
        CrossModalTransformer(dims)(
            {"face": torch.randn(2, 4, 3), "voice": torch.randn(2, 6, 5)},
            torch.ones(2, 4, dtype=torch.bool),
        )
