"""Processes that share the work."""

import signal

import torch


def start_worker() -> None:
    """Prepares a process of a pool: one thread, and no traceback when an interrupt ends it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent reports it
    torch.set_num_threads(1)
