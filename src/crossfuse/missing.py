"""Support for missing modalities: modality dropout in training and learnt placeholder tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse._errors import (
    check_dense,
    check_device,
    check_probability,
    check_size,
    check_together,
    error,
    shapes,
)
from crossfuse._masks import is_present, valid_steps
from crossfuse._modalities import Dims, Masks, Modalities, ModalitySet, Structure
from crossfuse._parameters import check_parameters


class ModalityDropout(nn.Module):
    r"""Makes whole modalities missing at random, sample by sample, while training.

    Each modality present in a sample is dropped independently with probability ``p``. If fewer than
    ``keep`` would remain, dropped modalities are restored uniformly at random until ``keep``
    remain. The probability of dropping a modality is therefore a little below ``p``. With n
    modalities present it is

    .. math:: p - \frac{1}{n} \sum_{k=n-\mathrm{keep}+1}^{n} (k - n + \mathrm{keep})
              \binom{n}{k} p^k (1 - p)^{n-k}

    which is :math:`p - p^n / n` for ``keep=1``.

    The features stay as they are; only the masks change, and the layers of this package read a
    mask that is False at every step as a missing modality.

    Args:
        p: Probability of dropping a modality.
        keep: The least number of modalities that a sample keeps, if it has that many.

    Shape:
        - modality i: (B, L_i, ...); ``None`` or an absent key for one that is missing
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); one for all, or one for each modality
        - output i: the new mask of modality i, bool (B, L_i), all False where it is dropped;
          ``None`` for a missing modality

    Raises:
        TypeError: If a container, an input or a mask is of the wrong type.
        ValueError: If ``p`` is not a probability, ``keep`` is not positive, or shapes do not fit.

    Example:
        >>> drop = ModalityDropout(0.5)
        >>> x = {"face": torch.randn(100, 7, 4), "voice": torch.randn(100, 7, 3)}
        >>> mask = drop(x)
        >>> bool((mask["face"] | mask["voice"]).all())  # never both
        True
        >>> bool(drop.eval()(x)["face"].all())
        True
    """

    def __init__(self, p: float, *, keep: int = 1) -> None:
        super().__init__()
        self.p: float = check_probability("ModalityDropout", "p", p)
        self.keep: int = check_size("ModalityDropout", "keep", keep)

    @overload
    def forward(
        self, modalities: Mapping[str, Tensor | None], mask: Masks | None = None
    ) -> dict[str, Tensor | None]: ...
    @overload
    def forward(
        self, modalities: Sequence[Tensor | None], mask: Masks | None = None
    ) -> tuple[Tensor | None, ...]: ...
    @override
    def forward(self, modalities: Modalities, mask: Masks | None = None) -> Any:
        """Draws the masks for one training step; in evaluation mode leaves them as they are.

        Args:
            modalities: (B, L_i, ...) each.
            mask: Valid steps, (B, L), True = valid; one for all or one for each.

        Returns:
            One mask for each modality, in the structure of ``modalities``, training or not. (A
            mask for an absent key comes back as ``None``.)
        """
        if isinstance(modalities, Mapping) and isinstance(mask, Mapping):
            modalities = {**modalities, **{name: None for name in mask if name not in modalities}}
        structure = Structure("ModalityDropout", "modalities", modalities)
        given = structure.ordered("modalities", modalities)
        present = {name: x for name, x in given.items() if x is not None}
        _check_batch(present)
        masks = [
            None if x is None else valid_steps(x, valid)
            for x, valid in zip(given.values(), structure.masks(mask, given), strict=True)
        ]
        if self.training and present:
            kept = iter(self._draw([valid for valid in masks if valid is not None]))
            masks = [None if valid is None else valid & next(kept) for valid in masks]
        else:
            masks = [None if valid is None else valid.clone() for valid in masks]
        return structure.restorer(modalities)(masks)

    @override
    def extra_repr(self) -> str:
        return f"p={self.p}, keep={self.keep}"

    def _draw(self, masks: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Draws which modality stays in which sample, (B, 1) for each of the masks."""
        here = torch.stack([is_present(valid)[:, 0] for valid in masks])  # (N, B)
        # One number decides both: the dropped are those below p, and those that come back are
        # the highest of them, which is any of them with the same chance.
        draw = torch.rand(here.shape, device=here.device)
        ranked = draw.masked_fill(~here, -1.0)
        least = ranked.topk(min(self.keep, len(masks)), dim=0).values[-1]
        return ((draw >= self.p) | (ranked >= least))[..., None].unbind()


class MissingTokens(nn.Module):
    """Replaces missing modalities by learnt vectors.

    If a modality is missing, in the whole batch (``None``, an absent key) or in one sample (a mask
    row of False), its vector is used at every step at which any other modality of that sample is
    valid. It counts as present from then on. Nothing else changes: present modalities keep their
    values and masks, and samples with no modality at all stay empty.

    Modalities may differ in their number of steps. Then the vector is used at all steps of the
    missing modality, which must be given as zeros with a mask of False, since nothing else
    determines its number of steps.

    Args:
        dims: Features d_i of each modality: a mapping by name, or a sequence.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        - modality i: (B, L, d_i); ``None`` or an absent key for one that is missing
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); one for all, or one for each modality
        - output: all modalities, (B, L, d_i) each, zero at invalid steps; and their masks, bool
          (B, L) each

    Raises:
        TypeError: If a container, an input or a mask is of the wrong type or dtype.
        ValueError: If sizes, names or shapes do not fit; if all modalities are missing, or one is
            ``None`` and the others differ in steps.

    Example:
        >>> from crossfuse import RecursiveCrossModalAttention
        >>> dims = {"face": 4, "voice": 3, "words": 2}
        >>> tokens, fuse = MissingTokens(dims), RecursiveCrossModalAttention(dims, 300)
        >>> x = {"face": torch.randn(8, 300, 4), "voice": None, "words": torch.randn(8, 300, 2)}
        >>> x, mask = tokens(x)
        >>> fuse(x, mask)["voice"].shape
        torch.Size([8, 300, 3])
    """

    def __init__(
        self,
        dims: Dims,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.modalities: ModalitySet = ModalitySet("MissingTokens", dims)
        size = sum(self.modalities.dims.values())
        check_parameters("MissingTokens", size, device=device, dtype=dtype)
        self.tokens: nn.ModuleDict = nn.ModuleDict(
            {name: _Token(dim, device, dtype) for name, dim in self.modalities.dims.items()}
        )

    def reset_parameters(self) -> None:
        """Re-initialises all parameters."""
        for module in self.modules():
            if isinstance(module, _Token):
                module.reset_parameters()

    @overload
    def forward(
        self, modalities: Mapping[str, Tensor | None], mask: Masks | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]: ...
    @overload
    def forward(
        self, modalities: Sequence[Tensor | None], mask: Masks | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]: ...
    @override
    def forward(self, modalities: Modalities, mask: Masks | None = None) -> Any:
        """Replaces missing modalities by their vectors.

        Args:
            modalities: (B, L, d_i) each.
            mask: Valid steps, (B, L), True = valid; one for all or one for each.

        Returns:
            All modalities and a mask for each of them, to be given to a layer as they are, in two
            dicts (absent keys follow those of the caller) or two tuples.
        """
        tokens: list[Tensor] = [token() for token in self.tokens.values()]
        inputs = self.modalities.flatten(modalities, mask, like=tokens[0], aligned=False)
        given = self.modalities.structure.ordered("modalities", modalities)
        aligned = self._check_steps(given)
        masks = [
            valid_steps(x, valid) for x, valid in zip(inputs.features, inputs.masks, strict=True)
        ]
        missing = [~is_present(valid) for valid in masks]  # (B, 1) each
        if aligned:
            known = [valid for x, valid in zip(given.values(), masks, strict=True) if x is not None]
            anywhere = torch.stack(known).any(dim=0)  # (B, L)
        else:
            anywhere = ~torch.stack(missing).all(dim=0)  # (B, 1)
        filled = [gone & anywhere for gone in missing]
        features = [
            torch.where(fill[..., None], token.to(x.dtype), x)
            for fill, token, x in zip(filled, tokens, inputs.features, strict=True)
        ]
        masks = [valid | fill for valid, fill in zip(masks, filled, strict=True)]
        return self._restored(modalities, features), self._restored(modalities, masks)

    @override
    def extra_repr(self) -> str:
        return f"{self.modalities}"

    def _check_steps(self, given: Mapping[str, Tensor | None]) -> bool:
        """Returns whether all modalities have the same steps; if not, all must be present."""
        steps = [x.shape[1] for x in given.values() if x is not None]
        aligned = all(count == steps[0] for count in steps)
        if not aligned and len(steps) < len(given):
            raise error(
                ValueError,
                "MissingTokens",
                "a modality is missing and its number of steps is unknown",
                got=shapes(given),
                expected="the same steps on axis 1 of all that are present, or none missing",
                hint="give the missing one as zeros (batch, steps, features), its mask all False",
            )
        return aligned

    def _restored(
        self, modalities: Modalities, values: Sequence[Tensor]
    ) -> dict[str, Tensor] | tuple[Tensor, ...]:
        if not isinstance(modalities, Mapping):
            return tuple(values)
        named = dict(zip(self.modalities.dims, values, strict=True))
        # By `keys`: a TensorDict is a mapping, but iterates over its batch.
        keys = dict.fromkeys([*modalities.keys(), *named])
        return {name: named[name] for name in keys}


class _Token(nn.Module):
    """The vector of one modality."""

    def __init__(
        self, dim: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialises the token near zero, the value a missing modality would otherwise have."""
        nn.init.normal_(self.vector, std=0.02)

    @override
    def forward(self) -> Tensor:
        """Returns the vector; called, because tools load weights before a call."""
        return self.vector

    @override
    def extra_repr(self) -> str:
        return f"vector={tuple(self.vector.shape)}"


def _check_batch(present: Mapping[str, Any]) -> None:
    """Refuses what has no axes for batch and steps, or a batch size of its own."""
    for name, x in present.items():
        if isinstance(x, Tensor):
            check_dense("ModalityDropout", name, x)
        if not isinstance(x, Tensor) or x.ndim < 2:
            raise error(
                TypeError,
                "ModalityDropout",
                f"{name!r} has no axes for batch and steps",
                got=f"{tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__,
                expected=f"{name} (batch, steps, ...)",
                hint="give the features themselves, or None if the modality is missing",
            )
        first_name, first = next(iter(present.items()))
        check_device("ModalityDropout", name, x, repr(first_name), first)
        check_together("ModalityDropout", name, x, first_name, first, aligned=False)
