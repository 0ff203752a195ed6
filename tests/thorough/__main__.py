"""A search for what the tests miss: `python -m tests.thorough --seconds 600`.

Every layer, over all pairs of its options, gets inputs of drawn structure; every law is checked on
each. A case is the pair (subject, seed): the seed draws the options' row, the sizes, the masks, the
missing modalities and the numbers. Each case is one line of the record; a later run goes on after
the last seed of its subject, and `--seeds 17 --subject JointCrossAttention` repeats one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from tests.thorough.cases import SUBJECTS, check

ROUND = 4  # seeds of every subject, after which the time is looked at


def main() -> int:
    """Runs until the time is over; returns 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.thorough", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to search")
    parser.add_argument("--seeds", type=int, nargs="*", help="these seeds only, in every subject")
    parser.add_argument("--subject", action="append", choices=sorted(SUBJECTS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--record", type=Path, default=Path("runs/thorough.jsonl"))
    arguments = parser.parse_args()
    _prepare()
    subjects = arguments.subject or sorted(SUBJECTS)
    arguments.record.parent.mkdir(parents=True, exist_ok=True)
    if arguments.seeds is not None:
        plan = [(subject, seed) for seed in arguments.seeds for subject in subjects]
        failed = [_run(*case) for case in plan]
        sys.stdout.write(f"{len(plan)} cases, {sum(map(bool, failed))} failures" + "\n")
        return int(any(failed))
    following = _following(arguments.record)
    end, cases, failures = time.monotonic() + arguments.seconds, 0, 0
    pool = ProcessPoolExecutor(arguments.jobs, initializer=_prepare)
    with pool, arguments.record.open("a") as record:
        while time.monotonic() < end:
            plan = [(s, following[s] + k) for k in range(ROUND) for s in subjects]
            following.update(dict.fromkeys(subjects, ROUND))
            errors = pool.map(_run, *zip(*plan, strict=True))
            for (subject, seed), error in zip(plan, errors, strict=True):
                record.write(json.dumps({"subject": subject, "seed": seed, "error": error}) + "\n")
                record.flush()
                cases, failures = cases + 1, failures + bool(error)
    sys.stdout.write(
        f"{cases} cases, {failures} failures, {sum(following.values())} recorded in all" + "\n"
    )
    return int(failures > 0)


def _prepare() -> None:
    """Makes this process, or one that it started, ready for cases."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's, on functional transforms and prototypes


def _run(subject: str, seed: int) -> str | None:
    """One case; the error with the law that found it, or None."""
    try:
        check(subject, random.Random(f"{subject} {seed}"))
    except Exception as error:  # anything that a case raises is a finding
        law = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__}: {str(error)[:400]} [{law.name}:{law.lineno}]"
        sys.stderr.write(f"{subject} {seed}: {found}" + "\n")
        return found
    return None


def _following(record: Path) -> Counter[str]:
    """The first seed of each subject that is not in the record."""
    following: Counter[str] = Counter()
    if record.exists():
        for line in record.read_text().splitlines():
            case = json.loads(line)
            following[case["subject"]] = max(following[case["subject"]], case["seed"] + 1)
    return following


if __name__ == "__main__":
    sys.exit(main())
