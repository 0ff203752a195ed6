"""A network for several sensors: an encoder each, fusion, pooling over time, a linear classifier.

Shapes: B batch, L steps, d features of a sensor, w features of an encoder.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from crossfuse import (
    JointCrossAttention,
    PerModality,
    RecursiveCrossModalAttention,
    TemporalConvNet,
)
from examples.watch.data import SENSORS, WINDOW

WIDTHS = (16, 16, 32)
Fusion: TypeAlias = Callable[[dict[str, int]], nn.Module | None]


@dataclass(frozen=True)
class Method:
    """Which sensors a network hears and how it fuses them.

    Attributes:
        title: What a table calls it.
        sensors: The sensors.
        fusion: Makes the fusion for the widths of their features; None makes none.
    """

    title: str
    sensors: tuple[str, ...]
    fusion: Fusion = lambda dims: None


BOTH = tuple(SENSORS)
METHODS: dict[str, Method] = {
    "accelerometer": Method("accelerometer alone", ("accelerometer",)),
    "gyroscope": Method("gyroscope alone", ("gyroscope",)),
    "concatenation": Method("concatenation", BOTH),
    "jca": Method(
        "JCA, paper's form", BOTH, lambda dims: JointCrossAttention(dims, WINDOW, form="paper")
    ),
    "jca-stable": Method("JCA, stable", BOTH, lambda dims: JointCrossAttention(dims, WINDOW)),
    "rcma": Method(
        "RCMA, paper's form",
        BOTH,
        lambda d: RecursiveCrossModalAttention(d, WINDOW, form="paper", joint="others"),
    ),
    "rcma-stable": Method(
        "RCMA, stable",
        BOTH,
        lambda dims: RecursiveCrossModalAttention(dims, WINDOW, joint="others"),
    ),
    "rcma-stable-any-length": Method(
        "RCMA, stable, length=None",
        BOTH,
        lambda dims: RecursiveCrossModalAttention(dims, joint="others"),
    ),
}


class WatchNet(nn.Module):
    """Recognises exercises from windows of sensors.

    Args:
        method: Sensors and fusion.
        classes: How many exercises there are.
        dropout: Before the classifier.

    Shape:
        - each sensor: (B, L, d); ``mask``: bool (B, L), True = valid
        - output: (B, classes), before the softmax
    """

    def __init__(self, method: Method, classes: int, *, dropout: float) -> None:
        super().__init__()
        self.sensors = method.sensors
        for name in method.sensors:
            self.register_buffer(f"{name}_mean", torch.zeros(SENSORS[name]))
            self.register_buffer(f"{name}_std", torch.ones(SENSORS[name]))
        self.encoders = PerModality(
            {name: TemporalConvNet(SENSORS[name], WIDTHS) for name in method.sensors}
        )
        self.fusion = method.fusion(dict.fromkeys(method.sensors, WIDTHS[-1]))
        pooled = WIDTHS[-1] * len(method.sensors)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(pooled, classes))

    def measure(self, mean: Tensor, std: Tensor) -> None:
        """Sets what the six axes are normalised by, (6,) each."""
        sizes = list(SENSORS.values())
        parts = zip(SENSORS, torch.split(mean, sizes), torch.split(std, sizes), strict=True)
        for name, centre, scale in parts:
            if name in self.sensors:
                self.get_buffer(f"{name}_mean").copy_(centre)
                self.get_buffer(f"{name}_std").copy_(scale)

    def normalised(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Brings every axis of the sensors that it hears to mean 0 and standard deviation 1."""
        return {
            name: (streams[name] - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_std")
            for name in self.sensors
        }

    def encode(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encodes each sensor: (B, L, d) in, (B, L, w) out, causal."""
        features: dict[str, Tensor] = self.encoders(self.normalised(streams))
        return features

    def stream(
        self, chunks: Mapping[str, Tensor], state: object = None
    ) -> tuple[dict[str, Tensor], object]:
        """Encodes the next chunk of a recording; chunks join up to what ``encode`` makes.

        Args:
            chunks: The next steps of each sensor, (B, l, d).
            state: What the call before returned; None at the beginning.

        Returns:
            The features (B, l, w) of each sensor, and the state for the next call.
        """
        return self.encoders.stream(self.normalised(chunks), state)

    def classify(self, features: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """Fuses encoded sensors and scores the exercises: (B, L, w) in, (B, classes) out."""
        fused = features if self.fusion is None else self.fusion(features, mask)
        joined = torch.cat([fused[name] for name in self.sensors], dim=-1)
        if mask is None:
            pooled = joined.mean(dim=1)
        else:
            weight = mask.to(joined.dtype)
            pooled = (joined * weight[..., None]).sum(dim=1) / weight.sum(dim=1, keepdim=True)
        scores: Tensor = self.head(pooled)
        return scores

    def forward(self, streams: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """Scores the exercises."""
        return self.classify(self.encode(streams), mask)


@dataclass(frozen=True)
class SavedOptions:
    """What a saved network is built from."""

    method: str
    names: tuple[str, ...]
    dropout: float


def save_model(file: Path, model: WatchNet, options: SavedOptions) -> None:
    """Saves a trained network with what it is built from."""
    torch.save({"options": asdict(options), "state": model.state_dict()}, file)


def load_model(file: Path) -> tuple[WatchNet, SavedOptions]:
    """Loads a network that :func:`save_model` saved, ready to use."""
    saved = torch.load(file, weights_only=True)
    options = SavedOptions(**saved["options"])
    model = WatchNet(METHODS[options.method], len(options.names), dropout=options.dropout)
    model.load_state_dict(saved["state"])
    return model.eval(), options
