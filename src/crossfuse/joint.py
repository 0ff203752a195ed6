"""Joint cross-attention."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse._errors import check_choice, check_flag, check_probability, check_size
from crossfuse._masks import zero_invalid
from crossfuse._modalities import Dims, Inputs, Masks, Modalities, ModalitySet, T, leading_part
from crossfuse._parameters import check_parameters, copy_leading_, new_parameter
from crossfuse._recursive_step import MOST_RECURSIONS, Attended, start_as_identity_
from crossfuse.functional import _equations as equations
from crossfuse.gate import DynamicGate, gated
from crossfuse.inspection import Inspection, Recursion

_NAME = "JointCrossAttention"


class JointCrossAttention(nn.Module):
    r"""Fuses modalities by attending to the correlation of each with all of them.

    For modality :math:`i` with features :math:`X_i` (B, L, d_i) and the joint :math:`J` (B, L, D),
    the features of all modalities concatenated:

    .. math::
        C_i = \tanh\left(\frac{X_i^\top T_i J}{\sqrt{D}}\right) \qquad
        H_i = \mathrm{relu}(X_i^\top S_i + C_i G_i) \qquad
        X_i \leftarrow X_i + \mathrm{dropout}((H_i O_i)^\top)

    Args:
        dims: Features d_i of each modality: a mapping by name, or a sequence.
        length: The longest window. Shorter inputs use the first rows and columns of the weights,
            as if they were padded with invalid steps.
        width: Width K of the attention maps; 32 in the paper.
        recursions: Number of recursions, each with its own weights. More than one is the recursive
            joint attention of ICASSP 2023.
        form: ``"paper"`` is the equations above. ``"stable"`` starts with :math:`O_i = 0`, so a
            new layer is the identity.
        dropout: Probability of dropping an element of :math:`H_i O_i`.
        gate: Put a :class:`DynamicGate` between the input and the output of each modality.
        temporal_init: How :math:`T_i` starts: ``"xavier"`` (uniform), or ``"identity"``, at which
            steps of the same time meet.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

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
        | R. G. Praveen, E. Granger, P. Cardinal, "Recursive Joint Attention for Audio-Visual Fusion
          in Regression Based Emotion Recognition", ICASSP 2023, https://arxiv.org/abs/2304.07958
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
        recursions: int = 1,
        form: Literal["stable", "paper"] = "stable",
        dropout: float = 0.0,
        gate: bool = False,
        temporal_init: Literal["xavier", "identity"] = "xavier",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice(_NAME, "form", form, ("stable", "paper"))
        check_choice(_NAME, "temporal_init", temporal_init, ("xavier", "identity"))
        check_flag(_NAME, "gate", gate)
        count = check_size(_NAME, "recursions", recursions, most=MOST_RECURSIONS)
        self.modalities: ModalitySet = ModalitySet(_NAME, dims)
        self._length: int = check_size(_NAME, "length", length)
        self._width: int = check_size(_NAME, "width", width)
        self._form: Literal["stable", "paper"] = form
        self._temporal_init: Literal["xavier", "identity"] = temporal_init
        self.dropout: nn.Dropout = nn.Dropout(check_probability(_NAME, "dropout", dropout))
        size = self._length * (self._length + 2 * self._width)
        size += self._width * sum(self.modalities.dims.values())
        size *= count * len(self.modalities.dims)
        check_parameters(_NAME, size, device=device, dtype=dtype)
        self.recursions: nn.ModuleList = nn.ModuleList(
            _Step({name: self._branch(device, dtype) for name in self.modalities.dims})
            for _ in range(count)
        )
        self.gates: nn.ModuleDict = nn.ModuleDict()
        if gate:
            for name, dim in self.modalities.dims.items():
                self.gates[name] = DynamicGate(dim, device=device, dtype=dtype)

    @property
    def form(self) -> Literal["stable", "paper"]:
        """The form, as it was given."""
        return self._form

    @property
    def length(self) -> int:
        """The longest window."""
        return self._length

    @property
    def width(self) -> int:
        """Width K of the attention maps."""
        return self._width

    def reset_parameters(self) -> None:
        """Re-initialises all parameters."""
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
        inputs, dropout = self._flatten(modalities, mask), self._dropout()
        features: Sequence[Tensor] = inputs.features
        for step in self.recursions:
            # By name: Captum asks positional arguments for their device.
            features = step(features=features, masks=inputs.masks, dropout=dropout)
        return inputs.restore(gated(self.gates, inputs.features, features))

    @overload
    def inspect(
        self, modalities: Mapping[str, T], mask: Masks | None = None
    ) -> Inspection[dict[str, T]]: ...
    @overload
    def inspect(
        self, modalities: Sequence[T], mask: Masks | None = None
    ) -> Inspection[tuple[T, ...]]: ...
    def inspect(self, modalities: Modalities, mask: Masks | None = None) -> Inspection[Any]:
        """Fuses the modalities and returns the intermediate results of each recursion.

        Args:
            modalities: As for ``forward``.
            mask: As for ``forward``.

        Returns:
            The outputs of ``forward`` and, per recursion, the features, correlation C and
            attention map H of every modality.

        Example:
            >>> fuse = JointCrossAttention({"face": 4, "voice": 3}, 10, 5)
            >>> seen = fuse.inspect({"face": torch.randn(1, 10, 4), "voice": torch.randn(1, 10, 3)})
            >>> seen.recursions[0].correlations["face"].shape
            torch.Size([1, 4, 7])
        """
        inputs, dropout, seen = self._flatten(modalities, mask), self._dropout(), []
        features: Sequence[Tensor] = inputs.features
        steps: list[Any] = list(self.recursions)
        for step in steps:
            attended = step.attend(features, inputs.masks, dropout)
            seen.append(Recursion(*(inputs.restore(part) for part in zip(*attended, strict=True))))
            features = [one.features for one in attended]
        outputs = inputs.restore(gated(self.gates, inputs.features, features))
        return Inspection(outputs, tuple(seen))

    def lengthened(self, length: int) -> Self:
        """Returns a copy of the layer for longer or shorter windows.

        Both compute the same on windows that fit both; the weights of further steps are new.

        Args:
            length: The new longest window.

        Raises:
            ValueError: If it is not a positive int.

        Example:
            >>> fuse = JointCrossAttention([4, 3], length=30)
            >>> fuse.lengthened(60).length
            60
        """
        like = self._like()
        layer = type(self)(
            self.modalities.declared,
            length,
            self._width,
            recursions=len(self.recursions),
            form=self._form,
            dropout=self.dropout.p,
            gate=bool(self.gates),
            temporal_init=self._temporal_init,
            device=like.device,
            dtype=like.dtype,
        )
        copy_leading_(layer, self, {})
        return layer.train(self.training)

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.modalities}, length={self.length}, width={self.width}, "
            f"recursions={len(self.recursions)}, form={self.form!r}"
        )

    def _branch(self, device: torch.device | str | None, dtype: torch.dtype | None) -> "_Branch":
        return _Branch(
            sum(self.modalities.dims.values()),
            self._length,
            self._width,
            stable=self._form == "stable",
            temporal_init=self._temporal_init,
            device=device,
            dtype=dtype,
        )

    def _flatten(self, modalities: Modalities, mask: Masks | None) -> Inputs:
        return self.modalities.flatten(
            modalities,
            mask,
            like=self._like(),
            longest=dict.fromkeys(self.modalities.dims, self._length),
        )

    def _like(self) -> Tensor:
        """A parameter, for the dtype and the device of all."""
        steps: list[Any] = list(self.recursions)
        like: Tensor = next(iter(steps[0].values())).temporal
        return like

    def _dropout(self) -> float:
        return self.dropout.p if self.dropout.training else 0.0


class _Step(nn.ModuleDict):
    """One recursion, a :class:`_Branch` per modality in the layer's order."""

    @override
    def forward(
        self, features: Sequence[Tensor], masks: Sequence[Tensor | None], dropout: float
    ) -> tuple[Tensor, ...]:
        """Returns the attended features of every modality."""
        # One after the other: C of a modality is freed before that of the next is made.
        return tuple(branch(*inputs, dropout) for branch, *inputs in self._inputs(features, masks))

    def attend(
        self, features: Sequence[Tensor], masks: Sequence[Tensor | None], dropout: float
    ) -> list[Attended]:
        """Returns the attended features, C and H of every modality."""
        return [
            branch.attend(*inputs, dropout) for branch, *inputs in self._inputs(features, masks)
        ]

    def _inputs(
        self, features: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> Iterator[tuple[Any, Tensor, Tensor, Tensor | None]]:
        joint = equations.concat_features(features)
        branches: list[Any] = list(self.values())  # also if they are wrapped
        for branch, x, valid in zip(branches, features, masks, strict=True):
            yield branch, x, joint, valid


class _Branch(nn.Module):
    """The equations for one modality."""

    def __init__(
        self,
        joint_dim: int,
        length: int,
        width: int,
        *,
        stable: bool,
        temporal_init: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()

        def new(*size: int) -> nn.Parameter:
            return new_parameter(*size, device=device, dtype=dtype)

        self.stable = stable
        self.temporal_init = temporal_init
        self.temporal = new(length, length)
        self.own = new(length, width)
        self.joint = new(joint_dim, width)
        self.output = new(width, length)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialises the parameters: Xavier uniform, but O = 0 in the stable form."""
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight)
        if self.temporal_init == "identity":
            start_as_identity_(self.temporal.detach())
        if self.stable:
            nn.init.zeros_(self.output)

    @override
    def forward(self, x: Tensor, joint: Tensor, valid: Tensor | None, dropout: float) -> Tensor:
        """Returns the attended features (B, L, d), zero at invalid steps."""
        return self.attend(x, joint, valid, dropout).features

    def attend(self, x: Tensor, joint: Tensor, valid: Tensor | None, dropout: float) -> Attended:
        """Returns the attended features, C and H."""
        steps = x.shape[1]
        temporal = leading_part(self.temporal, steps, steps)
        correlation = equations.jca_correlation(x, joint, temporal)
        attention = equations.jca_attention_map(x, correlation, self.own[:steps], self.joint)
        output = leading_part(self.output, self.output.shape[0], steps)
        features = equations.jca_attended_features(x, attention, output, dropout=dropout)
        return Attended(zero_invalid(features, valid), correlation, attention)

    @override
    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())
