"""Shows how far a command is: a bar on a terminal, lines in a log, nothing in a worker process."""

import time
from collections.abc import Iterable, Iterator
from multiprocessing import parent_process
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")
PAUSE = 30.0  # s between two lines in a log


def follow(items: Iterable[Item], title: str, total: int, *, count: bool = True) -> Iterable[Item]:
    """Hands the items on, one by one, and shows the progress.

    Args:
        items: What is gone through.
        title: What is being done.
        total: How many there are.
        count: In a log, begin with a line that says how many there are.
    """
    if parent_process() is not None:
        return items
    console = Console(highlight=False)
    if console.is_terminal:
        return track(items, title, total=total, transient=True, console=console)
    if count:
        console.print(f"{title}: {total}")
    return _logged(console, items, title, total)


def _logged(console: Console, items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """Prints every half minute what is done, and how long the rest takes at this pace."""
    began = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - said >= PAUSE:
            left = (now - began) * (total / done - 1)
            console.print(
                f"{title}: {done} of {total} after {now - began:.0f} s, about {left:.0f} s left"
            )
            said = now
        yield item
