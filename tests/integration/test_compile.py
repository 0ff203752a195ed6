"""crossfuse.compile: one graph for every batch and length, and a backend that is there."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import crossfuse
from crossfuse import _compile
from tests.support import properties
from tests.support.layers import SPECIMENS, foreign_warnings_silenced
from tests.support.strategies import filled

# The first are those that it compiles for: unlike each other and all sizes of features, for which
# torch would otherwise take them.
SIZES = [(8, 6), (3, 7), (5, 4), (2, 3)]
DIMS = {"face": 3, "voice": 5}
LENGTH = 7
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "rcma": lambda: crossfuse.RecursiveCrossModalAttention(
        DIMS, LENGTH, form="paper", joint="others"
    ),
    "rcma of any length": lambda: crossfuse.RecursiveCrossModalAttention(DIMS),
    "rcma as released": lambda: crossfuse.RecursiveCrossModalAttention(
        DIMS, LENGTH, 1, form="released", joint="others", gate=True
    ),
    "jca": lambda: crossfuse.JointCrossAttention(DIMS, LENGTH, 4),
}
Chosen = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    with foreign_warnings_silenced():
        torch._dynamo.reset()
        counters.clear()
        yield
        torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces and differentiates as always, without a C++ compiler's seconds."""
    compile_ = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda m, **options: compile_(m, **{**options, "backend": "aot_eager", "options": None}),
    )


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Chosen:
    """Records what torch.compile is asked for, and compiles nothing."""
    calls: Chosen = []

    def record(module: object, **options: object) -> object:
        calls.append(options)
        return module

    monkeypatch.setattr(torch, "compile", record)
    return calls


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def batch(size: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(size * 10 + length)
    return {name: torch.randn(size, length, dim, generator=generator) for name, dim in DIMS.items()}


def masks(size: int, length: int) -> dict[str, Tensor]:
    steps = torch.arange(length)
    return {
        "face": (steps < length - 1).expand(size, length).clone(),
        "voice": (steps > 0).expand(size, length).clone(),
    }


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("name", "masked"), [("rcma", False), *((name, True) for name in LAYERS)], ids=str
)
def test_one_graph_serves_every_batch_and_length(name: str, masked: bool) -> None:
    layer = filled(LAYERS[name](), 0)
    compiled = crossfuse.compile(layer)
    for size in SIZES:
        mask = masks(*size) if masked else None
        properties.eager_equals_compiled(layer, compiled, batch(*size), mask)
        assert graphs() == 1, f"compiled again for batch and length {size}"


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_one_graph_serves_every_batch_and_length_of_the_tcn_and_of_its_stream() -> None:
    tcn = filled(crossfuse.TemporalConvNet(3, [4, 5], kernel_size=3), 0)
    encode, step = crossfuse.compile(tcn), crossfuse.compile(tcn.stream)
    for shape in SIZES:
        properties.eager_equals_compiled(tcn, encode, batch(*shape)["face"])
    assert graphs() == 1
    with torch.no_grad():
        for size, length in SIZES:
            _, state = tcn.stream(batch(size, 7)["face"])
            chunk = batch(size, length)["face"]
            expected, _ = tcn.stream(chunk, state)
            actual, after = step(chunk, state)
            properties.close(actual, expected, f"a step of {size}, {length}", 1e-5)
            assert isinstance(after, crossfuse.TemporalState)
    assert graphs() == 2


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_a_single_sample_or_step_costs_one_graph_each() -> None:
    layer = filled(LAYERS["rcma"](), 0)
    compiled = crossfuse.compile(layer)
    for size in [(8, 6), (1, 5), (1, 3), (1, 6), (4, 2)]:
        properties.eager_equals_compiled(layer, compiled, batch(*size))
    assert graphs() == 2


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_a_length_that_equals_a_number_of_features_costs_one_graph_more() -> None:
    """torch takes sizes that are equal at the first call for one, until they are not."""
    layer = filled(LAYERS["rcma"](), 0)
    compiled = crossfuse.compile(layer)
    for size in [(8, 5), (3, 7), (4, 2), (6, 3)]:
        properties.eager_equals_compiled(layer, compiled, batch(*size))
    assert graphs() == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rcma", "jca"])
def test_the_real_compiler_gives_the_same_numbers(name: str) -> None:
    """Forward and backward through inductor, at sizes other than those it compiled for."""
    layer = filled(LAYERS[name](), 0)
    compiled = crossfuse.compile(layer)
    for size in SIZES[:3]:
        properties.eager_equals_compiled(layer, compiled, batch(*size), masks(*size))
    assert graphs() == 1


@pytest.fixture
def low_limit() -> Iterator[None]:
    """Lowers the limit that torch has for all modules of a class, 8, which takes long to reach."""
    from torch._dynamo import config

    with config.patch(recompile_limit=2):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("traced", "low_limit")
def test_a_tcn_trains_at_many_lengths() -> None:
    """Beyond the limit of torch: the gradients of convolutions are compiled for each length."""
    tcn = filled(crossfuse.TemporalConvNet(3, [4], kernel_size=3), 0)
    compiled = crossfuse.compile(tcn)
    for length in range(6, 10):
        properties.eager_equals_compiled(tcn, compiled, batch(3, length)["face"])


@pytest.mark.slow
@pytest.mark.usefixtures("traced", "low_limit")
def test_every_set_of_missing_modalities_runs() -> None:
    dims = dict.fromkeys("abc", 4)
    layer = filled(crossfuse.ConcatFusion(dims, 2), 0)
    compiled = crossfuse.compile(layer)
    x = {name: torch.randn(3, 6, 4) for name in dims}
    sets = [s for n in range(1, 4) for s in itertools.combinations(dims, n)]
    for present in sets:
        assert torch.equal(
            compiled({name: x[name] for name in present}),
            layer({name: x[name] for name in present}),
        )
    assert graphs() == len(sets) == 7


@pytest.mark.slow
@pytest.mark.usefixtures("traced", "low_limit")
def test_many_layers_of_one_class_compile() -> None:
    """As in a sweep over widths: the limit is for each of them, not for their class."""
    for width in range(1, 5):
        layer = filled(crossfuse.ConcatFusion(DIMS, width), 0)
        properties.eager_equals_compiled(layer, crossfuse.compile(layer), batch(8, 6))
    assert graphs() == 4


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_a_checkpointed_layer_trains_compiled() -> None:
    layer = filled(crossfuse.RecursiveCrossModalAttention(DIMS, checkpoint=True), 0)
    assert layer.training
    compiled = crossfuse.compile(layer)
    for size in SIZES[:2]:
        properties.eager_equals_compiled(layer, compiled, batch(*size), masks(*size))
    assert graphs() == 1


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("how", ["itself", "copied", "pickled"])
def test_beyond_the_limit_it_runs_uncompiled_and_says_so_once(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(_compile._LIMITS, "recompile_limit", 1)
    layer = filled(crossfuse.ConcatFusion(DIMS, 4), 0)
    compiled = crossfuse.compile(layer)
    if how == "copied":
        compiled = copy.deepcopy(compiled)
    if how == "pickled":
        compiled = pickle.loads(pickle.dumps(compiled))
    (inner,) = compiled.children()
    for size in [(8, 6), (1, 6), (8, 1), (3, 7)]:
        properties.eager_equals_compiled(inner, compiled, batch(*size))
    assert graphs() == 1
    ours = [record for record in caplog.records if record.name == "crossfuse._compile"]
    assert [record.levelname for record in ours].count("WARNING") == 1
    with pytest.raises(ValueError, match="ConcatFusion"):
        compiled({"face": torch.ones(3, 7, 9)})


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_beyond_the_limit_a_method_runs_uncompiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_compile._LIMITS, "recompile_limit", 1)
    tcn = filled(crossfuse.TemporalConvNet(3, [4], kernel_size=3), 0).eval()
    step = crossfuse.compile(tcn.stream)
    for size in [(8, 6), (1, 1), (3, 7)]:
        chunk = batch(*size)["face"]
        properties.close(step(chunk)[0], tcn(chunk), f"a chunk of {size}", 1e-5)
    assert graphs() == 1


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_hooks_and_checkpoints_see_the_module_once() -> None:
    layer = filled(crossfuse.ConcatFusion(DIMS, 4), 0)
    compiled = crossfuse.compile(layer)
    calls = []
    layer.register_forward_hook(lambda *_: calls.append("layer"))
    compiled.register_forward_hook(lambda *_: calls.append("compiled"))
    compiled(batch(8, 6))
    assert calls == ["layer", "compiled"]
    assert list(compiled.state_dict()) == [f"_orig_mod.{name}" for name in layer.state_dict()]
    compiled.load_state_dict(compiled.state_dict())
    assert not compiled.eval().training
    assert not layer.training


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_a_live_window_streams_compiled_in_two_graphs() -> None:
    """One begins the stream, one goes on."""
    live = SPECIMENS["LiveWindow"].module()
    assert isinstance(live, crossfuse.LiveWindow)
    step, state, expected = crossfuse.compile(live.stream), None, None
    with torch.no_grad():
        for length in (2, 3, 2, 4):
            frame = batch(8, length)
            actual, state = step(frame, state)
            output, expected = live.stream(frame, expected)
            properties.close(actual, output, f"a chunk of {length}", 1e-5)
    assert graphs() == 2


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_a_wrong_call_of_a_compiled_module_gets_the_error_of_the_module() -> None:
    compiled = crossfuse.compile(filled(LAYERS["rcma of any length"](), 0))
    with pytest.raises(ValueError, match="'face' has 9 features on axis 2, not 3") as caught:
        compiled({"face": torch.ones(1, 4, 9)})
    assert caught.value.__context__ is None, "the compiler's error above it"


@pytest.mark.slow
@pytest.mark.parametrize("first", [torch.compile, crossfuse.compile], ids=["torch", "crossfuse"])
def test_a_compiled_module_is_compiled_as_what_it_holds(
    first: Callable[[nn.Module], nn.Module],
) -> None:
    layer = filled(LAYERS["rcma"](), 0)
    once = first(layer)
    again = crossfuse.compile(once)
    assert dict(again.named_children()) == {"_orig_mod": layer}
    assert again.state_dict().keys() == once.state_dict().keys()


@pytest.mark.slow
def test_training_of_a_tcn_keeps_no_masks() -> None:
    """The compiler's code for bool tensors takes many times as long as the relu."""
    tcn = filled(crossfuse.TemporalConvNet(3, [4, 4], kernel_size=3), 0)
    y = crossfuse.compile(tcn)(batch(8, 6)["face"])
    kept = y.grad_fn.saved_tensors
    assert kept
    assert not [x.shape for x in kept if x.dtype == torch.bool]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("slope", [0.01, 0.0, 1.0, -0.5])
def test_the_gradient_of_a_leaky_relu_is_that_of_torch(slope: float, dtype: torch.dtype) -> None:
    x = torch.tensor([-3.0, -1e-4, -0.0, 0.0, 1e-4, 5.0, -torch.inf, torch.inf], dtype=dtype)
    gradient = torch.linspace(-2, 2, len(x), dtype=dtype)
    expected = torch.ops.aten.leaky_relu_backward(gradient, x, slope, False)
    found = _compile._leaky_relu_backward(gradient, x, slope, False)
    # The compiler does not round the slope to half precision.
    allowed = torch.finfo(dtype).eps if dtype.itemsize == 2 else 0
    torch.testing.assert_close(found, expected, rtol=allowed, atol=0)


def test_the_default_backend_is_taken_on_the_cpu(
    chosen: Chosen, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compile, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, logger="crossfuse._compile"):
        crossfuse.compile(LAYERS["jca"]())
    (asked,) = chosen
    assert asked["backend"] is _compile._recomputing
    assert (asked["fullgraph"], asked["dynamic"], asked["options"]) == (True, True, None)
    assert caplog.messages == ["compiling JointCrossAttention with the backend 'inductor'"]


@pytest.mark.parametrize("triton", [False, True])
def test_on_cuda_the_backend_needs_no_triton_where_there_is_none(
    triton: bool, chosen: Chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("crossfuse") if triton else None
    monkeypatch.setattr(_compile, "find_spec", {"triton": spec}.__getitem__)
    monkeypatch.setattr(_compile, "_on_cuda", lambda module: True)
    crossfuse.compile(LAYERS["jca"]())
    assert chosen[0]["backend"] == ("inductor" if triton else "cudagraphs")
    assert (chosen[0]["options"] is None) == (not triton), "cudagraphs knows no options"


def test_a_module_without_tensors_runs_on_cuda_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert _compile._on_cuda(nn.Identity()) == there
        assert not _compile._on_cuda(nn.Linear(1, 1)), "its parameters say where it runs"


@pytest.mark.slow
def test_the_backend_for_cuda_without_triton_runs_here_too() -> None:
    """On the CPU it records no CUDA graph, but takes ours."""
    layer = filled(LAYERS["rcma"](), 0)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="cudagraphs")
    for size in SIZES[:3]:
        properties.eager_equals_compiled(layer, compiled, batch(*size))
    assert graphs() == 1


def test_the_layer_stays_as_it_is(chosen: Chosen) -> None:
    layer = LAYERS["rcma"]()
    before = set(vars(layer)), list(layer.state_dict())
    crossfuse.compile(layer)
    assert (set(vars(layer)), list(layer.state_dict())) == before


@pytest.mark.parametrize("wrong", [3, torch.relu, None], ids=["int", "function", "None"])
def test_what_is_no_module_is_refused(wrong: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="compile: 'module' is neither a module nor a method"):
        crossfuse.compile(wrong)


def test_choosing_imports_no_triton() -> None:
    """In a fresh process, with a package of that name on the path that breaks when imported."""
    script = """
import sys, tempfile, pathlib, torch
folder = pathlib.Path(tempfile.mkdtemp()); sys.path.insert(0, str(folder))
(folder / "triton.py").write_text("raise SystemExit('triton was imported')")
import crossfuse
from crossfuse import _compile
_compile._on_cuda = lambda module: True
seen = []
torch.compile = lambda module, **options: seen.append(options["backend"]) or module
crossfuse.compile(torch.nn.Identity())
assert seen == ["inductor"], seen
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
