"""The parity gate: what disagrees with the reference is not timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.peers import Head, PyTorchTCN, Restated

# Largest distance from the reference, as a share of its norm, for outputs and for gradients.
# Half precision flips slopes of relu and saturates tanh, so its gradients are held to no figure.
ALLOWED: dict[str, tuple[float, float | None]] = {
    "float32": (1e-4, 1e-3),
    "medium": (1e-4, 1e-3),
    "bfloat16": (0.1, None),
}

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def gradients(
    run: Run, module: nn.Module, inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and gradients of their weighted sum by the name of what they are taken of."""
    outputs = list(run(inputs))
    sources = {f"input {k}": x for k, x in enumerate(inputs)} | dict(module.named_parameters())
    found = torch.autograd.grad(outputs, list(sources.values()), list(weights), allow_unused=True)
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
    """Says in what an implementation differs from the reference; empty if they agree."""
    weights = [torch.randn_like(x) for x in _outputs(ours[0], inputs)]
    expected, expected_gradients = gradients(*theirs, inputs, weights)
    found, found_gradients = gradients(*ours, inputs, weights)
    reference = theirs[1]
    if isinstance(reference, Restated | PyTorchTCN | Head):
        taken = {n: g for n, g in expected_gradients.items() if n.startswith("input ")}
        expected_gradients = taken | reference.ours(expected_gradients)
    outputs, slopes = ALLOWED[setting]
    pairs = {f"output {k}": pair for k, pair in enumerate(zip(found, expected, strict=True))}
    told = _distances(pairs, outputs)
    if slopes is not None:
        if found_gradients.keys() != expected_gradients.keys():
            told.append(f"gradients of {sorted(found_gradients)}, not {sorted(expected_gradients)}")
        else:
            both = {n: (g, expected_gradients[n]) for n, g in found_gradients.items()}
            told += _distances({f"gradient of {n}": pair for n, pair in both.items()}, slopes)
    return told


def _outputs(run: Run, inputs: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return list(run(inputs))


def _distances(pairs: Mapping[str, tuple[Tensor, Tensor]], allowed: float) -> list[str]:
    told = []
    for what, (found, expected) in pairs.items():
        if found.shape != expected.shape:
            told.append(f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}")
            continue
        distance = torch.linalg.vector_norm(found.double() - expected.double()).item()
        size = torch.linalg.vector_norm(expected.double()).item()
        if not distance <= allowed * max(size, 1e-30):
            told.append(f"{what}: off by {distance / max(size, 1e-30):.2g} of its norm")
    return told
