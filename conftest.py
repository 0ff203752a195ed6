"""Seeds the docstring examples of src, so that the numbers in them are true."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded_doctests(doctest_namespace: dict[str, Any]) -> Iterator[None]:
    doctest_namespace["torch"] = torch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
