"""What the layers are measured against: restatements of the equations, and other people's layers.

Shapes: B batch, L steps, d features of a modality, D features of its joint. All take and return
lists of (B, L, d).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

Fused = list[Tensor]
Weights = dict[str, Tensor]


def joint_of(features: Sequence[Tensor], k: int, joint: str) -> Tensor:
    """Puts the joint of modality k together."""
    return torch.cat([x for j, x in enumerate(features) if joint == "all" or j != k], dim=-1)


class Restated(nn.Module):
    """A restatement; it starts from the weights of our layer, under our names.

    A linear map of torch keeps its weight transposed; ``ours`` undoes that.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.weights: dict[str, tuple[str, bool]] = {}
        self.theirs = nn.ModuleDict()
        self.layer_weights: Weights = {k: v.detach() for k, v in layer.named_parameters()}

    def linear(self, weight: str, bias: str | None = None) -> nn.Linear:
        """Makes a linear map of one of our weights."""
        rows, columns = self.layer_weights[weight].shape
        made = nn.Linear(rows, columns, bias=bias is not None)
        key = weight.replace(".", "_")
        made.weight.data = self.layer_weights[weight].T.contiguous()
        self.weights[weight] = (f"theirs.{key}.weight", True)
        if bias is not None:
            made.bias.data = self.layer_weights[bias].clone()
            self.weights[bias] = (f"theirs.{key}.bias", False)
        self.theirs[key] = made
        return made

    def matrix(self, name: str) -> nn.Parameter:
        """Makes a matrix of one of our weights."""
        key = name.replace(".", "_")
        made = nn.Parameter(self.layer_weights[name].clone())
        self.register_parameter(key, made)
        self.weights[name] = (key, False)
        return made

    def ours(self, gradients: Weights) -> Weights:
        """Brings gradients under this module's names under ours."""
        return {
            name: gradients[key].mT if transposed else gradients[key]
            for name, (key, transposed) in self.weights.items()
        }


class Published(Restated):
    """RCMA as one would write it down from the paper, eqs. 1-13."""

    def __init__(self, layer: nn.Module, count: int, recursions: int) -> None:
        super().__init__(layer)
        self.branches = [
            [
                [self.matrix(f"recursions.{s}.{k}.{w}") for w in ("temporal", "feature", "output")]
                for k in range(count)
            ]
            for s in range(recursions)
        ]

    def forward(self, features: Sequence[Tensor]) -> Fused:
        features = list(features)
        for branches in self.branches:
            fused = []
            for k, (temporal, feature, output) in enumerate(branches):
                x, joint = features[k], joint_of(features, k, "others")
                c = torch.tanh(x.mT @ temporal @ joint / joint.shape[-1] ** 0.5)
                h = torch.relu(x @ feature @ c)
                fused.append(x + h @ output)
            features = fused
        return features


class Stable(Restated):
    """RCMA in its stable form with ``length=None`` and the joint of all, equation by equation."""

    WEIGHTS = ("key", "value", "feature", "output", "hidden", "hidden_bias", "back")

    def __init__(self, layer: nn.Module, count: int, recursions: int) -> None:
        super().__init__(layer)
        self.branches: list[list[Weights]] = [
            [
                {name: self.matrix(f"recursions.{s}.{k}.{name}") for name in self.WEIGHTS}
                for k in range(count)
            ]
            for s in range(recursions)
        ]

    def forward(self, features: Sequence[Tensor]) -> Fused:
        features = list(features)
        for branches in self.branches:
            units = [x * rms(x, dim=(1, 2)) for x in features]
            joint = torch.cat(units, dim=-1)
            pairs = zip(branches, features, units, strict=True)
            features = [self._branch(*pair, joint) for pair in pairs]
        return features

    def _branch(self, weight: Weights, x: Tensor, unit: Tensor, joint: Tensor) -> Tensor:
        heads = math.gcd(x.shape[-1], 4)
        mapped = joint @ weight["value"]
        keys, values, queries = (
            y.chunk(heads, dim=-1) for y in (unit @ weight["key"], mapped, unit @ weight["feature"])
        )
        spread = []
        for key, value, query in zip(keys, values, queries, strict=True):
            c = (key * rms(key, dim=1)).mT @ (value * rms(value, dim=1)) / x.shape[1]
            spread.append(query @ c / c.shape[-1] ** 0.5)
        x = x + torch.cat(spread, dim=-1) @ weight["output"]
        hidden = layer_norm(x, x.shape[-1:]) @ weight["hidden"] + mapped + weight["hidden_bias"]
        return x + gelu(hidden) @ weight["back"]


def rms(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """One over the root mean square along axes, with the epsilon of a layer norm."""
    return (x.square().mean(dim, keepdim=True) + 1e-5).rsqrt()


class Released(Restated):
    """RCMA as the authors' code computes it: v1 has ``joint="others"``, v2 to v4 ``"all"``."""

    def __init__(self, layer: nn.Module, dims: Sequence[int], recursions: int, joint: str) -> None:
        super().__init__(layer)
        self.joint = joint
        self.branches = [
            [self._branch(f"recursions.{s}.{k}", sum(dims)) for k in range(len(dims))]
            for s in range(recursions)
        ]
        # v2 to v4 map the joint and go on with the joint: the work is done, the result unused.
        self.unused = nn.ModuleList(
            nn.Linear(sum(dims), sum(dims)) for _ in range(len(dims) if joint == "all" else 0)
        )

    def _branch(self, at: str, width: int) -> list[nn.Linear | None]:
        names = ("temporal", "feature", "output", "joint")
        return [
            self.linear(f"{at}.{name}", f"{at}.{name}_bias")
            if f"{at}.{name}" in self.layer_weights
            else None
            for name in names
        ]

    def forward(self, features: Sequence[Tensor]) -> Fused:
        features = list(features)
        for branches in self.branches:
            fused = []
            for k, (temporal, feature, output, mapped) in enumerate(branches):
                assert temporal is not None
                assert feature is not None
                assert output is not None
                x, joint = features[k], joint_of(features, k, self.joint)
                if mapped is not None:
                    joint = mapped(joint)
                else:
                    self.unused[k](joint)
                c = torch.tanh(temporal(x.mT) @ joint / joint.shape[-1] ** 0.5)
                h = torch.relu(torch.tanh(feature(x) @ c))
                fused.append(x + torch.relu(output(h)))
            features = fused
        return features


class ReleasedJoint(Restated):
    """JCA as the authors' code computes it, one sample after the other."""

    def __init__(self, layer: nn.Module, count: int) -> None:
        super().__init__(layer)
        self.branches = [
            [self.linear(f"recursions.0.{k}.{w}") for w in ("temporal", "own", "joint", "output")]
            for k in range(count)
        ]

    def forward(self, features: Sequence[Tensor]) -> Fused:
        samples = [self._sample(sample) for sample in zip(*features, strict=True)]
        return [torch.stack(fused) for fused in zip(*samples, strict=True)]

    def _sample(self, features: Sequence[Tensor]) -> Fused:
        joint = torch.cat(list(features), dim=-1)
        fused = []
        for x, (temporal, own, mapped, output) in zip(features, self.branches, strict=True):
            c = torch.tanh(temporal(x.T) @ joint / joint.shape[-1] ** 0.5)
            h = torch.relu(own(x.T) + mapped(c))
            fused.append(x + output(h).T)
        return fused


class PairwiseAttention(nn.Module):
    """Each modality attends to its joint with torch.nn.MultiheadAttention, step after step."""

    def __init__(self, dims: Sequence[int], recursions: int, heads: int = 4) -> None:
        super().__init__()
        self.recursions = nn.ModuleList(
            nn.ModuleList(
                nn.MultiheadAttention(
                    d, heads, batch_first=True, kdim=sum(dims) - d, vdim=sum(dims) - d
                )
                for d in dims
            )
            for _ in range(recursions)
        )

    def forward(self, features: Sequence[Tensor]) -> Fused:
        features = list(features)
        for step in self.recursions:
            assert isinstance(step, nn.ModuleList)
            fused = []
            for k, attend in enumerate(step):
                joint = joint_of(features, k, "others")
                found = attend(features[k], joint, joint, need_weights=False)[0]
                fused.append(features[k] + found)
            features = fused
        return features


class XTransformers(nn.Module):
    """Each modality attends to its joint with the cross attention of x-transformers."""

    def __init__(self, dims: Sequence[int], recursions: int, heads: int = 4) -> None:
        from x_transformers import CrossAttender

        super().__init__()
        self.attend = nn.ModuleList(
            CrossAttender(
                dim=d, depth=recursions, heads=heads, cross_attn_dim_context=sum(dims) - d
            )
            for d in dims
        )

    def forward(self, features: Sequence[Tensor]) -> Fused:
        return [
            attend(features[k], context=joint_of(features, k, "others"))
            for k, attend in enumerate(self.attend)
        ]


class LinearTransformer(nn.Module):
    """LinMulT with its own defaults and linear attention; one output per modality's features."""

    def __init__(self, dims: Sequence[int]) -> None:
        from linmult import LinMulT

        super().__init__()
        heads = [{"name": str(k), "type": "simple", "output_dim": d} for k, d in enumerate(dims)]
        self.net = LinMulT(
            {"input_feature_dim": list(dims), "heads": heads, "attention_type": "linear"}
        )

    def forward(self, features: Sequence[Tensor]) -> Fused:
        found = self.net(list(features))
        return list(found.values())


class Concatenation(nn.Module):
    """Concatenation and an MLP with one hidden layer of the same width."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = list(dims)
        width = sum(dims)
        self.net = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, features: Sequence[Tensor]) -> Fused:
        return list(self.net(torch.cat(list(features), dim=-1)).split(self.dims, dim=-1))


class EncoderLayer(nn.Module):
    """One encoder layer of torch on the concatenation; ``hidden`` is its dim_feedforward."""

    def __init__(self, dims: Sequence[int], hidden: int | None = None) -> None:
        super().__init__()
        self.dims = list(dims)
        width = sum(dims)
        self.net = nn.TransformerEncoderLayer(
            width, math.gcd(width, 4), hidden or width, dropout=0.0, batch_first=True
        )

    def forward(self, features: Sequence[Tensor]) -> Fused:
        return list(self.net(torch.cat(list(features), dim=-1)).split(self.dims, dim=-1))


class SelfAttention(nn.Module):
    """torch.nn.MultiheadAttention of the concatenation with itself."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = list(dims)
        width = sum(dims)
        self.attend = nn.MultiheadAttention(width, math.gcd(width, 4), batch_first=True)

    def forward(self, features: Sequence[Tensor]) -> Fused:
        joint = torch.cat(list(features), dim=-1)
        found = self.attend(joint, joint, joint, need_weights=False)[0]
        return list(found.split(self.dims, dim=-1))


class PyTorchTCN(nn.Module):
    """The TCN of pytorch-tcn, set to the same structure and weights as ours."""

    def __init__(self, layer: nn.Module, dim: int, widths: Sequence[int]) -> None:
        from pytorch_tcn import TCN

        super().__init__()
        self.net = TCN(
            dim,
            list(widths),
            kernel_size=5,
            dropout=0.0,
            activation="leaky_relu",
            input_shape="NLC",
        )
        self.weights: dict[str, str] = {}
        mine, given = dict(self.net.named_parameters()), dict(layer.named_parameters())
        names = {"first": "conv1", "second": "conv2", "residual": "downsample"}
        for name, weight in given.items():
            _, k, part, *rest = name.split(".")
            theirs = ".".join(["network", k, names[part], *rest])
            mine[theirs].data = weight.detach().clone()
            self.weights[f"module.{name}"] = f"net.{theirs}"

    def forward(self, features: Sequence[Tensor]) -> Fused:
        return [self.net(features[0])]

    def ours(self, gradients: Weights) -> Weights:
        """Brings gradients under this module's names under ours."""
        return {name: gradients[theirs] for name, theirs in self.weights.items()}


class Alone(nn.Module):
    """Lets a module of one stream take and return a list of one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, features: Sequence[Tensor]) -> Fused:
        return [self.module(features[0])]


class Joined(nn.Module):
    """Lets a module that fuses all into one tensor return a list of one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, features: Sequence[Tensor]) -> Fused:
        return [self.module(features)]


class Head(nn.Module):
    """A TCN per modality, fusion, and a regressor of two values a step."""

    def __init__(self, encoders: Sequence[nn.Module], fuse: nn.Module, regress: nn.Linear) -> None:
        super().__init__()
        self.encoders, self.fuse, self.regress = nn.ModuleList(encoders), fuse, regress

    def forward(self, features: Sequence[Tensor]) -> Fused:
        pairs = zip(self.encoders, features, strict=True)
        fused = self.fuse([encode([x])[0] for encode, x in pairs])
        return [self.regress(torch.cat(list(fused), dim=-1))]

    def ours(self, gradients: Weights) -> Weights:
        """Brings gradients under this module's names under ours, part by part."""
        parts = {f"encoders.{k}.": encode for k, encode in enumerate(self.encoders)}
        found = {name: g for name, g in gradients.items() if name.startswith("regress.")}
        for at, part in (parts | {"fuse.": self.fuse}).items():
            assert isinstance(part, Restated | PyTorchTCN)
            inside = {n.removeprefix(at): g for n, g in gradients.items() if n.startswith(at)}
            found |= {f"{at}{name}": g for name, g in part.ours(inside).items()}
        return found
