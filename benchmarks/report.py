"""Writes the tables and pictures that the documentation includes, from the results files.

Run: ``python -m benchmarks.report``, after a run was changed or copied in by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.layers import BOTH, FORWARD, LIMIT, RESULTS
from benchmarks.timing import QUIET, digits

Row = dict[str, Any]
# The page explains the columns; with whole names the table is wider than a page.
SHORT = {
    "encoder layer": "encoder",
    "encoder layer, 2048": "encoder, 2048",
    "CrossModalTransformer": "cross-modal",
    "MultiheadAttention": "attention",
    "concatenation + MLP": "MLP",
}
SETTINGS = {
    ("float32", "highest"): "float32",
    ("float32", "medium"): 'float32, "medium"',
    ("bfloat16", "highest"): "bfloat16 autocast",
}


def write(folder: Path = RESULTS, device: str = "cpu") -> list[Path]:
    """Writes whatever the results in the folder allow; says what it wrote."""
    written: list[Path] = []
    layers, growth = (folder / f"{name}-{device}.json" for name in ("layers", "growth"))
    tuning = folder / "tuning.json"
    if layers.exists():
        data = json.loads(layers.read_text())
        tables = {"summary": summary_table, "layers": layer_tables, "settings": setting_table}
        for name, table in tables.items():
            written.append(folder / f"{name}-{device}.md")
            written[-1].write_text(table(data))
        written.append(folder / f"layers-{device}.svg")
        _save(draw_layers(data["rows"]), written[-1])
    if growth.exists():
        data = json.loads(growth.read_text())
        written += [folder / f"growth-{device}.md", folder / f"growth-{device}.svg"]
        written[-2].write_text(growth_table(data))
        _save(draw_growth(data["curves"]), written[-1])
    sizes = folder / f"sizes-{device}.json"
    if sizes.exists():
        written.append(folder / f"sizes-{device}.md")
        written[-1].write_text(size_table(json.loads(sizes.read_text())["cases"]))
    memory = folder / "checkpoint_memory.json"
    if memory.exists():
        written.append(folder / "checkpoint_memory.md")
        written[-1].write_text(memory_tables(json.loads(memory.read_text())))
    if tuning.exists():
        written.append(folder / "tuning.md")
        written[-1].write_text(tuning_table(json.loads(tuning.read_text())))
    return written


def header_line(about: dict[str, Any]) -> str:
    """The machine in a sentence."""
    peers = ", ".join(f"{name} {version}" for name, version in about["peers"].items())
    return (
        f"*{about['machine']}, {about['threads']} threads, {about['capability']}; "
        f"PyTorch {about['torch']}, Python {about['python']}; {peers}; "
        f"revision {about['revision']}, {about['date']}, {about['busy_cores']} cores busy with "
        f"other work at the start.*\n"
    )


def summary_table(data: dict[str, Any]) -> str:
    """One line per case and dtype: the share of the limit, and how many times faster than peers."""
    lines = [
        header_line(data["header"]),
        *_head("case", "dtype", "share of the limit", "than the reference", "than attention"),
    ]
    rows = [row for row in data["rows"] if row["precision"] == "highest" and not row["compiled"]]
    for case, dtype in dict.fromkeys((row["case"], row["dtype"]) for row in rows):
        here = [row for row in rows if (row["case"], row["dtype"]) == (case, dtype)]
        ours = {row["direction"]: row for row in here if row["impl"] == "crossfuse"}
        same = {r["impl"] for r in here if r["same"]} - {"crossfuse", LIMIT}
        cells = [" / ".join(f"{ours[way]['share_of_limit']:.2f}" for way in (FORWARD, BOTH))]
        for peers in (same, {"MultiheadAttention"}):
            times = {r["direction"]: r["median_s"] for r in here if r["impl"] in peers}
            ratios = [f"{times[way] / ours[way]['median_s']:.2f}" for way in times]
            cells.append(f"{' / '.join(ratios)}×" if ratios else "")
        lines.append(f"| {case} | {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def layer_tables(data: dict[str, Any]) -> str:
    """One table per case: every implementation, direction and setting."""
    lines = [header_line(data["header"])]
    for case in dict.fromkeys(row["case"] for row in data["rows"]):
        lines += [
            f"\n**{case}**\n",
            *_head("setting", "implementation", "forward", "with backward"),
        ]
        rows = [row for row in data["rows"] if row["case"] == case]
        for setting, title in SETTINGS.items():
            here = [row for row in rows if (row["dtype"], row["precision"]) == setting]
            for impl, compiled in dict.fromkeys((row["impl"], row["compiled"]) for row in here):
                both = [_cell(here, impl, compiled, way) for way in (FORWARD, BOTH)]
                same = all(row["same"] for row in here if row["impl"] == impl)
                name = f"{impl}{', compiled' if compiled else ''}{'' if same else ' (other)'}"
                lines.append(f"| {title} | {name} | {both[0]} | {both[1]} |")
    if data["refused"]:
        lines += ["\nNot timed:\n", *(f"- {line}" for line in data["refused"])]
    return "\n".join(lines) + "\n"


def setting_table(data: dict[str, Any]) -> str:
    """What precision and compilation change for ours, as ratios to eager float32."""
    rows = [row for row in data["rows"] if row["impl"] == "crossfuse"]
    lines = [header_line(data["header"]), *_head("case", "setting", "forward", "with backward")]
    for case in dict.fromkeys(row["case"] for row in rows):
        here = [row for row in rows if row["case"] == case]
        for compiled in (False, True):
            for (dtype, precision), title in SETTINGS.items():
                cells = []
                for way in (FORWARD, BOTH):
                    base = _find(here, ("float32", "highest"), False, way)
                    new = _find(here, (dtype, precision), compiled, way)
                    cells.append(f"{base / new:.2f}×" if base and new else "")
                if any(cells) and (compiled or title != "float32"):
                    name = f"{title}{', compiled' if compiled else ''}"
                    lines.append(f"| {case} | {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def growth_table(data: dict[str, Any]) -> str:
    """The fitted exponents."""
    lines = [
        header_line(data["header"]),
        *_head("layer", "against", "sizes", "time grows as", "peak memory grows as"),
    ]
    for curve in data["curves"]:
        size = curve["against"]
        sizes = f"{curve['sizes'][0]} to {curve['sizes'][-1]}"
        time, memory = (f"{size}^{curve[f'{what}_exponent']}" for what in ("time", "memory"))
        lines.append(f"| {curve['name']} | {size} | {sizes} | {time} | {memory} |")
    return "\n".join(lines) + "\n"


def size_table(cases: dict[str, Any]) -> str:
    """One line per size: time and share of the limit of ours, and how many times as long peers."""
    peers = list(
        dict.fromkeys(
            row["impl"] for case in cases.values() for row in case["rows"] if not row["same"]
        )
    )
    busy = any((case["header"]["busy_cores"] or 0) > QUIET for case in cases.values())
    lines = [
        header_line(next(reversed(cases.values()))["header"]),
        *_head(
            *("B", "L", "features", "RCMA, ms", "of limit"),
            *(SHORT.get(peer, peer) for peer in peers),
            *(["busy cores"] if busy else []),
        ),
    ]
    for case in cases.values():
        rows = {(row["impl"], row["direction"]): row for row in case["rows"]}
        ours = {way: rows["crossfuse", way] for way in (FORWARD, BOTH)}
        features = "/".join(map(str, case["dims"]))
        cells = [str(case["batch"]), str(case["length"]), features]
        cells.append(" / ".join(digits(1e3 * ours[way]["median_s"]) for way in ours))
        cells.append(" / ".join(f"{ours[way]['share_of_limit']:.2f}" for way in ours))
        for peer in peers:
            ratios = [rows[peer, way]["median_s"] / ours[way]["median_s"] for way in ours]
            cells.append(" / ".join(f"{ratio:.2f}" for ratio in ratios))
        if busy:
            cells.append(f"{case['header']['busy_cores']}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def memory_tables(data: dict[str, Any]) -> str:
    """The peak of a training step by the recursions; then that of each layer."""
    lines = _head(
        "recursions", "peak", "checkpoint=True", "features between recursions", "weight gradients"
    )
    keys = ("peak", "peak_with_checkpoint", "features_between", "weight_gradients")
    for row in data["MiB"]:
        sizes = (row[key] for key in keys)
        lines.append(f"| {row['recursions']} | {' | '.join(f'{s:.1f} MiB' for s in sizes)} |")
    lines += ["", *_head("layer, batch 12", "peak")]
    for name, size in data["peak_MiB_at_batch_12"].items():
        lines.append(f"| {name} | {size:.0f} MiB |")
    return "\n".join(lines) + "\n"


def tuning_table(data: dict[str, Any]) -> str:
    """What threads, batch, precision and compilation change for one layer."""
    lines = [header_line(data["header"]), f"{data['case']}\n", *_head("what", "is", "gives")]
    one = data["threads_s"]["1"]
    for threads, seconds in data["threads_s"].items():
        ratio = f", {one / seconds:.2f}× the speed of one" if threads != "1" else ""
        lines.append(f"| threads | {threads} | {1e3 * seconds:.0f} ms a training step{ratio} |")
    for batch, rate in data["samples_a_second"].items():
        lines.append(f"| batch | {batch} | {rate:.0f} samples a second in training |")
    for form, errors in data["error"].items():
        for setting, error in errors.items():
            lines.append(f"| error, {form} | {setting} | {error:.1e} of the norm, from float64 |")
    seconds = data["compilation_s"]
    lines.append(f"| compilation | first training step | {seconds:.0f} s, once |")
    return "\n".join(lines) + "\n"


def draw_layers(rows: list[Row]) -> Figure:
    """Time of everything beside ours, forward and backward together, in float32."""
    chosen = [
        row
        for row in rows
        if (row["dtype"], row["precision"], row["direction"]) == ("float32", "highest", BOTH)
        and row["impl"] != LIMIT
    ]
    cases = list(dict.fromkeys(row["case"] for row in chosen))
    bars = [(c, row) for c in cases for row in chosen if row["case"] == c]
    figure = Figure(figsize=(5, 1.2 + 0.22 * len(bars)), layout="constrained")  # fits a phone
    axes = figure.subplots()
    names, values, colours = [], [], []
    for case, row in bars:
        ours = next(r for r in chosen if r["case"] == case and r["impl"] == "crossfuse")
        suffix = ", compiled" if row["compiled"] else ""
        names.append(f"{case}: {row['impl']}{suffix}")
        values.append(row["median_s"] / ours["median_s"])
        colours.append("C0" if row["impl"] == "crossfuse" else "C7" if row["same"] else "0.8")
    axes.barh(range(len(bars)), values, color=colours)
    axes.axvline(1.0, color="C0", linewidth=0.8)
    axes.set(yticks=range(len(bars)), xscale="log", ylim=(len(bars) - 0.4, -0.6))
    axes.set_yticklabels(names, fontsize=8)
    figure.supxlabel("time of forward and backward, ours = 1", fontsize=9)
    return figure


def draw_growth(curves: list[dict[str, Any]]) -> Figure:
    """Time on the left, memory on the right, one row per size."""
    against = list(dict.fromkeys(curve["against"] for curve in curves))
    figure = Figure(figsize=(5, 2.2 * len(against)), layout="constrained")  # fits a phone
    grid = figure.subplots(len(against), 2, squeeze=False)
    for (time, memory), size in zip(grid, against, strict=True):
        for curve in (c for c in curves if c["against"] == size):
            x = curve["sizes"]
            time.loglog(x, [1e3 * t for t in curve["median_s"]], "o-", markersize=3)
            peak = [b / 2**20 for b in curve["peak_bytes"]]
            memory.loglog(x, peak, "o-", markersize=3, label=curve["name"])
        sizes = sorted({n for c in curves if c["against"] == size for n in c["sizes"]})
        for axes in (time, memory):
            axes.minorticks_off()
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_xticks(sizes, [str(n) for n in sizes], fontsize=8, rotation=45)
            axes.set_xlabel(size)
        memory.legend(fontsize=8, frameon=False)
    grid[0][0].set_title("ms, forward + backward", fontsize=10)
    grid[0][1].set_title("peak MiB", fontsize=10)
    return figure


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]


def _find(
    rows: Iterable[Row], setting: tuple[str, str], compiled: bool, direction: str
) -> float | None:
    wanted = (*setting, compiled, direction)
    keys = ("dtype", "precision", "compiled", "direction")
    found = (row["median_s"] for row in rows if tuple(row[key] for key in keys) == wanted)
    return next(found, None)


def _cell(rows: list[Row], impl: str, compiled: bool, direction: str) -> str:
    here = [row for row in rows if row["direction"] == direction]
    wanted = (row for row in here if (row["impl"], row["compiled"]) == (impl, compiled))
    ours = next((r for r in here if r["impl"] == "crossfuse" and not r["compiled"]), None)
    row = next(wanted, None)
    if row is None:
        return ""
    text = f"{digits(1e3 * row['median_s'])} ± {digits(1e3 * row['spread_s'], 2)} ms"
    if ours is not None and row is not ours:
        text += f", {row['median_s'] / ours['median_s']:.2f}×"
    return text if impl == LIMIT else f"{text}, {row['share_of_limit']:.2f} of the limit"


def _save(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "crossfuse"}):
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    for path in write():
        print(path)
