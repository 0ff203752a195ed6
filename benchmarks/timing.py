"""Timers that take turns, the memory of a call, and the header of a results file."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from timeit import Timer
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer

Call = Callable[[], object]

QUIET = 0.1  # cores: with more of them busy, times are too long and ratios rough


class Timing(NamedTuple):
    """Seconds per call: the median over the rounds and their quartiles."""

    median_s: float
    low_s: float
    high_s: float
    rounds: int

    @property
    def spread_s(self) -> float:
        """The distance between the quartiles."""
        return self.high_s - self.low_s


def clock(device: str) -> Callable[[], float]:
    """A clock in seconds: of CUDA events on a GPU, of torch.utils.benchmark elsewhere."""
    if device != "cuda":
        now: Callable[[], float] = timer
        return now
    begin = torch.cuda.Event(enable_timing=True)
    begin.record()

    def elapsed() -> float:
        end = torch.cuda.Event(enable_timing=True)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    return elapsed


def interleaved(
    calls: Mapping[str, Call],
    *,
    seconds: float,
    least: int = 5,
    most: int = 40,
    device: str = "cpu",
) -> dict[str, Timing]:
    """Times calls that take turns, for about so many seconds in all.

    Args:
        calls: What to time, by name.
        seconds: When to stop, once there are ``least`` rounds.
        least: The fewest rounds.
        most: The most.
        device: Whose clock it is.
    """
    # The Timer of torch.utils.benchmark warms up before every timing; once is enough.
    now = clock(device)
    timers = {name: Timer(call, timer=now) for name, call in calls.items()}
    for each in timers.values():
        each.timeit(1)
    # What takes less than some milliseconds is repeated, to be longer than the clock is coarse;
    # for what takes longer, this is its first round.
    first = {name: each.timeit(1) for name, each in timers.items()}
    number = {name: max(1, min(200, int(0.01 / max(t, 1e-7)))) for name, t in first.items()}
    taken = {name: [t] if number[name] == 1 else [] for name, t in first.items()}
    begin, rounds = time.perf_counter(), 1
    while rounds < least or (rounds < most and time.perf_counter() - begin < seconds):
        for name, each in timers.items():
            taken[name].append(each.timeit(number[name]) / number[name])
        rounds += 1
    return {name: summary(times) for name, times in taken.items()}


def summary(times: list[float]) -> Timing:
    """Median and quartiles."""
    low, _, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else (times[0],) * 3
    return Timing(median(times), low, high, len(times))


def peak_bytes(call: Call, device: str) -> int:
    """The most that one call, not the first, holds beyond what was there before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    held = peak = 0
    results: Any = seen.profiler
    for event in results.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the profiler's own lines off the terminal; it writes past Python's streams."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def header(device: str) -> dict[str, Any]:
    """What a figure means nothing without."""
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "busy_cores": _busy_cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peers": {n: _version(n) for n in ("pytorch-tcn", "linmult", "x-transformers")},
        "revision": _revision(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _busy_cores(seconds: float = 1.0) -> float | None:
    """How many cores others keep busy while we wait; None where the system does not tell."""
    report = Path("/proc/stat")
    if not report.exists():
        return None

    def idle() -> int:
        fields = report.read_text().splitlines()[0].split()
        return int(fields[4]) + int(fields[5])  # idle, and waiting for a disk

    before, began = idle(), time.perf_counter()
    time.sleep(seconds)
    idle_cores = (idle() - before) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - began)
    return round(max(0.0, (os.cpu_count() or 1) - idle_cores), 2)


def _processor() -> str:
    report = Path("/proc/cpuinfo")
    if report.exists():
        for line in report.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        )
        return done.stdout.strip()

    code = ("../src", ".", ":!results")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" and changes" if changed else "")


def digits(number: float, count: int = 3) -> str:
    """Rounds to significant digits, without an exponent."""
    return f"{Decimal(f'{number:.{count}g}'):f}"
