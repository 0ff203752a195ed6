"""The benchmark harness: rows have the declared fields, and what disagrees is not timed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import cases, gate, layers, peers, report, timing, tuning
from crossfuse import RecursiveCrossModalAttention

FIELDS = {
    "case",
    "impl",
    "device",
    "dtype",
    "precision",
    "compiled",
    "direction",
    "median_s",
    "spread_s",
    "peak_bytes",
    "share_of_limit",
}
CASES = {case.name: case for case in cases.small_cases()}


def quick(case: cases.Case) -> tuple[list[layers.Row], list[str]]:
    """Measures a case in float32, eager, with as few rounds as there can be."""
    case = replace(case, settings=("float32",), compiled=(), peers=dict([*case.peers.items()][:1]))
    return layers.measure(case, seconds=0.0, least=2)


@pytest.mark.parametrize("name", CASES)
def test_every_case_passes_its_gate_and_gives_whole_rows(name: str) -> None:
    rows, refused = quick(CASES[name])
    assert refused == []
    assert {(row["impl"], row["direction"]) for row in rows} >= {
        ("crossfuse", "forward"),
        ("crossfuse", "forward+backward"),
    }
    for row in rows:
        assert row.keys() >= FIELDS
        assert row["median_s"] > 0
        assert 0 < row["share_of_limit"] < 100


class Slightly(nn.Module):
    """Ours, and wrong by a factor: of the outputs, or only of the gradients."""

    def __init__(self, layer: nn.Module, forward: float, backward: float) -> None:
        super().__init__()
        self.layer, self.factors = layer, (forward, backward)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        forward, backward = self.factors
        return [y * backward + (y * (forward - backward)).detach() for y in self.layer(features)]


@pytest.mark.parametrize(("forward", "backward"), [(1.01, 1.01), (1.0, 1.01)])
def test_what_disagrees_in_outputs_or_gradients_is_not_timed(
    forward: float, backward: float
) -> None:
    case = CASES["rcma-small"]
    ours = case.build()
    reference = peers.Published(ours, 3, 2)
    inputs = [torch.randn(2, 12, d, requires_grad=True) for d in case.dims]
    parity = gate.Gate(reference, reference, inputs)
    assert parity.disagreements(ours, ours) == []
    wrong = Slightly(ours, forward, backward)
    assert any("off by" in line for line in parity.disagreements(wrong, ours))


def test_what_is_not_exact_in_double_precision_is_not_timed() -> None:
    case = CASES["rcma-small"]
    ours = case.build()
    reference = peers.Published(ours, 3, 2)
    inputs = [torch.randn(2, 12, d, requires_grad=True) for d in case.dims]
    with torch.no_grad():  # too little for float32 to tell from rounding
        reference.get_parameter("recursions_0_0_feature").mul_(1 + 1e-6)
    told = gate.Gate(reference, reference, inputs).disagreements(ours, ours)
    assert any("in float64" in line for line in told)


def test_a_refused_implementation_has_no_rows() -> None:
    case = CASES["rcma-small"]
    other = peers.Published(
        RecursiveCrossModalAttention(case.dims, 12, form="paper", joint="others"), 3, 2
    )
    wrong = cases.Peer(lambda _: other, same=True)
    right = case.peers["transcription"]
    case = replace(case, peers={"right": right, "wrong": wrong}, settings=("float32",))
    rows, refused = layers.measure(case, seconds=0.0, least=2)
    assert "wrong" not in {row["impl"] for row in rows}
    assert any("wrong" in line for line in refused)


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    timing.interleaved(calls, seconds=0.0, least=3)
    turns = [name for k, name in enumerate(order) if k == 0 or order[k - 1] != name]
    assert turns[-6:] == ["a", "b"] * 3


def test_peak_memory_counts_what_lives_together() -> None:
    def call() -> None:
        torch.ones(1000, 256)  # 1 MB, freed at once
        torch.ones(1000, 512)

    assert timing.peak_bytes(call, "cpu") == 1000 * 512 * 4


def test_tuning_tells_every_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "BATCHES", (1, 2))
    monkeypatch.setattr(tuning, "LENGTH", 20)
    monkeypatch.setattr(tuning, "of_compilation", lambda: 1.0)
    threads = torch.get_num_threads()
    told = json.loads(tuning.main(tmp_path, seconds=0.0).read_text())
    assert torch.get_num_threads() == threads
    assert all(0 < e < 0.1 for errors in told["error"].values() for e in errors.values())
    assert told["error"]["stable"]["float32"] < told["error"]["stable"]["bfloat16 autocast"]
    (table,) = report.write(tmp_path)
    assert "samples a second" in table.read_text()


def test_the_report_holds_what_the_results_hold(tmp_path: Path) -> None:
    rows, refused = quick(CASES["rcma-small"])
    about = timing.header("cpu")
    layers.save(rows, refused, device="cpu", about=about, folder=tmp_path)
    written = {path.name: path for path in report.write(tmp_path, "cpu")}
    table = written["layers-cpu.md"].read_text()
    assert "rcma-small" in table
    assert about["revision"] in table
    assert written["layers-cpu.svg"].stat().st_size > 0
    assert json.loads((tmp_path / "layers-cpu.json").read_text())["rows"] == rows
