"""What should ``stable=True`` hold? Candidates alone and together, under one budget.

Shapes: B batch, L steps, d features of a modality, D features of its joint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm

from examples.watch.data import WINDOW
from examples.watch.models import BOTH, Method
from examples.watch.report import lines, markdown_table
from examples.watch.train import Run


@dataclass(frozen=True)
class Candidate:
    """A recursive cross-modal attention that departs from the print.

    Attributes:
        divide: The argument of H is divided by the root of d.
        zero: O starts at zero.
        norm: What X and J are divided by before C and H: nothing; each step by layer
            normalisation without weights; each step by its root mean square; the window by its.
        temporal: How T starts; "none" leaves it out.
        argument: What the argument of C is divided by: the root of D as printed, the root of the
            number of steps, or that number.
        dropout: Of H O.
        steps: Recursions.
    """

    divide: bool = False
    zero: bool = False
    norm: Literal["none", "layer", "rms", "window"] = "none"
    temporal: Literal["xavier", "identity", "smooth", "none"] = "xavier"
    argument: Literal["features", "root", "steps"] = "features"
    dropout: float = 0.0
    steps: int = 2


@dataclass
class Seen:
    """What one modality's step looked like.

    Attributes:
        saturated: Share of C beyond 0.99 in size.
        growth: Size of the features after the step over that before it.
    """

    saturated: float
    growth: float


class Candidates(nn.Module):
    """Fuses modalities as a candidate says.

    Args:
        dims: Features of each modality.
        length: Steps of a window.
        candidate: The candidate.
    """

    def __init__(self, dims: Mapping[str, int], length: int, candidate: Candidate) -> None:
        super().__init__()
        self.candidate = candidate
        self.seen: list[Seen] | None = None
        self.weights = nn.ModuleList(
            nn.ModuleDict(
                {
                    name: nn.ParameterDict(self._weights(dim, sum(dims.values()) - dim, length))
                    for name, dim in dims.items()
                }
            )
            for _ in range(candidate.steps)
        )

    def _weights(self, dim: int, joint_dim: int, length: int) -> dict[str, nn.Parameter]:
        feature, output = torch.empty(dim, dim), torch.empty(joint_dim, dim)
        nn.init.xavier_uniform_(feature)
        (nn.init.zeros_ if self.candidate.zero else nn.init.xavier_uniform_)(output)
        weights = {"feature": feature, "output": output}
        if self.candidate.temporal != "none":
            weights["temporal"] = _temporal(length, self.candidate.temporal)
        return {name: nn.Parameter(value) for name, value in weights.items()}

    def forward(self, features: Mapping[str, Tensor], mask: None = None) -> dict[str, Tensor]:
        """Attends step after step."""
        if self.seen is not None:
            self.seen = []
        for step in self.weights:
            before = dict(features)
            features = {
                name: self._attend(step.get_submodule(name), name, before) for name in before
            }
        return dict(features)

    def _attend(self, weights: nn.Module, name: str, features: Mapping[str, Tensor]) -> Tensor:
        x = features[name]
        normed = {key: _normalised(value, self.candidate.norm) for key, value in features.items()}
        inner = normed[name]
        joint = torch.cat([other for key, other in normed.items() if key != name], dim=-1)
        mixed = inner.mT
        if self.candidate.temporal != "none":
            mixed = mixed @ weights.get_parameter("temporal")
        correlation = torch.tanh(mixed @ joint / self._divisor(x, joint))
        argument = inner @ weights.get_parameter("feature") @ correlation
        attention = torch.relu(argument * (x.shape[-1] ** -0.5 if self.candidate.divide else 1.0))
        found = attention @ weights.get_parameter("output")
        attended = x + torch.dropout(found, self.candidate.dropout, self.training)
        if self.seen is not None:
            saturated = (correlation.abs() > 0.99).float().mean().item()
            self.seen.append(Seen(saturated, (attended.norm() / x.norm()).item()))
        return attended

    def _divisor(self, x: Tensor, joint: Tensor) -> float:
        match self.candidate.argument:
            case "features":
                return float(joint.shape[-1] ** 0.5)
            case "root":
                return float(x.shape[1] ** 0.5)
            case "steps":
                return float(x.shape[1])


def _normalised(x: Tensor, norm: str) -> Tensor:
    match norm:
        case "layer":
            return layer_norm(x, x.shape[-1:])
        case "rms":
            return rms_norm(x, x.shape[-1:])
        case "window":
            return rms_norm(x, x.shape[-2:])
        case _:
            return x


def _temporal(length: int, start: str) -> Tensor:
    weight = torch.empty(length, length)
    if start == "xavier":
        return nn.init.xavier_uniform_(weight)
    if start == "identity":
        return nn.init.eye_(weight)
    apart = (torch.arange(length)[:, None] - torch.arange(length)).abs() / (length / 20)
    return torch.softmax(-apart, dim=-1)


_NOW = Candidate(divide=True, zero=True)
_LOOSE = replace(_NOW, temporal="none", argument="root")

CANDIDATES: dict[str, Candidate] = {
    "as printed": Candidate(),
    "H / sqrt(d)": Candidate(divide=True),
    "O = 0": Candidate(zero=True),
    "LayerNorm": Candidate(norm="layer"),
    "H / sqrt(d), O = 0": _NOW,
    "LayerNorm, O = 0": Candidate(norm="layer", zero=True),
    "H / sqrt(d), O = 0, LayerNorm": replace(_NOW, norm="layer"),
    "H / sqrt(d), O = 0, T = I": replace(_NOW, temporal="identity"),
    "H / sqrt(d), O = 0, T smooth": replace(_NOW, temporal="smooth"),
    "H / sqrt(d), O = 0, C / L": replace(_NOW, argument="steps"),
    "H / sqrt(d), O = 0, LayerNorm, C / L": replace(_NOW, norm="layer", argument="steps"),
    "H / sqrt(d), O = 0, LayerNorm, T = I, C / L": replace(
        _NOW, norm="layer", temporal="identity", argument="steps"
    ),
    "H / sqrt(d), O = 0, dropout 0.5": replace(_NOW, dropout=0.5),
    "no T, C / sqrt(L)": Candidate(temporal="none", argument="root"),
    "no T, C / sqrt(L), H / sqrt(d), O = 0": _LOOSE,
    "no T, C / sqrt(L), H / sqrt(d), O = 0, LayerNorm": replace(_LOOSE, norm="layer"),
    "no T, C / L, H / sqrt(d), O = 0": replace(_LOOSE, argument="steps"),
    "no T, C / L, H / sqrt(d), O = 0, LayerNorm": replace(_LOOSE, argument="steps", norm="layer"),
    "no T, C / sqrt(L), H / sqrt(d), O = 0, LayerNorm, dropout 0.5": replace(
        _LOOSE, norm="layer", dropout=0.5
    ),
}

STUDY_FOLDS, STUDY_SEEDS = (0, 2, 4), (10, 11)


def _method(title: str, candidate: Candidate) -> Method:
    return Method(title, BOTH, lambda dims: Candidates(dims, WINDOW, candidate))


STUDIED = {title: _method(title, candidate) for title, candidate in CANDIDATES.items()}


def study_table(runs: Sequence[Run]) -> str:
    """Makes the README's table of candidates."""
    return markdown_table(lines(runs, {title: title for title in ("concatenation", *CANDIDATES)}))
