"""The fusions that the paper compares with, behind the same interface."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, overload

import torch
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import override

from crossfuse import functional
from crossfuse._checks import check_choice, check_positive, check_size
from crossfuse._modalities import Dims, Inputs, Masks, Modalities, ModalitySet, T, zero_invalid


class ConcatFusion(nn.Module):
    r"""Puts the features of all modalities side by side.

    .. math:: Y = [X_1, \ldots, X_N] \qquad\text{or}\qquad Y = [X_1, \ldots, X_N] W^\top + b

    Args:
        dims: Features d_i of each modality: a mapping by name, or a sequence.
        out_features: Features of the output, through a linear map; ``None`` for no map.
        device: Where the parameters are made.
        dtype: Their dtype.

    Shape:
        - modality i: (B, L, d_i), any L; ``None`` or an absent key for one that is missing in the
          whole batch
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); one for all, or one for each modality. A row of
          False is a modality missing in that sample
        - output: one tensor (B, L, D), with D the sum of d_i in declared order, or (B, L,
          ``out_features``). Invalid and missing features are zeros in it; the whole step is zero
          where no modality is valid

    Raises:
        TypeError: If a container, an input or a mask is of the wrong type or dtype.
        ValueError: If sizes, names or shapes do not fit.

    Example:
        >>> fuse = ConcatFusion({"face": 32, "voice": 16}, 8)
        >>> fuse({"face": torch.randn(4, 50, 32), "voice": torch.randn(4, 50, 16)}).shape
        torch.Size([4, 50, 8])
        >>> ConcatFusion([32, 16])([torch.randn(4, 50, 32), None]).shape
        torch.Size([4, 50, 48])
    """

    def __init__(
        self,
        dims: Dims,
        out_features: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.modalities: ModalitySet = ModalitySet("ConcatFusion", dims)
        self.out_features = out_features
        self.linear: nn.Linear | None = None
        if out_features is not None:
            check_size("ConcatFusion", "out_features", out_features)
            width = sum(self.modalities.dims.values())
            self.linear = nn.Linear(width, out_features, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draws the parameters anew, if there are any."""
        if self.linear is not None:
            self.linear.reset_parameters()

    @override
    def forward(self, modalities: Modalities, mask: Masks | None = None) -> Tensor:
        """Fuses modalities, (B, L, d_i) each, into one tensor (B, L, D)."""
        like = None if self.linear is None else self.linear.weight
        inputs = self.modalities.flatten(modalities, mask, like=like)
        joint = functional.joint_features(inputs.features)
        if self.linear is None:
            return joint
        present = _presence(inputs)
        return zero_invalid(self.linear(joint), None if present is None else present.any(dim=-1))

    @override
    def extra_repr(self) -> str:
        return f"{self.modalities}, out_features={self.out_features}"


class CrossAttention(nn.Module):
    r"""Re-weights each modality's own steps by their correlation with the steps of the others.

    For each pair of modalities :math:`i` and :math:`j`:

    .. math::
        Z_{ij} = X_i W_{ij} X_j^\top = Z_{ji}^\top \qquad
        A_{ij} = \mathrm{softmax}_i(Z_{ij} / \tau) \qquad
        Y_i = \tanh\left(X_i + \frac{1}{N - 1} \sum_{j \ne i} A_{ij}^\top X_i\right)

    The softmax runs over the valid steps of :math:`i`. It is uniform for a step at which
    :math:`j` is invalid or missing, since that step's features are zeros: what is added there is
    the mean of :math:`X_i` over its valid steps.

    Args:
        dims: Features d_i of each modality: a mapping by name, or a sequence.
        temperature: :math:`\tau`; the smaller, the fewer steps count.
        device: Where the parameters are made.
        dtype: Their dtype.

    Shape:
        - modality i: (B, L, d_i), any L; ``None`` or an absent key for one that is missing in the
          whole batch
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); one for all, or one for each modality. A row of
          False is a modality missing in that sample
        - output i: (B, L, d_i), in (-1, 1), zero at invalid steps

    Raises:
        TypeError: If a container, an input or a mask is of the wrong type or dtype.
        ValueError: If sizes, names, shapes or the temperature do not fit.

    Note:
        The paper has two modalities and features in columns. The mean over the others is ours.
        The weight of a pair is the parameter ``weights.{i}.{j}``, (d_i, d_j), with i declared
        before j. Time and memory grow with the square of L.

    References:
        | R. G. Praveen, E. Granger, P. Cardinal, "Cross Attentional Audio-Visual Fusion for
          Dimensional Emotion Recognition", FG 2021
        | https://arxiv.org/abs/2111.05222

    Example:
        >>> fuse = CrossAttention({"face": 32, "voice": 16, "words": 8})
        >>> fused = fuse({"face": torch.randn(4, 50, 32), "voice": torch.randn(4, 50, 16)})
        >>> {name: y.shape for name, y in fused.items()}
        {'face': torch.Size([4, 50, 32]), 'voice': torch.Size([4, 50, 16])}
    """

    def __init__(
        self,
        dims: Dims,
        *,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.modalities: ModalitySet = ModalitySet("CrossAttention", dims, least=2)
        check_positive("CrossAttention", "temperature", temperature)
        self.temperature = temperature
        self.weights: nn.ModuleDict = nn.ModuleDict()
        for (one, one_dim), (other, dim) in combinations(self.modalities.dims.items(), 2):
            if one not in self.weights:
                self.weights[one] = _Weights()
            weight = nn.Parameter(torch.empty(one_dim, dim, device=device, dtype=dtype))
            self.weights[one].register_parameter(other, weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew, after Xavier."""
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight)

    @overload
    def forward(self, modalities: Mapping[str, T], mask: Masks | None = None) -> dict[str, T]: ...
    @overload
    def forward(self, modalities: Sequence[T], mask: Masks | None = None) -> tuple[T, ...]: ...
    @override
    def forward(self, modalities: Modalities, mask: Masks | None = None) -> Any:
        """Fuses modalities, (B, L, d_i) each, in and out."""
        inputs = self.modalities.flatten(modalities, mask, like=next(self.parameters()))
        attended: list[list[Tensor]] = [[] for _ in inputs.features]
        for (i, one), (j, other) in combinations(enumerate(self.modalities.dims), 2):
            x, y = inputs.features[i], inputs.features[j]
            weight = self.weights[one].get_parameter(other)
            correlation = functional.cross_correlation(x, y, weight)
            attended[i].append(self._attend(x, correlation, inputs.masks[i]))
            attended[j].append(self._attend(y, correlation.mT, inputs.masks[j]))
        fused = map(functional.cross_attended_features, inputs.features, attended)
        return inputs.restore(list(map(zero_invalid, fused, inputs.masks)))

    @override
    def extra_repr(self) -> str:
        return f"{self.modalities}, temperature={self.temperature}"

    def _attend(self, x: Tensor, correlation: Tensor, valid: Tensor | None) -> Tensor:
        return functional.cross_attention(x, correlation, valid, temperature=self.temperature)


class LeaderFollowerAttention(nn.Module):
    r"""Puts beside the leading modality what all modalities, attending to each other, add to it.

    At each step by itself, with the queries, keys and values of the N modalities, one linear map
    each, stacked into :math:`Q, K, V` (N, k):

    .. math::
        Y = \left[X_\mathrm{leader},\ \mathrm{LayerNorm}\left(
            \mathrm{softmax}\left(\frac{K Q^\top}{\sqrt{k}}\right) V + V\right)\right]

    The softmax runs over the last axis, the normalisation over all N k entries.

    Args:
        dims: Features d_i of each modality: a mapping by name, or a sequence.
        width: Width k of queries, keys and values.
        leader: The modality whose features stay as they are: its name, or its index where ``dims``
            is a sequence.
        device: Where the parameters are made.
        dtype: Their dtype.

    Shape:
        - modality i: (B, L, d_i), any L; ``None`` or an absent key for one that is missing in the
          whole batch
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); one for all, or one for each modality. A row of
          False is a modality missing in that sample
        - output: one tensor (B, L, d_leader + N k). A modality that is invalid at a step takes no
          part in the softmax there and gives the normalisation a row of zeros (and zeros as its
          features, if it leads); the whole step is zero where no modality is valid

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
        check_size("LeaderFollowerAttention", "width", width)
        self.width = width
        self.leader: str = str(leader)
        each = self.modalities.dims
        check_choice("LeaderFollowerAttention", "leader", self.leader, each)
        self.query: nn.ModuleDict = nn.ModuleDict()
        self.key: nn.ModuleDict = nn.ModuleDict()
        self.value: nn.ModuleDict = nn.ModuleDict()
        for maps in (self.query, self.key, self.value):
            for name, dim in each.items():
                maps[name] = nn.Linear(dim, width, device=device, dtype=dtype)
        self.norm: nn.LayerNorm = nn.LayerNorm((len(each), width), device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draws the parameters anew."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()

    @override
    def forward(self, modalities: Modalities, mask: Masks | None = None) -> Tensor:
        """Fuses modalities, (B, L, d_i) each, into one tensor (B, L, d_leader + N k)."""
        inputs = self.modalities.flatten(modalities, mask, like=self.norm.weight)
        present = _presence(inputs)
        query, key, value = (_mapped(maps, inputs) for maps in (self.query, self.key, self.value))
        attended = functional.leader_follower_attention(query, key, value, present)
        leader = inputs.features[list(self.modalities.dims).index(self.leader)]
        fused = torch.cat([leader, rearrange(self.norm(attended), "b l n k -> b l (n k)")], dim=-1)
        return zero_invalid(fused, None if present is None else present.any(dim=-1))

    @override
    def extra_repr(self) -> str:
        return f"{self.modalities}, width={self.width}, leader={self.leader!r}"


class _Weights(nn.Module):
    """The weights between one modality and those declared after it."""

    @override
    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())


def _presence(inputs: Inputs) -> Tensor | None:
    """Tells which modality is valid at which step, (B, L, N); None if all are everywhere."""
    if all(mask is None for mask in inputs.masks):
        return None
    whole = inputs.features[0].new_ones(inputs.features[0].shape[:2], dtype=torch.bool)
    return rearrange([whole if m is None else m for m in inputs.masks], "n b l -> b l n")


def _mapped(maps: nn.ModuleDict, inputs: Inputs) -> Tensor:
    """One linear map for each modality, side by side, (B, L, N, K); zero at invalid steps."""
    parts = zip(maps.values(), inputs.features, inputs.masks, strict=True)
    mapped = [zero_invalid(linear(x), valid) for linear, x, valid in parts]
    return rearrange(mapped, "n b l k -> b l n k")
