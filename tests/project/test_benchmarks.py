"""The benchmark harness: rows have the declared fields, and what disagrees is not timed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    cases,
    checkpoint_memory,
    gate,
    layers,
    mine,
    peers,
    report,
    sizes,
    timing,
    tuning,
)
from benchmarks.recorded import products_of
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


@pytest.fixture(autouse=True)
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the second in which the header watches the machine."""
    monkeypatch.setattr(timing, "_busy_cores", lambda: 1.5)


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
    monkeypatch.setattr(tuning, "DIMS", (16, 16, 16))
    monkeypatch.setattr(tuning, "BATCH", 2)
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


SIZES = ["--dims", "face=8", "voice=4", "--length", "6", "--batch", "3", "--seconds", "0"]


def test_every_layer_is_timed_at_the_sizes_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.json"
    mine.main([*SIZES, "--json", str(path), "--layer", *mine.LAYERS], least=2)
    shown, written = capsys.readouterr().out, json.loads(path.read_text())
    assert written["refused"] == []
    assert "1.5 cores were busy" in shown
    assert [row["layer"] for row in written["rows"]] == [n for n in mine.LAYERS for _ in range(2)]
    for row in written["rows"]:
        assert row["layer"] in shown
        assert 0 < row["low_s"] <= row["median_s"] <= row["high_s"]
        assert row["samples_per_s"] == pytest.approx(3 / row["median_s"])
        assert row["share_of_limit"] == pytest.approx(row["limit_s"] / row["median_s"])
        assert row["limit_s"] > 0
        assert row["peak_bytes"] > 0
        assert len(row["dominant"]) == 3
        assert 0 < sum(row["dominant"].values()) <= 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--dims", "face=8"], "--dims: one modality"),
        (["--dims", "face=8", "face=4"], "--dims: face is given more than once"),
        (["--dims", "face", "voice=4"], "--dims: 'face' is not NAME=FEATURES"),
        (["--dims", "face=0", "voice=4"], "--dims: 'face=0' is not NAME=FEATURES"),
        (["--length", "0"], "--length: '0'"),
        (["--batch", "two"], "--batch: 'two'"),
        (["--seconds", "nan"], "--seconds: 'nan'"),
        (["--layer", "Transformer"], "--layer: invalid choice: 'Transformer'"),
        (["--dtype", "fp16"], "--dtype: invalid choice: 'fp16'"),
        (["--json", "no/such/folder/x.json"], "--json: cannot write"),
        (["--widths", "3"], "unrecognized arguments: --widths"),
    ],
)
def test_a_wrong_argument_ends_with_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        mine.main([*SIZES, *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_a_layer_that_cannot_run_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large(_: mine.Options) -> nn.Module:
        raise RuntimeError("not enough\n  memory")

    monkeypatch.setitem(mine.LAYERS, "MLP", too_large)
    mine.main([*SIZES, "--layer", "MLP", "ConcatFusion"], least=2)
    shown = capsys.readouterr().out
    assert "not timed: MLP: not enough; memory" in shown
    assert "ConcatFusion" in shown
    with pytest.raises(SystemExit):
        mine.main([*SIZES, "--layer", "MLP"], least=2)


@pytest.mark.parametrize("name", mine.LAYERS)
def test_recorded_products_are_those_that_torch_counts(name: str) -> None:
    options = mine.read(SIZES)
    module, inputs = mine.LAYERS[name](options), [torch.randn(3, 6, d) for d in options.sizes]
    # FlopCounterMode does not know attention on the CPU: with products and a softmax it does.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as counted:
            module(inputs)
        assert cases.operations(products_of(lambda: module(inputs))) == counted.get_total_flops()
    assert cases.operations(products_of(lambda: module(inputs))) == counted.get_total_flops()


@pytest.mark.parametrize("name", CASES)
def test_the_limit_of_a_case_is_no_more_than_the_layer_performs(name: str) -> None:
    case = CASES[name]
    layer = case.build()
    inputs = [torch.randn(case.batch, case.length, d) for d in case.dims]
    performed = cases.operations(products_of(lambda: layer(inputs)))
    assert case.flops <= performed
    if name in ("rcma-small", "jca-small", "tcn-small"):  # which leave no choice
        assert case.flops == performed


@given(st.integers(1, 40), st.integers(1, 40), st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_products_timed_alone_fit_into_memory_and_leave_none_out(
    many: int, largest: int, shape: list[int]
) -> None:
    b, (m, k, n) = many, (shape * 3)[:3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "LARGEST", largest)
        call = layers.multiply([(b, m, k, n)], "float32", "cpu")
        performed = products_of(call)
    assert cases.operations(performed) == 2 * b * m * k * n
    assert all(c == 1 or c * max(m * k, k * n, m * n) <= largest for c, *_ in performed)


def test_operators_have_readable_names() -> None:
    assert mine.operator("aten::mm") == "mm"
    assert mine.operator("autograd::engine::evaluate_function: MmBackward0") == "MmBackward0"
    assert mine.operator("## Call CompiledFxGraph fgadd2 ##") == "compiled code"
    found = mine.operator("aten::_scaled_dot_product_flash_attention_for_cpu")
    assert found == "flash_attention"


@pytest.mark.parametrize(
    ("number", "shown"), [(2234.5, "2230"), (767.2, "767"), (1.0, "1"), (0.0000512, "0.0000512")]
)
def test_times_have_no_exponent(number: float, shown: str) -> None:
    assert timing.digits(number) == shown


def test_sizes_are_measured_in_parts_and_kept(tmp_path: Path) -> None:
    small, large = (
        replace(CASES["default-small"], name=name, length=length, settings=("float32",))
        for name, length in (("small", 12), ("large", 15))
    )
    sizes.run([large], seconds=0.0, least=2, folder=tmp_path)
    path = sizes.run([small], seconds=0.0, least=2, folder=tmp_path)
    found = json.loads(path.read_text())["cases"]
    assert list(found) == ["small", "large"]  # in the order of their sizes
    assert all(case["refused"] == [] for case in found.values())
    assert found["small"]["header"]["busy_cores"] == 1.5
    (table,) = report.write(tmp_path)
    *_, last = table.read_text().splitlines()
    assert last.startswith("| 2 | 15 | 16/8/16 |")


def test_the_sizes_are_distinct_cases() -> None:
    names = [case.name for case in sizes.cases()]
    assert len({*names}) == len(names) == len(sizes.SIZES)
    assert "b12-l300-d512-128-512" in names
    assert "b1-l60-d32" in names


def test_checkpointing_adds_only_inputs_and_gradients_of_further_recursions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of the peak is that of one recursion, whatever their number."""
    monkeypatch.setattr(checkpoint_memory, "RECURSIONS", (1, 2, 4))
    monkeypatch.setattr(checkpoint_memory, "LENGTH", 100)
    monkeypatch.setattr(checkpoint_memory, "DIMS", (32, 16, 32))
    data = json.loads(checkpoint_memory.main(tmp_path).read_text())
    one, *more = data["MiB"]
    rest = one["peak_with_checkpoint"] - one["weight_gradients"]
    for row in more:
        # and the state of the random generator, 5 KB a recursion
        held = row["kept_with_checkpoint"] - row["features_between"]
        assert 0 <= held <= 0.01 * (row["recursions"] + 1)
        added = row["features_between"] + row["weight_gradients"]
        assert row["peak_with_checkpoint"] - added <= 1.05 * rest
        assert row["peak"] - added > 1.5 * rest
    (table,) = report.write(tmp_path)
    assert "| RCMA, checkpoint=True |" in table.read_text()
