"""Times fusion layers at your sizes: time, memory, throughput, and where the time goes.

Run: ``python -m benchmarks.mine --dims face=512 voice=128 --length 300 --batch 12``.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, TypedDict

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import crossfuse
from benchmarks import peers
from benchmarks.layers import BOTH, FORWARD, Entry, autocast, call_of, compile_for, multiply
from benchmarks.recorded import products_of
from benchmarks.timing import QUIET, Call, digits, header, interleaved, peak_bytes, quiet

SETTINGS = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Options:
    """What to time."""

    dims: dict[str, int]
    length: int
    batch: int
    layer: tuple[str, ...]
    recursions: int | None  # None for the default of each layer
    device: str
    dtype: str
    compile: bool
    threads: int | None  # None for as many as PyTorch chooses
    seconds: float
    json: Path | None

    @property
    def sizes(self) -> list[int]:
        """Features of each modality."""
        return list(self.dims.values())


LAYERS: dict[str, Callable[[Options], nn.Module]] = {
    "RecursiveCrossModalAttention": lambda o: crossfuse.RecursiveCrossModalAttention(
        o.sizes, recursions=o.recursions or 2
    ),
    "JointCrossAttention": lambda o: crossfuse.JointCrossAttention(
        o.sizes, o.length, recursions=o.recursions or 1
    ),
    "CrossModalTransformer": lambda o: crossfuse.CrossModalTransformer(o.sizes),
    "ConcatFusion": lambda o: peers.Joined(crossfuse.ConcatFusion(o.sizes, sum(o.sizes))),
    "TransformerEncoderLayer": lambda o: peers.EncoderLayer(o.sizes),
    "MultiheadAttention": lambda o: peers.SelfAttention(o.sizes),
    "MLP": lambda o: peers.Concatenation(o.sizes),
    # Not timed unless they are named.
    "RecursiveCrossModalAttention-paper": lambda o: crossfuse.RecursiveCrossModalAttention(
        o.sizes, o.length, o.recursions or 2, form="paper"
    ),
    "CrossAttention": lambda o: crossfuse.CrossAttention(o.sizes),
    "LeaderFollowerAttention": lambda o: crossfuse.LeaderFollowerAttention(o.sizes, leader=0),
    "TransformerEncoderLayer-2048": lambda o: peers.EncoderLayer(o.sizes, 2048),
}
DEFAULT = tuple(LAYERS)[:7]


class Row(TypedDict):
    """One layer in one direction."""

    layer: str
    parameters: int
    direction: str
    median_s: float
    low_s: float  # quartiles over the rounds
    high_s: float
    rounds: int
    samples_per_s: float
    peak_bytes: int
    limit_s: float  # the matrix products alone
    share_of_limit: float
    dominant: dict[str, float]  # operators by their share of the time


def measure(options: Options, *, least: int = 5) -> tuple[list[Row], list[str]]:
    """Times the layers: the rows, and which layers could not run and why."""
    torch.manual_seed(0)
    inputs = [
        torch.randn(options.batch, options.length, d, device=options.device, requires_grad=True)
        for d in options.sizes
    ]
    entries: dict[str, Entry] = {}
    limits: dict[str, Call] = {}
    refused: list[str] = []
    for name in options.layer:
        try:
            entries[name], limits[name] = _entry(name, options, inputs)
        except (RuntimeError, ValueError) as reason:  # the memory is too small, or a size
            refused.append(in_one_line(name, reason))
    rows: list[Row] = []
    for direction in (FORWARD, BOTH) if entries else ():
        rows += _timed(entries, limits, inputs, direction, options, least)
    return sorted(rows, key=lambda row: options.layer.index(row["layer"])), refused


def _entry(name: str, options: Options, inputs: Sequence[Tensor]) -> tuple[Entry, Call]:
    """A layer that has run once in both directions, and its products."""
    setting = SETTINGS[options.dtype]
    module = LAYERS[name](options).to(options.device)
    entry = Entry(module, same=False, compiled=options.compile)
    products = products_of(lambda: module(inputs))
    if options.compile:
        entry.run = compile_for(module, options.device)
    entry.run = autocast(entry.run, setting, options.device)
    for direction in (FORWARD, BOTH):
        module.train(direction == BOTH)
        call_of(entry, inputs, direction)()
    return entry, multiply(products, setting, options.device)


def _timed(
    entries: dict[str, Entry],
    limits: dict[str, Call],
    inputs: Sequence[Tensor],
    direction: str,
    options: Options,
    least: int,
) -> list[Row]:
    for entry in entries.values():
        entry.module.train(direction == BOTH)
    calls = {name: call_of(entry, inputs, direction) for name, entry in entries.items()}
    timings = interleaved(
        calls | {f"limit of {name}": limit for name, limit in limits.items()},
        seconds=options.seconds,
        least=least,
        device=options.device,
    )
    rows: list[Row] = []
    for name, call in calls.items():
        taken = timings[name]
        enough = max(1, min(5, int(0.05 / taken.median_s)))
        limit = timings[f"limit of {name}"].median_s * (1 if direction == FORWARD else 3)
        rows.append(
            {
                "layer": name,
                "parameters": sum(p.numel() for p in entries[name].module.parameters()),
                "direction": direction,
                "median_s": taken.median_s,
                "low_s": taken.low_s,
                "high_s": taken.high_s,
                "rounds": taken.rounds,
                "samples_per_s": options.batch / taken.median_s,
                "peak_bytes": peak_bytes(call, options.device),
                "limit_s": limit,
                "share_of_limit": limit / taken.median_s,
                "dominant": dominant(call, options.device, calls=enough),
            }
        )
    return rows


def dominant(call: Call, device: str, calls: int, count: int = 3) -> dict[str, float]:
    """The operators that take most of the time of some calls, by their share of it."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with quiet(), profile(activities=activities) as seen:
        for _ in range(calls):
            call()
    # Of a kernel and the operator that launched it, only the latter.
    events = [e for e in seen.key_averages() if e.device_type.name == "CPU"]
    times: Counter[str] = Counter()
    for e in events:
        taken = e.self_device_time_total if device == "cuda" else e.self_cpu_time_total
        times[operator(e.key)] += taken
    total = times.total() or 1.0
    return {name: taken / total for name, taken in times.most_common(count)}


def operator(event: str) -> str:
    """The operator behind an event of the profiler."""
    if "CompiledFxGraph" in event:
        return "compiled code"
    name = event.rpartition("::")[2].rpartition(": ")[2].removesuffix("_for_cpu")
    return name.replace("_scaled_dot_product_flash", "flash")


def table(options: Options, rows: Sequence[Row]) -> Table:
    """One line per layer and direction."""
    sizes = " ".join(f"{name}={dim}" for name, dim in options.dims.items())
    threads = f", threads: {torch.get_num_threads()}"
    made = Table(
        title=f"{sizes}, L {options.length}, B {options.batch}, {SETTINGS[options.dtype]}"
        f"{', compiled' if options.compile else ''}, "
        f"{options.device}{threads if options.device == 'cpu' else ''}",
        caption="ms: median (quartiles). of limit: the time of the layer's own matrix products, "
        "performed alone, relative to the time of the layer.",
    )
    for name in ("layer", "parameters", "direction"):
        made.add_column(name, no_wrap=True)
    for name in ("ms", "samples/s", "peak MiB", "of limit"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("most time in", overflow="fold")
    for row in rows:
        first = row["direction"] == FORWARD
        low, middle, high = (1e3 * row[key] for key in ("low_s", "median_s", "high_s"))
        made.add_row(
            row["layer"] if first else "",
            f"{row['parameters']:,}" if first else "",
            row["direction"],
            f"{digits(middle)} ({digits(low)}-{digits(high)})",
            f"{row['samples_per_s']:,.0f}",
            f"{row['peak_bytes'] / 2**20:.1f}",
            f"{row['share_of_limit']:.2f}",
            ", ".join(f"{name} {100 * share:.0f}%" for name, share in row["dominant"].items()),
            end_section=not first,
        )
    return made


def in_one_line(name: str, reason: Exception) -> str:
    """What a layer raised, without line breaks."""
    lines = [" ".join(line.split()) for line in str(reason).splitlines() if line.strip()]
    return f"{name}: {'; '.join(lines).removeprefix(f'{name}: ')}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def size(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def modality(text: str) -> tuple[str, int]:
    name, _, features = text.partition("=")
    if not name or not features.isdecimal() or int(features) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FEATURES, such as face=512")
    return name, int(features)


def read(arguments: Sequence[str] | None) -> Options:
    """Reads the command line; a wrong one ends the program with one line."""
    parser = _Parser(prog="python -m benchmarks.mine", description=__doc__)
    add = parser.add_argument
    add("--dims", nargs="+", type=modality, required=True, metavar="NAME=FEATURES")
    add("--length", type=size, required=True, help="steps of a window")
    add("--batch", type=size, required=True, help="windows in a batch")
    add(
        "--layer",
        nargs="+",
        choices=LAYERS,
        default=DEFAULT,
        metavar="NAME",
        help=f"{', '.join(LAYERS)}; the first {len(DEFAULT)} if none is named",
    )
    add("--recursions", type=size, help="of RCMA and JCA; by default 2 and 1")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=SETTINGS, default="fp32", help="bf16: autocast over float32 weights")
    add("--compile", action="store_true", help="with crossfuse.compile; CUDA graphs on cuda")
    add("--threads", type=size, help="of the CPU")
    add("--seconds", type=seconds, default=10.0, help="for each direction, at least five rounds")
    add("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    given = vars(parser.parse_args(arguments))
    names = [name for name, _ in given["dims"]]
    if len(names) < 2:
        parser.error("argument --dims: one modality has nothing to be fused with; give two or more")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        parser.error(f"argument --dims: {', '.join(repeated)} is given more than once")
    if given["device"] == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: this PyTorch finds no CUDA device")
    if given["json"] is not None and (given["json"].is_dir() or not given["json"].parent.is_dir()):
        parser.error(f"argument --json: cannot write to {given['json']}")
    layers = tuple(dict.fromkeys(given["layer"]))
    return Options(**given | {"dims": dict(given["dims"]), "layer": layers})


def main(arguments: Sequence[str] | None = None, *, least: int = 5) -> None:
    options = read(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    about = header(options.device)
    rows, refused = measure(options, least=least)
    console = Console(highlight=False, soft_wrap=True)
    if rows:
        Console(width=None if console.is_terminal else 160).print(table(options, rows))
    for line in refused:
        console.print(f"not timed: {line}", markup=False)
    if (about["busy_cores"] or 0) > QUIET:
        console.print(
            f"{about['busy_cores']} cores were busy with other work: take these figures again on a "
            "quiet machine."
        )
    if options.json is not None:
        settings = asdict(options) | {"json": str(options.json)}
        report = {"header": about, "options": settings, "rows": rows, "refused": refused}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if not rows:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
