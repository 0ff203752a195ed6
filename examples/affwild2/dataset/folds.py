"""Windows of trials and the six folds.

Shapes: L frames of a trial.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from crossfuse.windows import window_starts

PARTS = 5  # of the official training set; the official validation set is the sixth


class Window(NamedTuple):
    """One window: the number of its trial, and its first frame."""

    trial: int
    start: int


class Fold(NamedTuple):
    """Names of the trials to train on and of those to validate on."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def list_windows(lengths: Sequence[int], size: int, hop: int) -> list[Window]:
    """Lists the windows of trials with these lengths, trial after trial."""
    return [
        Window(trial, start)
        for trial, length in enumerate(lengths)
        for start in window_starts(length, size, hop)
    ]


def make_fold(train: Sequence[str], validation: Sequence[str], fold: int) -> Fold:
    """Splits trials into one of six folds; fold 0 is the official split.

    The training names, in lexicographic order, are cut into five runs P0 to P4, the last of which
    takes the remainder (356 trials: 71, 71, 71, 71, 72); the validation set is P5. Fold k
    validates on P[(5 - k) mod 6] and trains on the other five.

    Raises:
        ValueError: There is no such fold, or there are too few trials for five runs.
    """
    if not 0 <= fold <= PARTS:
        raise ValueError(f"fold {fold}: there are the folds 0 to {PARTS}")
    if fold and len(train) < PARTS:
        raise ValueError(f"fold {fold}: needs {PARTS} training trials, found {len(train)}")
    ordered, size = sorted(train), len(train) // PARTS
    cuts = [*(size * part for part in range(PARTS)), len(ordered)]
    parts = [ordered[a:b] for a, b in itertools.pairwise(cuts)] + [sorted(validation)]
    held = (PARTS - fold) % (PARTS + 1)
    rest = sorted(name for part in parts[:held] + parts[held + 1 :] for name in part)
    return Fold(tuple(rest), tuple(parts[held]))
