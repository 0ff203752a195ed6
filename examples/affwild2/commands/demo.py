"""Runs everything on generated data: make-data, extract, table, pictures, report.

The demo trains a few methods on data with both confounders. With ``everything`` it makes four kinds
of data, with both confounders, with one, and with none, and trains every method: the table then
shows which fusion is for what. With several data seeds it does so for each, and pools the tables.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from examples.affwild2.dataset.extract import extract
from examples.affwild2.dataset.files import whole
from examples.affwild2.dataset.progress import follow
from examples.affwild2.dataset.workers import start_worker
from examples.affwild2.results.pictures import draw_sweep, draw_table
from examples.affwild2.results.report import write_report
from examples.affwild2.results.sweep import Data, Plan, run_table
from examples.affwild2.results.table import Result, Table, pool_tables
from examples.affwild2.synthetic.generate import Size, make_data
from examples.affwild2.synthetic.latents import Switches
from examples.affwild2.synthetic.pretrain import save_backbones, train_backbones
from examples.affwild2.training.methods import AVERAGE, RECOMMENDED, SINGLE, TITLES
from examples.affwild2.training.modalities import Weights
from examples.affwild2.training.presets import DEMO, Preset

BOTH = "both confounders"
BACKBONES_SEED = 1
KINDS = {
    BOTH: Switches(0.25, 0.5),
    "idiosyncrasy": Switches(0.0, 0.5),
    "sarcasm": Switches(0.25, 0.0),
    "no confounder": Switches(0.0, 0.0),
}
SHORT = (RECOMMENDED, "concatenation", "encoder-layer", *SINGLE, AVERAGE)
MAIN = (
    "concatenation",
    "encoder-layer",
    "transformer",
    "jca-stable",
    "rcma",
    "rcma-stable",
    RECOMMENDED,
)


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
    backbones: Path | None = None,
    report: Callable[[Result], None] | None = None,
) -> Table:
    """Makes data, trains networks, writes ``table.json``, pictures and ``report.html``.

    Args:
        out: Where everything goes; a run that was stopped goes on.
        size: tiny (about a minute, for a look at the machinery) or small.
        everything: Every method, on every kind of data.
        seed: Of the data; the networks have their own seeds.
        processes: Of one thread each.
        backbones: Where they are, or go once they are trained; ``out`` if it is not given.
        report: Called with what each run reached, as soon as it is over.
    """
    kinds = KINDS if everything else {BOTH: KINDS[BOTH]}
    preset = _preset(size)
    seeds = (0, 1) if size == "small" and not everything else (0,)
    backbones = out / "backbones.pt" if backbones is None else backbones
    spawn = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=start_worker) as pool:
        made = [
            pool.submit(make_kind, out, kind, size, seed, switches)
            for kind, switches in kinds.items()
        ]
        trained = None if backbones.exists() else pool.submit(train_backbones, BACKBONES_SEED)
        data = [one.result() for one in follow(made, "kinds of data to make", len(made))]
        if trained is not None:
            save_backbones(backbones, trained.result())
    plans = [Plan(BOTH, SHORT, seeds=seeds)]
    if everything:
        plans = [
            Plan(BOTH, tuple(TITLES), seeds=seeds),
            *(Plan(kind, MAIN, seeds=seeds) for kind in kinds if kind != BOTH),
            Plan(BOTH, MAIN, ("arousal",), seeds=seeds),
        ]
    weights = Weights(demo=backbones)
    table = run_table(data, out, plans, preset, weights, processes=processes, report=report)
    pictures = draw_sweep(out, data[0], table, preset, out / "pictures")
    settings = {
        "size of the data": size,
        "seed of the data": seed,
        "seeds of the networks": ", ".join(map(str, seeds)),
        "folds": "the official split",
        "epoch": f"the best on every {preset.select}th training trial, held out of training",
        **{f"data: {kind}": _describe(switches) for kind, switches in kinds.items()},
    }
    write_report(out / "report.html", table, pictures, settings, note=_note(size))
    return table


def run_demos(
    out: Path,
    seeds: Sequence[int],
    *,
    size: Size = "small",
    everything: bool = False,
    processes: int = 2,
    report: Callable[[Result], None] | None = None,
) -> Table:
    """Runs the demo for each seed of the data, and pools the tables if there are several.

    Args:
        out: Where everything goes, in a folder per seed if there are several; a run that was
            stopped goes on.
        seeds: Of the data.
        size: As for the demo.
        everything: As for the demo.
        processes: As for the demo.
        report: As for the demo.
    """
    run = partial(run_demo, size=size, everything=everything, processes=processes, report=report)
    if len(seeds) == 1:
        return run(out, seed=seeds[0])
    folders = {seed: out / f"data-seed{seed}" for seed in seeds}
    for seed, folder in folders.items():
        run(folder, seed=seed, backbones=out / "backbones.pt")
    tables = {seed: folder / "table.json" for seed, folder in folders.items()}
    table = pool_tables(tables, out / "table.json", _preset(size))
    settings = {"size of the data": size, "seeds of the data": ", ".join(map(str, seeds))}
    pictures = draw_table(table, out / "pictures")
    write_report(out / "report.html", table, pictures, settings, note=_note(size))
    return table


def _preset(size: Size) -> Preset:
    return DEMO if size == "small" else replace(DEMO, epochs=2)


def _note(size: Size) -> str | None:
    """What a reader of the report must know first."""
    if size == "small":
        return None
    return "Tiny: two epochs on six trials exercise the machinery; the numbers mean nothing."


def _describe(switches: Switches) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in vars(switches).items())
