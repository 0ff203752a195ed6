"""Cross-modal transformer."""

from collections.abc import Mapping, Sequence
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from typing_extensions import override

from crossfuse._errors import check_probability, check_size, error
from crossfuse._masks import zero_invalid
from crossfuse._modalities import Dims, Masks, Modalities, ModalitySet, T
from crossfuse._parameters import check_parameters
from crossfuse.functional import _equations as equations

_NAME = "CrossModalTransformer"
_MOST_BLOCKS = 1000  # of a stack: many more than are of use, and few enough to build
_EXPANSION = 4  # hidden features of a feed-forward per feature, as in the authors' code


class CrossModalTransformer(nn.Module):
    r"""Fuses modalities with a transformer of cross-modal attention for each ordered pair.

    Every modality is embedded into a common width k, with the positions of its steps:
    :math:`Z_\alpha = X_\alpha E_\alpha + e_\alpha + \mathrm{PE}`. For each target :math:`\alpha`
    and each source :math:`\beta`, ``depth`` blocks, starting from :math:`Z = Z_\alpha`, attend to
    the embedded source:

    .. math::
        Z \leftarrow Z + \mathrm{softmax}\left(\frac{Q K^\top}{\sqrt{k_h}}\right) V\, O \qquad
        Z \leftarrow Z + \mathrm{FF}(\mathrm{LN}(Z))

    with :math:`Q = \mathrm{LN}(Z) W_Q`, :math:`K = \mathrm{LN}(Z_\beta) W_K`,
    :math:`V = \mathrm{LN}(Z_\beta) W_V` in each head of width :math:`k_h`. The results of all
    sources are concatenated to :math:`Z_{\to\alpha}`, ``depth`` blocks of self-attention of the
    same form follow, and

    .. math:: Y_\alpha = X_\alpha + \mathrm{LN}(Z_{\to\alpha}) W_\alpha + b_\alpha

    Args:
        dims: Features d_i of each modality: a mapping by name, or a sequence.
        width: Width k of the embedded modalities; a multiple of ``heads``.
        heads: Number of attention heads.
        depth: Number of blocks for each pair, and of self-attention blocks for each modality.
        dropout: Probability of dropping an element of what a block adds to its input.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        - modality i: (B, L_i, d_i), any L_i: the modalities may differ in length and need not be
          aligned; ``None`` or an absent key for a modality that is missing from the whole batch
        - ``mask``: bool (B, L_i), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`); one for all, or one for each modality. In a
          sample whose row is all False the modality is missing
        - output i: (B, L_i, d_i), zero at invalid steps. Attention to a missing modality adds
          nothing

    Raises:
        TypeError: If a container, an input or a mask is of the wrong type or dtype.
        ValueError: If sizes, names, shapes or options do not fit.

    Note:
        Deviations from the paper. Residuals carry Z, as in the authors' code, not LN(Z). Source
        and target have separate layer norms. The attention maps have no biases, so a missing
        source adds exactly nothing. The embedding is a linear map, not a temporal convolution; put
        a :class:`TemporalConvNet` in front for one. The paper predicts from the last step; here a
        map leads back to d_i at every step, with a residual. It starts at zero, so a new layer is
        the identity.

        Positions count a modality's own steps from its first, invalid ones included: padding on
        the right changes nothing, padding on the left shifts the positions. Time grows with the
        products of the lengths.

        The fused attention kernels of torch have no second derivatives. For gradient penalties,
        call the layer under ``torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)``.

    References:
        | Y.-H. H. Tsai, S. Bai, P. P. Liang, J. Z. Kolter, L.-P. Morency, R. Salakhutdinov,
          "Multimodal Transformer for Unaligned Multimodal Language Sequences", ACL 2019
        | https://arxiv.org/abs/1906.00295

    Example:
        >>> fuse = CrossModalTransformer({"face": 32, "voice": 16}, 8)
        >>> fused = fuse({"face": torch.randn(4, 50, 32), "voice": torch.randn(4, 200, 16)})
        >>> {name: y.shape for name, y in fused.items()}
        {'face': torch.Size([4, 50, 32]), 'voice': torch.Size([4, 200, 16])}
    """

    def __init__(
        self,
        dims: Dims,
        width: int = 64,
        *,
        heads: int = 4,
        depth: int = 1,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.modalities: ModalitySet = ModalitySet(_NAME, dims, least=2)
        self.width: int = check_size(_NAME, "width", width)
        self.heads: int = check_size(_NAME, "heads", heads)
        self.depth: int = check_size(_NAME, "depth", depth, most=_MOST_BLOCKS)
        self.dropout: float = check_probability(_NAME, "dropout", dropout)
        if self.width % self.heads:
            raise error(
                ValueError,
                _NAME,
                "width is not a multiple of heads",
                got=f"width={width}, heads={heads}",
                expected="heads of one whole number of features",
                hint=f"use width={width + -width % heads}, or another number of heads",
            )
        check_parameters(_NAME, self._size(), device=device, dtype=dtype)
        self.embed: nn.ModuleDict = nn.ModuleDict()
        self.targets: nn.ModuleDict = nn.ModuleDict()
        for name, dim in self.modalities.dims.items():
            sources = [other for other in self.modalities.dims if other != name]
            self.embed[name] = nn.Linear(dim, self.width, device=device, dtype=dtype)
            self.targets[name] = _Target(
                dim,
                self.width,
                self.heads,
                self.depth,
                sources,
                self.dropout,
                device=device,
                dtype=dtype,
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialises the parameters (Xavier uniform; biases and the output maps zero)."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for target in self.targets.values():
            nn.init.zeros_(cast(_Target, target).output.weight)

    def _size(self) -> int:
        """Counts the elements of the linear maps."""
        others = len(self.modalities.dims) - 1
        square = (4 + 2 * _EXPANSION) * self.width**2  # of a block
        blocks = self.depth * (others + others**2) * square
        return (others + 1) * (blocks + self.width * sum(self.modalities.dims.values()))

    @overload
    def forward(self, modalities: Mapping[str, T], mask: Masks | None = None) -> dict[str, T]: ...
    @overload
    def forward(self, modalities: Sequence[T], mask: Masks | None = None) -> tuple[T, ...]: ...
    @override
    def forward(self, modalities: Modalities, mask: Masks | None = None) -> Any:
        """Fuses modalities, (B, L_i, d_i) each, in and out."""
        maps = cast(list[nn.Linear], list(self.embed.values()))
        inputs = self.modalities.flatten(
            modalities, mask, like=getattr(maps[0], "weight", None), aligned=False
        )
        embedded = {
            name: equations.cross_modal_positions(linear(x))
            for name, linear, x in zip(self.embed, maps, inputs.features, strict=True)
        }
        masks = dict(zip(embedded, inputs.masks, strict=True))
        fused = [
            x + target(embedded=embedded, name=name, masks=masks)
            for x, (name, target) in zip(inputs.features, self.targets.items(), strict=True)
        ]
        return inputs.restore(list(map(zero_invalid, fused, inputs.masks)))

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.modalities}, width={self.width}, heads={self.heads}, depth={self.depth}, "
            f"dropout={self.dropout}"
        )


class _Target(nn.Module):
    """Everything that one target modality has: a stack per source, self-attention, the output."""

    def __init__(
        self,
        dim: int,
        width: int,
        heads: int,
        depth: int,
        sources: Sequence[str],
        dropout: float,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()

        def stack(width: int) -> nn.ModuleList:
            return nn.ModuleList(
                _Block(width, heads, dropout, device=device, dtype=dtype) for _ in range(depth)
            )

        together = len(sources) * width
        self.pairs = nn.ModuleDict({source: stack(width) for source in sources})
        self.self_attention = stack(together)
        self.norm = nn.LayerNorm(together, device=device, dtype=dtype)
        self.output = nn.Linear(together, dim, device=device, dtype=dtype)

    @override
    def forward(
        self, embedded: Mapping[str, Tensor], name: str, masks: Mapping[str, Tensor | None]
    ) -> Tensor:
        """Attends from modality ``name`` to the others, (B, L_i, k) each; gives (B, L, d)."""
        attended = []
        for source, blocks in self.pairs.items():
            z = embedded[name]
            for block in cast(nn.ModuleList, blocks):
                z = block(z, embedded[source], masks[source])
            attended.append(z)
        z = torch.cat(attended, dim=-1)
        for block in self.self_attention:
            z = block(z, z, masks[name])
        y: Tensor = self.output(self.norm(z))
        return y


class _Block(nn.Module):
    """Attention from a target to a source, then a feed-forward, both on the layer-normed input."""

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(width, device=device, dtype=dtype)

        def linear(ins: int, outs: int, *, bias: bool) -> nn.Linear:
            return nn.Linear(ins, outs, bias=bias, device=device, dtype=dtype)

        self.target_norm, self.source_norm, self.hidden_norm = norm(), norm(), norm()
        self.query = linear(width, width, bias=False)
        self.key = linear(width, width, bias=False)
        self.value = linear(width, width, bias=False)
        self.output = linear(width, width, bias=False)
        self.expand = linear(width, _EXPANSION * width, bias=True)
        self.contract = linear(_EXPANSION * width, width, bias=True)

    @override
    def forward(self, target: Tensor, source: Tensor, valid: Tensor | None) -> Tensor:
        """Attends to the valid steps of the source (B, S, k): (B, L, k) in, (B, L, k) out."""
        source = self.source_norm(source)
        attended = equations.cross_modal_attention(
            self.query(self.target_norm(target)),
            self.key(source),
            self.value(source),
            valid,
            heads=self.heads,
        )
        target = target + self._dropped(self.output(attended))
        hidden = torch.relu(self.expand(self.hidden_norm(target)))
        return target + self._dropped(self.contract(hidden))

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)
