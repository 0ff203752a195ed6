"""Naive twins of every layer, written from the equations alone.

Plain float64 torch, so that autograd gives reference gradients; loops over samples, pairs of
modalities and (where it reads naturally) time steps. Nothing of crossfuse is imported. A masked
step is *cut out* rather than zeroed and a missing modality is a stream of no steps: that is what a
mask means, and it shares no mechanism with the layers.

The twins take plain state dicts with the layers' own keys. Letters are the paper's: X, T, F, O, J.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Modalities, masks or outputs: a mapping, a sequence, one tensor, None
Structure = Any
State = Mapping[str, Tensor]
Length = int | None | Mapping[str, int]
NEGATIVE_SLOPE = 0.01
STABLE = ("key", "value", "feature", "output", "hidden", "hidden_bias", "back")


class Stream(NamedTuple):
    """The valid steps of one modality in one sample."""

    rows: Tensor  # (n, d)
    at: list[int]  # n positions in the whole window


Sample = dict[str, Stream]


def by_name(values: Structure, names: Sequence[str]) -> dict[str, Tensor | None]:
    """Puts a mapping, a sequence, one tensor for all, or None into a dict over every name."""
    if values is None or isinstance(values, Tensor):
        return dict.fromkeys(names, values)
    if isinstance(values, Mapping):
        return {name: values.get(name) for name in names}
    return dict(zip(names, values, strict=True))


def _sample(
    modalities: Mapping[str, Tensor | None],
    masks: Mapping[str, Tensor | None],
    dims: Mapping[str, int],
    index: int,
    like: Tensor,
) -> Sample:
    sample: Sample = {}
    for name, dim in dims.items():
        x, mask = modalities[name], masks[name]
        if x is None:
            sample[name] = Stream(like.new_zeros(0, dim), [])
            continue
        at = [t for t in range(x.shape[1]) if mask is None or bool(mask[index, t])]
        sample[name] = Stream(x[index][at], at)
    return sample


def _whole(stream: Stream, length: int) -> Tensor:
    """The stream back on its window, zero at the steps that were cut out."""
    rows = {t: stream.rows[n] for n, t in enumerate(stream.at)}
    zero = stream.rows.new_zeros(stream.rows.shape[-1])
    return torch.stack([rows.get(t, zero) for t in range(length)])


def _per_sample(
    fuse: Callable[[Sample], Sample],
    modalities: Structure,
    mask: Structure,
    dims: Mapping[str, int],
) -> Structure:
    """Runs `fuse` on each sample and gives back the structure that came in."""
    inputs, masks = by_name(modalities, list(dims)), by_name(mask, list(dims))
    present = {name: x for name, x in inputs.items() if x is not None}
    like = next(iter(present.values()))
    fused = [fuse(_sample(inputs, masks, dims, b, like)) for b in range(like.shape[0])]
    outputs: dict[str, Tensor | None] = dict.fromkeys(dims)
    for name, x in present.items():
        wholes = [_whole(sample[name], x.shape[1]) for sample in fused]
        outputs[name] = torch.stack(wholes) if wholes else x.new_zeros(x.shape)
    if isinstance(modalities, Mapping):
        return {name: outputs[name] for name in modalities}
    return tuple(outputs.values())


def _members(names: Sequence[str], name: str, joint: str) -> list[str]:
    return [other for other in names if joint == "all" or other != name]


def _correlation(x: Stream, y: Stream, weight: Tensor, scale: float) -> Tensor:
    """tanh(s Xᵀ T Y) over the steps that both have (eqs 2-4, one block of columns)."""
    return torch.tanh(scale * x.rows.T @ weight[x.at][:, y.at] @ y.rows)


def _correlation_without_weight(x: Stream, y: Stream) -> Tensor:
    """tanh(Xᵀ Y / sqrt(n)), n the valid steps of X: the layer with length=None."""
    total = x.rows.new_zeros(x.rows.shape[1], y.rows.shape[1])
    for n, t in enumerate(x.at):
        if t in y.at:
            total = total + torch.outer(x.rows[n], y.rows[y.at.index(t)])
    return torch.tanh(total / max(len(x.at), 1) ** 0.5)


def _unit_scale(x: Stream) -> Stream:
    """A window divided by the root mean square of its valid part (1e-5 keeps silence silent)."""
    total = x.rows.new_zeros(())
    for row in x.rows:
        total = total + row.square().sum()
    power = total / (max(len(x.at), 1) * x.rows.shape[1])
    return Stream(x.rows / (power + 1e-5).sqrt(), x.at)


def _temporal_block(weight: Tensor, members: Sequence[str], name: str, length: Length) -> Tensor:
    """The columns of T that meet `name`: all of them if aligned, its own block if not."""
    if not isinstance(length, Mapping):
        return weight
    before = sum(length[other] for other in members[: members.index(name)])
    return weight[:, before : before + length[name]]


def recursive_cross_modal_attention(
    state: State,
    modalities: Structure,
    mask: Structure = None,
    *,
    dims: Mapping[str, int],
    length: Length,
    recursions: int = 2,
    form: str = "stable",
    joint: str = "all",
    share_weights: bool = False,
    gate: bool = False,
) -> Structure:
    """RCMA, eqs 1-13, in the form of the paper, of the authors' code, or in the stable form.

    `dims` is in the order in which joints are concatenated.
    """
    names = list(dims)

    def stable(sample: Sample, key: str, name: str) -> Tensor:
        """Correlation coefficients of mapped features, head by head, and a feed-forward network."""
        weight = {part: state[f"{key}.{part}"] for part in STABLE}
        unit = {n: _unit_scale(stream) for n, stream in sample.items()}
        x, members = unit[name], _members(names, name, joint)
        maps = dict(zip(members, weight["value"].split([dims[n] for n in members]), strict=True))
        values = []
        for t in x.at:
            total = x.rows.new_zeros(dims[name])
            for other in members:
                for row, s in zip(unit[other].rows, unit[other].at, strict=True):
                    if length is not None:
                        block = _temporal_block(state[f"{key}.temporal"], members, other, length)
                        total = total + block[t, s] * (row @ maps[other])
                    elif s == t:
                        total = total + row @ maps[other]
            values.append(total)
        v = torch.stack(values) if values else x.rows[:0]
        k, q = x.rows @ weight["key"], x.rows @ weight["feature"]
        count, heads = max(len(x.at), 1), math.gcd(dims[name], 4)
        width = dims[name] // heads
        found = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            c = x.rows.new_zeros(width, width)
            for i in range(width):
                for j in range(width):
                    a, b = k[:, part][:, i], v[:, part][:, j]
                    size = (a.square().sum() / count + 1e-5) * (b.square().sum() / count + 1e-5)
                    c[i, j] = (a * b).sum() / count / size.sqrt()
            found.append(q[:, part] @ c / width**0.5)
        y = sample[name].rows + torch.cat(found, dim=1) @ weight["output"]
        centred = y - y.mean(dim=1, keepdim=True)
        norm = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
        inner = norm @ weight["hidden"] + v + weight["hidden_bias"]
        gelu = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        return y + gelu @ weight["back"]

    def published(sample: Sample, key: str, name: str) -> Tensor:
        x, members = sample[name], _members(names, name, joint)
        scale = sum(dims[other] for other in members) ** -0.5
        blocks = []
        for other in members:
            if length is None:
                blocks.append(_correlation_without_weight(x, sample[other]))
                continue
            weight = _temporal_block(state[f"{key}.temporal"], members, other, length)
            blocks.append(_correlation(x, sample[other], weight, scale))
        h = torch.relu(x.rows @ state[f"{key}.feature"] @ torch.cat(blocks, dim=1))
        return sample[name].rows + h @ state[f"{key}.output"]

    def released(sample: Sample, key: str, name: str) -> Tensor:
        x, members = sample[name], _members(names, name, joint)
        scale = sum(dims[other] for other in members) ** -0.5
        at = sorted({t for other in members for t in sample[other].at})
        span = at[-1] + 1 if at else 0
        parts = [_whole(sample[other], span) if span else sample[other].rows for other in members]
        j = torch.cat([part[at] if at else part[:0] for part in parts], dim=1)
        if joint == "others":
            j = j @ state[f"{key}.joint"] + state[f"{key}.joint_bias"]
        mixed = x.rows.T @ state[f"{key}.temporal"][x.at] + state[f"{key}.temporal_bias"]
        c = torch.tanh(scale * mixed[:, at] @ j)
        h = torch.relu(
            torch.tanh((x.rows @ state[f"{key}.feature"] + state[f"{key}.feature_bias"]) @ c)
        )
        return x.rows + torch.relu(h @ state[f"{key}.output"] + state[f"{key}.output_bias"])

    def fuse(sample: Sample) -> Sample:
        step = {"stable": stable, "paper": published, "released": released}[form]
        first = sample
        for k in range(recursions):
            index = 0 if share_weights else k
            sample = {
                name: Stream(step(sample, f"recursions.{index}.{name}", name), sample[name].at)
                for name in names
            }
        return _gated(state, first, sample) if gate else sample

    return _per_sample(fuse, modalities, mask, dims)


def joint_cross_attention(
    state: State,
    modalities: Structure,
    mask: Structure = None,
    *,
    dims: Mapping[str, int],
    recursions: int = 1,
    gate: bool = False,
) -> Structure:
    """JCA (CVPRW 2022) for N modalities, repeated as in ICASSP 2023; the joint is that of all."""
    scale = sum(dims.values()) ** -0.5

    def branch(sample: Sample, k: int, name: str) -> Tensor:
        x, key = sample[name], f"recursions.{k}.{name}"
        t, s, g, o = (state[f"{key}.{part}"] for part in ("temporal", "own", "joint", "output"))
        c = torch.cat([_correlation(x, sample[other], t, scale) for other in dims], dim=1)
        h = torch.relu(x.rows.T @ s[x.at] + c @ g)
        return x.rows + (h @ o[:, x.at]).T

    def fuse(sample: Sample) -> Sample:
        first = sample
        for k in range(recursions):
            sample = {name: Stream(branch(sample, k, name), sample[name].at) for name in dims}
        return _gated(state, first, sample) if gate else sample

    return _per_sample(fuse, modalities, mask, dims)


def dynamic_gate(
    weight: Tensor, bias: Tensor, x: Tensor, attended: Tensor, temperature: float = 0.1
) -> Tensor:
    """g = softmax(Linear(X_att) / 0.1), relu(g_0 X + g_1 X_att), row by row (DCA, ICME 2024)."""
    rows = []
    for own, other in zip(x, attended, strict=True):
        scores = (weight @ other + bias) / temperature
        odds = torch.exp(scores - scores.max())
        rows.append(torch.relu((odds[0] * own + odds[1] * other) / odds.sum()))
    return torch.stack(rows) if rows else x


def _gated(state: State, before: Sample, after: Sample) -> Sample:
    """One gate per modality between what came in and what came out."""
    return {
        name: Stream(
            dynamic_gate(
                state[f"gates.{name}.score.weight"],
                state[f"gates.{name}.score.bias"],
                before[name].rows,
                after[name].rows,
            ),
            before[name].at,
        )
        for name in before
    }


class ConvBlock(NamedTuple):
    """One block of the TCN: two convolutions, weights (out, in, kernel), and the 1x1 residual."""

    weights: tuple[Tensor, Tensor]
    biases: tuple[Tensor, Tensor]
    residual: tuple[Tensor, Tensor] | None


def weight_norm(magnitude: Tensor, direction: Tensor) -> Tensor:
    """g v / ||v||, one norm per output channel."""
    return torch.stack(
        [
            g * v / v.square().sum().sqrt()
            for g, v in zip(magnitude.flatten(), direction, strict=True)
        ]
    )


def _leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, NEGATIVE_SLOPE * x)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor, dilation: int, causal: bool, valid: Tensor
) -> Tensor:
    """One dilated convolution of (L, in), tap by tap, zero outside the window and where invalid."""
    kernel = weight.shape[-1]
    ahead = 0 if causal else dilation * (kernel - 1) // 2
    steps = []
    for t in range(x.shape[0]):
        total = bias
        for tap in range(kernel):
            source = t + ahead - dilation * (kernel - 1 - tap)
            if 0 <= source < x.shape[0]:
                total = total + weight[:, :, tap] @ x[source]
        steps.append(total * valid[t])
    return torch.stack(steps)


def temporal_conv_net(
    blocks: Sequence[ConvBlock], x: Tensor, mask: Tensor | None = None, *, causal: bool = True
) -> Tensor:
    """The TCN on (B, L, d): dilation 2^k, LeakyReLU after each convolution and after the sum.

    Invalid steps are zero wherever a convolution looks: they equal the padding outside the window.
    """
    outputs = []
    for b in range(x.shape[0]):
        valid = torch.ones(x.shape[1], dtype=x.dtype) if mask is None else mask[b].to(x.dtype)
        at = [bool(v) for v in valid]
        y = torch.stack([x[b, t] if at[t] else x.new_zeros(x.shape[2]) for t in range(len(at))])
        for k, block in enumerate(blocks):
            inner = y
            for weight, bias in zip(block.weights, block.biases, strict=True):
                inner = _leaky(_convolve(inner, weight, bias, 2**k, causal, valid))
            kept = y
            if block.residual is not None:
                kept = _convolve(y, *block.residual, 1, True, valid)
            y = _leaky(inner + kept)
        outputs.append(y)
    width = blocks[-1].biases[1].shape[0]
    return torch.stack(outputs) if outputs else x.new_zeros(0, x.shape[1], width)


def concat_fusion(
    modalities: Structure,
    mask: Structure = None,
    *,
    dims: Mapping[str, int],
    projection: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Features side by side in declared order; a step is valid where any modality is."""
    inputs, masks = by_name(modalities, list(dims)), by_name(mask, list(dims))
    like = next(x for x in inputs.values() if x is not None)
    samples = []
    for b in range(like.shape[0]):
        sample = _sample(inputs, masks, dims, b, like)
        row = torch.cat([_whole(sample[name], like.shape[1]) for name in dims], dim=1)
        if projection is not None:
            seen = {t for stream in sample.values() for t in stream.at}
            valid = row.new_tensor([[float(t in seen)] for t in range(like.shape[1])])
            row = (row @ projection[0].T + projection[1]) * valid
        samples.append(row)
    width = sum(dims.values()) if projection is None else projection[1].shape[0]
    return torch.stack(samples) if samples else like.new_zeros(0, like.shape[1], width)


def cross_attention(
    weights: Mapping[tuple[str, str], Tensor],
    modalities: Structure,
    mask: Structure = None,
    *,
    dims: Mapping[str, int],
    temperature: float = 1.0,
) -> Structure:
    """Cross-attention (FG 2021): tanh(X_i + mean over j of A_ijᵀ X_i), A_ij over the steps of i.

    `weights` holds W_ij for each unordered pair under (i, j), i declared before j; Z_ji = Z_ijᵀ. At
    a step where j is invalid its row is zero, hence Z too, hence the mean over the steps of i.
    """

    def attended(sample: Sample, i: str, j: str, t: int) -> Tensor:
        own, other = sample[i], sample[j]
        query = other.rows[other.at.index(t)] if t in other.at else own.rows.new_zeros(dims[j])
        weight = weights[i, j] if (i, j) in weights else weights[j, i].T
        scores = torch.softmax(own.rows @ weight @ query / temperature, dim=0)
        return scores @ own.rows

    def fuse(sample: Sample) -> Sample:
        fused = {}
        for i in dims:
            others = [j for j in dims if j != i]
            rows = [
                torch.tanh(row + sum(attended(sample, i, j, t) for j in others) / len(others))
                for row, t in zip(sample[i].rows, sample[i].at, strict=True)
            ]
            fused[i] = Stream(torch.stack(rows) if rows else sample[i].rows, sample[i].at)
        return fused

    return _per_sample(fuse, modalities, mask, dims)


class Affine(NamedTuple):
    """A linear map with bias, weight (out, in)."""

    weight: Tensor
    bias: Tensor


def leader_follower_attention(
    maps: Mapping[str, Mapping[str, Affine]],
    norm: Affine,
    modalities: Structure,
    mask: Structure = None,
    *,
    dims: Mapping[str, int],
    leader: str,
) -> Tensor:
    """Leader-follower (ICCVW 2021), step by step; `maps[name]` holds its query, key and value.

    A modality that is invalid at a step has zero query, key and value there and takes no part in
    the softmax.
    """
    inputs, masks = by_name(modalities, list(dims)), by_name(mask, list(dims))
    like = next(x for x in inputs.values() if x is not None)
    width = norm.weight.shape[1]

    def step(sample: Sample, t: int) -> Tensor:
        here = {
            name: stream.rows[stream.at.index(t)]
            for name, stream in sample.items()
            if t in stream.at
        }
        lead = here[leader] if leader in here else like.new_zeros(dims[leader])
        if not here:
            return torch.cat([lead, like.new_zeros(len(dims) * width)])
        q, k, v = (
            {
                name: maps[name][kind].weight @ row + maps[name][kind].bias
                for name, row in here.items()
            }
            for kind in ("query", "key", "value")
        )
        rows = []
        for name in dims:
            if name not in here:
                rows.append(like.new_zeros(width))
                continue
            scores = torch.softmax(
                torch.stack([k[name] @ q[other] for other in here]) / width**0.5, dim=0
            )
            mixed = sum(score * v[other] for score, other in zip(scores, here, strict=True))
            rows.append(mixed + v[name])
        table = torch.stack(rows)
        spread = (table - table.mean()).square().mean()
        table = (table - table.mean()) / (spread + 1e-5).sqrt() * norm.weight + norm.bias
        return torch.cat([lead, table.flatten()])

    samples = []
    for b in range(like.shape[0]):
        sample = _sample(inputs, masks, dims, b, like)
        samples.append(torch.stack([step(sample, t) for t in range(like.shape[1])]))
    out = dims[leader] + len(dims) * width
    return torch.stack(samples) if samples else like.new_zeros(0, like.shape[1], out)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Every row with mean 0 and (biased) variance 1, then scaled and shifted."""
    rows = []
    for row in x:
        away = row - row.mean()
        rows.append(away / (away.square().mean() + 1e-5).sqrt() * weight + bias)
    return torch.stack(rows) if rows else x


def _positions(at: Sequence[int], width: int) -> Tensor:
    """The sinusoids of the positions: sin at even features, cos at odd ones."""
    table = torch.zeros(len(at), width, dtype=torch.float64)
    for n, t in enumerate(at):
        for feature in range(width):
            angle = t / 10000 ** ((feature - feature % 2) / width)
            table[n, feature] = math.cos(angle) if feature % 2 else math.sin(angle)
    return table


def _transformer_block(state: State, key: str, heads: int, z: Tensor, source: Tensor) -> Tensor:
    """Multi-head attention from z (n, k) to the source (m, k), then a feed-forward."""

    def norm(part: str, x: Tensor) -> Tensor:
        return _layer_norm(x, state[f"{key}.{part}.weight"], state[f"{key}.{part}.bias"])

    seen, width = norm("source_norm", source), z.shape[1]
    q = norm("target_norm", z) @ state[f"{key}.query.weight"].T
    k, v = (seen @ state[f"{key}.{part}.weight"].T for part in ("key", "value"))
    if source.shape[0]:  # attention to nothing adds nothing
        per_head = []
        for part in torch.arange(width).chunk(heads):
            scores = q[:, part] @ k[:, part].T / len(part) ** 0.5
            per_head.append(torch.softmax(scores, dim=1) @ v[:, part])
        z = z + torch.cat(per_head, dim=1) @ state[f"{key}.output.weight"].T
    wide = norm("hidden_norm", z) @ state[f"{key}.expand.weight"].T + state[f"{key}.expand.bias"]
    narrow = torch.relu(wide) @ state[f"{key}.contract.weight"].T
    return z + narrow + state[f"{key}.contract.bias"]


def cross_modal_transformer(
    state: State,
    modalities: Structure,
    mask: Structure = None,
    *,
    dims: Mapping[str, int],
    heads: int,
    depth: int,
) -> Structure:
    """MulT (ACL 2019): cross-modal blocks per pair, concatenated, then self-attention blocks.

    Keys and values of every block come from the embedded source, not from another block.
    """

    def fuse(sample: Sample) -> Sample:
        low = {}
        for name, (x, at) in sample.items():
            weight, bias = state[f"embed.{name}.weight"], state[f"embed.{name}.bias"]
            low[name] = x @ weight.T + bias + _positions(at, len(bias))
        fused = {}
        for name, stream in sample.items():
            key, results = f"targets.{name}", []
            for source in sorted(dims):
                if source == name:
                    continue
                z = low[name]
                for n in range(depth):
                    block = f"{key}.pairs.{source}.{n}"
                    z = _transformer_block(state, block, heads, z, low[source])
                results.append(z)
            z = torch.cat(results, dim=1)
            for n in range(depth):
                z = _transformer_block(state, f"{key}.self_attention.{n}", heads, z, z)
            z = _layer_norm(z, state[f"{key}.norm.weight"], state[f"{key}.norm.bias"])
            y = z @ state[f"{key}.output.weight"].T + state[f"{key}.output.bias"]
            fused[name] = Stream(stream.rows + y, stream.at)
        return fused

    return _per_sample(fuse, modalities, mask, dims)


def concordance(x: Tensor, y: Tensor, *, mixed_moments: bool = False) -> Tensor:
    """The concordance correlation of two 1-d series by its definition.

    `mixed_moments` is the authors' mixture: biased covariance over unbiased variances.
    """
    n = x.shape[0]
    mean_x, mean_y = x.sum() / n, y.sum() / n
    covariance = ((x - mean_x) * (y - mean_y)).sum() / n
    spread = (x - mean_x).square().sum() + (y - mean_y).square().sum()
    variances = spread / (n - 1 if mixed_moments else n)
    return 2 * covariance / (variances + (mean_x - mean_y).square())
