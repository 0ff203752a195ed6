"""The subjects of the search: layers with tables of options, drawn inputs, and the laws."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import crossfuse
from tests.support import properties
from tests.support.properties import places, replace
from tests.support.reference import Structure
from tests.support.strategies import PRIMES, Streams, filled

LONGEST = 9
Options = dict[str, Any]


class Subject(NamedTuple):
    """How to build a layer from its dims and options, and the values of each option."""

    build: Callable[..., nn.Module]
    table: Mapping[str, Sequence[Any]]
    keeps_structure: bool = True
    drops_steps: bool = False  # pooling: one output for all steps


def _tcn(dims: Mapping[str, int] | Sequence[int], **options: Any) -> nn.Module:  # noqa: ANN401 - options
    def net(dim: int) -> nn.Module:
        return crossfuse.TemporalConvNet(dim, [dim, dim], **options)

    if isinstance(dims, Mapping):
        return crossfuse.PerModality({name: net(dim) for name, dim in dims.items()})
    return crossfuse.PerModality([net(dim) for dim in dims])


def _leader(dims: Mapping[str, int] | Sequence[int], width: int, *, last: bool) -> nn.Module:
    names = list(dims) if isinstance(dims, Mapping) else list(range(len(dims)))
    return crossfuse.LeaderFollowerAttention(dims, width, leader=names[-1 if last else 0])


FLAG = (False, True)
SUBJECTS = {
    "RecursiveCrossModalAttention": Subject(
        crossfuse.RecursiveCrossModalAttention,
        {
            "length": (None, LONGEST),
            "recursions": (1, 2, 3),
            "form": ("stable", "paper", "released"),
            "joint": ("all", "others"),
            "share_weights": FLAG,
            "gate": FLAG,
            "checkpoint": FLAG,
            "temporal_init": (None, "xavier", "identity"),
        },
    ),
    "JointCrossAttention": Subject(
        crossfuse.JointCrossAttention,
        {
            "length": (LONGEST,),
            "width": (1, 4),
            "recursions": (1, 2),
            "form": ("stable", "paper"),
            "gate": FLAG,
            "temporal_init": ("xavier", "identity"),
        },
    ),
    "CrossAttention": Subject(crossfuse.CrossAttention, {"temperature": (0.1, 1.0, 3.0)}),
    "CrossModalTransformer": Subject(
        crossfuse.CrossModalTransformer,
        {"width": (4, 8), "heads": (1, 2), "depth": (1, 2)},
        keeps_structure=False,
    ),
    "LeaderFollowerAttention": Subject(
        _leader, {"width": (2, 5), "last": FLAG}, keeps_structure=False
    ),
    "ConcatFusion": Subject(
        crossfuse.ConcatFusion, {"out_features": (None, 1, 4)}, keeps_structure=False
    ),
    "TemporalConvNet": Subject(_tcn, {"kernel_size": (1, 3, 5), "causal": FLAG}),
    "MaskedMean": Subject(
        lambda _: crossfuse.MaskedMean(), {}, keeps_structure=False, drops_steps=True
    ),
    "AttentionPooling": Subject(
        crossfuse.AttentionPooling, {}, keeps_structure=False, drops_steps=True
    ),
}


@cache
def pairwise(subject: str) -> list[Options]:
    """Rows in which every two values of two options occur together at least once (greedy)."""
    table = SUBJECTS[subject].table
    rows = [dict(zip(table, values, strict=True)) for values in product(*table.values())]

    def pairs(row: Options) -> set[tuple[tuple[str, Any], ...]]:
        return set(combinations(row.items(), min(2, len(row))))

    rows = [row for row in rows if _buildable(subject, row)]
    left = set().union(*map(pairs, rows))
    chosen: list[Options] = [] if left else rows[:1]
    while left:
        best = max(rows, key=lambda row: len(pairs(row) & left))
        chosen.append(best)
        left -= pairs(best)
    return chosen


def _buildable(subject: str, row: Options) -> bool:
    """Whether the layer admits the row; a refusal must be a ValueError in the library's words."""
    try:
        SUBJECTS[subject].build({"a": 2, "b": 3}, **row)
    except ValueError:
        return False
    return True


def drawn(draw: random.Random) -> Streams:
    """Sizes, masks and missing modalities."""
    count, batch, length = draw.randint(2, 4), draw.choice((0, 1, 2, 2, 3)), draw.randint(1, 7)
    return Streams(
        dims=tuple(draw.choice(PRIMES) for _ in range(count)),
        batch=batch,
        lengths=(length,) * count,
        named=draw.random() < 0.5,
        masked=draw.choice(("none", "one", "each")),
        invalid=tuple(tuple(draw.getrandbits(length) for _ in range(batch)) for _ in range(count)),
        missing=frozenset(draw.sample(range(count), draw.randint(0, count - 1))),
        seed=draw.getrandbits(16),
    )


def check(subject: str, draw: random.Random) -> None:
    """One case: a layer, inputs, every law."""
    kind, given = SUBJECTS[subject], drawn(draw)
    options = draw.choice(pairwise(subject))
    layer = filled(kind.build(given.layer_dims, **options), given.seed).double().eval()
    modalities, mask, whole = given.inputs(), given.mask(), given.whole().inputs()
    try:
        _laws(kind, layer, modalities, mask, whole, draw)
        _half(layer, given)
    except Exception as error:
        error.args = (f"{error} | {options} | {given}",)
        raise


def _laws(
    kind: Subject,
    layer: nn.Module,
    modalities: Structure,
    mask: Structure,
    whole: Structure,
    draw: random.Random,
) -> None:
    if kind.keeps_structure:
        properties.same_structure(layer, modalities, mask)
    properties.does_not_mutate(layer, modalities, mask)
    properties.finite_gradients(layer, modalities, mask)
    properties.batch_independent(layer, modalities, mask)
    if not kind.drops_steps:
        properties.padding_invariant(layer, modalities, mask, padding=draw.randint(1, 2))
        name = draw.choice(list(whole) if isinstance(whole, Mapping) else range(len(whole)))
        properties.missing_equals_masked(layer, whole, name, mask)
    same_in_any_memory(layer, modalities, mask)
    owns_what_it_returns(layer, modalities, mask)
    if next(iter(places(modalities).values())).shape[0]:
        derivatives_agree(layer, modalities, mask)


def same_in_any_memory(layer: nn.Module, modalities: Structure, mask: Structure) -> None:
    """Transposed, offset and strided inputs give what contiguous ones give."""
    expected = properties.evaluate(layer, modalities, mask)
    views: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: torch.cat([x[:, :1], x], dim=1)[:, 1:],
        lambda x: x.repeat_interleave(2, dim=2)[..., ::2],
    )
    for view in views:
        seen = {place: view(x) for place, x in places(modalities).items()}
        actual = places(layer(replace(modalities, seen), mask))
        for place, y in expected.outputs.items():
            properties.close(actual[place], y, f"a view: output {place!r}", 1e-10)


def owns_what_it_returns(layer: nn.Module, modalities: Structure, mask: Structure) -> None:
    """No output shares memory with an input."""
    theirs = {x.untyped_storage().data_ptr() for x in places(modalities).values() if x.numel()}
    for place, y in places(layer(modalities, mask)).items():
        own = not y.numel() or y.untyped_storage().data_ptr() not in theirs
        assert own, f"output {place!r} is the caller's memory"


def derivatives_agree(layer: nn.Module, modalities: Structure, mask: Structure) -> None:
    """Forward mode equals reverse mode, second derivatives are finite, vmap equals a loop."""
    tensors = places(modalities)
    names, values = list(tensors), tuple(x.detach() for x in tensors.values())

    def run(*xs: Tensor) -> tuple[Tensor, ...]:
        given = replace(modalities, dict(zip(names, xs, strict=True)))
        return tuple(places(layer(given, mask)).values())

    stacked = tuple(torch.stack([x, x / 2]) for x in values)
    for one, both in zip(
        run(*(x / 2 for x in values)), torch.func.vmap(run)(*stacked), strict=True
    ):
        properties.close(both[1], one, "vmap against a loop", 1e-10)
    if getattr(layer, "checkpoint", False):
        return  # torch: checkpointing has neither forward mode nor functional transforms
    generator = torch.Generator().manual_seed(3)
    towards = tuple(torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in values)
    with sdpa_kernel(SDPBackend.MATH):  # torch's flash kernel has neither forward mode nor bends
        slopes: Sequence[Tensor] = torch.func.jvp(run, values, towards)[1]
        leaves = tuple(x.clone().requires_grad_() for x in values)
        outputs = run(*leaves)
    weights = tuple(properties.cotangents({"": y})[""] for y in outputs)
    total = _inner(weights, outputs)
    gradients = torch.autograd.grad(total, leaves, create_graph=True, materialize_grads=True)
    properties.close(
        _inner(weights, slopes), _inner(gradients, towards), "forward against reverse mode", 1e-8
    )
    energy = _inner(gradients, gradients)
    if energy.requires_grad:
        for bend in torch.autograd.grad(energy, leaves, materialize_grads=True):
            assert bend.isfinite().all(), "a second derivative is not finite"


def _inner(ones: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(ones, others, strict=True)]).sum()


def _half(layer: nn.Module, given: Streams) -> None:
    """In half precision, outputs and gradients are finite and masked steps do not matter."""
    for dtype in (torch.bfloat16, torch.float16):
        properties.finite_gradients(layer.to(dtype), given.inputs(dtype), given.mask())
