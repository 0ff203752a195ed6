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

from crossfuse._recursive_step import unit_scale
from crossfuse._stable_step import StableBranch
from crossfuse.functional import _equations as equations

_FEW = 2**18  # elements of all modalities: with more, the copies take longer than the calls


def pays_together(
    branches: Sequence[Any], features: Sequence[Tensor], masks: Sequence[Tensor | None]
) -> bool:
    """Whether all modalities can be computed at once, and are faster so."""
    return (
        # The outputs of a missing modality, which has a mask, leave its weights without gradients.
        all(mask is None for mask in masks)
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
    count, (batch, steps, dim) = len(features), features[0].shape

    def weights(*names: str) -> tuple[Tensor, ...]:
        every = [getattr(branch, name) for name in names for branch in branches]
        parts: tuple[Tensor, ...] = torch.stack(every).split(count)
        return parts

    def apart(x: Tensor) -> Tensor:
        """(N B, L, d) as (N, B L, d)."""
        return x.reshape(count, batch * steps, dim)

    def alike(x: Tensor) -> Tensor:
        """(N, B L, d) as (N B, L, d)."""
        return x.view(count * batch, steps, dim)

    key, feature, output, hidden, back = weights("key", "feature", "output", "hidden", "back")
    (value,), (bias,) = weights("value"), weights("hidden_bias")

    x = torch.cat(list(features))
    inner = unit_scale(x, None)
    joint = (
        equations.concat_features(inner.unflatten(0, (count, batch)).unbind())
        .flatten(0, 1)
        .expand(count, -1, -1)
    )
    correlation = equations.rcma_stable_correlation(
        alike(apart(inner) @ key), alike(joint @ value), steps, branches[0].heads
    )
    attention = equations.rcma_stable_attention_map(alike(apart(inner) @ feature), correlation)
    x = torch.baddbmm(apart(x), apart(attention), output)
    scores = torch.baddbmm(bias[:, None], layer_norm(x, (dim,)), hidden)
    added = gelu(scores) @ back
    # Separate tensors: a caller may change one in place.
    return tuple((a + b).view(batch, steps, dim) for a, b in zip(x, added, strict=True))


def _is_plain(branch: object) -> bool:
    """Whether a branch is as it was built, with nothing around it that its call would run."""
    return (
        type(branch) is StableBranch
        and branch.temporal is None
        and "forward" not in vars(branch)
        and not branch._forward_hooks
        and not branch._forward_pre_hooks
        and not branch._backward_hooks
        and not branch._backward_pre_hooks
    )
