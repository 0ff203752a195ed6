"""Wrong calls of the equations and of what surrounds the layers: each is a clear error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import crossfuse
from crossfuse import functional, windows
from tests.project.test_bad_input import (
    BOTH,
    DIMS,
    FACE,
    FLOAT8,
    HUGE,
    VALID,
    VOICE,
    quantised,
    refused,
)
from tests.project.test_bad_input_equations import EQUATIONS, JOINT, T, X
from tests.project.test_messages import JCA_CHECKPOINT
from tests.support.reference import Structure

Call = Callable[[], object]


def _wrong(equation: str, **options: Structure) -> Call:
    """Calls an equation with one more argument, or another."""
    return lambda: getattr(functional, equation)(**{**EQUATIONS[equation], **options})


ENCODE = crossfuse.PerModality(
    {name: crossfuse.TemporalConvNet(dim, [4]) for name, dim in DIMS.items()}
)
READOUT = crossfuse.ConcatFusion({"face": 4, "voice": 4})
LIVE = crossfuse.LiveWindow(ENCODE, READOUT, DIMS, 10)
STATE = LIVE.stream(BOTH)[1]


def _live(**parts: Structure) -> Call:
    """Goes on with a stream whose state a caller changed."""
    return lambda: LIVE.stream(BOTH, STATE._replace(**parts))


class Junk(nn.Module):
    """Has a mask_for that does not return masks."""

    def __init__(self, following: object) -> None:
        super().__init__()
        self.following = following

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x

    def mask_for(self, mask: Tensor) -> object:
        return self.following


def _junk(following: object) -> Call:
    return lambda: crossfuse.PerModality([Junk(following)])([FACE], VALID)


def _takes(stated: Structure) -> Call:
    return lambda: crossfuse.PerModality([nn.Conv1d(4, 4, 1)], takes=[stated])


def _rcma(**options: Structure) -> Call:
    return lambda: crossfuse.RecursiveCrossModalAttention(DIMS, **options)


def _tcn(widths: Structure = (4,), **options: Structure) -> Call:
    return lambda: crossfuse.TemporalConvNet(3, widths, **options)


def _resample(
    x: Structure = FACE, rates: Structure = 1.0, rate: Structure = 1.0, **options: Structure
) -> Call:
    return lambda: crossfuse.resample([x], [rates], rate, **options)


NESTED = torch.nested.nested_tensor(list(FACE), layout=torch.jagged)
STAMPS = torch.arange(4, dtype=torch.float64)


def _align(stamps: Structure = STAMPS, clock: Structure = STAMPS, within: Structure = 1.0) -> Call:
    return lambda: crossfuse.align([FACE], [stamps], clock, within=within)


def _collate(*samples: Structure, **options: Structure) -> Call:
    return lambda: crossfuse.collate(list(samples), **options)


def _labels(*labels: Structure) -> Call:
    return _collate(*(({"face": FACE[0]}, label) for label in labels))


def _jca(names: Sequence[str] = ("v", "a"), **options: Structure) -> Call:
    return lambda: crossfuse.convert.jca(JCA_CHECKPOINT, modalities=names, **options)


REFUSED: dict[str, Call] = {
    # of equations
    "integers": _wrong("masked_mean", x=X.long()),
    "one sample alone": _wrong("masked_mean", x=X[0]),
    "a temperature of zero": _wrong("cross_attention", temperature=0),
    "a temperature that is NaN": _wrong("cross_attention", temperature=math.nan),
    "a temperature that is a str": _wrong("cross_attention", temperature="1"),
    "a mask of floats": _wrong("cross_attention", valid=torch.ones(2, 9)),
    "a mask of other steps": _wrong("masked_mean", valid=torch.ones(2, 8).bool()),
    "a mask without a batch": _wrong("masked_mean", valid=torch.ones(9).bool()),
    "a mask of the target": _wrong("cross_modal_attention", valid=torch.ones(2, 9).bool()),
    "no modalities attended to": lambda: functional.cross_attended_features(X, []),
    "a tensor for a list": lambda: functional.cross_attended_features(X, X),  # type: ignore[arg-type]  # wrong
    "a list of numbers": lambda: functional.cross_attended_features(X, [1]),  # type: ignore[list-item]  # wrong
    "no features to concatenate": lambda: functional.concat_features([]),
    "a tensor to concatenate": lambda: functional.concat_features(X),  # type: ignore[arg-type]  # wrong
    "features of other steps": lambda: functional.concat_features([X, JOINT[:, :3]]),
    "no heads": _wrong("cross_modal_attention", heads=0),
    "heads that do not divide": _wrong("cross_modal_attention", heads=3),
    "heads that are a bool": _wrong("rcma_stable_correlation", heads=True),
    "heads of other features": _wrong(
        "rcma_stable_attention_map", correlation=torch.randn(2, 4, 3, 3)
    ),
    "no steps": _wrong("rcma_timeless_correlation", count=0),
    "a negative number of steps": _wrong("rcma_stable_correlation", count=-1),
    "steps that are NaN": _wrong("rcma_timeless_correlation", count=math.nan),
    "steps of other samples": _wrong("rcma_timeless_correlation", count=torch.tensor([1, 2, 3])),
    "steps that are floats": _wrong("rcma_timeless_correlation", count=torch.ones(2)),
    "dropout of two": _wrong("rcma_feed_forward", dropout=2),
    "dropout that is NaN": _wrong("jca_attended_features", dropout=math.nan),
    "dropout that is a bool": _wrong("rcma_attended_features", dropout=True),
    "no dropout": _wrong("rcma_released_correlation", dropout=None),
    "a longest of zero": _wrong("rcma_attention_map", longest=0),
    "a longest that is a str": _wrong("rcma_released_attention_map", longest="9"),
    "a block too many": lambda: functional.rcma_unaligned_correlation(X, [JOINT], [T, T]),
    "no blocks": lambda: functional.rcma_unaligned_correlation(X, [], []),
    "a block of other steps": lambda: functional.rcma_unaligned_correlation(X, [JOINT], [T[:, 1:]]),
    # of sizes
    "a billion recursions": _rcma(recursions=10**9),
    "a billion shared recursions": _rcma(recursions=10**9, share_weights=True),
    "two lengths that do not fit together": _rcma(length={"face": 10**9, "voice": 10**9}),
    "recursions that fit alone but not together": _rcma(length=40_000, recursions=1000),
    "a length that is NaN": _rcma(length=math.nan),
    "a start that is empty": _rcma(length=4, temporal_init=""),
    "a flag of NumPy": _rcma(gate=np.True_),
    "dropout in a list": _rcma(dropout=[0.1]),
    "a copy without a length": lambda: crossfuse.RecursiveCrossModalAttention(DIMS, 4).lengthened(
        None  # type: ignore[arg-type]  # wrong
    ),
    "a billion heads": lambda: crossfuse.CrossModalTransformer(DIMS, heads=10**9),
    "a billion blocks": lambda: crossfuse.CrossModalTransformer(DIMS, depth=10**9),
    "a wide transformer": lambda: crossfuse.CrossModalTransformer(DIMS, 10**9, heads=1),
    "a wide JCA": lambda: crossfuse.JointCrossAttention(DIMS, 4, 2**31 - 1),
    "a wide leader": lambda: crossfuse.LeaderFollowerAttention(DIMS, 10**9, leader="face"),
    "a wide output": lambda: crossfuse.ConcatFusion(DIMS, 2**31 - 1),
    "a wide gate": lambda: crossfuse.DynamicGate(HUGE),
    "padding that doubles 40 times": _tcn([4] * 40),
    "more blocks than integers have bits": _tcn([4] * 10_000),
    "a kernel of a billion": _tcn([4, 4], kernel_size=10**9),
    "wide convolutions": _tcn([10**9, 10**9]),
    "widths in bytes": _tcn(b"\x04"),
    "widths in a set": _tcn({4}),
    "widths from a generator": _tcn(iter([4])),
    "float8 convolutions": _tcn(dtype=FLOAT8),
    "a sparse state": lambda: crossfuse.TemporalConvNet(3, [4]).stream(
        FACE, crossfuse.TemporalState(tuple(c.to_sparse() for c in STATE.encoders["face"].contexts))
    ),
    "modalities on two devices": lambda: crossfuse.ModalityDropout(0.5)([FACE, VOICE.to("meta")]),
    "a trillion windows": lambda: windows.window_starts(2**31 - 1, 1, 1),
    "a billion steps of a window": lambda: windows.gather_windows(FACE[0], [0], 2**31 - 1),
    "starts in bytes": lambda: windows.gather_windows(FACE[0], b"\x00", 1),
    "a start that is a bool": lambda: windows.gather_windows(FACE[0], [True], 1),
    "starts in a set": lambda: windows.gather_windows(FACE[0], {0}, 1),  # type: ignore[arg-type]  # wrong
    "starts in lists": lambda: windows.overlap_average(FACE, [[0], [1]], 5),  # type: ignore[list-item]  # wrong
    "a sparse recording": lambda: windows.gather_windows(FACE[0].to_sparse(), [0], 1),
    "quantised windows": lambda: windows.overlap_average(quantised(FACE), [0, 1], 5),
    "float8 windows": lambda: windows.overlap_average(FACE.to(FLOAT8), [0, 1], 5),
    "float8 for a loss": lambda: crossfuse.ConcordanceLoss()(FACE.to(FLOAT8), FACE),
    # of batches and clocks
    "a flag for collate that is a str": _collate([FACE[0]], aligned="no"),
    "dims of a stream that is a str": _collate([FACE[0]], dims=["3"]),
    "dims of a missing stream beyond memory": _collate(
        *[[FACE[0], None]] * 100, dims=[3, 2**31 - 1]
    ),
    "dims below zero": _collate([FACE[0], None], dims=[3, -2]),
    "a sparse stream": _collate([FACE[0].to_sparse()]),
    "a quantised stream": _collate([quantised(FACE[0])]),
    "streams on two devices": _collate([FACE[0]], [FACE[0].to("meta")]),
    "labels of two kinds": _labels(1, "one"),
    "no label": _labels(None, None),
    "a number and a series": _labels(1, torch.zeros(3)),
    "labels with other keys": _labels({"y": 1}, {"z": 1}),
    "labels of two lengths": _labels([1, 2], [1]),
    "arrays of two shapes": _labels(np.zeros(2), np.zeros(3)),
    "a rate beyond all floats": _resample(rates=1e-300, rate=1e300),
    "a billion steps of a clock": _resample(FACE[:1].expand(50, 4, 3), steps=2**31 - 1),
    "a nested stream": _resample(NESTED),
    "a stream in float8": _resample(FACE.to(FLOAT8)),
    "a rate of NaN": _resample(rate=math.nan),
    "a rate in a tensor": _resample(rates=torch.tensor(1.0)),
    "sparse time stamps": _align(STAMPS.to_sparse()),
    "nested time stamps": _align(NESTED),
    "time stamps elsewhere": _align(STAMPS.to("meta")),
    "a clock elsewhere": _align(clock=STAMPS.to("meta")),
    "time stamps in float8": _align(STAMPS.to(FLOAT8)),
    "quantised time stamps": _align(quantised(STAMPS.float())),
    "time stamps that are bools": _align(STAMPS > 0),
    "no reach": _align(within=math.nan),
    # of modules
    "a statement that is no str": _takes(3),
    "a statement that names nothing": _takes("msk"),
    "an empty statement": _takes(""),
    "a mask that is a str": _junk("mask"),
    "a mask without an axis": _junk(VALID[0]),
    "a mask of numbers": _junk(VALID.float()),
    "a container to read out": lambda: crossfuse.LiveWindow(ENCODE, nn.ModuleList(), DIMS, 10),
    "a flag of a live window that is a str": lambda: crossfuse.LiveWindow(
        ENCODE,
        READOUT,
        DIMS,
        10,
        per_step="no",  # type: ignore[arg-type]  # wrong
    ),
    "a live window beyond memory": lambda: crossfuse.LiveWindow(
        ENCODE, READOUT, DIMS, 2**31 - 1
    ).stream(BOTH),
    "a state of nothing": _live(windows=None, masks=None, steps=None),
    "windows that are ints": _live(windows={"face": 1, "voice": 2}),
    "masks that are ints": _live(masks={"face": 1, "voice": 2}),
    "masks that are floats": _live(masks={k: m.float() for k, m in STATE.masks.items()}),
    "no count": _live(steps=None),
    "a count for all samples": _live(steps=3),
    "a count that is a float": _live(steps=STATE.steps.float()),
    "a count of another batch": _live(steps=STATE.steps[:1]),
    "windows of other features": _live(windows={k: w[..., :1] for k, w in STATE.windows.items()}),
    "windows of other steps": _live(windows={k: w[:, :3] for k, w in STATE.windows.items()}),
    "windows of another dtype": _live(windows={k: w.double() for k, w in STATE.windows.items()}),
    "windows elsewhere": _live(windows={k: w.to("meta") for k, w in STATE.windows.items()}),
    # of checkpoints
    "dims of a checkpoint that are one int": _jca(dims=3),
    "dims of a checkpoint that are a str": _jca(dims="44"),
    "dims of a checkpoint in a set": _jca(dims={4}),
    "dims of a checkpoint that are floats": _jca(dims=[4.0, 4.0]),
    "nothing to drop from": lambda: crossfuse.convert.dropped(None),  # type: ignore[arg-type]  # wrong
    "keys that are ints": lambda: crossfuse.convert.dropped({0: FACE}),  # type: ignore[dict-item]  # wrong
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_call_is_refused(name: str) -> None:
    refused(REFUSED[name])


@pytest.mark.parametrize(
    "changed",
    [
        {"W_cv.weight": torch.ones(2, 9)},
        {"W_cv.weight": torch.ones(2)},
        {"W_v.weight": torch.ones(())},
        {"W_a.weight": torch.ones(2, 4).to_sparse()},
    ],
)
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(changed: dict[str, Tensor]) -> None:
    refused(lambda: crossfuse.convert.jca(JCA_CHECKPOINT | changed, modalities=["a", "v"]))


def test_a_count_of_zero_counts_as_one() -> None:
    """Also in a tensor, into which no check looks: a masked sample has no NaN."""
    none, one = torch.tensor([0, 9]), torch.tensor([1, 9])
    for equation in ("rcma_timeless_correlation", "rcma_stable_correlation"):
        found = [_wrong(equation, count=count)() for count in (none, one)]
        assert isinstance(found[0], Tensor)
        assert found[0].isfinite().all()
        assert torch.equal(found[0], found[1])  # type: ignore[arg-type]  # tensors


def test_windows_of_any_dtype_are_cut() -> None:
    for dtype in (torch.uint8, torch.bool, torch.complex64, torch.bfloat16, FLOAT8):
        x = FACE[0].abs().to(dtype)
        start: Structure = np.int64(1)
        cut = windows.gather_windows(x, [start], start + 3)
        found = cut.windows[0].to(torch.complex64)  # which holds them all
        assert torch.equal(found[:3], x[1:].to(torch.complex64))
        assert not found[3].any()


def test_no_output_is_the_input_itself() -> None:
    """A caller may write into what it got: modules that do nothing, one modality, one part."""
    same = [
        crossfuse.PerModality([nn.Identity()])([FACE])[0],
        crossfuse.PerModality([nn.Dropout(0.5).eval()])([FACE])[0],
        crossfuse.ConcatFusion([3])([FACE]),
        functional.concat_features([FACE]),
        crossfuse.resample([FACE], [1], 1)[0][0],
        crossfuse.align([FACE], [STAMPS], STAMPS, within=0.5)[0][0],
        windows.gather_windows(FACE[0], [0], 4).windows,
    ]
    for y in same:
        assert y is not FACE
        assert y.data_ptr() != FACE.data_ptr()
    assert crossfuse.ModalityDropout(0.5).eval()([FACE], VALID)[0] is not VALID
