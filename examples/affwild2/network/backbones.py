"""Networks that turn faces, log-mel patches and words into one feature vector per frame.

``IR50`` and ``VGGish`` have the key names and shapes of the published weights and load them
strictly; ``DemoFaces``, ``DemoVoice`` and ``DemoWords`` are small enough to train on two cores.
"""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.affwild2.dataset.files import DamagedFile

Loaded = TypeVar("Loaded", bound=nn.Module)
Groups = list[list[nn.Parameter]]

STAGES = ((3, 64, 1), (4, 128, 2), (14, 256, 2), (3, 512, 2))  # units, width, stride of the first
VGGISH_WIDTHS = (64, None, 128, None, 256, 256, None, 512, 512, None)  # None is a max-pooling


class Unit(nn.Module):
    """A residual unit of IR-50: BN, conv, PReLU, conv (strided), BN, plus the shortcut.

    Args:
        inputs: Channels in.
        width: Channels out.
        stride: Of the second convolution and the shortcut.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if inputs != width:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, width, 3, 1, 1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return out


class IR50(nn.Module):
    """ArcFace's IR-50 for 40×40 faces, as fine-tuned on FER+; the first stage keeps its size.

    Maps (N, 3, 40, 40) in [-1, 1] to unit vectors (N, 512). The eight FER+ logits belong to the
    published weights and are not used in ``forward``.
    """

    dim = 512

    def __init__(self) -> None:
        super().__init__()
        units: list[nn.Module] = []
        inputs = 64
        for count, width, stride in STAGES:
            units += [Unit(inputs, width, stride)]
            units += [Unit(width, width, 1) for _ in range(count - 1)]
            inputs = width
        self.backbone = nn.Sequential(
            OrderedDict[str, nn.Module](  # in the order in which the weights were published
                input_layer=nn.Sequential(
                    nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
                ),
                output_layer=nn.Sequential(
                    nn.BatchNorm2d(512),
                    nn.Dropout(0.4),
                    nn.Flatten(),
                    nn.Linear(512 * 5 * 5, 512),
                    nn.BatchNorm1d(512),
                ),
                body=nn.Sequential(*units),
            )
        )
        self.logits = nn.Linear(512, 8)

    def forward(self, faces: Tensor) -> Tensor:
        x = faces
        for name in ("input_layer", "body", "output_layer"):
            x = self.backbone.get_submodule(name)(x)
        return functional.normalize(x, dim=-1)

    def release_groups(self) -> Groups:
        """The output layer; stage 4; the last three units of stage 3."""
        body = list(self.backbone.get_submodule("body").children())
        output = self.backbone.get_submodule("output_layer")
        return [_parameters(output), _parameters(*body[21:]), _parameters(*body[18:21])]


class VGGish(nn.Module):
    """VGGish without its PCA and without a non-linearity at the end: (N, 96, 64) to (N, 128)."""

    dim = 128

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for width in VGGISH_WIDTHS:
            if width is None:
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096),
            nn.ReLU(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, 128),
        )

    def forward(self, patches: Tensor) -> Tensor:
        maps = self.features(patches.unsqueeze(1))
        out: Tensor = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))
        return out

    def release_groups(self) -> Groups:
        """The three fully connected layers, last first."""
        return [_parameters(self.embeddings[i]) for i in (4, 2, 0)]


class Vectors(nn.Module):
    """Word vectors that were computed before: they pass as they are."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors


class DemoFaces(nn.Module):
    """Four strided convolutions: (N, 3, 40, 40) in [-1, 1] to (N, 64)."""

    dim = 64

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 48, 64)
        layers: list[nn.Module] = []
        for inputs, width in pairwise(widths):
            layers += [nn.Conv2d(inputs, width, 3, 2, 1), nn.GroupNorm(8, width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.output = nn.Linear(64 * 3 * 3, self.dim)

    def forward(self, faces: Tensor) -> Tensor:
        out: Tensor = self.output(self.features(faces).flatten(1))
        return out

    def release_groups(self) -> Groups:
        """Everything at once."""
        return [_parameters(self)]


class DemoVoice(nn.Module):
    """Mean and standard deviation of each band over a patch: (N, 96, 64) to (N, 128)."""

    dim = 128

    def forward(self, patches: Tensor) -> Tensor:
        std, mean = torch.std_mean(patches, dim=1)
        return torch.cat([mean, std], dim=-1)


class DemoWords(nn.Module):
    """A learnt vector per hashed word, zero for no word: (N,) to (N, 64).

    Args:
        buckets: Hashed words are 1 to ``buckets``; 0 is for none.
    """

    dim = 64

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.table = nn.Embedding(buckets + 1, self.dim, padding_idx=0)

    def forward(self, words: Tensor) -> Tensor:
        out: Tensor = self.table(words)
        return out


def load_ir50(path: Path) -> IR50:
    """Loads the published face weights (``res50_ir_0.887.pth``); raises as ``load_weights``."""
    return load_weights(_unset(IR50), path)


def load_vggish(path: Path) -> VGGish:
    """Loads torchvggish's weights (``vggish-10086976.pth``); raises as ``load_weights``."""
    return load_weights(_unset(VGGish), path)


def load_weights(module: Loaded, path: Path) -> Loaded:
    """Loads a state dict into ``module``, strictly, and returns it.

    Raises:
        DamagedFile: The file is missing or no state dict, or a key is missing, unknown or of
            another shape; the message names it.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises almost anything on a damaged file
        raise DamagedFile(path, f"cannot be loaded as weights ({type(error).__name__})") from error
    if not isinstance(state, Mapping):
        raise DamagedFile(path, f"must hold a state dict, found {type(state).__name__}")
    wrong = _differences(module.state_dict(), state)
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        name = type(module).__name__
        raise DamagedFile(path, f"does not fit {name}: {'; '.join(wrong[:3])}{more}")
    module.load_state_dict(state)
    return module


def _unset(module: type[Loaded]) -> Loaded:
    """Builds a module without drawing millions of weights that are about to be replaced."""
    with torch.device("meta"):
        return module().to_empty(device="cpu")


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Any]) -> list[str]:
    missing = [f"key {key!r} is missing" for key in expected if key not in found]
    unknown = [f"key {key!r} is unknown" for key in found if key not in expected]
    shared = [(key, value, found[key]) for key, value in expected.items() if key in found]
    wrong = [
        f"key {key!r} has shape {tuple(value.shape)}, expected {tuple(wanted.shape)}"
        if isinstance(value, Tensor)
        else f"key {key!r} is no tensor"
        for key, wanted, value in shared
        if not isinstance(value, Tensor) or value.shape != wanted.shape
    ]
    return missing + unknown + wrong


def _parameters(*modules: nn.Module) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]
