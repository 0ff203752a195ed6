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


def disagreements(
    ours: tuple[Run, nn.Module],
    theirs: tuple[Run, nn.Module],
    inputs: Sequence[Tensor],
    setting: str = "float32",
) -> list[str]:
    """Says in what an implementation differs from the reference; empty if they agree.

    Args:
        ours: What is timed, and the module that it belongs to, which must be exact in float64.
        theirs: The same of the reference.
        inputs: The inputs of the timing.
        setting: The setting of the timing.
    """
    with torch.no_grad():
        weights = [torch.randn_like(x, dtype=torch.float32) for x in theirs[0](inputs)]
    truth = _named(_double(theirs[1]), inputs, weights)
    exact = _named(_double(ours[1]), inputs, weights)
    if exact.keys() != truth.keys():
        return [f"it has {sorted(exact)}, not {sorted(truth)}"]
    told = [f"{line}, in float64" for line in _told(_errors(exact, truth), {}, (EXACT, EXACT))]
    reference = _errors(_named(theirs, inputs, weights), truth)
    return told + _told(_errors(_named(ours, inputs, weights), truth), reference, FLOOR[setting])


def _double(module: nn.Module) -> tuple[Run, nn.Module]:
    module = deepcopy(module).double()
    return module, module


def _named(
    implementation: tuple[Run, nn.Module], inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Outputs and gradients under our names, in float64."""
    run, module = implementation
    dtype = next(module.parameters()).dtype
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    outputs, found = gradients(run, module, leaves, weights)
    if isinstance(module, Restated | PyTorchTCN) or (
        isinstance(module, Head) and isinstance(module.fuse, Restated)
    ):
        found = {n: g for n, g in found.items() if n.startswith("input ")} | module.ours(found)
    told = {f"output {k}": y for k, y in enumerate(outputs)}
    told |= {f"gradient of {name}": gradient for name, gradient in found.items()}
    return {name: x.double() for name, x in told.items()}


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


def _told(
    errors: Mapping[str, float], reference: Mapping[str, float], floors: tuple[float, float]
) -> list[str]:
    told = []
    for kind, floor in zip(("output", "gradient"), floors, strict=True):
        most = max((e for name, e in reference.items() if name.startswith(kind)), default=0.0)
        for name, error in errors.items():
            if name.startswith(kind) and not error <= max(floor, TIMES * most):
                told.append(f"{name}: off by {error:.2g} of its norm")
    return told
