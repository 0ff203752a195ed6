"""A network for several sensors: an encoder each, fusion, mean over time, a linear classifier.

Shapes: B batch, L steps, d axes of a sensor, w features of an encoder.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crossfuse import MaskedMean, PerModality, TemporalConvNet
from examples.common.fusions import Concatenation
from examples.common.methods import METHODS, Method
from examples.common.recordings import SENSORS

WIDTHS = (16, 16, 32)
JOINED = "joined"  # the one stream of early fusion


class SensorNet(nn.Module):
    """Classifies windows of sensors.

    Args:
        method: Sensors and fusion.
        classes: Number of classes.
        dropout: Before the classifier.

    Shape:
        - each sensor: (B, L, d); ``mask``: bool (B, L), True = valid
        - output: (B, classes), before the softmax
    """

    def __init__(self, method: Method, classes: int, *, dropout: float) -> None:
        super().__init__()
        self.sensors = method.sensors
        self.early = method.early
        for name in method.sensors:
            self.register_buffer(f"{name}_mean", torch.zeros(SENSORS[name]))
            self.register_buffer(f"{name}_std", torch.ones(SENSORS[name]))
        axes = {name: SENSORS[name] for name in method.sensors}
        widths: dict[str, tuple[int, ...]] = dict.fromkeys(axes, WIDTHS)
        if self.early:
            widths = {JOINED: tuple(len(axes) * width for width in WIDTHS)}
            axes = {JOINED: sum(axes.values())}
        self.encoders = PerModality(
            {name: TemporalConvNet(axes[name], widths[name]) for name in axes}
        )
        dims = {name: width[-1] for name, width in widths.items()}
        self.fusion = Concatenation() if self.early else method.fusion(dims)
        self.pool = MaskedMean()
        with torch.no_grad():
            pooled = self.fuse({name: torch.zeros(1, 1, dim) for name, dim in dims.items()})
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(pooled.shape[-1], classes))

    def measure(self, mean: Tensor, std: Tensor) -> None:
        """Sets mean and standard deviation of the six axes, (6,) each, to normalise by."""
        sizes = list(SENSORS.values())
        parts = zip(SENSORS, torch.split(mean, sizes), torch.split(std, sizes), strict=True)
        for name, centre, scale in parts:
            if name in self.sensors:
                self.get_buffer(f"{name}_mean").copy_(centre)
                self.get_buffer(f"{name}_std").copy_(scale)

    def normalised(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Brings every axis of the network's sensors to mean 0 and standard deviation 1."""
        found = {
            name: (streams[name] - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_std")
            for name in self.sensors
        }
        return {JOINED: torch.cat(list(found.values()), dim=-1)} if self.early else found

    def encode(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encodes each sensor: (B, L, d) to (B, L, w), causal."""
        features: dict[str, Tensor] = self.encoders(self.normalised(streams))
        return features

    def stream(
        self, chunks: Mapping[str, Tensor], state: object = None
    ) -> tuple[dict[str, Tensor], object]:
        """Encodes the next chunk of a recording; chunks join up to the outputs of ``encode``.

        Args:
            chunks: The next steps of each sensor, (B, l, d).
            state: The state that the previous call returned; None at the beginning.

        Returns:
            The features (B, l, w) of each sensor, and the state for the next call.
        """
        return self.encoders.stream(self.normalised(chunks), state)

    def fuse(self, features: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """Fuses encoded sensors, (B, L, w) each, to (B, L, D)."""
        masks = dict.fromkeys(features, mask)
        fused = self.fusion(features, masks)
        if isinstance(fused, Tensor):
            return fused
        return torch.cat([fused[name] for name in features], dim=-1)

    def classify(self, features: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """Fuses encoded sensors and scores the classes: (B, L, w) each to (B, classes)."""
        scores: Tensor = self.head(self.pool(self.fuse(features, mask), mask))
        return scores

    def forward(self, streams: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """Scores the classes."""
        return self.classify(self.encode(streams), mask)


@dataclass(frozen=True)
class SavedOptions:
    """What a saved network is built from."""

    method: str
    names: tuple[str, ...]
    dropout: float
    held_out: tuple[int, ...] = ()  # the people it has not seen


def save_model(file: Path, model: SensorNet, options: SavedOptions) -> None:
    """Saves a trained network with what it is built from."""
    save_file(model.state_dict(), file, metadata={"options": json.dumps(asdict(options))})


def load_model(file: Path) -> tuple[SensorNet, SavedOptions]:
    """Loads a network that :func:`save_model` saved, ready to use."""
    with safe_open(file, framework="pt") as saved:
        given = json.loads(saved.metadata()["options"])
    options = SavedOptions(
        given["method"], tuple(given["names"]), given["dropout"], tuple(given["held_out"])
    )
    model = SensorNet(METHODS[options.method], len(options.names), dropout=options.dropout)
    model.load_state_dict(load_file(file))
    return model.eval(), options
