"""Runs a list of trainings, keeps their results in a file, and goes on where it stopped."""

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from examples.common.network import SavedOptions, save_model
from examples.common.pool import results
from examples.common.train import Budget, DataSet, Run, run


@dataclass(frozen=True)
class Job:
    """One network to train.

    Attributes:
        data: The data set.
        method: A key of METHODS.
        fold: Which people are held out.
        seed: Of the initialisation and the training.
        budget: The training budget.
        save_to: Where to keep the trained network; None does not.
    """

    data: DataSet
    method: str
    fold: int
    seed: int
    budget: Budget
    save_to: Path | None = None

    @property
    def key(self) -> tuple[str, int, int]:
        """Identifies it among the jobs of a file."""
        return self.method, self.fold, self.seed


def work(job: Job) -> Run:
    """Trains and tests one network, on one thread."""
    torch.set_num_threads(1)
    recordings = job.data.load()
    model, result = run(job.method, job.data, recordings, job.fold, job.seed, job.budget)
    if job.save_to is not None:
        options = SavedOptions(
            job.method, recordings.names, job.budget.dropout, job.data.held_out[job.fold]
        )
        save_model(job.save_to, model, options)
    return result


def read_runs(file: Path, budget: Budget | None = None) -> list[Run]:
    """Reads the runs of a file, of one budget only if it is given; none if there is no file."""
    content = json.loads(file.read_text()) if file.is_file() else {"budget": None, "runs": []}
    if budget is not None and content["budget"] != asdict(budget):
        return []
    return [Run(**entry) for entry in content["runs"]]


def write_runs(file: Path, runs: Sequence[Run], job: Job) -> None:
    """Writes all runs, one a line, and what they depend on."""
    packages = ("crossfuse", "torch", "numpy", job.data.package)
    head = {
        "machine": f"{platform.machine()}, {platform.system()}, one thread for each network",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "budget": asdict(job.budget),
    }
    ordered = sorted(runs, key=lambda run: (run.seed, run.fold))
    lines = ",\n".join(f"  {json.dumps(asdict(run))}" for run in ordered)
    text = f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n{lines}\n ]\n}}\n'
    unfinished = file.with_suffix(".part")
    unfinished.write_text(text)
    unfinished.replace(file)  # a run that is killed here leaves the whole file


def run_all(
    jobs: Sequence[Job],
    file: Path,
    *,
    processes: int,
    minutes: float | None,
    done: Callable[[], None],
) -> list[Run]:
    """Runs the jobs that the file does not hold yet.

    Args:
        jobs: All of them, under one budget.
        file: Where the results are kept after each run.
        processes: How many to train at a time; 1 trains in this process.
        minutes: When to stop starting more; None runs all.
        done: Called after each run, and for each that the file held.

    Returns:
        The results of the jobs that have been run.
    """
    kept = {(run.method, run.fold, run.seed): run for run in read_runs(file, jobs[0].budget)}
    left = [job for job in jobs if job.key not in kept or _lost(job)]
    for _ in range(len(jobs) - len(left)):
        done()
    until = None if minutes is None else time.monotonic() + 60 * minutes
    for result in results(work, left, processes, until):
        kept[result.method, result.fold, result.seed] = result
        write_runs(file, list(kept.values()), jobs[0])
        done()
    return [kept[job.key] for job in jobs if job.key in kept]


def _lost(job: Job) -> bool:
    return job.save_to is not None and not job.save_to.is_file()
