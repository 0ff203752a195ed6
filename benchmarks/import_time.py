"""What ``import crossfuse`` adds to torch's own import.

Run: python -m benchmarks.import_time. Writes benchmarks/results/import_time.json. Each run is a
fresh process under ``python -X importtime``; torch is imported first, so that its share, and that
of what it imports, is not counted. The aim is less than 50 ms.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

RUNS, SHOWN = 15, 5
RESULT = Path(__file__).parent / "results" / "import_time.json"
LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| +(\S+)")


class Import(NamedTuple):
    """One line of what ``-X importtime`` prints."""

    module: str
    own: float  # milliseconds
    total: float  # with what it imports itself


def imports() -> Iterator[Import]:
    """Imports torch, then crossfuse, in a fresh process; yields what came after torch."""
    command = [sys.executable, "-X", "importtime", "-c", "import torch; import crossfuse"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after_torch = False
    for line in done.stderr.splitlines():
        if (match := LINE.match(line)) is None:
            continue
        own, total, module = match.groups()
        if after_torch:
            yield Import(module, int(own) / 1000, int(total) / 1000)
        after_torch = after_torch or module == "torch"


def main() -> None:
    """Measures, prints and keeps the result."""
    list(imports())  # compiles the sources, once
    runs = [list(imports()) for _ in range(RUNS)]
    totals = sorted(one.total for run in runs for one in run if one.module == "crossfuse")
    quickest = min(runs, key=lambda run: sum(one.own for one in run))
    slowest_parts = sorted(quickest, key=lambda one: one.own, reverse=True)[:SHOWN]
    result = {
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "runs": RUNS,
        "median_ms": round(median(totals), 1),
        "smallest_ms": round(totals[0], 1),
        "largest_ms": round(totals[-1], 1),
        "slowest_parts_ms": {one.module: round(one.own, 1) for one in slowest_parts},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
