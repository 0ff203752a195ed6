"""Pooling: from features at each step to one vector for each recording."""

from collections.abc import Mapping, Sequence
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse._errors import as_int, check_layout, error
from crossfuse._masks import zero_invalid
from crossfuse._modalities import Dims, Masks, Modalities, ModalitySet, Structure, T
from crossfuse._parameters import check_parameters
from crossfuse.functional import _equations as equations


class MaskedMean(nn.Module):
    r"""Averages features over the valid steps: one vector for each recording.

    .. math:: y = \frac{1}{|V|} \sum_{t \in V} x_t

    with :math:`V` the valid steps. It follows a layer that returns one tensor, such as
    :class:`ConcatFusion`, or one that returns all modalities, such as
    :class:`RecursiveCrossModalAttention`; :class:`ConcatFusion` takes the pooled modalities.

    Shape:
        - ``x``: one tensor (B, L, d), or modalities (B, L_i, d_i) as a mapping or a sequence, with
          ``None`` or an absent key for one that is missing
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); for modalities one for all, or one for each
        - output: (B, d), or (B, d_i) in the structure of the modalities; zeros for a sample without
          valid steps, ``None`` for a missing modality

    Raises:
        TypeError: If an input or a mask is of the wrong type or dtype.
        ValueError: If shapes or names do not fit.

    Example:
        >>> pool = MaskedMean()
        >>> mask = torch.arange(50) < torch.tensor([[50], [20], [7], [0]])
        >>> pool(torch.randn(4, 50, 8), mask).shape
        torch.Size([4, 8])
        >>> pooled = pool({"face": torch.randn(4, 50, 8), "voice": None})
        >>> pooled["face"].shape, pooled["voice"]
        (torch.Size([4, 8]), None)
    """

    @overload
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor: ...
    @overload
    def forward(self, x: Mapping[str, T], mask: Masks | None = None) -> dict[str, T]: ...
    @overload
    def forward(self, x: Sequence[T], mask: Masks | None = None) -> tuple[T, ...]: ...
    @override
    def forward(self, x: Tensor | Modalities, mask: Masks | None = None) -> Any:
        """Averages one tensor (B, L, d), or each modality (B, L_i, d_i)."""
        if isinstance(x, Tensor):
            _check_one_mask("MaskedMean", mask)
            return self.forward({"x": x}, mask)["x"]
        structure = Structure("MaskedMean", "x", x)
        given = structure.ordered("x", x)
        for name, value in given.items():
            if value is not None:
                check_layout("MaskedMean", name, value, None)
        pooled = [
            None if value is None else equations.masked_mean(zero_invalid(value, valid), valid)
            for value, valid in zip(given.values(), structure.masks(mask, given), strict=True)
        ]
        return structure.restorer(x)(pooled)


class AttentionPooling(nn.Module):
    r"""Averages features over the valid steps with learned weights: one vector per recording.

    .. math:: y = \mathrm{softmax}\left(\frac{X q}{\sqrt{d}}\right)^{\!\top} X

    The softmax runs over the valid steps. The query :math:`q` starts at zero, so the layer starts
    as :class:`MaskedMean`. Relative to the reference, the argument of the softmax is divided by
    :math:`\sqrt{d}`, as in dot-product attention.

    Args:
        dims: Features d, for one tensor; or d_i of each modality, a mapping by name or a sequence.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        - ``x``: one tensor (B, L, d) if ``dims`` is an int; otherwise modalities (B, L_i, d_i), a
          mapping or a sequence, with ``None`` or an absent key for one that is missing
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); for modalities one for all, or one for each
        - output: (B, d), or (B, d_i) in the structure of the modalities; zeros for a sample without
          valid steps, ``None`` for a missing modality

    Raises:
        TypeError: If a container, an input or a mask is of the wrong type or dtype.
        ValueError: If sizes, names or shapes do not fit.

    References:
        | P. Safari, M. India, J. Hernando, "Self-Attention Encoding and Pooling for Speaker
          Recognition", Interspeech 2020, the pooling
        | https://arxiv.org/abs/2008.01077

    Example:
        >>> AttentionPooling(8)(torch.randn(4, 50, 8)).shape
        torch.Size([4, 8])
        >>> pool = AttentionPooling({"face": 8, "voice": 3})
        >>> pooled = pool({"face": torch.randn(4, 50, 8), "voice": torch.randn(4, 200, 3)})
        >>> pooled["voice"].shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        dims: int | Dims,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        one = as_int(dims)  # None for modalities
        self.single: bool = one is not None
        self.modalities: ModalitySet = ModalitySet(
            "AttentionPooling", cast(Dims, dims) if one is None else {"x": one}
        )
        size = sum(self.modalities.dims.values())
        check_parameters("AttentionPooling", size, device=device, dtype=dtype)
        self.queries: nn.ModuleDict = nn.ModuleDict(
            {name: _Query(dim, device, dtype) for name, dim in self.modalities.dims.items()}
        )

    def reset_parameters(self) -> None:
        """Re-initialises the parameters (zeros)."""
        for module in self.modules():
            if isinstance(module, _Query):
                module.reset_parameters()

    @overload
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor: ...
    @overload
    def forward(self, x: Mapping[str, T], mask: Masks | None = None) -> dict[str, T]: ...
    @overload
    def forward(self, x: Sequence[T], mask: Masks | None = None) -> tuple[T, ...]: ...
    @override
    def forward(self, x: Tensor | Modalities, mask: Masks | None = None) -> Any:
        """Pools one tensor (B, L, d), or each modality (B, L_i, d_i)."""
        if self.single != isinstance(x, Tensor):
            raise error(
                TypeError,
                "AttentionPooling",
                "x is not what the layer was built for",
                got="one tensor" if isinstance(x, Tensor) else type(x).__name__,
                expected="one tensor" if self.single else f"modalities of {self.modalities}",
                hint="AttentionPooling(dim) pools one tensor, AttentionPooling(dims) modalities",
            )
        if isinstance(x, Tensor):
            _check_one_mask("AttentionPooling", mask)
            return self._pool({"x": x}, mask)["x"]
        return self._pool(x, mask)

    @override
    def extra_repr(self) -> str:
        return f"{self.modalities.dims['x'] if self.single else self.modalities}"

    def _pool(self, modalities: Modalities, mask: Masks | None) -> Any:  # noqa: ANN401 - the caller's structure
        queries = [query() for query in self.queries.values()]
        inputs = self.modalities.flatten(modalities, mask, like=queries[0], aligned=False)
        pooled = [
            equations.attention_pooling(x, query, valid)
            for x, query, valid in zip(inputs.features, queries, inputs.masks, strict=True)
        ]
        return inputs.restore(pooled)


class _Query(nn.Module):
    """The query of one modality."""

    def __init__(
        self, dim: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialises the parameter (zeros): every valid step has the same weight."""
        nn.init.zeros_(self.vector)

    @override
    def forward(self) -> Tensor:
        """Returns the vector; called, because tools load weights before a call."""
        return self.vector

    @override
    def extra_repr(self) -> str:
        return f"vector={tuple(self.vector.shape)}"


def _check_one_mask(layer: str, mask: object) -> None:
    """Refuses several masks for one tensor."""
    if mask is not None and not isinstance(mask, Tensor):
        raise error(
            TypeError,
            layer,
            "mask is not a tensor, but x is one",
            got=type(mask).__name__,
            expected="bool (B, L), True = valid",
            hint="pool the modalities before they are joined, or give the mask of the joined "
            "steps, such as mask['face'] | mask['voice']",
        )
