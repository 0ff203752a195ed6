"""Cross-attention between pairs of modalities."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse import functional
from crossfuse._errors import check_positive
from crossfuse._masks import zero_invalid
from crossfuse._modalities import Dims, Masks, Modalities, ModalitySet, T


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


class _Weights(nn.Module):
    """The weights between one modality and those declared after it."""

    @override
    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())
