"""Shows how far a command is: a bar on a terminal, lines in a log, nothing in a worker process."""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from multiprocessing import parent_process
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")
PAUSE = 30.0  # s between two lines in a log


def follow(
    items: Iterable[Item],
    title: str,
    total: int,
    sizes: Sequence[int] | None = None,
    *,
    count: bool = True,
) -> Iterable[Item]:
    """Hands the items on, one by one, and shows the progress.

    Args:
        items: What is gone through.
        title: What is being done.
        total: How many there are.
        sizes: How long each takes in relation to the others; ``None`` means equally long.
        count: In a log, begin with a line that says how many there are.
    """
    if parent_process() is not None:
        return items
    console = Console(highlight=False)
    if console.is_terminal:
        return track(items, title, total=total, transient=True, console=console)
    if count:
        console.print(f"{title}: {total}")
    return _logged(console, items, title, [1] * total if sizes is None else sizes)


def _logged(
    console: Console, items: Iterable[Item], title: str, sizes: Sequence[int]
) -> Iterator[Item]:
    """Prints every half minute what is done, and how long the rest takes at this pace."""
    began = said = time.monotonic()
    done = [0, *accumulate(sizes)]
    for number, item in enumerate(items):
        now = time.monotonic()
        if number and now - said >= PAUSE:
            left = (now - began) * (done[-1] / max(done[number], 1) - 1)
            console.print(
                f"{title}: {number} of {len(sizes)} after {now - began:.0f} s, about {left:.0f} s "
                "left"
            )
            said = now
        yield item
