"""TemporalConvNet as a module: parameters, weight norm, dropout, hooks, copies, compilation."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from crossfuse import TemporalConvNet
from crossfuse._temporal_block import Convolution
from tests.project.test_bad_input import MASKS_MISTAKEN, MISTAKEN, refused
from tests.support import properties
from tests.support.temporal import F64, Case


def test_the_initialisation_takes_effect() -> None:
    """The weight that convolves has the spread of He's rule: gain / sqrt(fan in)."""
    net = TemporalConvNet(64, [128, 128], kernel_size=3)
    gain = nn.init.calculate_gain("leaky_relu", 0.01)
    for name, module in net.named_modules():
        if name.endswith(("first", "second")):
            weight = module.weight
            assert isinstance(weight, Tensor)
            fan_in = weight.shape[1] * weight.shape[2]
            assert weight.std().item() == pytest.approx(gain / fan_in**0.5, rel=0.05), name
            assert weight.mean().abs().item() < 0.1 * weight.std().item(), name
            bias = module.bias
            assert isinstance(bias, Tensor)
            assert not bias.any(), name


def test_the_features_keep_their_size_through_the_net() -> None:
    net = TemporalConvNet(32, [32] * 4)
    y = net(torch.randn(4, 200, 32))
    assert 0.5 < y.std().item() < 5


def test_resetting_draws_anew() -> None:
    case = Case()
    nets = case.net(), TemporalConvNet(case.dim, case.widths, kernel_size=3, dtype=F64)
    for net in nets:
        torch.manual_seed(3)
        net.reset_parameters()
    properties.close(nets[0](case.x()), nets[1](case.x()), "reset", 1e-12)


def test_weight_norm_is_the_parametrised_one() -> None:
    keys = set(Case(widths=(5,)).net().state_dict())
    names = {"original0", "original1"}
    weights = {
        f"blocks.0.{c}.parametrizations.weight.{n}" for c in ("first", "second") for n in names
    }
    biases = {"blocks.0.first.bias", "blocks.0.second.bias"}
    assert keys == weights | biases | {"blocks.0.residual.weight", "blocks.0.residual.bias"}


def test_dropout_works_in_training_only() -> None:
    net = TemporalConvNet(3, [4], dropout=0.5)
    x = torch.randn(2, 6, 3)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_factory_arguments_reach_every_parameter() -> None:
    net = TemporalConvNet(3, [4, 5], device="meta", dtype=torch.bfloat16)
    for name, value in net.named_parameters():
        assert value.device.type == "meta", name
        assert value.dtype == torch.bfloat16, name


def test_printing_explains_the_net() -> None:
    text = repr(TemporalConvNet(3, [4, 5], kernel_size=7, causal=False, dropout=0.1))
    for part in ("TemporalConvNet", "3", "[4, 5]", "kernel_size=7", "causal=False", "dropout=0.1"):
        assert part in text, f"{part} is not in\n{text}"


def test_dropout_is_made_of_dropout_modules() -> None:
    """Setting `dropout` changes every block; switched on alone they are Monte-Carlo dropout."""
    net, x = TemporalConvNet(3, [8, 8]), torch.randn(2, 6, 3)
    assert torch.equal(net(x), net(x))
    net.dropout = 0.5
    assert net.dropout == 0.5
    assert "dropout=0.5" in repr(net)
    layers = [m for m in net.modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in layers] == [0.5] * 4
    net.eval()
    assert torch.equal(net(x), net(x))
    for layer in layers:
        layer.train()
        assert not torch.equal(net(x), net(x))
        layer.eval()
    with pytest.raises(ValueError, match="dropout must be a probability"):
        net.dropout = 1.5


def test_a_net_without_dropout_modules_drops_nothing() -> None:
    net = TemporalConvNet(3, [4], dropout=0.5)
    net.blocks[0].first_dropout = net.blocks[0].second_dropout = nn.Identity()
    assert net.dropout == 0.0


@pytest.mark.parametrize("kind", [kind for kind in MISTAKEN if kind != "a sample less"])
def test_wrong_inputs_are_refused(kind: str) -> None:
    net, wrong = TemporalConvNet(3, [4]), MISTAKEN[kind](torch.randn(2, 4, 3))
    refused(lambda: net(wrong))
    refused(lambda: net.stream(wrong))


@pytest.mark.parametrize("kind", MASKS_MISTAKEN)
def test_wrong_masks_are_refused(kind: str) -> None:
    net, x = TemporalConvNet(3, [4]), torch.randn(2, 4, 3)
    refused(lambda: net(x, MASKS_MISTAKEN[kind]))
    refused(lambda: net.stream(x, None, MASKS_MISTAKEN[kind]))


def test_a_filter_of_zeros_gives_zeros_and_still_learns() -> None:
    net = TemporalConvNet(3, [4], kernel_size=3, dtype=F64)
    x = torch.randn(2, 5, 3, dtype=F64)
    second = net.blocks[0].second
    assert isinstance(second, nn.Conv1d)
    setattr(second, "weight", torch.zeros_like(second.weight))  # noqa: B010 - a parametrised one
    assert not second.weight.any()
    torch.autograd.backward(net(x).square().sum())
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
    norms = second.get_parameter("parametrizations.weight.original0").grad
    assert norms is not None
    assert norms.any()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    y = net(x)
    assert not y.any()
    torch.autograd.backward(y.sum())
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_weight_norm_is_torchs() -> None:
    """The same function, the same gradients, and the checkpoints of its older version."""
    theirs = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 5))
    net = TemporalConvNet(3, [4])
    ours = net.blocks[0].first
    assert isinstance(ours, nn.Conv1d)
    state = theirs.state_dict()
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 9)
    for conv in (ours, theirs):
        torch.autograd.backward(conv(x).square().sum())
    for name, p in theirs.named_parameters():
        found = ours.get_parameter(name).grad
        assert found is not None
        assert p.grad is not None
        properties.close(found, p.grad, name, 1e-5)
    old = {
        "weight_g": state["parametrizations.weight.original0"],
        "weight_v": state["parametrizations.weight.original1"],
        "bias": state["bias"],
    }
    fresh = TemporalConvNet(3, [4]).blocks[0].first
    assert isinstance(fresh, nn.Conv1d)
    fresh.load_state_dict(old)
    properties.close(fresh(x), theirs(x), "from the old keys", 1e-6)


def test_nothing_is_overwritten_that_a_hook_may_hold() -> None:
    """Neither inside the net nor by a layer after it that works in place."""
    case = Case(invalid=(1, 6))
    net = case.net()
    held: list[tuple[Tensor, Tensor]] = []
    for module in net.modules():
        module.register_forward_hook(
            lambda module, args, out: held.extend(
                (y, y.detach().clone()) for y in (out if isinstance(out, tuple) else [out])[:1]
            )
        )
        if not isinstance(module, parametrize.ParametrizationList):  # it has no inputs
            module.register_full_backward_hook(lambda module, before, after: None)
    x = case.x().requires_grad_()
    for mask in (None, case.mask()):
        torch.autograd.backward(net(x, mask).sum())
    assert held
    assert all(torch.equal(now, before) for now, before in held)
    torch.autograd.backward(nn.Sequential(case.net(), nn.ReLU(inplace=True))(x).sum())


def fold(net: nn.Module) -> None:
    """Puts each convolution's weight in the place of its norm and direction."""
    for module in net.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")


@pytest.mark.parametrize("which", ["the copy", "the original"])
@pytest.mark.parametrize("copied", [copy.deepcopy, AveragedModel])
def test_a_copy_can_be_folded_by_itself(
    which: str, copied: Callable[[TemporalConvNet], nn.Module]
) -> None:
    case = Case()
    net = case.net()
    twin, expected = copied(net), net(case.x())
    fold(twin if which == "the copy" else net)
    for each in (net, twin, copy.deepcopy(net), copy.deepcopy(twin)):
        properties.close(each(case.x()), expected, which, 1e-12)


class _Half(nn.Module):
    """A tool's parametrisation."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@pytest.mark.parametrize("folded", [False, True], ids=["weight norm", "folded"])
@pytest.mark.parametrize("names", [["bias"], ["weight"], ["weight", "bias"]], ids="+".join)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
def test_a_copy_keeps_the_parametrisations_of_tools(
    copied: Callable[[TemporalConvNet], TemporalConvNet], names: list[str], folded: bool
) -> None:
    case = Case()
    net = case.net()
    if folded:
        fold(net)
    for module in list(net.modules()):
        if isinstance(module, Convolution):
            for name in names:
                parametrize.register_parametrization(module, name, _Half())
    expected, twin = net(case.x()), copied(net)
    for module in net.modules():
        if isinstance(module, Convolution):
            for name in names:
                parametrize.remove_parametrizations(module, name)
    properties.close(twin(case.x()), expected, "the copy", 1e-12)
    properties.close(copied(twin)(case.x()), expected, "a copy of the copy", 1e-12)


def test_another_layer_of_a_convolutions_class_is_a_plain_convolution() -> None:
    """PEFT and others build adapters by `type(layer)`, with the arguments of nn.Conv1d."""
    conv = TemporalConvNet(3, [4]).blocks[0].first
    assert isinstance(conv, nn.Conv1d)
    adapter = type(conv)(3, 2, 5, stride=1, padding=0, bias=False)
    assert type(adapter) is nn.Conv1d
    assert adapter.bias is None


@pytest.mark.slow
def test_the_compiled_net_is_the_net() -> None:
    case = Case(widths=(5, 2), invalid=(1, 6))
    net = case.net()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for mask in (None, case.mask()):
        properties.eager_equals_compiled(net, compiled, case.x(), mask)
