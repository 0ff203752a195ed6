"""Every public module saves, loads, copies and moves, and can be built before it has memory."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import remove_parametrizations
from torch.utils._pytree import tree_leaves, tree_map

import crossfuse
from tests.support import properties
from tests.support.layers import SPECIMENS, Specimen
from tests.support.strategies import filled

SIZES = (2, 5)
PARAMETRISED = [name for name, s in SPECIMENS.items() if list(s.build().parameters())]


def same_bits(ours: nn.Module, theirs: nn.Module, specimen: Specimen) -> None:
    __tracebackhide__ = True
    arguments = specimen.arguments(SIZES, True)
    pairs = zip(tree_leaves(ours(*arguments)), tree_leaves(theirs(*arguments)), strict=True)
    for n, (actual, expected) in enumerate(pairs):
        assert torch.equal(actual, expected), f"output {n} is another"


@pytest.mark.parametrize("name", SPECIMENS)
def test_torch_saves_and_loads_the_weights_only(name: str) -> None:
    specimen = SPECIMENS[name]
    module, fresh, file = specimen.module(), specimen.build().eval(), io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    same_bits(fresh, module, specimen)


@pytest.mark.parametrize("name", PARAMETRISED)
def test_safetensors_saves_and_loads(name: str, tmp_path: Path) -> None:
    """Which refuses tensors that share memory: no parameter does."""
    safetensors = pytest.importorskip("safetensors.torch", reason="saves without pickle")
    specimen = SPECIMENS[name]
    module, fresh = specimen.module(), specimen.build().eval()
    safetensors.save_model(module, tmp_path / "module.safetensors")
    assert safetensors.load_model(fresh, tmp_path / "module.safetensors") == (set(), [])
    safetensors.save_file(module.state_dict(), tmp_path / "state.safetensors")
    again = specimen.build().eval()
    again.load_state_dict(safetensors.load_file(tmp_path / "state.safetensors"))
    for loaded in (fresh, again):
        same_bits(loaded, module, specimen)


@pytest.mark.parametrize("name", SPECIMENS)
def test_copies_and_pickles_are_equal_and_apart(name: str) -> None:
    specimen = SPECIMENS[name]
    module = specimen.module()
    generator = torch.get_rng_state()
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    copies.append(copy.deepcopy(copies[1]))
    assert torch.equal(torch.get_rng_state(), generator), "copying draws random numbers"
    expected = specimen.module()
    for other in copies:
        same_bits(other, module, specimen)
        assert list(other.state_dict()) == list(module.state_dict())
        for parameter in other.parameters():
            parameter.data.fill_(float("nan"))
    same_bits(module, expected, specimen)


@pytest.mark.parametrize("name", PARAMETRISED)
def test_a_pickle_goes_on_learning(name: str) -> None:
    """Its parameters are what its forward uses, and it can be drawn anew and loaded."""
    specimen = SPECIMENS[name]
    module = specimen.module()
    again = pickle.loads(pickle.dumps(module))
    arguments = specimen.arguments(SIZES, False)
    total = sum(y.square().sum() for y in tree_leaves(again(*arguments)) if y.requires_grad)
    trained = [key for key, p in again.named_parameters() if p.requires_grad]
    assert trained == [key for key, _ in module.named_parameters()]
    if isinstance(total, torch.Tensor) and name != "MissingTokens":  # whose are of no use here
        gradients: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
            total, list(again.parameters()), allow_unused=True
        )
        assert any(bool(g.any()) for g in gradients if g is not None)
    if hasattr(again, "reset_parameters"):
        again.reset_parameters()
    again.load_state_dict(module.state_dict())
    same_bits(again, module, specimen)


def test_a_tcn_pickles_with_its_weights_folded_too() -> None:
    """As one does before deployment."""
    tcn, x = filled(crossfuse.TemporalConvNet(3, [4, 5]), 0), torch.randn(2, 6, 3)
    expected = tcn(x)
    for module in list(tcn.modules()):
        if hasattr(module, "parametrizations"):
            remove_parametrizations(module, "weight")
    assert {key.rpartition(".")[2] for key in tcn.state_dict()} == {"weight", "bias"}
    for folded in (tcn, pickle.loads(pickle.dumps(tcn)), copy.deepcopy(tcn)):
        properties.close(folded(x), expected, "folded", 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SPECIMENS)
def test_modules_move_to_a_dtype(name: str, dtype: torch.dtype) -> None:
    specimen = SPECIMENS[name]
    module = specimen.module().to("cpu", dtype)
    arguments = tree_map(
        lambda x: x.to(dtype) if x.is_floating_point() else x, specimen.arguments(SIZES, True)
    )
    assert {p.dtype for p in module.parameters()} <= {dtype}
    for y in tree_leaves(module(*arguments)):
        # A loss is computed in float32 at least.
        assert y.dtype in {dtype, torch.bool} or name == "ConcordanceLoss"
        assert torch.isfinite(y).all()


@pytest.mark.parametrize("name", PARAMETRISED)
def test_a_module_built_without_memory_gets_it_later(name: str) -> None:
    """Under torch.device("meta"), then to_empty, then reset_parameters: as if built directly."""
    specimen = SPECIMENS[name]
    with torch.device("meta"):
        module = specimen.build()
    assert all(parameter.is_meta for parameter in module.parameters())
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.data.fill_(float("nan"))
    for part in module.modules():  # as FSDP does: whoever has the method draws its own
        draw = getattr(part, "reset_parameters", None)
        if draw is not None:
            draw()
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    module.load_state_dict(specimen.module().state_dict())
    same_bits(module.eval(), specimen.module(), specimen)


@pytest.mark.parametrize("name", PARAMETRISED)
def test_resetting_a_module_alone_leaves_no_parameter_out(name: str) -> None:
    module = SPECIMENS[name].build()
    draw = getattr(module, "reset_parameters", None)
    if draw is None:
        pytest.skip("a container: its modules draw their own")
    for parameter in module.parameters():
        parameter.data.fill_(float("nan"))
    draw()
    left = [name for name, p in module.named_parameters() if not torch.isfinite(p).all()]
    assert not left
