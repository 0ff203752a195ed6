"""Cross-attention between pairs of modalities."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse._errors import check_positive
from crossfuse._masks import zero_invalid
from crossfuse._modalities import Dims, Masks, Modalities, ModalitySet, T
from crossfuse._parameters import check_parameters, new_parameter
from crossfuse.functional import _equations as equations


class CrossAttention(nn.Module):
    r"""Re-weights each modality's own steps by their correlation with the steps of the others.

    For each pair of modalities :math:`i` and :math:`j`:

    .. math::
        Z_{ij} = X_i W_{ij} X_j^\top = Z_{ji}^\top \qquad
        A_{ij} = \mathrm{softmax}_i(Z_{ij} / \tau) \qquad
        Y_i = \tanh\left(X_i + \frac{1}{N - 1} \sum_{j \ne i} A_{ij}^\top X_i\right)

    The softmax runs over the valid steps of :math:`i`. For a step at which :math:`j` is invalid or
    missing it is uniform, since that step's features are zeros: the mean of :math:`X_i` over its
    valid steps is added.

    Args:
        dims: Features d_i of each modality: a mapping by name, or a sequence.
        temperature: Temperature :math:`\tau` of the softmax; lower is sharper.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        - modality i: (B, L, d_i), any L; ``None`` or an absent key for a modality that is missing
          from the whole batch
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); one for all, or one for each modality. In a
          sample whose row is all False the modality is missing
        - output i: (B, L, d_i), in (-1, 1), zero at invalid steps

    Raises:
        TypeError: If a container, an input or a mask is of the wrong type or dtype.
        ValueError: If sizes, names, shapes or the temperature do not fit.

    Note:
        The paper has two modalities and features in columns. The mean over the other modalities
        is an extension. The weight of a pair is the parameter ``weights.{i}.{j}``, (d_i, d_j),
        with i before j in alphabetical order, or in the order of the sequence. Time and memory
        grow with the square of L.

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
        self.temperature: float = check_positive(
            "CrossAttention", "temperature", temperature, least=1e-30
        )
        pairs = list(combinations(self.modalities.dims.items(), 2))
        size = sum(one_dim * dim for (_, one_dim), (_, dim) in pairs)
        check_parameters("CrossAttention", size, device=device, dtype=dtype)
        self.weights: nn.ModuleDict = nn.ModuleDict()
        for (one, one_dim), (other, dim) in pairs:
            if one not in self.weights:
                self.weights[one] = _Weights()
            weight = new_parameter(one_dim, dim, device=device, dtype=dtype)
            self.weights[one].register_parameter(other, weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialises the parameters (Xavier uniform)."""
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight)

    @overload
    def forward(self, modalities: Mapping[str, T], mask: Masks | None = None) -> dict[str, T]: ...
    @overload
    def forward(self, modalities: Sequence[T], mask: Masks | None = None) -> tuple[T, ...]: ...
    @override
    def forward(self, modalities: Modalities, mask: Masks | None = None) -> Any:
        """Fuses modalities, (B, L, d_i) each, in and out."""
        one, other, *_ = self.modalities.dims
        inputs = self.modalities.flatten(modalities, mask, like=self._weight(one, other))
        attended: list[list[Tensor]] = [[] for _ in inputs.features]
        for (i, one), (j, other) in combinations(enumerate(self.modalities.dims), 2):
            x, y = inputs.features[i], inputs.features[j]
            correlation = equations.cross_correlation(x, y, self._weight(one, other))
            attended[i].append(self._attend(x, correlation, inputs.masks[i]))
            attended[j].append(self._attend(y, correlation.mT, inputs.masks[j]))
        fused = map(equations.cross_attended_features, inputs.features, attended)
        return inputs.restore(list(map(zero_invalid, fused, inputs.masks)))

    @override
    def extra_repr(self) -> str:
        return f"{self.modalities}, temperature={self.temperature}"

    def _weight(self, one: str, other: str) -> Tensor:
        weight: Tensor = self.weights[one](other)
        return weight

    def _attend(self, x: Tensor, correlation: Tensor, valid: Tensor | None) -> Tensor:
        return equations.cross_attention(x, correlation, valid, temperature=self.temperature)


class _Weights(nn.Module):
    """The weights between one modality and each of those after it."""

    @override
    def forward(self, other: str) -> Tensor:
        """Returns the weight of one of them; called, because tools load weights before a call."""
        # As an attribute: parametrized, functional or replicated, it is not a parameter.
        weight: Tensor = getattr(self, other)
        return weight

    @override
    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())
