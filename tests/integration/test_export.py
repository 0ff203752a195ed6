"""Every public module leaves Python: torch.export, ONNX and AOTInductor, batch and length free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils._pytree import tree_leaves, tree_map

import crossfuse
from tests.support import properties
from tests.support.layers import LENGTH, SPECIMENS, Arguments, Pipeline, foreign_warnings_silenced
from tests.support.strategies import filled

pytestmark = pytest.mark.slow

TRACED = (2, 5)  # the sizes of the example; the others must do as well
SIZES = [(2, 5), (3, LENGTH), (1, 4), (4, 1), (1, 1)]
BATCH, STEPS = Dim("batch", min=1), Dim("steps", min=1, max=LENGTH)


def exported(module: nn.Module, arguments: Arguments, shapes: Any = None) -> ExportedProgram:  # noqa: ANN401 - torch's
    """The module as one graph of free batch and length."""
    if shapes is None:
        shapes = tree_map(lambda _: {0: BATCH, 1: STEPS}, arguments)
    return export(module, arguments, dynamic_shapes=shapes)


def same_values(actual: object, expected: object, what: str) -> None:
    __tracebackhide__ = True
    pairs = zip(tree_leaves(actual), tree_leaves(expected), strict=True)
    for n, (ours, theirs) in enumerate(pairs):
        ours = torch.as_tensor(ours)
        if theirs.dtype == torch.bool:
            assert torch.equal(ours, theirs), f"{what}: output {n}"
        else:
            properties.close(ours, theirs, f"{what}: output {n}", 1e-5)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("name", SPECIMENS)
def test_the_exported_module_is_the_module_at_every_size(name: str, masked: bool) -> None:
    specimen = SPECIMENS[name]
    if masked and not specimen.takes_mask:
        pytest.skip("takes no mask")
    module = specimen.module()
    program = exported(module, specimen.arguments(TRACED, masked)).module()
    for sizes in SIZES:
        arguments = specimen.arguments(sizes, masked)
        same_values(program(*arguments), module(*arguments), f"batch and length {sizes}")


def test_a_window_too_long_for_the_layer_is_too_long_for_its_export() -> None:
    specimen = SPECIMENS["RecursiveCrossModalAttention"]
    program = exported(specimen.module(), specimen.arguments(TRACED, True)).module()
    with pytest.raises(AssertionError, match="Guard failed"):
        program(*specimen.arguments((2, LENGTH + 1), True))


class Step(nn.Module):
    """One chunk of a stream, with the state going in and coming out."""

    def __init__(self, tcn: crossfuse.TemporalConvNet) -> None:
        super().__init__()
        self.tcn = tcn

    def forward(
        self, chunk: Tensor, state: crossfuse.TemporalState
    ) -> tuple[Tensor, crossfuse.TemporalState]:
        return self.tcn.stream(chunk, state)


@torch.no_grad()
def exported_step(tcn: crossfuse.TemporalConvNet) -> ExportedProgram:
    _, state = tcn.stream(torch.randn(2, 5, tcn.dim))
    free = tree_map(lambda _: {0: BATCH}, state)
    return exported(Step(tcn), (torch.randn(2, 5, tcn.dim), state), ({0: BATCH, 1: Dim("n")}, free))


def streaming_net() -> crossfuse.TemporalConvNet:
    return filled(crossfuse.TemporalConvNet(3, [4, 5], kernel_size=3), 0).eval()


@torch.no_grad()
def test_a_stream_through_the_exported_step_is_the_whole() -> None:
    tcn = streaming_net()
    program = exported_step(tcn).module()
    for batch in (1, 3):
        x = torch.randn(batch, 14, 3)
        _, state = tcn.stream(x[:, :1])
        pieces = []
        for chunk in x[:, 1:].tensor_split([1, 7, 9], dim=1):
            y, state = program(chunk, state)
            pieces.append(y)
        same_values(torch.cat(pieces, dim=1), tcn(x)[:, 1:], f"a batch of {batch}")


def run_onnx(program: ExportedProgram, path: Path) -> Any:  # noqa: ANN401 - an untyped package
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs what is exported to ONNX")
    pytest.importorskip("onnxscript", reason="torch exports to ONNX through it")
    with foreign_warnings_silenced():
        onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    onnx.save(path)
    return onnxruntime.InferenceSession(path)


def run_session(session: Any, arguments: object) -> list[Any]:  # noqa: ANN401 - untyped
    tensors = tree_leaves(arguments)
    names = [node.name for node in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, tensors, strict=True)}
    outputs: list[Any] = session.run(None, feed)
    return outputs


@pytest.mark.parametrize("name", SPECIMENS)
@torch.no_grad()
def test_onnxruntime_gives_the_same_numbers(name: str, tmp_path: Path) -> None:
    specimen = SPECIMENS[name]
    module = specimen.module()
    masked = specimen.takes_mask
    program = exported(module, specimen.arguments(TRACED, masked))
    session = run_onnx(program, tmp_path / "module.onnx")
    for sizes in SIZES:
        arguments = specimen.arguments(sizes, masked)
        actual = run_session(session, arguments)
        same_values(actual, module(*arguments), f"batch and length {sizes}")


class Resampling(nn.Module):
    def forward(self, modalities: dict[str, Tensor]) -> dict[str, Tensor]:
        return crossfuse.resample(modalities, {"face": 30, "voice": 50}, 25)[0]


def test_onnxruntime_resamples(tmp_path: Path) -> None:
    arguments = ({"face": torch.randn(2, 30, 3), "voice": torch.randn(2, 50, 5)},)
    program = export(Resampling(), arguments)
    session = run_onnx(program, tmp_path / "resample.onnx")
    same_values(run_session(session, arguments), Resampling()(*arguments), "one second")


@torch.no_grad()
def test_onnxruntime_streams(tmp_path: Path) -> None:
    tcn = streaming_net()
    session = run_onnx(exported_step(tcn), tmp_path / "step.onnx")
    x = torch.randn(3, 9, 3)
    y, state = tcn.stream(x[:, :1])
    for t in range(1, 9):
        y, *contexts = map(torch.as_tensor, run_session(session, (x[:, t : t + 1], state)))
        state = crossfuse.TemporalState(tuple(contexts))
    same_values(y, tcn(x)[:, -1:], "the last step")


@torch.no_grad()
def test_a_whole_model_as_an_aotinductor_package(tmp_path: Path) -> None:
    """One package for all: its C++ takes a compiler much longer than everything else here."""
    model = filled(Pipeline(), 0).eval()
    specimen = SPECIMENS["RecursiveCrossModalAttention"]
    program = exported(model, specimen.arguments(TRACED, True))
    with foreign_warnings_silenced():
        path = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(tmp_path / "model.pt2"),
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
        )
        run = torch._inductor.aoti_load_package(path)
    for sizes in SIZES:
        arguments = specimen.arguments(sizes, True)
        same_values(run(*arguments), model(*arguments), f"batch and length {sizes}")
