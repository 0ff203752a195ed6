"""One recursion of RCMA in its stable form, for all modalities at once.

A short window of few features takes as long as its calls take, not its numbers. Modalities of one
width share these calls: they become a part of the batch, each with its own weights.

Shapes: N modalities, B batch, L steps, d features of each, D = N d features of the joint.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm
from torch.nn.modules.module import _has_any_global_hook

from crossfuse._recursive_step import Attended
from crossfuse._stable_step import StableBranch

_SQUARE = ("key", "feature", "output", "hidden", "back")  # the weights of size (d, d)
_FEW = 2**18  # elements of all modalities: with more, the copies take longer than the calls


def pays_together(
    branches: Sequence[Any],
    features: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    dropout: float,
) -> bool:
    """Whether all modalities can be computed at once, and are faster so."""
    return (
        dropout == 0
        # The outputs of a missing modality, which has a mask, leave its weights without gradients.
        and all(mask is None for mask in masks)
        # A compiler makes one graph for all sizes.
        and not torch.compiler.is_compiling()
        and features[0].numel() * len(features) <= _FEW
        and all(x.shape == features[0].shape for x in features)
        and all(map(_is_plain, branches))
        and all(len(branch.sizes.members) == len(branches) for branch in branches)
        # Hooks of all modules, such as those that count operations, see each branch.
        and not _has_any_global_hook()
    )


def attended_together(branches: Sequence[Any], features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns the attended features of every modality (B, L, d), as the branches do."""
    return _attended(branches, features)[0]


def inspected_together(branches: Sequence[Any], features: Sequence[Tensor]) -> list[Attended]:
    """Returns the attended features, C and H of every modality: the numbers of the above."""
    outputs, correlation, attention = _attended(branches, features)
    count, (batch, _, dim) = len(features), features[0].shape
    heads = branches[0].heads
    correlation = correlation.mT.unflatten(0, (count, batch, heads)) * (dim // heads) ** 0.5
    # Separate tensors here too.
    maps = (h.clone() for h in attention.permute(0, 2, 3, 1))
    return list(map(Attended, outputs, map(torch.clone, correlation), maps))


def _attended(
    branches: Sequence[Any], features: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Returns the attended features, C.mT over the root of k (N B h, k, k), and H (N, d, B, L)."""
    count, (batch, steps, dim) = len(features), features[0].shape
    heads = branches[0].heads
    width = dim // heads

    def split(x: Tensor) -> Tensor:
        """(M, d, B L) as (M B h, k, L): each head of each sample is a matrix."""
        parts = x.view(len(x), heads, width, batch, steps).permute(0, 3, 1, 2, 4)
        return parts.reshape(len(x) * batch * heads, width, steps)

    weights = [branch._parameters for branch in branches]
    squares = torch.cat([w[name] for w in weights for name in _SQUARE], dim=1)
    squares = squares.view(dim, count, len(_SQUARE) * dim).transpose(0, 1)
    maps, output, hidden, back = torch.split_with_sizes(squares, [2 * dim, dim, dim, dim], 2)
    value = torch.cat([w["value"] for w in weights], dim=1)
    bias = torch.stack([w["hidden_bias"] for w in weights])

    x = torch.stack(list(features))
    # Steps are last here, so that the joint and the heads are views.
    inner = _over_rms(x, (2, 3)).view(count, batch * steps, dim).mT.contiguous()
    keys, queries = torch.bmm(maps.mT, inner).chunk(2, dim=1)
    values = torch.mm(value.mT, inner.view(count * dim, batch * steps)).view_as(inner)
    # C is divided by the number of steps and H by the root of k: K and V each take a part.
    columns = _over_rms(split(torch.cat([keys, values])), (2,))
    normed_keys, normed_values = (columns * (steps * steps * width) ** -0.25).chunk(2)
    correlation = torch.bmm(normed_values, normed_keys.mT)
    attention = torch.bmm(correlation, split(queries))
    attention = attention.view(count, batch, dim, steps).transpose(1, 2)

    # Sums, and not one call with the product, which autocast would make half precision.
    x = x.view(count, batch * steps, dim)
    x = x + torch.bmm(attention.reshape(count, dim, batch * steps).mT, output)
    scores = torch.baddbmm(bias[:, None], layer_norm(x, (dim,)), hidden) + values.mT
    added = torch.bmm(gelu(scores), back)
    # Separate tensors: a caller may change one in place.
    parts = (y.view(count, batch, steps, dim).unbind() for y in (x, added))
    return tuple(map(torch.add, *parts)), correlation, attention


def _over_rms(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Divides by the root mean square over dims, in fewer calls than rms_norm of torch."""
    # Single precision holds the squares of half precision.
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return x * (wide.square().mean(dims, keepdim=True) + 1e-5).rsqrt().to(x.dtype)


def _is_plain(branch: object) -> bool:
    """Whether a branch is as it was built, with nothing around it that its call would run."""
    return (
        type(branch) is StableBranch
        and branch._parameters.keys() == {*_SQUARE, "value", "hidden_bias"}
        and "forward" not in vars(branch)
        and not branch._forward_hooks
        and not branch._forward_pre_hooks
        and not branch._backward_hooks
        and not branch._backward_pre_hooks
    )
