"""A gate between a modality's features and its attended features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse._errors import check_layout, check_like, check_positive, check_size, error
from crossfuse._parameters import check_parameters


class DynamicGate(nn.Module):
    r"""Chooses at each step between a modality's features and its attended features.

    .. math::
        g = \mathrm{softmax}(W X_\mathrm{att} / \tau) \qquad
        Y = \mathrm{relu}(g_0 X + g_1 X_\mathrm{att})

    Args:
        dim: Features d of the modality.
        temperature: :math:`\tau`; lower values give harder choices; 0.1 in the paper.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        - ``x``, ``attended``: (B, L, d)
        - output: (B, L, d); zero where both inputs are

    Raises:
        TypeError: If an input is not a floating-point tensor.
        ValueError: If a size or the temperature is not positive, or the shapes do not fit.

    References:
        | R. G. Praveen, J. Alam, "Cross-Attention is Not Always Needed: Dynamic Cross-Attention
          for Audio-Visual Dimensional Emotion Recognition" (DCA), ICME 2024
        | https://arxiv.org/abs/2403.19554

    Example:
        >>> gate = DynamicGate(8)
        >>> x, attended = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
        >>> gate(x, attended).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        temperature: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim: int = check_size("DynamicGate", "dim", dim)
        self.temperature: float = check_positive(
            "DynamicGate", "temperature", temperature, least=1e-30
        )
        check_parameters("DynamicGate", 2 * self.dim, device=device, dtype=dtype)
        self.score: nn.Linear = nn.Linear(self.dim, 2, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Re-initialises the parameters."""
        self.score.reset_parameters()

    @override
    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        """Mixes features and attended features, both (B, L, d), into (B, L, d)."""
        like = getattr(self.score, "weight", None)  # also where a tool put another module
        for name, given in (("x", x), ("attended", attended)):
            check_layout("DynamicGate", name, given, self.dim)
            check_like("DynamicGate", name, given, "the parameters", like)
        if x.shape != attended.shape:
            raise error(
                ValueError,
                "DynamicGate",
                "'x' and 'attended' differ in shape",
                got=f"x {tuple(x.shape)}, attended {tuple(attended.shape)}",
                expected="the same (batch, steps, features)",
                hint="give the features before and after one attention",
            )
        gate = torch.softmax(self.score(attended) / self.temperature, dim=-1)
        return torch.relu(gate[..., :1] * x + gate[..., 1:] * attended)

    @override
    def extra_repr(self) -> str:
        return f"dim={self.dim}, temperature={self.temperature}"


def gated(
    gates: nn.ModuleDict, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Applies the gate of each modality to its input and output, if there are gates."""
    if not gates:
        return outputs
    return [gate(x, y) for gate, x, y in zip(gates.values(), inputs, outputs, strict=True)]
