"""Shows how far a command is: a bar on a terminal, a line in a log, nothing in a worker process."""

from collections.abc import Iterable
from multiprocessing import parent_process
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def follow(items: Iterable[Item], title: str, total: int) -> Iterable[Item]:
    """Hands the items on, one by one, and shows the progress.

    Args:
        items: What is gone through.
        title: What is being done.
        total: How many there are.
    """
    if parent_process() is not None:
        return items
    console = Console(highlight=False)
    if console.is_terminal:
        return track(items, title, total=total, transient=True, console=console)
    console.print(f"{title}: {total}")
    return items
