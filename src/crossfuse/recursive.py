"""Recursive cross-modal attention."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute
from typing_extensions import override

from crossfuse._errors import check_choice, check_flag, check_probability, check_size, error
from crossfuse._modalities import Dims, Inputs, Masks, Modalities, ModalitySet, T
from crossfuse._parameters import check_parameters, copy_leading_
from crossfuse._recursive_step import MOST_RECURSIONS, Branch, Sizes, size_of
from crossfuse._released_step import ReleasedBranch, ReleasedStep
from crossfuse._stable_step import StableBranch
from crossfuse._step import Step
from crossfuse.gate import DynamicGate, gated
from crossfuse.inspection import Inspection, Recursion

_NAME = "RecursiveCrossModalAttention"


class RecursiveCrossModalAttention(nn.Module):
    r"""Fuses modalities by attending, recursively, to their correlations with each other.

    One recursion updates all modalities at once. For modality :math:`i` with features :math:`X_i`
    (B, L, d_i) and joint :math:`J_i` (B, L, D_i), the features of all modalities concatenated, it
    is in the stable form (the default)

    .. math::
        K_i = U_i P_i \qquad V_i = T_i J_i Q_i \qquad
        C_i = \frac{1}{n_i} \hat K_i^\top \hat V_i \qquad
        H_i = \frac{U_i F_i C_i}{\sqrt{k_i}} \qquad
        X_i \leftarrow X_i + \mathrm{dropout}(H_i O_i)

    .. math::
        X_i \leftarrow X_i + \mathrm{dropout}(\mathrm{GELU}(\mathrm{LN}(X_i) A_i + V_i + a_i) B_i)

    and in the form of the paper

    .. math::
        C_i = \tanh\left(\frac{X_i^\top T_i J_i}{\sqrt{D_i}}\right) \qquad
        H_i = \mathrm{relu}(X_i F_i C_i) \qquad
        X_i \leftarrow X_i + \mathrm{dropout}(H_i O_i)

    In the stable form :math:`U_i` is :math:`X_i` divided by the root mean square of its window
    (:math:`J_i` holds these), a hat divides each column by its root mean square over the n valid
    steps, and C and H are computed in 4 heads of :math:`k_i = d_i / 4` features (or the largest
    number of heads that divides both 4 and :math:`d_i`). So an entry of C is a correlation
    coefficient (not centred), which means the same at every length; :math:`V_i` shows the
    feed-forward network what all modalities have at the same step.

    Args:
        dims: Features d_i of each modality: a mapping by name, or a sequence.
        length: ``None`` (the default) leaves :math:`T_i` out, so windows may have any length (a
            deviation from the paper). In the form of the paper, C is then
            :math:`\tanh(X_i^\top J_i / \sqrt{n})`, with n the valid steps of modality i. An int is
            the longest window, as in the paper; a shorter input uses the upper left part of
            :math:`T_i`, as if it were padded with invalid steps. A mapping or sequence with one
            length per modality fuses streams that are not aligned: each keeps its own length, and
            :math:`T_i` has a block of columns for each modality of the joint.
        recursions: Number of recursions.
        form: ``"stable"``, a fresh layer is the identity (:math:`O_i`, :math:`B_i` start at 0), and
            what a recursion adds does not depend on the scale of the features. ``"paper"``, whose
            features grow with every recursion until tanh saturates. ``"released"`` is the authors'
            code (see Note), for an int as ``length``.
        joint: ``"all"``: the joint of a modality is all modalities concatenated, itself included
            (v2 and later of the paper); ``"others"``: all but itself (v1). ``"all"`` is the default
            because the paper's later versions use it; in the stable form the two score the same
            (.932 and .933 when a sign is drawn for each window, two seeds).
        share_weights: Use the weights of one recursion in all of them.
        dropout: Probability of dropping an element of what is added to :math:`X_i`.
        gate: Put a :class:`DynamicGate` between the input and the output of each modality.
        checkpoint: Recompute each recursion in the backward pass: the same numbers, more time, and
            only the features are kept (``benchmarks.checkpoint_memory``).
        temporal_init: How :math:`T_i` starts: ``"identity"``, at which steps of the same time meet,
            or ``"xavier"`` (uniform). ``None`` is the first in the stable form, the second in that
            of the paper. Neither ``length=None`` nor ``form="released"`` uses it.
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
        The paper's text puts :math:`T` as :math:`W_j`, :math:`F` as :math:`W_c`, :math:`O` as
        :math:`W_h`, and features in columns. The released code has biases on all three and on an
        additional map of the joint (for ``joint="others"``), a tanh inside the relu of
        :math:`H`, a relu around :math:`H O`, and dropout on :math:`C` too.

    References:
        | R. G. Praveen, J. Alam, "Recursive Cross-Modal Attention for Multimodal Fusion in
          Dimensional Emotion Recognition", 2024, eqs. 1-13 (v1: ``joint="others"``; v2 and
          later: ``joint="all"``)
        | https://arxiv.org/abs/2403.13659

    Example:
        >>> fuse = RecursiveCrossModalAttention({"face": 32, "voice": 16, "words": 8})
        >>> face, voice = torch.randn(4, 250, 32), torch.randn(4, 250, 16)
        >>> fused = fuse({"face": face, "voice": voice, "words": None})
        >>> fused["voice"].shape, fused["words"]
        (torch.Size([4, 250, 16]), None)
    """

    def __init__(
        self,
        dims: Dims,
        length: int | Mapping[str, int] | Sequence[int] | None = None,
        recursions: int = 2,
        *,
        form: Literal["stable", "paper", "released"] = "stable",
        joint: Literal["all", "others"] = "all",
        share_weights: bool = False,
        dropout: float = 0.0,
        gate: bool = False,
        checkpoint: bool = False,
        temporal_init: Literal["xavier", "identity"] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice(_NAME, "form", form, ("stable", "paper", "released"))
        check_choice(_NAME, "joint", joint, ("all", "others"))
        start: Literal["xavier", "identity"] = "identity" if form == "stable" else "xavier"
        start = start if temporal_init is None else temporal_init
        check_choice(_NAME, "temporal_init", start, ("xavier", "identity"))
        for name, flag in (("share_weights", share_weights), ("gate", gate)):
            check_flag(_NAME, name, flag)
        check_flag(_NAME, "checkpoint", checkpoint)
        self._count: int = check_size(_NAME, "recursions", recursions, most=MOST_RECURSIONS)
        self.modalities: ModalitySet = ModalitySet(_NAME, dims, least=2 if joint == "others" else 1)
        self._length, self._longest, self._aligned = self.modalities.lengths(length)
        self._form: Literal["stable", "paper", "released"] = form
        self._joint: Literal["all", "others"] = joint
        self._share_weights: bool = share_weights
        self._temporal_init: Literal["xavier", "identity"] = start
        self.dropout: nn.Dropout = nn.Dropout(check_probability(_NAME, "dropout", dropout))
        self.checkpoint: bool = checkpoint
        if form == "released" and not (self._aligned and self._longest):
            raise error(
                ValueError,
                _NAME,
                "form='released' needs one length",
                got=f"length={length!r}",
                expected="an int as length",
                hint="the authors' code has weights for every step; form='paper' takes any length",
            )
        sizes = {name: self._sizes(name) for name in self.modalities.dims}
        count = 1 if share_weights else self._count
        check_parameters(
            _NAME, count * sum(map(size_of, sizes.values())), device=device, dtype=dtype
        )
        step = ReleasedStep if form == "released" else Step
        self.recursions: nn.ModuleList = nn.ModuleList(
            step({name: self._branch(each, device, dtype) for name, each in sizes.items()})
            for _ in range(count)
        )
        self.gates: nn.ModuleDict = nn.ModuleDict()
        if gate:
            for name, dim in self.modalities.dims.items():
                self.gates[name] = DynamicGate(dim, device=device, dtype=dtype)

    @property
    def form(self) -> Literal["stable", "paper", "released"]:
        """The form, as it was given."""
        return self._form

    @property
    def joint(self) -> Literal["all", "others"]:
        """The joint, as it was given."""
        return self._joint

    @property
    def length(self) -> int | dict[str, int] | list[int] | None:
        """The longest window, as it was given."""
        return self._length

    @property
    def share_weights(self) -> bool:
        """Whether all recursions have the same weights."""
        return self._share_weights

    def reset_parameters(self) -> None:
        """Re-initialises all parameters."""
        for module in self.modules():
            if isinstance(module, Branch | StableBranch | ReleasedBranch | DynamicGate):
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
        for step in self._steps():
            if self.checkpoint and torch.is_grad_enabled():
                features = recompute(step, features, inputs.masks, dropout, use_reentrant=False)
            else:
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
        """Fuses the modalities and keeps what each recursion computed.

        Args:
            modalities: As for ``forward``.
            mask: As for ``forward``.

        Returns:
            The outputs of ``forward`` and, per recursion, the features, correlation C and
            attention map H of every modality.

        Example:
            >>> fuse = RecursiveCrossModalAttention({"face": 4, "voice": 3})
            >>> seen = fuse.inspect({"face": torch.randn(1, 10, 4), "voice": torch.randn(1, 10, 3)})
            >>> seen.recursions[1].correlations["face"].shape
            torch.Size([1, 4, 1, 1])
        """
        inputs, dropout, seen = self._flatten(modalities, mask), self._dropout(), []
        features: Sequence[Tensor] = inputs.features
        for step in self._steps():
            attended = step.attend(features, inputs.masks, dropout)
            seen.append(Recursion(*(inputs.restore(part) for part in zip(*attended, strict=True))))
            features = [one.features for one in attended]
        outputs = inputs.restore(gated(self.gates, inputs.features, features))
        return Inspection(outputs, tuple(seen))

    def lengthened(self, length: int | Mapping[str, int] | Sequence[int]) -> Self:
        """Returns a copy of the layer for longer or shorter windows.

        Both compute the same on windows that fit both; the weights of further steps are new.

        Args:
            length: The new longest window, of the same kind as the layer's: an int, or one for
                each modality.

        Raises:
            ValueError: If the layer has no length, or one of the other kind.

        Example:
            >>> fuse = RecursiveCrossModalAttention([4, 3], length=30)
            >>> fuse.lengthened(60).length
            60
        """
        like = self._like()
        layer = type(self)(
            self.modalities.declared,
            length,
            self._count,
            form=self._form,
            joint=self._joint,
            share_weights=self._share_weights,
            dropout=self.dropout.p,
            gate=bool(self.gates),
            checkpoint=self.checkpoint,
            temporal_init=self._temporal_init,
            device=like.device,
            dtype=like.dtype,
        )
        if None in (self._longest, layer._longest) or layer._aligned != self._aligned:
            raise error(
                ValueError,
                _NAME,
                "length is not of the kind of this layer's",
                got=f"length={length!r}",
                expected=f"another length in the place of {self.length!r}",
                hint="a layer built with length=None takes windows of any length already",
            )
        pairs = zip(layer._steps(), self._steps(), strict=True)
        blocks = {
            f"recursions.{k}.{name}.temporal": (new[name].sizes.columns, old[name].sizes.columns)
            for k, (new, old) in enumerate(pairs)
            for name in self.modalities.dims
            if self._form != "released"
        }
        copy_leading_(layer, self, blocks)
        return layer.train(self.training)

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.modalities}, length={self.length}, recursions={self._count}, "
            f"form={self.form!r}, joint={self.joint!r}, share_weights={self.share_weights}, "
            f"checkpoint={self.checkpoint}"
        )

    def _sizes(self, name: str) -> Sizes:
        dims, longest = self.modalities.dims, self._longest
        names = [other for other in dims if self._joint == "all" or other != name]
        columns = [] if longest is None else [longest[other] for other in names]
        return Sizes(
            dim=dims[name],
            members=tuple(list(dims).index(other) for other in names),
            joint_dim=sum(dims[other] for other in names),
            length=None if longest is None else longest[name],
            columns=tuple(columns[:1] if self._aligned else columns),
        )

    def _branch(
        self, sizes: Sizes, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> nn.Module:
        if sizes.length is not None and self._form == "released":
            return ReleasedBranch(
                sizes, sizes.length, map_joint=self._joint == "others", device=device, dtype=dtype
            )
        branch = StableBranch if self._form == "stable" else Branch
        return branch(sizes, temporal_init=self._temporal_init, device=device, dtype=dtype)

    def _flatten(self, modalities: Modalities, mask: Masks | None) -> Inputs:
        return self.modalities.flatten(
            modalities, mask, like=self._like(), longest=self._longest, aligned=self._aligned
        )

    def _like(self) -> Tensor:
        """A parameter, for the dtype and the device of all."""
        like: Tensor = next(iter(self._steps()[0].values())).feature
        return like

    def _dropout(self) -> float:
        # Compared here, a compiler reads p once, and not in each of the checkpoints, which fails.
        return self.dropout.p if self.dropout.training and self.dropout.p > 0 else 0.0

    def _steps(self) -> list[Any]:
        return list(self.recursions) * (self._count if self._share_weights else 1)
