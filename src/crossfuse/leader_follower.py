"""Leader-follower attention."""

import torch
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import override

from crossfuse._errors import check_choice, check_size
from crossfuse._masks import any_valid, valid_steps, zero_invalid
from crossfuse._modalities import Dims, Inputs, Masks, Modalities, ModalitySet
from crossfuse._parameters import check_parameters
from crossfuse.functional import _equations as equations


class LeaderFollowerAttention(nn.Module):
    r"""Concatenates the features of a leading modality with the attention among all modalities.

    The attention runs over the N modalities, at each step separately. Their queries, keys and
    values, from one linear map each, are stacked into :math:`Q, K, V` (N, k):

    .. math::
        Y = \left[X_\mathrm{leader},\ \mathrm{LayerNorm}\left(
            \mathrm{softmax}\left(\frac{K Q^\top}{\sqrt{k}}\right) V + V\right)\right]

    The softmax runs over the last axis, the normalisation over all N k entries.

    Args:
        dims: Features d_i of each modality: a mapping by name, or a sequence.
        width: Width k of queries, keys and values.
        leader: The modality whose features are kept unchanged: its name, or its index if ``dims``
            is a sequence.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        - modality i: (B, L, d_i), any L; ``None`` or an absent key for a modality that is missing
          from the whole batch
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); one for all, or one for each modality. In a
          sample whose row is all False the modality is missing
        - output: one tensor (B, L, d_leader + N k). At an invalid step a modality takes no part in
          the softmax, and its row in the layer norm (and its features, if it leads) are zeros. A
          step at which no modality is valid is zero. The modalities of a mapping are stacked in
          alphabetical order of their names

    Raises:
        TypeError: If a container, an input or a mask is of the wrong type or dtype.
        ValueError: If sizes, names, shapes or the leader do not fit.

    References:
        | S. Zhang, Y. Ding, Z. Wei, C. Guan, "Continuous Emotion Recognition with Audio-visual
          Leader-follower Attentive Fusion", ICCVW 2021
        | https://arxiv.org/abs/2107.01175

    Example:
        >>> fuse = LeaderFollowerAttention({"face": 32, "voice": 16}, 4, leader="face")
        >>> fuse({"face": torch.randn(4, 50, 32), "voice": torch.randn(4, 50, 16)}).shape
        torch.Size([4, 50, 40])
    """

    def __init__(
        self,
        dims: Dims,
        width: int = 32,
        *,
        leader: str | int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.modalities: ModalitySet = ModalitySet("LeaderFollowerAttention", dims)
        self.width: int = check_size("LeaderFollowerAttention", "width", width)
        self.leader: str = str(leader)
        each = self.modalities.dims
        check_choice("LeaderFollowerAttention", "leader", self.leader, each)
        size = 3 * self.width * sum(each.values())
        check_parameters("LeaderFollowerAttention", size, device=device, dtype=dtype)
        self.query: nn.ModuleDict = nn.ModuleDict()
        self.key: nn.ModuleDict = nn.ModuleDict()
        self.value: nn.ModuleDict = nn.ModuleDict()
        for maps in (self.query, self.key, self.value):
            for name, dim in each.items():
                maps[name] = nn.Linear(dim, self.width, device=device, dtype=dtype)
        self.norm: nn.LayerNorm = nn.LayerNorm((len(each), self.width), device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Re-initialises the parameters, as torch's layers do."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()

    @override
    def forward(self, modalities: Modalities, mask: Masks | None = None) -> Tensor:
        """Fuses modalities, (B, L, d_i) each, into one tensor (B, L, d_leader + N k)."""
        inputs = self.modalities.flatten(modalities, mask, like=getattr(self.norm, "weight", None))
        masks = zip(inputs.features, inputs.masks, strict=True)
        whole = all(valid is None for valid in inputs.masks)
        # Which modality is valid at which step, (B, L, N); None if all are everywhere.
        present = None if whole else rearrange([valid_steps(*m) for m in masks], "n b l -> b l n")
        query, key, value = (_mapped(maps, inputs) for maps in (self.query, self.key, self.value))
        attended = equations.leader_follower_attention(query, key, value, present)
        leader = inputs.features[list(self.modalities.dims).index(self.leader)]
        fused = torch.cat([leader, rearrange(self.norm(attended), "b l n k -> b l (n k)")], dim=-1)
        return zero_invalid(fused, any_valid(inputs.masks))

    @override
    def extra_repr(self) -> str:
        return f"{self.modalities}, width={self.width}, leader={self.leader!r}"


def _mapped(maps: nn.ModuleDict, inputs: Inputs) -> Tensor:
    """Applies one linear map per modality and stacks the results, (B, L, N, K)."""
    parts = zip(maps.values(), inputs.features, inputs.masks, strict=True)
    mapped = [zero_invalid(linear(x), valid) for linear, x, valid in parts]
    return rearrange(mapped, "n b l k -> b l n k")
