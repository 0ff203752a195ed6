"""Joint cross-attention."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse import functional
from crossfuse._errors import check_probability, check_size
from crossfuse._masks import zero_invalid
from crossfuse._modalities import (
    Dims,
    Inputs,
    Masks,
    Modalities,
    ModalitySet,
    T,
    leading_part,
)
from crossfuse.gate import DynamicGate, gated

_NAME = "JointCrossAttention"


class JointAttention(NamedTuple):
    """The outputs of :class:`JointCrossAttention` and how it came to them.

    Every field has the caller's structure.

    Attributes:
        outputs: What ``forward`` returns, each (B, L, d_i).
        features: The attended features before any gate, each (B, L, d_i).
        correlations: C of each modality, (B, d_i, D).
        attention_maps: H of each modality, (B, d_i, K).
    """

    outputs: Any
    features: Any
    correlations: Any
    attention_maps: Any


class JointCrossAttention(nn.Module):
    r"""Fuses modalities by letting each attend to its correlation with all of them together.

    For modality :math:`i` with features :math:`X_i` (B, L, d_i) and the joint :math:`J` (B, L, D)
    of all modalities side by side:

    .. math::
        C_i = \tanh\left(\frac{X_i^\top T_i J}{\sqrt{D}}\right) \qquad
        H_i = \mathrm{relu}(X_i^\top S_i + C_i G_i) \qquad
        Y_i = X_i + \mathrm{dropout}((H_i O_i)^\top)

    Args:
        dims: Features d_i of each modality: a mapping by name, or a sequence.
        length: The longest window. Shorter inputs use the first rows and columns of the weights,
            as if they were padded with invalid steps.
        width: Width K of the attention maps; 32 in the paper.
        dropout: Probability of dropping an element of :math:`H_i O_i`.
        stable: ``False`` computes the equations as printed. ``True`` starts with :math:`O_i = 0`,
            so that the layer is the identity at first. Two sensors on people never seen
            (``examples/watch``): 80.4 % right, 80.1 as printed, 78.6 by concatenation.
        gate: Put a :class:`DynamicGate` between each modality's input and its result.
        device: Where the parameters are made.
        dtype: Their dtype.

    Shape:
        - modality i: (B, L, d_i), with 1 <= L <= ``length``; ``None`` or an absent key for one
          that is missing in the whole batch
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); one for all, or one for each modality. A row of
          False is a modality missing in that sample
        - output i: (B, L, d_i), zero at invalid steps

    Raises:
        TypeError: If a container, an input or a mask is of the wrong type or dtype.
        ValueError: If sizes, names, shapes or options do not fit.

    Note:
        The papers have two modalities and features in columns; :math:`T` is their
        :math:`W_j`, :math:`S` their :math:`W_a` and :math:`W_v`, :math:`G` their :math:`W_{ca}`
        and :math:`W_{cv}`, :math:`O` their :math:`W_h`.

    References:
        | R. G. Praveen et al., "A Joint Cross-Attention Model for Audio-Visual Fusion in
          Dimensional Emotion Recognition", CVPRW 2022, https://arxiv.org/abs/2203.14779
        | R. G. Praveen, P. Cardinal, E. Granger, "Audio-Visual Fusion for Emotion Recognition in
          the Valence-Arousal Space Using Joint Cross-Attention", T-BIOM 2023,
          https://arxiv.org/abs/2209.09068

    Example:
        >>> fuse = JointCrossAttention({"face": 32, "voice": 16}, 16)
        >>> fused = fuse({"face": torch.randn(4, 16, 32), "voice": torch.randn(4, 16, 16)})
        >>> fused["voice"].shape
        torch.Size([4, 16, 16])
    """

    def __init__(
        self,
        dims: Dims,
        length: int,
        width: int = 32,
        *,
        dropout: float = 0.0,
        stable: bool = False,
        gate: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size(_NAME, "length", length)
        check_size(_NAME, "width", width)
        check_probability(_NAME, "dropout", dropout)
        self.modalities: ModalitySet = ModalitySet(_NAME, dims)
        self.length = length
        self.width = width
        self.dropout = dropout
        self.stable = stable
        joint_dim = sum(self.modalities.dims.values())
        self.branches: nn.ModuleDict = nn.ModuleDict()
        self.gates: nn.ModuleDict = nn.ModuleDict()
        for name, dim in self.modalities.dims.items():
            self.branches[name] = _Branch(
                joint_dim, length, width, stable=stable, device=device, dtype=dtype
            )
            if gate:
                self.gates[name] = DynamicGate(dim, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for module in self.modules():
            if isinstance(module, _Branch | DynamicGate):
                module.reset_parameters()

    @overload
    def forward(self, modalities: Mapping[str, T], mask: Masks | None = None) -> dict[str, T]: ...
    @overload
    def forward(self, modalities: Sequence[T], mask: Masks | None = None) -> tuple[T, ...]: ...
    @override
    def forward(self, modalities: Modalities, mask: Masks | None = None) -> Any:
        """Fuses the modalities.

        Args:
            modalities: (B, L, d_i) each.
            mask: Valid steps, (B, L), True = valid; one for all or one for each.

        Returns:
            The attended features, in the structure of ``modalities``.
        """
        inputs = self._flatten(modalities, mask)
        # One after the other: the C of a modality makes room for that of the next.
        features = [attend().features for attend in self._attend(inputs)]
        return inputs.restore(gated(self.gates, inputs.features, features))

    def inspect(self, modalities: Modalities, mask: Masks | None = None) -> JointAttention:
        """Fuses the modalities and keeps what led to the outputs.

        Args:
            modalities: As for ``forward``.
            mask: As for ``forward``.

        Returns:
            The outputs of ``forward``, and every modality's attended features, correlation C and
            attention map H.

        Example:
            >>> fuse = JointCrossAttention({"face": 4, "voice": 3}, 10, 5)
            >>> seen = fuse.inspect({"face": torch.randn(1, 10, 4), "voice": torch.randn(1, 10, 3)})
            >>> seen.correlations["face"].shape
            torch.Size([1, 4, 7])
        """
        inputs = self._flatten(modalities, mask)
        features, correlations, maps = zip(
            *(attend() for attend in self._attend(inputs)), strict=True
        )
        outputs = gated(self.gates, inputs.features, features)
        parts = (outputs, features, correlations, maps)
        return JointAttention(*(inputs.restore(part) for part in parts))

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.modalities}, length={self.length}, width={self.width}, "
            f"dropout={self.dropout}, stable={self.stable}"
        )

    def _flatten(self, modalities: Modalities, mask: Masks | None) -> Inputs:
        return self.modalities.flatten(
            modalities,
            mask,
            like=next(self.parameters()),
            longest=dict.fromkeys(self.modalities.dims, self.length),
        )

    def _attend(self, inputs: Inputs) -> "list[Callable[[], _Attended]]":
        joint = functional.concat_features(inputs.features)
        dropout = self.dropout if self.training else 0.0
        parts = zip(self.branches.values(), inputs.features, inputs.masks, strict=True)
        return [partial(branch, x, joint, valid, dropout) for branch, x, valid in parts]


class _Attended(NamedTuple):
    features: Tensor  # (B, L, d)
    correlation: Tensor  # (B, d, D)
    attention_map: Tensor  # (B, d, K)


class _Branch(nn.Module):
    """The weights of one modality and their use."""

    def __init__(
        self,
        joint_dim: int,
        length: int,
        width: int,
        *,
        stable: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()

        def empty(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*size, device=device, dtype=dtype))

        self.stable = stable
        self.temporal = empty(length, length)
        self.own = empty(length, width)
        self.joint = empty(joint_dim, width)
        self.output = empty(width, length)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew, after Xavier."""
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight)
        if self.stable:
            nn.init.zeros_(self.output)

    @override
    def forward(self, x: Tensor, joint: Tensor, valid: Tensor | None, dropout: float) -> _Attended:
        steps = x.shape[1]
        correlation = functional.rcma_correlation(
            x, joint, leading_part(self.temporal, steps, steps)
        )
        attention = functional.jca_attention_map(x, correlation, self.own[:steps], self.joint)
        features = functional.jca_attended_features(
            x, attention, leading_part(self.output, self.output.shape[0], steps), dropout=dropout
        )
        return _Attended(zero_invalid(features, valid), correlation, attention)

    @override
    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())
