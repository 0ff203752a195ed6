"""Runs a list of trainings, keeps their results in a file, and goes on where it stopped."""

import json
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch

from examples.watch.data import WINDOW, cut, fold, load_recordings
from examples.watch.models import METHODS, SavedOptions, save_model
from examples.watch.study import STUDIED, look
from examples.watch.train import Budget, Run, run


@dataclass(frozen=True)
class Job:
    """One network to train.

    Attributes:
        method: A key of METHODS or CANDIDATES.
        fold: Which two people are held out.
        seed: Of its initialisation and training.
        budget: What it gets.
        save_to: Where to keep the trained network; None does not.
    """

    method: str
    fold: int
    seed: int
    budget: Budget
    save_to: Path | None = None


def work(job: Job) -> Run:
    """Trains and tests one network, on one thread."""
    torch.set_num_threads(1)
    recordings = load_recordings()
    method = {**METHODS, **STUDIED}[job.method]
    model, result = run(job.method, method, recordings, job.fold, job.seed, job.budget)
    tested = cut(recordings, fold(recordings, job.fold).test, WINDOW)
    result = replace(result, seen=look(model, tested))
    if job.save_to is not None:
        options = SavedOptions(job.method, recordings.names, job.budget.dropout)
        save_model(job.save_to, model, options)
    return result


def conditions(budget: Budget) -> dict[str, object]:
    """Describes what the numbers depend on."""
    packages = ("crossfuse", "torch", "numpy", "seglearn")
    return {
        "machine": f"{platform.machine()}, {platform.system()}, one thread for each network",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "budget": asdict(budget),
    }


def read_runs(file: Path, budget: Budget) -> list[Run]:
    """Reads what has been run under a budget; nothing if there is no such file yet."""
    content = json.loads(file.read_text()) if file.is_file() else {"budget": None, "runs": []}
    same = content["budget"] == asdict(budget)
    return [Run(**entry) for entry in content["runs"]] if same else []


def write_runs(file: Path, runs: Sequence[Run], budget: Budget) -> None:
    """Writes all runs, one a line."""
    ordered = sorted(runs, key=lambda run: (run.seed, run.fold))
    lines = ",\n".join(f"  {json.dumps(asdict(run))}" for run in ordered)
    head = json.dumps(conditions(budget), indent=1)[1:-2]
    file.write_text(f'{{{head},\n "runs": [\n{lines}\n ]\n}}\n')


def _lost(job: Job) -> bool:
    return job.save_to is not None and not job.save_to.is_file()


def run_all(
    jobs: Sequence[Job], file: Path, processes: int, done: Callable[[Run], None]
) -> list[Run]:
    """Runs the jobs that the file does not hold yet.

    Args:
        jobs: All of them, under one budget.
        file: Where the results are kept after each run.
        processes: How many to train at a time; 1 trains in this process.
        done: Called after each run, and for each that the file held.

    Returns:
        The result of every job.
    """
    wanted = {(job.method, job.fold, job.seed): job for job in jobs}
    kept = {(run.method, run.fold, run.seed): run for run in read_runs(file, jobs[0].budget)}
    runs = {key: kept[key] for key, job in wanted.items() if key in kept and not _lost(job)}

    def keep(result: Run) -> None:
        kept[result.method, result.fold, result.seed] = result
        runs[result.method, result.fold, result.seed] = result
        write_runs(file, list(kept.values()), jobs[0].budget)
        done(result)

    for result in list(runs.values()):
        done(result)
    left = [job for key, job in wanted.items() if key not in runs]
    if processes == 1:
        for job in left:
            keep(work(job))
        return list(runs.values())
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures: list[Future[Run]] = [pool.submit(work, job) for job in left]
        for future in as_completed(futures):
            keep(future.result())
    return list(runs.values())
