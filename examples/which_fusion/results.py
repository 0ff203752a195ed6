"""Runs a list of trainings, several at a time, and writes down what they gave."""

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch

from examples.which_fusion.streams import RELATIONS
from examples.which_fusion.train import Budget, Job, Run, run


def work(job: Job) -> list[Run]:
    """Trains and tests on one thread."""
    torch.set_num_threads(1)
    return run(job)


def results(plan: Sequence[Job], processes: int) -> Iterator[list[Run]]:
    """Runs the jobs, several at a time."""
    if processes == 1:
        yield from map(work, plan)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(work, job) for job in plan]
        for future in as_completed(futures):
            yield future.result()


def run_all(plan: Sequence[Job], processes: int, file: Path, done: Callable[[], None]) -> list[Run]:
    """Runs the jobs, writing down what they gave after each."""
    runs: list[Run] = []
    order = list(RELATIONS)
    for part in results(plan, processes):
        runs = sorted(
            [*runs, *part], key=lambda one: (order.index(one.relation), one.method, one.seed)
        )
        write(runs, plan[0].budget, file)
        done()
    return runs


def write(runs: Sequence[Run], budget: Budget, file: Path) -> None:
    """Writes the runs, one a line, and what they depend on."""
    head = {
        "machine": f"{platform.machine()}, {platform.system()}, one thread for each network",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("crossfuse", "torch")},
        "budget": asdict(budget),
    }
    lines = ",\n".join(f"  {json.dumps(asdict(one))}" for one in runs)
    file.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n{lines}\n ]\n}}\n')
