"""Fusions written in plain torch, which the layers of crossfuse are compared with.

Each takes streams (B, L, d_i) by name and their masks, and returns fused features (B, L, D).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

HEADS = 4
EXPANSION = 4  # hidden features of a feed-forward per feature, as torch and the papers have it


def valid_steps(streams: Mapping[str, Tensor], masks: Mapping[str, Tensor | None]) -> Tensor:
    """Reports which stream is valid at which step, (B, L, N)."""
    found = [
        torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        for x, mask in ((x, masks[name]) for name, x in streams.items())
    ]
    return torch.stack(found, dim=-1)


class Concatenation(nn.Module):
    """Concatenates the streams."""

    def forward(self, streams: Mapping[str, Tensor], masks: Mapping[str, Tensor | None]) -> Tensor:
        return torch.cat(list(streams.values()), dim=-1)


class EncoderLayer(nn.Module):
    """A transformer encoder layer on the concatenation: each step attends to all steps.

    Args:
        dims: Features of each stream.
        heads: Attention heads.
    """

    def __init__(self, dims: Mapping[str, int], *, heads: int = HEADS) -> None:
        super().__init__()
        self.layer = _encoder_layer(sum(dims.values()), heads)

    def forward(self, streams: Mapping[str, Tensor], masks: Mapping[str, Tensor | None]) -> Tensor:
        padding = None
        if any(mask is not None for mask in masks.values()):
            padding = ~valid_steps(streams, masks).any(dim=-1)
            padding = padding & ~padding.all(dim=1, keepdim=True)  # softmax over nothing is NaN
        joined = torch.cat(list(streams.values()), dim=-1)
        fused: Tensor = self.layer(joined, src_key_padding_mask=padding)
        return fused


class ModalityTokens(nn.Module):
    """A transformer encoder layer over the streams of one step, each a token.

    Args:
        dims: Features of each stream, equal in all.
        heads: Attention heads.
    """

    def __init__(self, dims: Mapping[str, int], *, heads: int = HEADS) -> None:
        super().__init__()
        (width,) = set(dims.values())
        self.kind = nn.Parameter(0.02 * torch.randn(len(dims), width))
        self.layer = _encoder_layer(width, heads)

    def forward(self, streams: Mapping[str, Tensor], masks: Mapping[str, Tensor | None]) -> Tensor:
        tokens = torch.stack(list(streams.values()), dim=2) + self.kind
        padding = None
        if any(mask is not None for mask in masks.values()):
            padding = ~valid_steps(streams, masks).flatten(0, 1)
            padding = padding & ~padding.all(dim=1, keepdim=True)  # softmax over nothing is NaN
        fused: Tensor = self.layer(tokens.flatten(0, 1), src_key_padding_mask=padding)
        return fused.reshape(*tokens.shape[:2], -1)


def _encoder_layer(width: int, heads: int) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        width, heads, EXPANSION * width, dropout=0.0, batch_first=True, norm_first=True
    )


class LowRankFusion(nn.Module):
    """Low-rank multimodal fusion of each step: a product over the streams, summed over ranks.

    Z. Liu et al., "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors", ACL 2018.

    Args:
        dims: Features of each stream; as many as all together come out.
        rank: Of the factors.
    """

    def __init__(self, dims: Mapping[str, int], *, rank: int = 4) -> None:
        super().__init__()
        width = sum(dims.values())
        self.factors = nn.ParameterDict(
            {name: torch.empty(rank, dim + 1, width) for name, dim in dims.items()}
        )
        self.weight = nn.Parameter(torch.empty(1, rank))
        self.bias = nn.Parameter(torch.zeros(width))
        for parameter in (*self.factors.values(), self.weight):
            nn.init.xavier_normal_(parameter)

    def forward(self, streams: Mapping[str, Tensor], masks: Mapping[str, Tensor | None]) -> Tensor:
        product: Tensor | None = None
        for name, x in streams.items():
            # (B, L, R, D), of x with a one behind its features
            seen = torch.einsum("bli,rio->blro", pad(x, (0, 1), value=1.0), self.factors[name])
            product = seen if product is None else product * seen
        assert product is not None
        return torch.einsum("blro,qr->blo", product, self.weight) + self.bias
