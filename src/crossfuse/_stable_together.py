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
from crossfuse.functional import _equations as equations
from crossfuse.functional._products import through_heads

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
    outputs, inner, correlations = _attended(branches, features)
    return [
        Attended(y, c.clone(), equations.rcma_stable_attention_map(x @ branch.feature, c))
        for y, x, c, branch in zip(outputs, inner, correlations, branches, strict=True)
    ]


def _attended(
    branches: Sequence[Any], features: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Returns the attended features, those at unit scale (N, B, L, d), and C (N, B, h, k, k)."""
    count, (batch, steps, dim) = len(features), features[0].shape
    heads = branches[0].heads
    width = dim // heads

    weights = [branch._parameters for branch in branches]
    squares = torch.cat([w[name] for w in weights for name in _SQUARE], dim=1)
    squares = squares.view(dim, count, len(_SQUARE) * dim).transpose(0, 1)
    key, feature, output, hidden, back = torch.split_with_sizes(squares, [dim] * len(_SQUARE), 2)
    value = torch.cat([w["value"] for w in weights], dim=1)
    bias = torch.stack([w["hidden_bias"] for w in weights])

    x = torch.stack(list(features))
    inner = _over_rms(x, (2, 3))
    # Steps are last here, so that the joint and the heads are views.
    columns = inner.view(count, batch * steps, dim).mT.contiguous()
    keys = torch.bmm(key.mT, columns)
    values = torch.mm(value.mT, columns.view(count * dim, batch * steps)).view_as(columns)
    pairs = torch.cat([keys, values]).view(2 * count, heads, width, batch, steps)
    pairs = pairs.permute(0, 3, 1, 2, 4).reshape(2, count * batch * heads, width, steps)
    # C is divided by the number of steps: K and V each take a part.
    normed_keys, normed_values = (_over_rms(pairs, (3,)) * steps**-0.5).unbind()
    correlation = torch.bmm(normed_keys, normed_values.mT).view(count, batch, heads, width, width)

    product = through_heads(inner, feature, correlation * width**-0.5, output)
    # Sums, and not one call with the product, which autocast would make half precision.
    x = (x + product).view(count, batch * steps, dim)
    scores = torch.baddbmm(bias[:, None], layer_norm(x, (dim,)), hidden) + values.mT
    added = torch.bmm(gelu(scores), back)
    # Separate tensors: a caller may change one in place.
    parts = (y.view(count, batch, steps, dim).unbind() for y in (x, added))
    return tuple(map(torch.add, *parts)), inner, correlation


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
