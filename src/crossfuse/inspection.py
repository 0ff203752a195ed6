"""Return values of ``inspect``."""

from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

S = TypeVar("S")
"""The structure of the inputs: ``dict[str, Tensor | None]`` or ``tuple[Tensor | None, ...]``."""


class Recursion(NamedTuple, Generic[S]):
    """Results of one recursion, each field in the structure S of the inputs, a dict or a tuple.

    Attributes:
        features: The attended features, each (B, L, d_i).
        correlations: The joint correlation C of each modality, (B, d_i, D_i); in the stable form of
            :class:`~crossfuse.RecursiveCrossModalAttention` (B, h, k_i, k_i), in h heads.
        attention_maps: The attention map H of each modality: (B, L, D_i) in
            :class:`~crossfuse.RecursiveCrossModalAttention`, (B, L, d_i) in its stable form,
            (B, d_i, K) in :class:`~crossfuse.JointCrossAttention`.

    Example:
        >>> from crossfuse import JointCrossAttention
        >>> fuse = JointCrossAttention([4, 3], 10)
        >>> recursion = fuse.inspect([torch.randn(1, 10, 4), torch.randn(1, 10, 3)]).recursions[0]
        >>> [c.shape for c in recursion.correlations]
        [torch.Size([1, 4, 7]), torch.Size([1, 3, 7])]
    """

    features: S
    correlations: S
    attention_maps: S

    def __repr__(self) -> str:
        parts = (f"{name}={_shapes(part)}" for name, part in self._asdict().items())
        return f"Recursion({', '.join(parts)})"


class Inspection(NamedTuple, Generic[S]):
    """Outputs of a layer with recursions, in their structure S, and the results of each recursion.

    Attributes:
        outputs: What ``forward`` returns.
        recursions: One :class:`Recursion` each, before any gate.

    Example:
        >>> from crossfuse import RecursiveCrossModalAttention
        >>> fuse = RecursiveCrossModalAttention({"face": 4, "voice": 3}, recursions=2)
        >>> seen = fuse.inspect({"face": torch.randn(1, 9, 4), "voice": torch.randn(1, 9, 3)})
        >>> len(seen.recursions), seen.recursions[1].features["face"].shape
        (2, torch.Size([1, 9, 4]))
        >>> seen  # shapes, not numbers
        Inspection(outputs={'face': (1, 9, 4), 'voice': (1, 9, 3)}, recursions=2)
    """

    outputs: S
    recursions: tuple[Recursion[S], ...]

    def __repr__(self) -> str:
        return f"Inspection(outputs={_shapes(self.outputs)}, recursions={len(self.recursions)})"


def _shapes(structure: object) -> str:
    """Writes a structure of tensors with the shape in the place of each."""
    shapes: object = structure
    if isinstance(structure, Mapping):
        shapes = {name: _shape(x) for name, x in structure.items()}
    elif isinstance(structure, tuple):
        shapes = tuple(map(_shape, structure))
    return repr(shapes)


def _shape(x: object) -> object:
    return tuple(x.shape) if isinstance(x, Tensor) else x
