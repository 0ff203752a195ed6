"""Concatenation of the features of all modalities."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse._errors import check_size, error
from crossfuse._masks import any_valid, zero_invalid
from crossfuse._modalities import Dims, Masks, Modalities, ModalitySet
from crossfuse._parameters import check_parameters


class ConcatFusion(nn.Module):
    r"""Concatenates the features of all modalities, with an optional linear map.

    .. math:: Y = [X_1, \ldots, X_N] \qquad\text{or}\qquad Y = [X_1, \ldots, X_N] W^\top + b

    Args:
        dims: Features d_i of each modality: a mapping by name, or a sequence.
        out_features: Features of the output of a linear map; ``None`` for no map.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        - modality i: (B, L, d_i), any L; ``None`` or an absent key for a modality that is missing
          from the whole batch. Or, without a mask, (B, d_i) each, as :class:`MaskedMean` and
          :class:`AttentionPooling` return them
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); one for all, or one for each modality. In a
          sample whose row is all False the modality is missing
        - output: one tensor (B, L, D), with D the sum of d_i, or (B, L, ``out_features``);
          (B, D) or (B, ``out_features``) for pooled modalities.
          The modalities of a mapping are concatenated in alphabetical order of their names.
          Invalid and missing features are zeros; a step at which no modality is valid is zero

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
        self.linear: nn.Linear | None = None
        if out_features is not None:
            out_features = check_size("ConcatFusion", "out_features", out_features)
            width = sum(self.modalities.dims.values())
            check_parameters("ConcatFusion", width * out_features, device=device, dtype=dtype)
            self.linear = nn.Linear(width, out_features, device=device, dtype=dtype)
        self.out_features: int | None = out_features

    def reset_parameters(self) -> None:
        """Re-initialises the parameters, if there are any, as :class:`torch.nn.Linear` does."""
        if self.linear is not None:
            self.linear.reset_parameters()

    @override
    def forward(self, modalities: Modalities, mask: Masks | None = None) -> Tensor:
        """Fuses modalities, (B, L, d_i) or (B, d_i) each, into one tensor (B, L, D) or (B, D)."""
        if _are_pooled(modalities):
            _check_no_mask(mask)
            return self.forward(_with_one_step(modalities))[:, 0]
        like = getattr(self.linear, "weight", None)
        inputs = self.modalities.flatten(modalities, mask, like=like)
        joint = torch.cat(inputs.features, dim=-1)  # a new tensor, also of a single modality
        if self.linear is None:
            return joint
        return zero_invalid(self.linear(joint), any_valid(inputs.masks))

    @override
    def extra_repr(self) -> str:
        return f"{self.modalities}, out_features={self.out_features}"


def _are_pooled(modalities: object) -> bool:
    """Finds out whether the modalities that are present have no axis of steps."""
    if not isinstance(modalities, Mapping | Sequence):
        return False
    values = modalities.values() if isinstance(modalities, Mapping) else modalities
    present = [x for x in values if x is not None]
    return bool(present) and all(isinstance(x, Tensor) and x.ndim == 2 for x in present)


def _check_no_mask(mask: object) -> None:
    """Refuses a mask for modalities that have no axis of steps."""
    if mask is not None:
        raise error(
            ValueError,
            "ConcatFusion",
            "a mask is given, but the modalities have no steps",
            got="(batch, features) for each modality, with a mask",
            expected="pooled modalities alone, or (batch, steps, features) with a mask",
            hint="a pooling has used the mask: leave it out; x[None] adds a batch axis",
        )


def _with_one_step(modalities: Modalities) -> Modalities:
    """Gives pooled modalities (B, d_i) an axis of one step."""
    if isinstance(modalities, Mapping):
        return {name: None if x is None else x[:, None] for name, x in modalities.items()}
    return [None if x is None else x[:, None] for x in modalities]
