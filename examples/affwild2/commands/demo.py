"""Runs everything on generated data: make-data, extract, table, pictures, report.

The demo trains a few methods on data with both confounders. With ``everything`` it makes four kinds
of data, with both confounders, with one, and with none, and trains every method: the table then
shows which fusion is for what.
"""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from examples.affwild2.dataset.extract import extract
from examples.affwild2.dataset.files import whole
from examples.affwild2.dataset.progress import follow
from examples.affwild2.dataset.workers import start_worker
from examples.affwild2.results.pictures import draw_sweep
from examples.affwild2.results.report import write_report
from examples.affwild2.results.sweep import Data, Plan, run_table
from examples.affwild2.results.table import Result, Table
from examples.affwild2.synthetic.generate import Size, make_data
from examples.affwild2.synthetic.latents import Switches
from examples.affwild2.synthetic.pretrain import save_backbones, train_backbones
from examples.affwild2.training.methods import AVERAGE, RECOMMENDED, SHUFFLED, SINGLE
from examples.affwild2.training.modalities import Weights
from examples.affwild2.training.presets import DEMO

BOTH = "both confounders"
KINDS = {
    BOTH: Switches(0.25, 0.5),
    "idiosyncrasy": Switches(0.0, 0.5),
    "sarcasm": Switches(0.25, 0.0),
    "no confounder": Switches(0.0, 0.0),
}
SHORT = (RECOMMENDED, "concatenation", "encoder-layer", *SINGLE, AVERAGE)
MAIN = (*SINGLE, AVERAGE, "concatenation", "rcma", "rcma-stable", RECOMMENDED, SHUFFLED)
REST = (
    "encoder-layer",
    "transformer",
    "leader-follower",
    "cross-attention",
    "jca",
    "jca-stable",
    "rcma-all",
    "rcma-stable-T",
)
FEW = (*SINGLE, AVERAGE, "concatenation", "jca-stable", RECOMMENDED)


def make_kind(out: Path, kind: str, size: Size, seed: int, switches: Switches) -> Data:
    """Makes one kind of data and extracts it, unless it is there.

    Raises:
        ValueError: Other data is there.
    """
    folder = out / "data" / kind.replace(" ", "-")
    tree, features = folder / "tree", folder / "features"
    if not tree.exists():
        with whole(tree) as partial:
            make_data(partial, size=size, seed=seed, switches=switches)
    made = json.loads((tree / "MANIFEST.json").read_text())
    for name, value in {"size": size, "seed": seed, **vars(switches)}.items():
        if made[name] != value:
            raise ValueError(
                f"demo: {tree} was made with {name} {made[name]}, not {value}; name a new folder"
            )
    extract(tree, features)
    return Data(kind, features, switches)


def run_demo(
    out: Path,
    *,
    size: Size = "small",
    everything: bool = False,
    seed: int = 0,
    processes: int = 2,
    report: Callable[[Result], None] | None = None,
) -> Table:
    """Makes data, trains networks, writes ``table.json``, pictures and ``report.html``.

    Args:
        out: Where everything goes; a run that was stopped goes on.
        size: tiny (about a minute, for a look at the machinery) or small.
        everything: Every method, on every kind of data.
        seed: Of the data; the networks have their own seeds.
        processes: Of one thread each.
        report: Called with what each run reached, as soon as it is over.
    """
    kinds = KINDS if everything else {BOTH: KINDS[BOTH]}
    preset = DEMO if size == "small" else replace(DEMO, epochs=2)
    seeds = ((0, 1, 2) if everything else (0, 1)) if size == "small" else (0,)
    backbones = out / "backbones.pt"
    spawn = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=start_worker) as pool:
        made = [
            pool.submit(make_kind, out, kind, size, seed, switches)
            for kind, switches in kinds.items()
        ]
        trained = None if backbones.exists() else pool.submit(train_backbones, seed + 1)
        data = [one.result() for one in follow(made, "kinds of data to make", len(made))]
        if trained is not None:
            save_backbones(backbones, trained.result())
    plans = [Plan(BOTH, SHORT, seeds=seeds)]
    if everything:
        plans = [
            Plan(BOTH, MAIN, seeds=seeds),
            Plan(BOTH, REST, seeds=seeds[:2]),
            *(Plan(kind, FEW, seeds=seeds[:2]) for kind in list(kinds)[1:]),
            Plan(BOTH, FEW, ("arousal",), seeds=seeds[:1]),
        ]
    weights = Weights(demo=backbones)
    table = run_table(data, out, plans, preset, weights, processes=processes, report=report)
    pictures = draw_sweep(out, data[0], table, preset, out / "pictures")
    settings = {
        "size of the data": size,
        "seed of the data": seed,
        "seeds of the networks": ", ".join(map(str, seeds)) + "; where fewer, the first of them",
        "folds": "the official split",
        "epoch": f"the best on every {preset.select}th training trial, held out of training",
        **{f"data: {kind}": _describe(switches) for kind, switches in kinds.items()},
    }
    note = "Tiny: two epochs on six trials exercise the machinery; the numbers mean nothing."
    write_report(
        out / "report.html", table, pictures, settings, note=note if size == "tiny" else None
    )
    return table


def _describe(switches: Switches) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in vars(switches).items())
