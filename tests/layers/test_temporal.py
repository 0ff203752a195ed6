"""The laws of TemporalConvNet."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from crossfuse import TemporalConvNet
from tests.support import properties, reference, released
from tests.support.strategies import cuts, every_cutting, filled

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """One stream, and the net for it."""

    dim: int = 3
    widths: tuple[int, ...] = (5, 5, 2)
    kernel_size: int = 3
    causal: bool = True
    batch: int = 2
    length: int = 7
    invalid: tuple[int, ...] | None = None  # per sample, a bit set of invalid steps
    seed: int = 0

    def net(self, dtype: torch.dtype = F64) -> TemporalConvNet:
        net = TemporalConvNet(
            self.dim,
            self.widths,
            kernel_size=self.kernel_size,
            causal=self.causal,
            dtype=dtype,
        )
        return filled(net, self.seed)

    def x(self, dtype: torch.dtype = F64) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        shape = self.batch, self.length, self.dim
        return torch.randn(shape, generator=generator, dtype=F64).to(dtype)

    def mask(self) -> Tensor | None:
        if self.invalid is None:
            return None
        rows = [[not (bits >> t) & 1 for t in range(self.length)] for bits in self.invalid]
        return torch.tensor(rows, dtype=torch.bool).reshape(self.batch, self.length)

    def twin(self, state: dict[str, Tensor], x: Tensor, mask: Tensor | None) -> Tensor:
        blocks = []
        for k in range(len(self.widths)):
            head = f"blocks.{k}"
            first, second = (
                reference.weight_norm(
                    state[f"{head}.{conv}.parametrizations.weight.original0"],
                    state[f"{head}.{conv}.parametrizations.weight.original1"],
                )
                for conv in ("first", "second")
            )
            biases = (state[f"{head}.first.bias"], state[f"{head}.second.bias"])
            around = f"{head}.residual"
            residual = (
                (state[f"{around}.weight"], state[f"{around}.bias"])
                if f"{around}.weight" in state
                else None
            )
            blocks.append(reference.ConvBlock((first, second), biases, residual))
        return reference.temporal_conv_net(blocks, x, mask, causal=self.causal)


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    causal: bool | None = None,
    masks: bool = True,
    batch: tuple[int, int] = (0, 3),
) -> Case:
    is_causal = draw(st.booleans()) if causal is None else causal
    size, length = draw(st.integers(*batch)), draw(st.integers(1, 9))
    bits = st.tuples(*[st.integers(0, 2**length - 1)] * size)
    return Case(
        dim=draw(st.sampled_from([1, 2, 3])),
        widths=tuple(draw(st.lists(st.sampled_from([2, 5, 7]), min_size=1, max_size=3))),
        kernel_size=draw(st.sampled_from([1, 2, 3, 5] if is_causal else [1, 3, 5])),
        causal=is_causal,
        batch=size,
        length=length,
        invalid=draw(bits) if masks and draw(st.booleans()) else None,
        seed=draw(st.integers(0, 2**16)),
    )


@example(case=Case(batch=0))
@example(case=Case(length=1))
@example(case=Case(kernel_size=1))
@example(case=Case(causal=False, invalid=(0b1100000, 0)))
@given(case=cases())
def test_agrees_with_the_paper(case: Case) -> None:
    properties.agrees_with(case.net(), case.twin, case.x(), case.mask())


def test_reproduces_the_published_numbers() -> None:
    data = released.load("tcn_release")
    theirs = released.weights(data)
    net = TemporalConvNet(5, [7, 7, 4], kernel_size=3, dtype=F64)
    state = {}
    for key in net.state_dict():
        _, k, conv, part = key.split(".", 3)
        old = {"first": "conv1", "second": "conv2", "residual": "downsample"}[conv]
        kind = {"original0": "weight_g", "original1": "weight_v"}.get(part.split(".")[-1], part)
        state[key] = theirs[f"network.{k}.{old}.{kind}"]
    net.load_state_dict(state)
    numbers = [{"x": data[n].mT} for n in ("input", "output", "cotangent", "input_grad")]
    released.reproduces(lambda x: {"x": net(x["x"])}, *numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@example(case=Case(dim=1, widths=(7,), kernel_size=1, causal=False, length=1, seed=103))  # |v|~1e-4
@given(case=cases(batch=(1, 3)))
def test_agrees_with_the_paper_in_every_dtype(dtype: torch.dtype, case: Case) -> None:
    properties.agrees_with(case.net(dtype), case.twin, case.x(dtype), case.mask())


@given(case=cases())
def test_mutates_nothing_and_keeps_the_shape(case: Case) -> None:
    net = case.net()
    properties.does_not_mutate(net, case.x(), case.mask())
    y = net(case.x(), case.mask())
    assert y.shape == (case.batch, case.length, case.widths[-1])
    assert y.dtype == F64


@given(case=cases(batch=(1, 3)))
def test_samples_do_not_mix(case: Case) -> None:
    properties.batch_independent(case.net(), case.x(), case.mask())


@example(case=Case(causal=False, batch=1))
@given(case=cases())
def test_masked_steps_are_padding(case: Case) -> None:
    properties.padding_invariant(case.net(), case.x(), case.mask(), padding=3)


@given(case=cases(batch=(1, 2)), padding=st.integers(1, 4))
def test_masked_steps_on_the_left_are_padding_too(case: Case, padding: int) -> None:
    """What a stream that begins late sees: the same as when it had begun with its first step."""
    net, x = case.net(), case.x()
    valid = torch.ones(x.shape[:2], dtype=torch.bool) if case.mask() is None else case.mask()
    assert valid is not None
    late = torch.cat([x.new_full((case.batch, padding, case.dim), float("nan")), x], dim=1)
    late_mask = torch.cat([valid.new_zeros(case.batch, padding), valid], dim=1)
    actual = net(late, late_mask)[:, padding:]
    properties.close(
        actual, net(x, valid), "padding on the left", properties.TOLERANCES[F64].output
    )


@given(case=cases(causal=True, masks=False))
def test_a_causal_net_does_not_see_the_future(case: Case) -> None:
    properties.causal(case.net(), case.x())


def test_a_net_that_is_not_causal_sees_it() -> None:
    case = Case(causal=False)
    with pytest.raises(AssertionError, match="NaN after it"):
        properties.causal(case.net(), case.x())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("kernel_size", "blocks"), [(1, 1), (1, 3), (3, 1), (3, 2), (5, 2)])
def test_the_receptive_field_is_what_an_output_depends_on(
    causal: bool, kernel_size: int, blocks: int
) -> None:
    case = Case(widths=(4,) * blocks, kernel_size=kernel_size, causal=causal, batch=1, length=61)
    net, x = case.net(), case.x().requires_grad_()
    middle = 60 if causal else 30
    (gradient,) = torch.autograd.grad(net(x)[0, middle].sum(), x)
    seen = gradient[0].abs().sum(dim=1).nonzero().flatten()
    assert seen.numel() == int(seen[-1] - seen[0]) + 1 == net.receptive_field
    assert int(seen[-1]) == (middle if causal else middle + net.receptive_field // 2)


@example(case=Case(batch=0), data=None)
@given(case=cases(causal=True, masks=False), data=st.data())
def test_a_stream_equals_the_whole(case: Case, data: st.DataObject | None) -> None:
    drawn = [2, 3] if data is None else data.draw(cuts(case.length))
    properties.stream_equals_whole(case.net(), case.x(), drawn)


@pytest.mark.parametrize("cutting", every_cutting(6), ids=str)
def test_every_way_of_cutting_gives_the_whole(cutting: list[int]) -> None:
    case = Case(kernel_size=3, widths=(5, 2), length=6)
    properties.stream_equals_whole(case.net(), case.x(), cutting)


@given(case=cases(causal=True, batch=(1, 3)), data=st.data())
def test_a_masked_stream_equals_the_masked_whole(case: Case, data: st.DataObject) -> None:
    net, x = case.net(), case.x()
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if case.mask() is None else case.mask()
    assert mask is not None
    edges = [0, *data.draw(cuts(case.length)), case.length]
    state, pieces = None, []
    for start, stop in pairwise(edges):
        chunk = x[:, start:stop].masked_fill(~mask[:, start:stop, None], float("nan"))
        y, state = net.stream(chunk, state, mask[:, start:stop])
        pieces.append(y)
    whole = net(x, mask)
    properties.close(
        torch.cat(pieces, dim=1), whole, "masked stream", properties.TOLERANCES[F64].output
    )


def test_streams_side_by_side_do_not_meet() -> None:
    """The state is a value: two streams through one net, interleaved."""
    case = Case(batch=1, length=8)
    net, x, other = case.net(), case.x(), Case(batch=1, length=8, seed=1).x()
    first, second, pieces = None, None, []
    for t in range(8):
        y, first = net.stream(x[:, t : t + 1], first)
        _, second = net.stream(other[:, t : t + 1], second)
        pieces.append(y)
    properties.close(torch.cat(pieces, dim=1), net(x), "interleaved", 1e-12)


def test_the_state_does_not_hold_on_to_the_chunk() -> None:
    """A long chunk's memory must be free once it is done: the state has what is still needed."""
    case = Case(kernel_size=3, widths=(4,), length=500)
    with torch.no_grad():
        _, state = case.net().stream(case.x())
    for context in state.contexts:
        assert context.untyped_storage().nbytes() == context.nbytes


@given(case=cases())
def test_gradients_are_finite(case: Case) -> None:
    properties.finite_gradients(case.net(), case.x(), case.mask())


@pytest.mark.parametrize("causal", [True, False])
def test_every_parameter_learns(causal: bool) -> None:
    case = Case(causal=causal, batch=3, length=9)
    properties.every_parameter_gets_a_gradient(case.net(), case.x())


def test_the_state_dict_is_the_whole_state() -> None:
    case = Case()
    properties.state_dict_round_trip(case.net, case.x(), case.mask())


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
