"""A configuration that passes through a writer which sorts keys rebuilds the same layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
from torch import Tensor, nn

import crossfuse
from tests.support import properties
from tests.support.strategies import filled

Config = dict[str, Any]
DIMS = {"voice": 4, "face": 4, "words": 4}  # equal widths: nothing but the order tells them apart
LENGTHS = {"voice": 6, "face": 6, "words": 6}
Form = Literal["stable", "paper"]
Joint = Literal["all", "others"]


def rcma(form: Form, joint: Joint) -> Callable[[Config], nn.Module]:
    return lambda config: crossfuse.RecursiveCrossModalAttention(
        config["dims"], config["length"], form=form, joint=joint, gate=True
    )


BUILD: dict[str, Callable[[Config], nn.Module]] = {
    **{
        f"rcma-{form}-{joint}-{windows}": rcma(form, joint)
        for form in get_args(Form)
        for joint in get_args(Joint)
        for windows in ("T", "any length")
    },
    "rcma-released": lambda config: crossfuse.RecursiveCrossModalAttention(
        config["dims"], 6, form="released", joint="others"
    ),
    "jca": lambda config: crossfuse.JointCrossAttention(config["dims"], 6, gate=True),
    "concat": lambda config: crossfuse.ConcatFusion(config["dims"], 5),
    "cross": lambda config: crossfuse.CrossAttention(config["dims"]),
    "transformer": lambda config: crossfuse.CrossModalTransformer(config["dims"], 8),
    "leader-follower": lambda config: crossfuse.LeaderFollowerAttention(
        config["dims"], 5, leader="voice"
    ),
    "tokens": lambda config: crossfuse.MissingTokens(config["dims"]),
    "pooling": lambda config: crossfuse.AttentionPooling(config["dims"]),
    "encoders": lambda config: crossfuse.PerModality(
        {name: nn.Linear(dim, 3) for name, dim in config["dims"].items()}
    ),
}


def streams() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 6, dim, generator=generator) for name, dim in DIMS.items()}


def sorted_copy(config: Config) -> Config:
    copied: Config = json.loads(json.dumps(config, sort_keys=True))
    assert list(copied["dims"]) != list(config["dims"]), "the writer did not change the order"
    return copied


def tensors(outputs: object) -> list[Tensor]:
    """The tensors of an output, dicts by name."""
    if isinstance(outputs, Tensor):
        return [outputs]
    values = [outputs[k] for k in sorted(outputs)] if isinstance(outputs, dict) else outputs
    assert isinstance(values, list | tuple)
    return [x for value in values for x in tensors(value)]


@pytest.mark.parametrize("name", BUILD)
def test_a_sorted_configuration_rebuilds_the_layer(name: str) -> None:
    config = {"dims": DIMS, "length": None if "any length" in name else LENGTHS}
    layer = filled(BUILD[name](config), 1)
    again = BUILD[name](sorted_copy(config))
    again.load_state_dict(layer.state_dict())
    for found, expected in zip(tensors(again(streams())), tensors(layer(streams())), strict=True):
        properties.close(found, expected, name, 1e-6)


@pytest.mark.slow
def test_a_pretrained_model_comes_back_from_its_folder(tmp_path: Path) -> None:
    """Transformers writes config.json with sorted keys."""
    transformers = pytest.importorskip("transformers", reason="saves models with configurations")

    class FusionConfig(transformers.PretrainedConfig):  # type: ignore[name-defined,misc]  # untyped
        model_type = "crossfuse-test"

        def __init__(self, dims: dict[str, int] | None = None, **options: Any) -> None:  # noqa: ANN401
            self.dims = dims or {}
            super().__init__(**options)

    class FusionModel(transformers.PreTrainedModel):  # type: ignore[name-defined,misc]  # untyped
        config_class = FusionConfig

        def __init__(self, config: FusionConfig) -> None:
            super().__init__(config)
            self.fuse = crossfuse.RecursiveCrossModalAttention(config.dims)
            self.head = crossfuse.ConcatFusion(config.dims, 2)
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            """Leaves the start to the layers."""

        def forward(self, modalities: dict[str, Tensor]) -> Tensor:
            outputs: Tensor = self.head(self.fuse(modalities))
            return outputs

    model = filled(FusionModel(FusionConfig(dims=DIMS)), 2).eval()
    model.save_pretrained(tmp_path)
    again = FusionModel.from_pretrained(tmp_path).eval()
    assert list(again.config.dims) != list(DIMS)
    properties.close(again(streams()), model(streams()), "the scores", 1e-6)
