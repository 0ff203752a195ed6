"""Candidates for what ``form="stable"`` of RCMA holds, as methods: ``--methods layer-norm ...``.

Each differs from the form that was chosen in one option. Shapes: B batch, L steps, d features of a
modality, D features of its joint, h heads of k features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

_SILENCE = 1e-5


@dataclass(frozen=True)
class Options:
    """What one candidate holds; the defaults are the form that was chosen.

    Attributes:
        scale: What keys and values are divided by: the root mean square of the window, or layer
            normalisation of each step. Queries have the scale of the window in both.
        queries: The same for queries.
        correlation: Coefficients of the mapped columns; tanh of their product over the root of n;
            or tanh of a learnt gain times their product over n.
        heads: Heads of C and H.
        feed_forward: Whether a feed-forward network with a zero start follows.
        hidden: What its hidden layer reads beside the attended features: the values V of the step,
            all features of the joint through a separate map, or nothing.
        expansion: Hidden features for each feature; one, if the hidden layer reads V.
        relu: Whether H is rectified, as in the paper.
        centred: Whether the mean of each feature over the window is removed first.
        joint: The modalities in the joint of one.
        recursions: Recursions.
    """

    scale: Literal["window", "layer"] = "window"
    queries: Literal["window", "layer"] = "window"
    correlation: Literal["coefficient", "root", "gain"] = "coefficient"
    heads: int = 4
    feed_forward: bool = True
    hidden: Literal["value", "joint", "own"] = "value"
    expansion: int = 1
    relu: bool = False
    centred: bool = False
    joint: Literal["all", "others"] = "all"
    recursions: int = 2


CHOSEN = Options()
CANDIDATES: dict[str, tuple[str, Options]] = {
    "chosen": ("the chosen form", CHOSEN),
    "layer-norm": ("layer norm of keys and values", replace(CHOSEN, scale="layer")),
    "layer-norm-all": (
        "layer norm of queries too",
        replace(CHOSEN, scale="layer", queries="layer"),
    ),
    "one-head": ("one head", replace(CHOSEN, heads=1)),
    "no-feed-forward": ("no feed-forward", replace(CHOSEN, feed_forward=False)),
    "own-hidden": ("feed-forward without V", replace(CHOSEN, hidden="own")),
    "own-wide": (
        "feed-forward without V, four times as wide",
        replace(CHOSEN, hidden="own", expansion=4),
    ),
    "joint-hidden": ("feed-forward of the joint", replace(CHOSEN, hidden="joint")),
    "joint-wide": (
        "feed-forward of the joint, four times as wide",
        replace(CHOSEN, hidden="joint", expansion=4),
    ),
    "relu": ("relu of H", replace(CHOSEN, relu=True)),
    "centred": ("centred", replace(CHOSEN, centred=True)),
    "root": ("C = tanh(KᵀV / √n)", replace(CHOSEN, correlation="root")),
    "gain": ("C = tanh(g KᵀV / n)", replace(CHOSEN, correlation="gain")),
    "others": ("joint of the others", replace(CHOSEN, joint="others")),
    "one-recursion": ("one recursion", replace(CHOSEN, recursions=1)),
    "three-recursions": ("three recursions", replace(CHOSEN, recursions=3)),
}


class Candidate(nn.Module):
    """Fuses modalities as a candidate does.

    Args:
        dims: Features of each modality.
        options: The candidate.
    """

    def __init__(self, dims: Mapping[str, int], options: Options) -> None:
        super().__init__()
        self.options = options
        self.recursions = nn.ModuleList(
            nn.ModuleDict({name: _Branch(dims, name, options) for name in dims})
            for _ in range(options.recursions)
        )

    def forward(self, features: Mapping[str, Tensor], mask: None = None) -> dict[str, Tensor]:
        """Returns the attended features (B, L, d) of each modality; it takes no masks."""
        given = dict(features)
        for recursion in self.recursions:
            assert isinstance(recursion, nn.ModuleDict)
            given = {name: branch(given) for name, branch in recursion.items()}
        return given


class _Branch(nn.Module):
    def __init__(self, dims: Mapping[str, int], name: str, options: Options) -> None:
        super().__init__()
        self.name, self.options = name, options
        self.members = [other for other in dims if options.joint == "all" or other != name]
        dim, joint_dim = dims[name], sum(dims[other] for other in self.members)

        def new(rows: int, columns: int, *, zero: bool = False) -> nn.Parameter:
            weight = torch.zeros(rows, columns)
            return nn.Parameter(weight if zero else nn.init.xavier_uniform_(weight))

        self.key, self.value = new(dim, dim), new(joint_dim, dim)
        self.feature, self.output = new(dim, dim), new(dim, dim, zero=True)
        if options.feed_forward:
            wide = options.expansion * dim
            self.hidden, self.back = new(dim, wide), new(wide, dim, zero=True)
            self.hidden_bias = nn.Parameter(torch.zeros(wide))
            if options.hidden == "joint":
                self.context = new(joint_dim, wide)
        self.gain = nn.Parameter(torch.full((options.heads, 1, 1), 3.0))
        self.gain.requires_grad_(options.correlation == "gain")

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        x, options = features[self.name], self.options
        scaled = {name: self._scaled(features[name], options.scale) for name in features}
        joint = torch.cat([scaled[name] for name in self.members], dim=-1)
        queries = self._scaled(x, options.queries) @ self.feature
        value = joint @ self.value
        weight = self._correlation(scaled[self.name] @ self.key, value)
        attention = self._heads(queries) @ weight * weight.shape[-1] ** -0.5
        attention = torch.relu(attention) if options.relu else attention
        x = x + attention.transpose(1, 2).flatten(2) @ self.output
        if options.feed_forward:
            scores = layer_norm(x, x.shape[-1:]) @ self.hidden + self.hidden_bias
            if options.hidden == "value":
                scores = scores + value
            elif options.hidden == "joint":
                scores = scores + joint @ self.context
            x = x + gelu(scores) @ self.back
        return x

    def _correlation(self, key: Tensor, value: Tensor) -> Tensor:
        steps, kind = key.shape[1], self.options.correlation
        if kind == "coefficient":
            return self._heads(_unit(key, 1)).mT @ self._heads(_unit(value, 1)) / steps
        product = self._heads(key).mT @ self._heads(value)
        if kind == "root":
            return torch.tanh(product * steps**-0.5)
        return torch.tanh(self.gain * product / steps)

    def _scaled(self, x: Tensor, scale: str) -> Tensor:
        x = x - x.mean(dim=1, keepdim=True) if self.options.centred else x
        return layer_norm(x, x.shape[-1:]) if scale == "layer" else _unit(x, (1, 2))

    def _heads(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(-1, (self.options.heads, -1))
        return split.transpose(1, 2)


def _unit(x: Tensor, axes: int | tuple[int, int]) -> Tensor:
    """Divides by the root mean square over the axes."""
    return x * (x.square().mean(dim=axes, keepdim=True) + _SILENCE).rsqrt()
