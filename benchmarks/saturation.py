"""How features grow with the recursions at initialisation: the published and the stable form.

Run: python -m benchmarks.saturation. Writes benchmarks/results/saturation.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import TypedDict

import torch

from benchmarks.cases import drawn
from crossfuse import RecursiveCrossModalAttention

BATCH, LENGTH, DIMS = 2, 300, {"video": 512, "audio": 128, "text": 512}
RECURSIONS, SEEDS = 16, (0, 1, 2)
RESULT = Path(__file__).parent / "results" / "saturation.json"


class Row(TypedDict):
    """One step, over all modalities and seeds; the inputs are standard normal."""

    recursion: int
    norm: float  # root mean square of the features, summed in double precision
    smallest: float  # of the norm over the seeds
    largest: float
    saturated: float  # share of the entries of C beyond 0.99


def measure(form: str, seed: int) -> list[tuple[float, float]]:
    """The norm of the features and the share of saturated correlations after each recursion."""
    torch.manual_seed(seed)
    if form == "paper":
        layer = RecursiveCrossModalAttention(DIMS, LENGTH, RECURSIONS, form="paper", joint="others")
    else:
        layer = RecursiveCrossModalAttention(DIMS, recursions=RECURSIONS)
    if form == "stable, O drawn":  # as if training had moved the weights away from zero
        drawn(layer)
    x = {name: torch.randn(BATCH, LENGTH, dim) for name, dim in DIMS.items()}
    with torch.no_grad():
        recursions = layer.inspect(x).recursions
    return [
        (
            torch.cat([y.double().flatten() for y in recursion.features.values()])
            .square()
            .mean()
            .sqrt()
            .item(),
            torch.cat([c.flatten() for c in recursion.correlations.values()])
            .abs()
            .gt(0.99)
            .float()
            .mean()
            .item(),
        )
        for recursion in recursions
    ]


def summary(form: str) -> list[Row]:
    """One row for each recursion."""
    runs = [measure(form, seed) for seed in SEEDS]
    rows: list[Row] = []
    for k, values in enumerate(zip(*runs, strict=True), start=1):
        norms = [norm for norm, _ in values]
        share = mean(saturated for _, saturated in values)
        low, high = (float(f"{norm:.4g}") for norm in (min(norms), max(norms)))
        rows.append(
            {
                "recursion": k,
                "norm": float(f"{mean(norms):.4g}"),
                "smallest": low,
                "largest": high,
                "saturated": round(share, 4),
            }
        )
    return rows


def main() -> None:
    """Measures every form and writes the table."""
    forms = {form: summary(form) for form in ("paper", "stable", "stable, O drawn")}
    for form, rows in forms.items():
        for row in rows:
            print(form, row)
    about = {"torch": torch.__version__, "batch": BATCH, "length": LENGTH, "dims": DIMS}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({**about, "seeds": SEEDS, "forms": forms}, indent=1) + "\n")


if __name__ == "__main__":
    main()
