"""Does jobs one after the other or several at a time, until a time is over."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


def results(
    work: Callable[[J], R], jobs: Sequence[J], processes: int, until: float | None = None
) -> Iterator[R]:
    """Yields what ``work`` returns for each job, as it ends; 1 process works in this one."""
    if processes == 1:
        for job in jobs:
            if until is not None and time.monotonic() > until:
                return
            yield work(job)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
            if until is not None and time.monotonic() > until:
                pool.shutdown(wait=False, cancel_futures=True)
                return
