"""Times the layers and their peers, case by case, and writes ``results/layers-DEVICE.json``."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

import crossfuse
from benchmarks.cases import Case, Peer, Product
from benchmarks.gate import Gate, Run
from benchmarks.timing import Call, header, interleaved, peak_bytes

RESULTS = Path(__file__).parent / "results"
LIMIT = "matrix products"
LARGEST = 2**26  # elements of an operand or a result of the products timed alone
FORWARD, BOTH = "forward", "forward+backward"


class Row(TypedDict):
    """One figure."""

    case: str
    impl: str
    same: bool  # whether it computes the same function as ours
    device: str
    dtype: str
    precision: str
    compiled: bool
    direction: str
    median_s: float
    spread_s: float
    rounds: int
    peak_bytes: int
    share_of_limit: float


class Entry:
    """A module to time, and how it is called."""

    def __init__(self, module: nn.Module, *, same: bool, compiled: bool = False) -> None:
        self.module, self.same, self.compiled = module, same, compiled
        self.run: Run = module


def measure(
    case: Case, *, device: str = "cpu", seconds: float = 4.0, least: int = 5
) -> tuple[list[Row], list[str]]:
    """Times one case in all its settings: the rows, and what was refused and why."""
    rows: list[Row] = []
    refused: list[str] = []
    for setting in case.settings:
        if setting == "bfloat16" and not multiplies_bfloat16(device):
            refused.append(f"{case.name}, bfloat16: this processor has no instructions for it")
            continue
        gc.collect()
        torch.manual_seed(0)
        inputs = [
            torch.randn(case.batch, case.length, d, device=device, requires_grad=True)
            for d in case.dims
        ]
        with precision(setting):
            entries = _entries(case, setting, device, refused)
            _gate(case, setting, entries, inputs, refused)
            rows += _timed(case, setting, device, entries, inputs, seconds, least)
        torch.compiler.reset()
    return rows, refused


def save(
    rows: Sequence[Row],
    refused: Sequence[str],
    *,
    device: str,
    about: dict[str, Any],
    folder: Path = RESULTS,
) -> Path:
    """Writes a results file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"layers-{device}.json"
    report = {"header": about, "rows": list(rows), "refused": list(refused)}
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def run(
    cases: Sequence[Case],
    *,
    device: str,
    seconds: float,
    least: int,
    folder: Path = RESULTS,
    tell: Callable[[str], None],
) -> Path:
    """Measures every case and saves after each, so that nothing is lost."""
    about, rows, refused = header(device), list[Row](), list[str]()
    path = save(rows, refused, device=device, about=about, folder=folder)
    for case in cases:
        tell(case.name)
        found, not_timed = measure(case, device=device, seconds=seconds, least=least)
        rows, refused = rows + found, refused + not_timed
        for line in not_timed:
            tell(f"  refused: {line}")
        path = save(rows, refused, device=device, about=about, folder=folder)
    return path


@contextmanager
def precision(setting: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if setting == "medium" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _entries(case: Case, setting: str, device: str, refused: list[str]) -> dict[str, Entry]:
    ours = case.build()
    entries = {"crossfuse": Entry(ours, same=True)}
    for name, peer in case.peers.items():
        if peer.settings is not None and setting not in peer.settings:
            continue
        try:
            entries[name] = Entry(peer.build(ours), same=peer.same)
        except (ImportError, SyntaxError) as error:
            refused.append(f"{case.name}, {name}: not importable here ({type(error).__name__})")
    for entry in entries.values():
        entry.module.to(device)
    if setting in case.compiled:
        entries["crossfuse compiled"] = Entry(ours, same=True, compiled=True)
        entries["crossfuse compiled"].run = compile_for(ours, device)
    for entry in entries.values():
        entry.run = autocast(entry.run, setting, device)
    return entries


def multiplies_bfloat16(device: str) -> bool:
    """Whether a device has instructions for it: a processor that has not takes 50 times as long."""
    return device != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def compile_for(module: nn.Module, device: str) -> Run:
    if device == "cuda":
        compiled: Run = torch.compile(module, fullgraph=True, mode="reduce-overhead")
        return compiled
    return crossfuse.compile(module)


def autocast(run: Run, setting: str, device: str) -> Run:
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    if setting == "bfloat16":
        context = lambda: torch.autocast(device, torch.bfloat16)  # noqa: E731

    def call(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        with context():
            return run(inputs)

    return call


def _gate(
    case: Case,
    setting: str,
    entries: dict[str, Entry],
    inputs: Sequence[Tensor],
    refused: list[str],
) -> None:
    """Drops what disagrees with the reference, and everything where there is none."""
    reference = next((name for name, peer in case.peers.items() if peer.same), None)
    if reference not in entries:
        refused.append(f"{case.name}, {setting}: no reference to agree with")
        entries.clear()
        return
    gate = Gate(entries[reference].run, entries[reference].module, inputs, setting)
    for name in [n for n, entry in entries.items() if entry.same and n != reference]:
        if report := gate.disagreements(entries[name].run, entries[name].module):
            refused.append(f"{case.name}, {setting}, {name}: {report[0]}")
            del entries[name]


def _timed(
    case: Case,
    setting: str,
    device: str,
    entries: dict[str, Entry],
    inputs: Sequence[Tensor],
    seconds: float,
    least: int,
) -> list[Row]:
    rows: list[Row] = []
    for direction in (FORWARD, BOTH) if entries else ():
        for entry in entries.values():  # attention of torch has other kernels then
            entry.module.train(direction == BOTH)
        calls = {name: call_of(entry, inputs, direction) for name, entry in entries.items()}
        calls[LIMIT] = multiply(case.products, setting, device)
        timings = interleaved(calls, seconds=seconds, least=least, device=device)
        fair = timings[LIMIT].median_s * (1 if direction == FORWARD else 3)
        for name, timing in timings.items():
            found = entries.get(name)
            taken = fair if found is None else timing.median_s
            rows.append(
                {
                    "case": case.name,
                    "impl": name.removesuffix(" compiled"),
                    "same": found is None or found.same,
                    "device": device,
                    "dtype": "bfloat16" if setting == "bfloat16" else "float32",
                    "precision": "medium" if setting == "medium" else "highest",
                    "compiled": found is not None and found.compiled,
                    "direction": direction,
                    "median_s": taken,
                    "spread_s": timing.spread_s,
                    "rounds": timing.rounds,
                    "peak_bytes": 0 if found is None else peak_bytes(calls[name], device),
                    "share_of_limit": fair / taken,
                }
            )
    return rows


def call_of(entry: Entry, inputs: Sequence[Tensor], direction: str) -> Call:
    if direction == FORWARD:

        def forward() -> object:
            with torch.no_grad():
                return entry.run(inputs)

        return forward
    weights = [torch.randn_like(y) for y in call_of(entry, inputs, FORWARD)()]  # type: ignore[attr-defined]  # a list of tensors
    sources = [*inputs, *entry.module.parameters()]

    def both() -> object:
        outputs = list(entry.run(inputs))
        return torch.autograd.grad(outputs, sources, weights, allow_unused=True)

    return both


def multiply(products: Sequence[Product], setting: str, device: str) -> Call:
    """Performs products, each on operands made before."""
    dtype = torch.bfloat16 if setting == "bfloat16" else torch.float32
    pairs = []
    for b, m, k, n in products:
        # Maps of attention over long windows need not fit into memory: a few samples at a time.
        size = min(b, max(1, LARGEST // max(m * k, k * n, m * n)))
        batch = () if b == 1 else (size,)
        left = torch.randn(*batch, m, k, device=device, dtype=dtype)
        right = torch.randn(*batch, k, n, device=device, dtype=dtype)
        pairs += [(left, right)] * (b // size)
        if b % size:
            pairs.append((left[: b % size], right[: b % size]))

    def call() -> object:
        for left, right in pairs:
            left @ right
        return None

    return call


__all__ = ["Peer", "Row", "measure", "run", "save"]
