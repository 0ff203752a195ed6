"""What should ``stable=True`` hold? Candidates alone and together, under one budget.

Shapes: B batch, L steps, d features of a modality, D features of its joint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm

from crossfuse import RecursiveCrossModalAttention
from examples.tables import markdown
from examples.watch.data import WINDOW, Windows
from examples.watch.models import BOTH, WIDTHS, Method, WatchNet
from examples.watch.report import lines
from examples.watch.train import Run, Seen

_SATURATED = 0.99


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
            saturated = (correlation.abs() > _SATURATED).float().mean().item()
            self.seen.append((saturated, (attended.norm() / x.norm()).item()))
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


_CALM = Candidate(zero=True, divide=True)
_LAYER, _UNIT = replace(_CALM, norm="layer"), replace(_CALM, norm="window")

CANDIDATES: dict[str, Candidate] = {
    "as printed": Candidate(),
    "H / √d": Candidate(divide=True),
    "O = 0": Candidate(zero=True),
    "LayerNorm": Candidate(norm="layer"),
    "O = 0, H / √d": _CALM,
    "O = 0, LayerNorm": Candidate(zero=True, norm="layer"),
    "O = 0, H / √d, LayerNorm": _LAYER,
    "O = 0, H / √d, LayerNorm, C / L": replace(_LAYER, argument="steps"),
    "O = 0, H / √d, LayerNorm, dropout 0.5": replace(_LAYER, dropout=0.5),
    "O = 0, H / √d, LayerNorm, one step": replace(_LAYER, steps=1),
    "O = 0, unit scale": Candidate(zero=True, norm="window"),
    "O = 0, H / √d, unit scale (stable=True)": _UNIT,
    "O = 0, H / √d, unit scale, C / L": replace(_UNIT, argument="steps"),
    "O = 0, H / √d, unit scale, T = I": replace(_UNIT, temporal="identity"),
    "O = 0, H / √d, unit scale, T smooth": replace(_UNIT, temporal="smooth"),
    "O = 0, H / √d, unit scale, one step": replace(_UNIT, steps=1),
    "O = 0, H / √d, unit scale, four steps": replace(_UNIT, steps=4),
    "O = 0, H / √d, unit scale, sixteen steps": replace(_UNIT, steps=16),
    "no T, O = 0, H / √d": Candidate(True, True, "none", "none", "root"),
    "no T, O = 0, H / √d, LayerNorm": Candidate(True, True, "layer", "none", "root"),
    "no T, O = 0, H / √d, LayerNorm, C / L": Candidate(True, True, "layer", "none", "steps"),
    "no T, O = 0, H / √d, unit scale (stable=True, length=None)": Candidate(
        True, True, "window", "none", "root"
    ),
    "no T, O = 0, H / √d, unit scale, C / L": Candidate(True, True, "window", "none", "steps"),
}

STUDY_FOLDS, STUDY_SEEDS = (0, 2, 4), (10,)


def _method(title: str, candidate: Candidate) -> Method:
    return Method(title, BOTH, lambda dims: Candidates(dims, WINDOW, candidate))


STUDIED = {title: _method(title, candidate) for title, candidate in CANDIDATES.items()}


def depth_table() -> str:
    """Makes the README's table of untrained layers of growing depth.

    O starts as Xavier has it in both forms: at zero, the stable form would be the identity.
    """
    rows = []
    for steps, stable in product((1, 2, 4, 16), (False, True)):
        torch.manual_seed(0)
        dims = dict.fromkeys(BOTH, WIDTHS[-1])
        layer = RecursiveCrossModalAttention(
            dims, WINDOW, steps, form="stable" if stable else "paper", joint="others"
        )
        for name, weight in layer.named_parameters():
            if name.endswith(".output"):
                nn.init.xavier_uniform_(weight)
        inputs = {name: torch.randn(64, WINDOW, dim).requires_grad_() for name, dim in dims.items()}
        seen = layer.inspect(inputs)
        whole = torch.stack([y.square().sum() for y in seen.outputs.values()]).sum().sqrt()
        given = torch.stack([x.square().sum() for x in inputs.values()]).sum().sqrt()
        gradients = torch.autograd.grad(whole, list(inputs.values()))
        size = torch.stack([g.square().sum() for g in gradients]).sum().sqrt().item()
        last = torch.stack(list(seen.recursions[-1].correlations.values()))
        saturated = 100 * (last.abs() > _SATURATED).float().mean().item()
        form = "stable" if stable else "as printed"
        growth = (whole / given).item()
        rows.append((form, str(steps), f"{growth:.3g}", f"{saturated:.0f} %", f"{size:.3g}"))
    header = ("form", "steps", "growth of the features", "saturated C, last step", "gradient")
    return markdown(header, rows)


@torch.no_grad()
def look(model: WatchNet, windows: Windows) -> list[Seen]:
    """Looks at each modality's steps, one step after the other; nothing but at a candidate."""
    if not isinstance(model.fusion, Candidates):
        return []
    model.fusion.seen = []
    model(windows.streams)
    return model.fusion.seen


def study_table(runs: Sequence[Run]) -> str:
    """Makes the README's table of candidates."""
    rows = []
    for line in lines(runs, {title: title for title in ("concatenation", *CANDIDATES)}):
        seen = [step for run in runs if run.method == line.title for step in run.seen]
        saturated = f"{100 * fmean(share for share, _ in seen):.0f} %" if seen else ""
        growth = f"{max(size for _, size in seen):.2f}" if seen else ""
        per_fold = [
            " / ".join(f"{100 * run.accuracy:.1f}" for run in runs if _is(run, line.title, fold))
            for fold in STUDY_FOLDS
        ]
        rows.append((line.title, *per_fold, f"{line.mean:.1f}", saturated, growth))
    people = [f"people {2 * fold + 1}, {2 * fold + 2}" for fold in STUDY_FOLDS]
    return markdown(("candidate", *people, "mean %", "saturated C", "most growth"), rows)


def _is(run: Run, title: str, fold: int) -> bool:
    return (run.method, run.fold) == (title, fold)
