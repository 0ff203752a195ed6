"""The laws of collate: what a batch holds is what the samples held."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from crossfuse import RecursiveCrossModalAttention, collate
from tests.support import properties

DIMS = {"face": 3, "voice": 5, "words": 2}
lengths = st.lists(
    st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=4
)  # steps of each stream in each sample; 0 is missing, one way or another


def recording(steps: tuple[int, ...], way: int) -> dict[str, Tensor | None]:
    """A sample whose missing streams are None, absent, or without steps."""
    sample: dict[str, Tensor | None] = {}
    for (name, dim), count in zip(DIMS.items(), steps, strict=True):
        if count:
            sample[name] = torch.randn(count, dim, dtype=torch.float64)
        elif way % 3 != 1:
            sample[name] = None if way % 3 == 0 else torch.zeros(0, dim, dtype=torch.float64)
    return sample


@given(steps=lengths, known=st.booleans())
def test_a_batch_holds_each_recording_and_zeros(steps: list[tuple[int, ...]], known: bool) -> None:
    samples = [{**recording(row, b), "words": None} for b, row in enumerate(steps)]
    streams, mask = collate(samples, dims=DIMS if known else None, aligned=False)
    assert set(streams) == set(mask)
    for name in streams:
        own = [sample.get(name) for sample in samples]
        own = [None if x is None or not len(x) else x for x in own]
        x, valid = streams[name], mask[name]
        if x is None or valid is None:
            assert not known
            assert valid is x is None
            assert all(part is None for part in own)
            continue
        assert x.shape[1] == max(1, *(0 if part is None else len(part) for part in own))
        assert x.shape[2] == DIMS[name]
        for b, part in enumerate(own):
            count = 0 if part is None else len(part)
            assert valid[b].tolist() == [t < count for t in range(x.shape[1])]
            assert part is None or torch.equal(x[b, :count], part)
            assert not x[b, count:].any()


@given(steps=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4))
def test_aligned_streams_come_to_one_length(steps: list[tuple[int, ...]]) -> None:
    """Also if the longest recording lacks one of them."""
    samples = [recording((n, n if kept > 2 else 0, n), b) for b, (n, kept) in enumerate(steps)]
    streams, mask = collate(samples, dims=DIMS)
    assert {x.shape[1] for x in streams.values() if x is not None} == {max(n for n, _ in steps)}
    fuse = RecursiveCrossModalAttention(DIMS, length=None).double()
    fused = fuse(streams, mask)
    for b, sample in enumerate(samples):
        alone = fuse(
            {name: None if x is None or not len(x) else x[None] for name, x in sample.items()}
        )
        for name, y in alone.items():
            if y is not None:
                properties.close(fused[name][b : b + 1, : y.shape[1]], y, f"{name} {b}", 1e-10)


def test_lists_become_tuples() -> None:
    samples: list[Any] = [[torch.ones(2, 3), None], [torch.ones(4, 3), torch.ones(4, 1)]]
    streams, mask = collate(samples)
    assert type(streams) is type(mask) is tuple
    assert streams[1].shape == (2, 4, 1)
    assert mask[1].sum(dim=1).tolist() == [0, 4]
    assert collate([[torch.ones(2, 3), None]])[0][1] is None
    padded: Any = collate([[torch.ones(2, 3), None]], dims=[3, 7])[0][1]
    assert padded.shape == (1, 2, 7)


def test_frames_and_labels_of_each_step_are_streams_too() -> None:
    samples: list[Any] = [
        {"video": torch.ones(n, 3, 4, 4), "label": torch.arange(n), "words": torch.ones(n, 2)}
        for n in (2, 5)
    ]
    streams, mask = collate(samples)
    assert streams["video"].shape == (2, 5, 3, 4, 4)
    assert streams["label"].tolist() == [[0, 1, 0, 0, 0], [0, 1, 2, 3, 4]]
    assert streams["label"].dtype == torch.int64
    assert mask["label"].sum(dim=1).tolist() == [2, 5]


class Recordings(torch.utils.data.Dataset[Any]):
    def __getitem__(self, index: int) -> tuple[dict[str, Tensor | None], int, str]:
        if index >= len(self):
            raise IndexError
        voice = None if index == 2 else torch.full((3 + index, 5), float(index))
        return (
            {"face": torch.full((3 + index, 3), float(index)), "voice": voice},
            index,
            f"id{index}",
        )

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_data_loader_takes_it(workers: int) -> None:
    loader = DataLoader(Recordings(), batch_size=2, collate_fn=collate, num_workers=workers)
    first, second = loader
    streams, mask, label, name = second
    assert streams["voice"].shape == (2, 6, 5)
    assert mask["voice"].tolist() == [[False] * 6, [True] * 6]
    assert label.tolist() == [2, 3]
    assert list(name) == ["id2", "id3"]
    assert first[0]["face"].shape == (2, 4, 3)


def test_labels_of_one_shape_are_stacked() -> None:
    labels = torch.randn(3, 2)
    samples: list[Any] = [({"face": torch.ones(4, 3)}, label, k) for k, label in enumerate(labels)]
    _, _, tensors, numbers = collate(samples)
    assert torch.equal(tensors, labels)
    assert numbers.tolist() == [0, 1, 2]


def test_options_go_through_partial() -> None:
    made = partial(collate, dims={"face": 3, "voice": 5, "pulse": 1}, aligned=False)
    streams, mask, *_ = next(iter(DataLoader(Recordings(), batch_size=4, collate_fn=made)))
    assert streams["pulse"].shape == (4, 1, 1)
    assert not mask["pulse"].any()


X = torch.ones(4, 3)


wrong: Any = collate  # called as its types forbid


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: wrong([]), ValueError, "there are no samples"),
        (lambda: wrong(X), ValueError, "there are no samples\n  got       Tensor"),
        (lambda: wrong([3]), TypeError, "samples must be a mapping or a sequence"),
        (lambda: wrong([{"a": X}, [X]]), TypeError, "the streams have names, but"),
        (lambda: wrong([[X], {"a": X}]), TypeError, "sample 1 is given by name, but the"),
        (lambda: wrong([[X], [X, X]]), ValueError, "sample 1 has 2 elements for 1 modalities"),
        (lambda: wrong([{"a": X, "b": X[:2]}]), ValueError, "the streams of sample 0 differ in"),
        (lambda: wrong([{"a": X}, {"a": X[:, :2]}]), ValueError, "'a' of sample 1 does not fit"),
        (lambda: wrong([{"a": X}, {"a": X.long()}]), ValueError, "'a' of sample 1 does not fit"),
        (lambda: wrong([{"a": X}], dims={"a": 4}), ValueError, "'a' of sample 0 does not fit"),
        (lambda: wrong([{"a": X}], dims={"b": 3}), ValueError, "sample 0 has unknown names: 'a'"),
        (lambda: wrong([{"a": [1.0]}]), TypeError, "'a' of sample 0 is not a tensor with steps"),
        (lambda: wrong([(X, 1)]), TypeError, "'1' of sample 0 is not a tensor with steps"),
        (lambda: wrong([({"a": X}, 1), {"a": X}]), TypeError, "some samples have labels"),
        (lambda: wrong([({"a": X}, 1), ({"a": X},)]), ValueError, "the samples differ in their"),
        (lambda: wrong([({"a": X}, X), ({"a": X}, X[1:])]), ValueError, "label 0 differs in"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert "collate: " in str(caught.value)
    assert message in str(caught.value)
