"""Recursive cross-modal attention."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute
from typing_extensions import override

from crossfuse import functional
from crossfuse._errors import check_choice, check_probability, check_size, error
from crossfuse._modalities import Dims, Inputs, Masks, Modalities, ModalitySet, T
from crossfuse._recursion import (
    Attended,
    Branch,
    Recursion,
    RecursionStep,
    ReleasedBranch,
    read_length,
    unit_scale,
)
from crossfuse.gate import DynamicGate, gated

_NAME = "RecursiveCrossModalAttention"


class RecursiveCrossModalAttention(nn.Module):
    r"""Fuses modalities by letting each attend, step after step, to its correlation with others.

    One step, for modality :math:`i` with features :math:`X_i` (B, L, d_i) and joint :math:`J_i`
    (B, L, D_i), all modalities at once:

    .. math::
        C_i = \tanh\left(\frac{X_i^\top T_i J_i}{\sqrt{D_i}}\right) \qquad
        H_i = \mathrm{relu}(X_i F_i C_i) \qquad
        X_i \leftarrow X_i + \mathrm{dropout}(H_i O_i)

    Args:
        dims: Features d_i of each modality: a mapping by name, or a sequence.
        length: The longest window. Shorter inputs use the upper left part of :math:`T_i`, as if
            they were padded with invalid steps. A mapping or sequence with one length per
            modality fuses streams that are not aligned: each keeps its own length, and
            :math:`T_i` has a block of columns for each modality of the joint. ``None`` leaves
            :math:`T_i` out, so that windows may have any length (a deviation from the paper):
            :math:`C_i = \tanh(X_i^\top J_i / \sqrt{n})`, with n the valid steps of modality i.
        steps: Number of recursions.
        joint: ``"others"``: a modality's joint is all others, side by side in declared order;
            ``"all"``: it is all modalities, its own included.
        share_weights: Use the weights of one step in all of them.
        dropout: Probability of dropping an element of :math:`H_i O_i`.
        stable: ``False`` computes the equations as printed. ``True`` departs from them in three
            ways: C and H see features at unit scale (each window divided by the root mean square
            of its valid part), :math:`X_i F_i C_i` is divided by :math:`\sqrt{d_i}`, and
            :math:`O_i` starts at 0. The layer is the identity at first, and what a step adds does
            not grow with the features. Two sensors on people never seen (``examples/watch``): 80 %
            right, 47 as printed, 79 by concatenation; the study of each departure is there.
        gate: Put a :class:`DynamicGate` between each modality's input and its result.
        checkpoint: Compute each step again in the backward pass: the same numbers, more time. At
            B 4, L 300, 512/128/512 a step keeps 5 MiB, not 58 (``benchmarks.checkpoint_memory``).
        variant: ``"printed"`` is the paper; ``"released"`` is the authors' code (see Note).
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
        >>> fuse = RecursiveCrossModalAttention({"face": 32, "voice": 16, "words": 8}, 300)
        >>> face, voice = torch.randn(4, 250, 32), torch.randn(4, 250, 16)
        >>> fused = fuse({"face": face, "voice": voice, "words": None})
        >>> fused["voice"].shape, fused["words"]
        (torch.Size([4, 250, 16]), None)
    """

    def __init__(
        self,
        dims: Dims,
        length: int | Mapping[str, int] | Sequence[int] | None,
        steps: int = 2,
        *,
        joint: str = "others",
        share_weights: bool = False,
        dropout: float = 0.0,
        stable: bool = False,
        gate: bool = False,
        checkpoint: bool = False,
        variant: str = "printed",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice(_NAME, "joint", joint, ("others", "all"))
        check_choice(_NAME, "variant", variant, ("printed", "released"))
        check_size(_NAME, "steps", steps)
        check_probability(_NAME, "dropout", dropout)
        self.modalities: ModalitySet = ModalitySet(_NAME, dims, least=2 if joint == "others" else 1)
        shown, self._longest, self._aligned = read_length(_NAME, self.modalities, length)
        self.length: int | dict[str, int] | list[int] | None = shown
        self.recursions = steps
        self.joint = joint
        self.share_weights = share_weights
        self.dropout = dropout
        self.stable = stable
        self.checkpoint = checkpoint
        self.variant = variant
        if variant == "released" and (stable or not isinstance(length, int)):
            raise error(
                ValueError,
                _NAME,
                "variant='released' is the authors' code, for aligned windows only",
                got=f"length={length!r}, stable={stable}",
                expected="an int as length, and stable=False",
                hint="use variant='printed' with these options",
            )
        every = range(len(self.modalities.dims))
        self._members = [[m for m in every if joint == "all" or m != k] for k in every]
        self.steps: nn.ModuleList = nn.ModuleList(
            nn.ModuleDict(
                {
                    name: self._branch(name, members, device, dtype)
                    for name, members in zip(self.modalities.dims, self._members, strict=True)
                }
            )
            for _ in range(1 if share_weights else steps)
        )
        self.gates: nn.ModuleDict = nn.ModuleDict()
        if gate:
            for name, dim in self.modalities.dims.items():
                self.gates[name] = DynamicGate(dim, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for module in self.modules():
            if isinstance(module, Branch | ReleasedBranch | DynamicGate):
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
        features = inputs.features
        for branches in self._recursions():
            if self.checkpoint and torch.is_grad_enabled():
                features = recompute(
                    self._features, branches, features, inputs.masks, use_reentrant=False
                )
            else:
                features = self._features(branches, features, inputs.masks)
        return inputs.restore(gated(self.gates, inputs.features, features))

    def inspect(self, modalities: Modalities, mask: Masks | None = None) -> Recursion:
        """Fuses the modalities and keeps what each step made.

        Args:
            modalities: As for ``forward``.
            mask: As for ``forward``.

        Returns:
            The outputs of ``forward``, and per step every modality's features, correlation C
            and attention map H.

        Example:
            >>> fuse = RecursiveCrossModalAttention({"face": 4, "voice": 3}, 10, steps=2)
            >>> seen = fuse.inspect({"face": torch.randn(1, 10, 4), "voice": torch.randn(1, 10, 3)})
            >>> seen.steps[1].correlations["face"].shape
            torch.Size([1, 4, 3])
        """
        inputs = self._flatten(modalities, mask)
        features, seen = inputs.features, []
        for branches in self._recursions():
            attended = [attend() for attend in self._step(branches, features, inputs.masks)]
            seen.append(
                RecursionStep(*(inputs.restore(part) for part in zip(*attended, strict=True)))
            )
            features = [one.features for one in attended]
        return Recursion(inputs.restore(gated(self.gates, inputs.features, features)), tuple(seen))

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.modalities}, length={self.length}, steps={self.recursions}, "
            f"joint={self.joint!r}, share_weights={self.share_weights}, dropout={self.dropout}, "
            f"stable={self.stable}, checkpoint={self.checkpoint}, variant={self.variant!r}"
        )

    def _branch(
        self,
        name: str,
        members: Sequence[int],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> nn.Module:
        dims, names = self.modalities.dims, list(self.modalities.dims)
        joint_dim = sum(dims[names[m]] for m in members)
        if self._longest is not None and self.variant == "released":
            return ReleasedBranch(
                dims[name],
                joint_dim,
                self._longest[name],
                map_joint=self.joint == "others",
                device=device,
                dtype=dtype,
            )
        longest = self._longest or {}
        columns = [longest[names[m]] for m in members] if longest else []
        return Branch(
            dims[name],
            joint_dim,
            longest.get(name),
            columns[:1] if self._aligned else columns,
            stable=self.stable,
            device=device,
            dtype=dtype,
        )

    def _flatten(self, modalities: Modalities, mask: Masks | None) -> Inputs:
        return self.modalities.flatten(
            modalities,
            mask,
            like=next(self.parameters()),
            longest=self._longest,
            aligned=self._aligned,
        )

    def _recursions(self) -> list[nn.Module]:
        return list(self.steps) * (self.recursions if self.share_weights else 1)

    def _step(
        self, branches: nn.Module, features: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> list[Callable[[], Attended]]:
        """Updates all modalities from the features of the step before, each when it is called."""
        inner = unit_scale(features, masks) if self.stable else features
        share = self._aligned and self.joint == "all"
        whole = functional.concat_features(inner) if share else None
        parts = zip(cast(nn.ModuleDict, branches).values(), self._members, strict=True)
        return [
            partial(self._attend, branch, k, members, features[k], inner, whole, masks)
            for k, (branch, members) in enumerate(parts)
        ]

    def _attend(
        self,
        branch: nn.Module,
        k: int,
        members: Sequence[int],
        x: Tensor,
        inner: Sequence[Tensor],
        whole: Tensor | None,
        masks: Sequence[Tensor | None],
    ) -> Attended:
        joint = [inner[m] for m in members]
        if self._aligned:
            joint = [functional.concat_features(joint) if whole is None else whole]
        dropout = self.dropout if self.training else 0.0
        joint_masks = [masks[m] for m in members]
        attended: Attended = branch(x, inner[k], joint, masks[k], joint_masks, dropout)
        return attended

    def _features(
        self, branches: nn.Module, features: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> list[Tensor]:
        # One after the other: the C and H of a modality make room for those of the next.
        return [attend().features for attend in self._step(branches, features, masks)]
