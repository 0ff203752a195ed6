"""The network: a backbone and a TCN for each modality, a fusion, a head that predicts one number.

Shapes: B windows, L frames, d features of a modality (each its own).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from crossfuse import ConcatFusion, PerModality, TemporalConvNet
from examples.affwild2.network.batch_norm import MaskedBatchNorm

Streams = Mapping[str, Tensor | None]
Masks = Mapping[str, Tensor | None]
Fusion = Callable[[dict[str, int]], nn.Module]


class PerFrame(nn.Module):
    """Applies a backbone to every frame of every window: (B, L, ...) to (B, L, d)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, frames: Tensor) -> Tensor:
        features: Tensor = self.backbone(frames.flatten(0, 1))
        out: Tensor = features.unflatten(0, frames.shape[:2])
        return out


class Encoder(nn.Module):
    """A causal TCN, then batch normalisation over the valid steps: (B, L, d) to (B, L, w).

    In training, Gaussian noise of standard deviation ``noise`` is added to the features.
    """

    def __init__(self, dim: int, widths: Sequence[int], dropout: float, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.tcn = TemporalConvNet(dim, widths, kernel_size=5, dropout=dropout)
        self.norm = MaskedBatchNorm(widths[-1])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.training and self.noise:
            x = x + self.noise * torch.randn_like(x)
        out: Tensor = self.norm(self.tcn(x, mask), mask)
        return out


class AffectNet(nn.Module):
    """Predicts valence, or arousal, for every frame of windows.

    Args:
        backbones: One per modality; each has ``dim``.
        widths: Of each TCN's blocks.
        fusion: Makes the fusion for the features of each modality: modalities in, modalities or
            one tensor out. With one modality there is none.
        head: Makes the head for the features of all modalities, concatenated.
        dropout: Of the TCNs.
        noise: Added to the backbones' features in training.

    Shape:
        - ``streams``: what each backbone takes, (B, L, ...), or with ``encoded`` its features;
          ``None`` or an absent key for a modality that is missing in the whole batch
        - ``masks``: bool (B, L) each, True = valid; a row of False is a modality missing there
        - output: (B, L), in [-1, 1]
    """

    def __init__(
        self,
        backbones: Mapping[str, nn.Module],
        widths: Mapping[str, Sequence[int]],
        fusion: Fusion,
        head: Callable[[int], nn.Module],
        *,
        dropout: float = 0.1,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        names = list(backbones)
        dims = {name: int(getattr(backbones[name], "dim")) for name in names}  # noqa: B009
        outputs = {name: widths[name][-1] for name in names}
        self.backbones = PerModality(
            {name: PerFrame(backbones[name]) for name in names},
            takes=dict.fromkeys(names, "alone"),
        )
        self.encoders = PerModality(
            {name: Encoder(dims[name], widths[name], dropout, noise) for name in names}
        )
        self.fusion = fusion(outputs) if len(names) > 1 else nn.Identity()
        self.join = ConcatFusion(outputs)
        self.head = head(self._width(outputs))

    def forward(self, streams: Streams, masks: Masks, *, encoded: bool = False) -> Tensor:
        """Predicts the target for every frame."""
        features = dict(streams) if encoded else self.backbones(streams, masks)
        return torch.tanh(self.head(self.fuse(features, masks)))[..., 0]

    def fuse(self, features: Streams, masks: Masks) -> Tensor:
        """Features of all modalities after their TCNs and the fusion, concatenated, (B, L, d)."""
        attended = self.encoders(features, masks)
        if not isinstance(self.fusion, nn.Identity):
            attended = self.fusion(attended, masks)
        joined: Tensor = attended if isinstance(attended, Tensor) else self.join(attended, masks)
        return joined

    def _width(self, outputs: Mapping[str, int]) -> int:
        if isinstance(self.fusion, nn.Identity):
            return sum(outputs.values())
        with torch.no_grad():  # a fusion says by its output how wide it is
            out = self.fusion({name: torch.zeros(1, 2, dim) for name, dim in outputs.items()})
        return out.shape[-1] if isinstance(out, Tensor) else sum(outputs.values())
