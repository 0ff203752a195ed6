"""Runs a list of trainings, keeps their results in a file, and goes on where it stopped."""

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from examples.common.pool import results
from examples.which_fusion.streams import RELATIONS
from examples.which_fusion.train import SINGLES, Budget, Job, Run, run

FIRST = {SINGLES: "average"}  # the method of a run by which a job of several is known


def work(job: Job) -> list[Run]:
    """Trains and tests on one thread."""
    torch.set_num_threads(1)
    return run(job)


def read(file: Path, budget: Budget) -> list[Run]:
    """Reads the runs of a file under this budget; none if there is no file."""
    if not file.is_file():
        return []
    content = json.loads(file.read_text())
    return [Run(**run) for run in content["runs"]] if content["budget"] == asdict(budget) else []


def run_all(
    plan: Sequence[Job],
    processes: int,
    file: Path,
    done: Callable[[], None],
    minutes: float | None = None,
) -> list[Run]:
    """Runs the jobs that the file does not hold yet, and writes it after each.

    Args:
        plan: The jobs, under one budget.
        processes: How many to train at a time.
        file: Where the results are kept.
        done: Called after each job, and for each that the file held.
        minutes: When to start no more; None runs all.
    """
    runs = read(file, plan[0].budget)
    held = {(run.relation, run.method, run.seed) for run in runs}
    keys = {job: (job.relation, FIRST.get(job.method, job.method), job.seed) for job in plan}
    left = [job for job, key in keys.items() if key not in held]
    for _ in range(len(plan) - len(left)):
        done()
    until = None if minutes is None else time.monotonic() + 60 * minutes
    order = list(RELATIONS)
    for part in results(work, left, processes, until):
        runs = sorted(
            [*runs, *part], key=lambda one: (order.index(one.relation), one.method, one.seed)
        )
        write(runs, plan[0].budget, file)
        done()
    return runs


def write(runs: Sequence[Run], budget: Budget, file: Path) -> None:
    """Writes the runs, one a line, and the conditions that they depend on."""
    head = {
        "machine": f"{platform.machine()}, {platform.system()}, one thread for each network",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("crossfuse", "torch")},
        "budget": asdict(budget),
    }
    lines = ",\n".join(f"  {json.dumps(asdict(one))}" for one in runs)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n{lines}\n ]\n}}\n')
    unfinished.replace(file)  # a run that is killed here leaves the whole file
