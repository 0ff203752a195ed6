"""What watch and phone share: windows, folds, tables by their laws, networks by their masks."""

from __future__ import annotations

from math import isnan, sqrt
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossfuse import RecursiveCrossModalAttention
from examples.common.candidates import CANDIDATES, CHOSEN, Candidate
from examples.common.fusions import EncoderLayer, LowRankFusion, ModalityTokens
from examples.common.methods import BASELINE, COMPARED, METHODS
from examples.common.network import SensorNet
from examples.common.recordings import (
    EVERY,
    SENSORS,
    UNLABELLED,
    WINDOW,
    Recordings,
    Windows,
    around,
    averaged,
    cut,
    fold,
    middles,
    moments,
)
from examples.common.report import difference, leaders, lengths, tables
from examples.common.train import Budget, Course, DataSet, Run


@st.composite
def recordings(draw: st.DrawFn) -> Recordings:
    """Recordings of some people whose samples are all different; some steps have no label."""
    people = draw(st.lists(st.integers(1, 6), min_size=2, max_size=8))
    lengths = [WINDOW + draw(st.integers(0, 2 * WINDOW)) for _ in people]
    signal = torch.arange(6 * sum(lengths), dtype=torch.float32).reshape(-1, 6)
    labels = torch.arange(sum(lengths)) % draw(st.integers(2, 9)) + UNLABELLED
    return Recordings(signal, labels, tuple(lengths), tuple(people), tuple("ABCDEFGH"))


@given(drawn=recordings(), split=st.sets(st.integers(1, 6)), left_out=st.integers(1, 6))
def test_nobody_is_on_both_sides_of_a_fold(
    drawn: Recordings, split: set[int], left_out: int
) -> None:
    people = set(range(1, 7)) - {left_out}
    parts = fold(drawn, people, split - {left_out})
    trained, tested = ({drawn.people[k] for k in side} for side in (parts.train, parts.test))
    assert not trained & tested
    assert trained | tested == set(drawn.people) - {left_out}
    assert tested <= split


@given(
    drawn=recordings(),
    hop=st.integers(1, 2 * WINDOW),
    window=st.integers(1, WINDOW),
    seed=st.none() | st.integers(0, 99),
)
def test_windows_lie_in_one_recording_and_have_the_label_of_their_middle(
    drawn: Recordings, hop: int, window: int, seed: int | None
) -> None:
    members = tuple(range(0, len(drawn.people), 2))
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    steps = middles(drawn, members, hop, window=window, generator=generator)
    windows = around(drawn, steps, window)
    assert len(windows.labels) == len(steps)
    for (first, member), step in zip(_places(drawn, windows, window), steps, strict=True):
        assert member in members
        assert first + window // 2 == step
    assert UNLABELLED not in windows.labels
    if generator is None:
        same = cut(drawn, members, hop, window=window)
        assert torch.equal(same.streams["gyroscope"], windows.streams["gyroscope"])


@given(drawn=recordings(), window=st.integers(1, WINDOW), seed=st.integers(0, 99))
def test_a_window_around_a_step_is_moved_only_at_the_ends_of_its_recording(
    drawn: Recordings, window: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(sum(drawn.lengths), (9,), generator=generator)
    windows = around(drawn, steps, window)
    assert torch.equal(windows.labels, drawn.labels[steps])
    for (first, member), step in zip(_places(drawn, windows, window), steps.tolist(), strict=True):
        assert first <= step < first + window
        edges = drawn.starts[member], drawn.starts[member] + drawn.lengths[member] - window
        assert first == min(max(step - window // 2, edges[0]), edges[1])


def _places(drawn: Recordings, windows: Windows, window: int) -> list[tuple[int, int]]:
    """The first step of each window and its recording, which must hold all of it."""
    whole = torch.cat(list(windows.streams.values()), dim=-1)
    ends, found = np.cumsum(drawn.lengths), []
    for piece in whole:
        first = int(piece[0, 0]) // 6
        assert torch.equal(piece, drawn.signal[first : first + window])
        member = int(np.searchsorted(ends, first, side="right"))
        assert first + window <= ends[member]
        found.append((first, member))
    return found


def test_a_recording_shorter_than_a_window_has_none() -> None:
    short = Recordings(torch.zeros(9, 6), torch.zeros(9, dtype=torch.long), (9,), (1,), ("A",))
    assert cut(short, (0,), 3, window=10).streams["gyroscope"].shape == (0, 10, 3)
    assert len(middles(short, (0,), 3, window=10, generator=torch.Generator())) == 0
    with pytest.raises(ValueError, match="a recording of 9 steps has no window of 10"):
        around(short, torch.tensor([4]), 10)


@given(
    drawn=recordings(),
    shortest=st.integers(1, WINDOW),
    longest=st.integers(1, WINDOW),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_the_lengths_of_batches_change_neither_their_number_nor_their_labels(
    drawn: Recordings, shortest: int, longest: int, batch: int, seed: int
) -> None:
    members = tuple(range(len(drawn.people)))
    data = DataSet("", "", lambda: drawn, ((1,),), WINDOW // 2, WINDOW, 2)
    shortest, longest = min(shortest, longest), max(shortest, longest)
    varied, fixed = (
        Course(data, drawn, members, Budget(batch=batch, shortest=short, longest=long), seed)
        for short, long in ((shortest, longest), (WINDOW, WINDOW))
    )
    for _ in range(2):
        for one, other in zip(varied.epoch(), fixed.epoch(), strict=True):
            assert torch.equal(one.labels, other.labels)
            assert shortest <= one.streams["gyroscope"].shape[1] <= longest
            assert other.streams["gyroscope"].shape[1] == WINDOW


def test_lengths_are_drawn_evenly_on_a_logarithmic_scale() -> None:
    steps = 40 * WINDOW
    drawn = Recordings(
        torch.zeros(steps, 6), torch.zeros(steps, dtype=torch.long), (steps,), (1,), ("A",)
    )
    course = Course(
        DataSet("", "", lambda: drawn, ((1,),), 1, 1, 1),
        drawn,
        (0,),
        Budget(batch=1, shortest=WINDOW // 2, longest=2 * WINDOW),
        0,
    )
    lengths = [batch.streams["gyroscope"].shape[1] for batch in course.epoch()]
    assert (min(lengths), max(lengths)) == (WINDOW // 2, 2 * WINDOW)
    assert len(set(lengths)) == 2 * WINDOW - WINDOW // 2 + 1
    assert abs(fmean(length <= WINDOW for length in lengths) - 0.5) < 0.05  # 5 standard errors


@given(samples=st.integers(1, 40))
def test_averaging_keeps_the_mean_of_whole_groups(samples: int) -> None:
    recording = torch.arange(6.0 * samples).reshape(samples, 6)
    steps = averaged(recording)
    kept = samples - samples % EVERY
    assert len(steps) * EVERY == kept
    if kept:
        torch.testing.assert_close(steps.mean(dim=0), recording[:kept].mean(dim=0))


@given(drawn=recordings())
def test_moments_normalise_their_members(drawn: Recordings) -> None:
    mean, std = moments(drawn, (0,))
    samples = (drawn.signal[: drawn.lengths[0]] - mean) / std
    torch.testing.assert_close(samples.std(dim=0), torch.ones(6))


# Networks and fusions


@pytest.mark.parametrize("name", sorted(COMPARED))
def test_masked_steps_do_not_count(name: str) -> None:
    model = SensorNet(METHODS[name], 7, dropout=0.2).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the layers start as the identity
            parameter.add_(0.1 * torch.randn_like(parameter))
    streams = {sensor: torch.randn(3, WINDOW, 3) for sensor in SENSORS}
    mask = torch.arange(WINDOW).expand(3, -1) < 30
    with torch.no_grad():
        features = model.encode(streams)
        short = {sensor: x[:, :30] for sensor, x in features.items()}
        torch.testing.assert_close(
            model.classify(features, mask), model.classify(short), rtol=1e-4, atol=1e-5
        )


def test_a_stream_that_is_missing_changes_no_token() -> None:
    fuse = ModalityTokens({"a": 4, "b": 4, "c": 4}, heads=2)
    streams = {name: torch.randn(2, 3, 4) for name in "abc"}
    masks = {"a": None, "b": torch.tensor([[True], [False]]).expand(2, 3), "c": None}
    fused = fuse(streams, masks)
    changed = fuse(streams | {"b": torch.randn(2, 3, 4)}, masks)
    torch.testing.assert_close(fused[1, :, :4], changed[1, :, :4])
    torch.testing.assert_close(fused[1, :, 8:], changed[1, :, 8:])
    assert not torch.allclose(fused[0, :, :4], changed[0, :, :4])


@pytest.mark.parametrize("make", [EncoderLayer, ModalityTokens])
def test_a_sample_without_any_stream_is_finite(make: type) -> None:
    fused = make({"a": 4, "b": 4})(
        {name: torch.randn(2, 3, 4) for name in "ab"},
        dict.fromkeys("ab", torch.tensor([[True], [False]]).expand(2, 3)),
    )
    assert fused.isfinite().all()


def test_low_rank_fusion_is_the_full_tensor_product() -> None:
    dims = {"a": 2, "b": 3, "c": 1}
    fuse = LowRankFusion(dims, rank=2)
    streams = {name: torch.randn(2, 4, dim) for name, dim in dims.items()}
    one = {name: torch.cat([x, torch.ones(2, 4, 1)], dim=-1) for name, x in streams.items()}
    outer = torch.einsum("bli,blj,blk->blijk", *one.values())
    a, b, c = fuse.factors.values()
    weight = torch.einsum("r,rio,rjo,rko->ijko", fuse.weight[0], a, b, c)
    expected = torch.einsum("blijk,ijko->blo", outer, weight) + fuse.bias
    torch.testing.assert_close(fuse(streams, dict.fromkeys(dims)), expected, rtol=1e-4, atol=1e-5)


# Tables


def _run(
    method: str,
    fold: int,
    seed: int,
    right: int,
    *,
    half: float | None = None,
    twice: float | None = None,
) -> Run:
    """A run of 100 windows of two classes, of which the first class has 50 right."""
    return Run(method, fold, seed, [[50, 0], [50 - right, right]], half, twice, 1000, 5.0)


counts = st.integers(0, 50)


@given(values=st.lists(st.tuples(counts, counts), min_size=2, max_size=9))
def test_differences_are_paired_by_fold_and_seed(values: list[tuple[int, int]]) -> None:
    one = [_run("rcma", k % 3, k // 3, a) for k, (a, _) in enumerate(values)]
    other = [_run(BASELINE, k % 3, k // 3, b) for k, (_, b) in enumerate(values)]
    found = difference(one, [*reversed(other), _run(BASELINE, 9, 9, 0)], lambda run: run.balanced)
    paired = [(a - b) / 100 for a, b in values]
    assert found is not None
    assert found.mean == pytest.approx(fmean(paired), abs=1e-12)
    assert found.error == pytest.approx(stdev(paired) / sqrt(len(paired)), abs=1e-12)


def test_a_single_pair_has_no_spread_and_none_has_no_difference() -> None:
    found = difference([_run("rcma", 0, 0, 30)], [_run(BASELINE, 0, 0, 20)], lambda r: r.accuracy)
    assert str(found) == "+10.0"
    assert difference([_run("rcma", 0, 0, 30)], [], lambda run: run.accuracy) is None


def test_scores_of_a_confusion() -> None:
    run = Run("rcma", 0, 0, [[3, 1, 0], [0, 0, 0], [2, 0, 4]], 0.5, None, 1, 1.0)
    assert run.accuracy == 0.7
    assert run.recalls[0::2] == [3 / 4, 4 / 6]
    assert isnan(run.recalls[1])
    assert run.balanced == pytest.approx((3 / 4 + 4 / 6) / 2)


def test_ties_with_the_best_are_bold_too() -> None:
    table = {
        BASELINE: [_run(BASELINE, k, 0, 10 + k) for k in range(4)],  # always 30 behind
        "encoder": [_run("encoder", k, 0, 40 + k) for k in range(4)],
        "rcma": [_run("rcma", k, 0, 39 + k + (-1) ** k * 3) for k in range(4)],  # one behind, ± 3.5
        "early": [_run("early", 0, 0, 50)],  # a single run neither leads nor ties
    }
    assert leaders(table, lambda run: run.accuracy) == {"encoder", "rcma"}
    runs = [run for mine in table.values() for run in mine]
    made = tables(runs, ("A", "B"))
    _, header, body = made["scores"]
    rows = {row[0]: dict(zip(header, row, strict=True)) for row in body}
    assert rows["concatenation"]["accuracy %"] == "61.5"
    assert rows["concatenation"]["Δ accuracy %"] == "—"
    assert rows["RCMA"]["accuracy %"] == "**90.5**"
    assert rows["early fusion, one TCN"]["Δ accuracy %"] == "+40.0"
    assert rows["encoder layer on the concatenation"]["Δ accuracy %"] == "+30.0 ± 0.0"
    assert rows["RCMA"]["runs"] == "4"
    _, header, body = made["recalls"]
    assert header == ["method", "A", "B"]
    assert body[0] == ["concatenation", "100", "23"]


def test_lengths_are_compared_with_the_loss_of_concatenation() -> None:
    runs = [
        *(_run(BASELINE, k, 0, 40, half=0.80, twice=0.85) for k in range(2)),  # loses 10 and 5
        *(_run("rcma", k, 0, 50, half=0.70 + k / 10, twice=1.0) for k in range(2)),  # 25 and 0
        _run("jca", 0, 0, 50),
    ]
    _, header, body = lengths(runs)
    rows = {row[0]: dict(zip(header, row, strict=True)) for row in body}
    assert list(rows) == ["concatenation", "RCMA"]
    rcma = rows["RCMA"]
    assert [rcma[f"{n} steps, %"] for n in (WINDOW // 2, WINDOW, 2 * WINDOW)] == [
        "75.0",
        "100.0",
        "100.0",
    ]
    assert rcma[f"Δ loss, {WINDOW // 2} steps"] == "+15.0 ± 5.0"
    assert rcma[f"Δ loss, {2 * WINDOW} steps"] == "-5.0 ± 0.0"
    assert rcma["runs"] == "2"


def test_the_pictures_are_drawn(tmp_path: Path) -> None:
    from examples.common.report import draw_accuracy, draw_confusion

    runs = [_run(name, k, 0, 30 + k) for name in (BASELINE, "rcma") for k in range(2)]
    draw_confusion(runs, ("A", "B"), tmp_path / "confusion.png")
    draw_accuracy(runs, tmp_path / "accuracy.png")
    assert all(
        (tmp_path / f"{name}.png").stat().st_size > 1000 for name in ("confusion", "accuracy")
    )


def test_the_chosen_candidate_is_the_layer() -> None:
    """Same parameter names, same numbers: what was studied is what the package has."""
    dims = {"accelerometer": 8, "gyroscope": 12}
    candidate, layer = Candidate(dims, CHOSEN).double(), RecursiveCrossModalAttention(dims).double()
    for parameter in candidate.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = {key: value for key, value in candidate.state_dict().items() if "gain" not in key}
    layer.load_state_dict(state)
    streams = {name: torch.randn(3, 9, dim, dtype=torch.float64) for name, dim in dims.items()}
    expected = layer(streams)
    for name, found in candidate(streams).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", sorted(CANDIDATES))
def test_every_candidate_starts_as_the_identity(name: str) -> None:
    dims = dict.fromkeys(SENSORS, 8)
    streams = {sensor: torch.randn(2, 9, 8) for sensor in SENSORS}
    for sensor, found in METHODS[name].fusion(dims)(streams).items():
        assert torch.equal(found, streams[sensor])
