"""The parity gate: what disagrees with the reference is not timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from benchmarks.peers import Head, PyTorchTCN, Restated

EXACT = 1e-8  # largest distance from the reference in float64, as a share of its norm
# In the timed dtype rounding decides: a single relu whose argument rounds across zero turns a
# gradient by 1e-3. There an implementation may be off from float64 by these shares, of outputs and
# of gradients, or by so many times the most that the reference is.
FLOOR = {"float32": (1e-4, 5e-3), "medium": (1e-4, 5e-3), "bfloat16": (2.0**-6, 2.0**-4)}
TIMES = 4.0

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def gradients(
    run: Run, module: nn.Module, inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and gradients of their weighted sum by the name of what they are taken of."""
    outputs = list(run(inputs))
    sources = {f"input {k}": x for k, x in enumerate(inputs)} | dict(module.named_parameters())
    slopes = [w.to(y.dtype) for w, y in zip(weights, outputs, strict=True)]
    found = torch.autograd.grad(outputs, list(sources.values()), slopes, allow_unused=True)
    named = {
        name: zeros_or(gradient, source)
        for (name, source), gradient in zip(sources.items(), found, strict=True)
    }
    return [y.detach() for y in outputs], named


def zeros_or(gradient: Tensor | None, source: Tensor) -> Tensor:
    """The gradient; zeros where the source takes no part."""
    return torch.zeros_like(source) if gradient is None else gradient


class Gate:
    """Lists how an implementation differs from a reference.

    Args:
        run: How the reference is called, in the timed setting.
        reference: The module behind it, which in float64 is the truth.
        inputs: The inputs of the timing.
        setting: The setting of the timing.
    """

    def __init__(
        self, run: Run, reference: nn.Module, inputs: Sequence[Tensor], setting: str = "float32"
    ) -> None:
        self.inputs, self.setting = inputs, setting
        with torch.no_grad():
            self.weights = [torch.randn_like(x, dtype=torch.float32) for x in run(inputs)]
        self.truth = self._named(*_double(reference))
        self.rounding = _errors(self._named(run, reference), self.truth)
        self.exact: dict[nn.Module, list[str]] = {}

    def disagreements(self, run: Run, module: nn.Module) -> list[str]:
        """Says what is wrong with what is timed or, in float64, with its module; or nothing."""
        if module not in self.exact:
            self.exact[module] = self._inexact(module)
        if self.exact[module]:
            return self.exact[module]
        errors = _errors(self._named(run, module), self.truth)
        return _differences(errors, self.rounding, FLOOR[self.setting])

    def _inexact(self, module: nn.Module) -> list[str]:
        found = self._named(*_double(module))
        if found.keys() != self.truth.keys():
            return [f"it has {sorted(found)}, not {sorted(self.truth)}"]
        lines = _differences(_errors(found, self.truth), {}, (EXACT, EXACT))
        return [f"{line}, in float64" for line in lines]

    def _named(self, run: Run, module: nn.Module) -> dict[str, Tensor]:
        """Outputs and gradients under our names, in float64."""
        dtype = next(module.parameters()).dtype
        leaves = [x.detach().to(dtype).requires_grad_() for x in self.inputs]
        outputs, found = gradients(run, module, leaves, self.weights)
        if isinstance(module, Restated | PyTorchTCN) or (
            isinstance(module, Head) and isinstance(module.fuse, Restated)
        ):
            found = {n: g for n, g in found.items() if n.startswith("input ")} | module.ours(found)
        named = {f"output {k}": y for k, y in enumerate(outputs)}
        named |= {f"gradient of {name}": gradient for name, gradient in found.items()}
        return {name: x.double() for name, x in named.items()}


def _double(module: nn.Module) -> tuple[Run, nn.Module]:
    module = deepcopy(module).double()
    return module, module


def _errors(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    """Distances as shares of the norm; infinite where shapes differ or numbers are not finite."""
    errors = {}
    for name, expected in truth.items():
        if found[name].shape != expected.shape or not found[name].isfinite().all():
            errors[name] = math.inf
        else:
            size = torch.linalg.vector_norm(expected).clamp(min=1e-30)
            errors[name] = (torch.linalg.vector_norm(found[name] - expected) / size).item()
    return errors


def _differences(
    errors: Mapping[str, float], reference: Mapping[str, float], floors: tuple[float, float]
) -> list[str]:
    found = []
    for kind, floor in zip(("output", "gradient"), floors, strict=True):
        most = max((e for name, e in reference.items() if name.startswith(kind)), default=0.0)
        for name, error in errors.items():
            if name.startswith(kind) and not error <= max(floor, TIMES * most):
                found.append(f"{name}: off by {error:.2g} of its norm")
    return found
