"""Hypothesis profiles (--hypothesis-profile or HYPOTHESIS_PROFILE chooses) and seeds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# The first torch call and compilation are slow and shared machines stall, so no deadline.
_SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=40,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=_SLOW,
)
settings.register_profile("dev", deadline=None, max_examples=12, suppress_health_check=_SLOW)
settings.register_profile(
    "thorough", deadline=None, max_examples=300, database=None, suppress_health_check=_SLOW
)
# Every tensor here is small, so threads would only wait for each other.
torch.set_num_threads(1)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(autouse=True)
def _unchanged_defaults() -> Iterator[None]:
    """Seeds the global generator; fails a test that leaks a default dtype or gradient mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    assert torch.get_default_dtype() is torch.float32, "the default dtype leaked out of a test"
    assert torch.is_grad_enabled(), "the gradient mode leaked out of a test"
