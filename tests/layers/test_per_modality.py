"""The laws of PerModality."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from crossfuse import PerModality, TemporalConvNet
from tests.support import properties
from tests.support.strategies import Streams, every_cutting, filled, streams

F64 = torch.float64


def encoders(case: Streams) -> PerModality:
    """A net for every second modality, which takes a mask, and a linear map for the others."""
    modules: list[nn.Module] = [
        nn.Linear(dim, dim, dtype=F64)
        if n % 2
        else TemporalConvNet(dim, [dim], kernel_size=3, dtype=F64)
        for n, dim in enumerate(case.dims)
    ]
    named = dict(zip(case.names, modules, strict=True))
    return filled(PerModality(named if case.named else modules), case.seed)


def alone(layer: PerModality, place: int, x: Tensor, valid: Tensor) -> Tensor:
    """What the module of one modality makes of it, invalid steps being zero before and after."""
    module = list(layer.branches.values())[place]
    clean = x.masked_fill(~valid[..., None], 0)
    y: Tensor = module(clean, valid) if isinstance(module, TemporalConvNet) else module(clean)
    return y.masked_fill(~valid[..., None], 0)


@given(case=streams(least=1, aligned=False))
def test_each_module_gets_its_modality(case: Streams) -> None:
    layer, inputs, mask = encoders(case), case.inputs(), case.mask()
    valid = properties.mask_of(inputs, mask)
    outputs = properties.places(layer(inputs, mask))
    assert list(outputs) == list(properties.places(inputs))
    for name, x in properties.places(inputs).items():
        place = case.names.index(name)
        expected = alone(layer, place, x, valid[name])
        properties.close(outputs[name], expected, name, properties.TOLERANCES[F64].output)


@given(case=streams(least=1, aligned=False))
def test_gives_back_the_structure(case: Streams) -> None:
    layer, inputs, mask = encoders(case), case.inputs(), case.mask()
    properties.same_structure(layer, inputs, mask)
    properties.does_not_mutate(layer, inputs, mask)
    if case.named:
        backwards = dict(reversed(inputs.items()))
        properties.same_structure(layer, backwards, mask)


@given(case=streams(batch=(1, 3)))
def test_samples_do_not_mix(case: Streams) -> None:
    properties.batch_independent(encoders(case), case.inputs(), case.mask())


@given(case=streams(least=1, aligned=False))
def test_masked_steps_do_not_matter(case: Streams) -> None:
    properties.padding_invariant(encoders(case), case.inputs(), case.mask(), padding=2)


@given(case=streams(aligned=False), data=st.data())
def test_a_missing_modality_is_a_masked_one(case: Streams, data: st.DataObject) -> None:
    inputs = case.whole().inputs()
    name = data.draw(st.sampled_from(list(inputs) if case.named else list(range(len(inputs)))))
    properties.missing_equals_masked(encoders(case), inputs, name, case.mask())


@given(case=streams(least=1, aligned=False))
def test_gradients_are_finite(case: Streams) -> None:
    properties.finite_gradients(encoders(case), case.inputs(), case.mask())


def test_every_parameter_learns() -> None:
    case = Streams((3, 5), 2, (6, 4), True, "none", ((0, 0), (0, 0)), frozenset(), 1)
    properties.every_parameter_gets_a_gradient(encoders(case), case.inputs())
    properties.state_dict_round_trip(lambda: encoders(case), case.inputs())


def test_outputs_may_have_any_axes() -> None:
    """Frames (B, L, C, H, W) in, features out: only batch and steps are fixed."""
    layer = PerModality({"face": nn.Flatten(2), "voice": nn.Identity()})
    mask = torch.tensor([[True, False, True]])
    x = {"face": torch.randn(1, 3, 2, 4, 4), "voice": torch.randn(1, 3, 7)}
    fused = layer(x, mask)
    assert fused["face"].shape == (1, 3, 32)
    assert not fused["face"][0, 1].any()
    assert torch.equal(fused["face"][0, 0], x["face"][0, 0].flatten())


def test_one_module_may_serve_two_modalities() -> None:
    shared = nn.Linear(3, 3)
    layer = PerModality([shared, shared])
    x = torch.randn(2, 4, 3)
    first, second = layer([x, x])
    assert torch.equal(first, second)
    assert len(list(layer.parameters())) == 2


@pytest.mark.parametrize("cutting", every_cutting(5), ids=str)
@pytest.mark.parametrize("named", [True, False])
def test_every_way_of_cutting_a_stream_gives_the_whole(cutting: list[int], named: bool) -> None:
    case = Streams((3, 5), 2, (5, 5), named, "none", ((0, 0), (0, 0)), frozenset(), 1)
    nets = [TemporalConvNet(dim, [4, 2], kernel_size=3, dtype=F64) for dim in case.dims]
    layer = filled(PerModality(dict(zip(case.names, nets, strict=True)) if named else nets), 1)
    properties.stream_equals_whole(layer, case.inputs(), cutting)


@given(case=streams(least=1, aligned=False, batch=(1, 3), steps=(2, 9)))
def test_streams_with_masks_and_gaps_join_up(case: Streams) -> None:
    """Streams of their own lengths, masked, some missing from beginning to end."""
    layer, inputs, mask = encoders(case), case.inputs(), case.mask()
    whole = properties.places(layer(inputs, mask))
    valid = properties.mask_of(inputs, mask)
    pieces: dict[str, list[Tensor]] = {name: [] for name in whole}
    state = None
    for half in (0, 1):
        ends = {
            name: (0, x.shape[1] // 2, x.shape[1]) for name, x in properties.places(inputs).items()
        }
        parts = {
            name: x[:, ends[name][half] : ends[name][half + 1]]
            for name, x in properties.places(inputs).items()
        }
        marks = {
            name: row[:, ends[name][half] : ends[name][half + 1]] for name, row in valid.items()
        }
        chunk = properties.replace(inputs, parts)
        outputs, state = layer.stream(chunk, state, properties.replace(inputs, marks))
        assert list(properties.places(outputs)) == list(whole)
        for name, y in properties.places(outputs).items():
            pieces[name].append(y)
    for name, y in whole.items():
        joined = torch.cat(pieces[name], dim=1)
        properties.close(joined, y, name, properties.TOLERANCES[F64].output)


def test_a_modality_that_joins_late_was_missing_before() -> None:
    nets = {"face": TemporalConvNet(3, [4], dtype=F64), "voice": nn.Linear(2, 2, dtype=F64)}
    layer, x = PerModality(nets), torch.randn(1, 9, 3, dtype=F64)
    late = torch.arange(9)[None] >= 4
    state = None
    for start, stop in ((0, 2), (2, 4)):
        out, state = layer.stream({"voice": torch.randn(1, stop - start, 2, dtype=F64)}, state)
        assert list(out) == ["voice"]
    y, _ = layer.stream({"face": x[:, 4:]}, state)
    expected = layer({"face": x}, late)["face"]
    properties.close(y["face"], expected[:, 4:], "face", properties.TOLERANCES[F64].output)


def test_a_stream_of_ones_own() -> None:
    """Any module with a `stream` will do, with a mask or without; its state is handed through."""

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(dim=1)

        def stream(self, chunk: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
            y = chunk.cumsum(dim=1) + (0 if state is None else state)
            return y, y[:, -1:]

    layer = PerModality([Sum(), nn.Identity()])
    x = [torch.randn(2, 6, 3, dtype=F64), torch.randn(2, 6, 1, dtype=F64)]
    properties.stream_equals_whole(layer, x, [1, 4])


def test_what_cannot_stream_is_named() -> None:
    x = torch.randn(2, 4, 3)
    layer = PerModality({"face": nn.GRU(3, 3, batch_first=True), "voice": TemporalConvNet(3, [2])})
    with pytest.raises(TypeError, match="PerModality: the module of 'face' cannot stream"):
        layer.stream({"face": x})
    inner = Cumulative(TemporalConvNet(3, [2]))  # to stream the net alone would leave out the sum
    with pytest.raises(TypeError, match="the module of 'face' cannot stream"):
        PerModality({"face": inner}).stream({"face": x})
    _, state = layer.stream({"voice": x})
    with pytest.raises(ValueError, match="'voice' was in the stream before and is missing now"):
        layer.stream({"voice": None}, state)
    with pytest.raises(ValueError, match="state has unknown names: 'words'"):
        layer.stream({"voice": x}, {"words": None})
    with pytest.raises(TypeError, match="PerModality: state must be a mapping or a sequence"):
        layer.stream({"voice": x}, x)


class Halving(nn.Module):
    """An encoder with a step for every two, valid if both are."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x[:, ::2] + x[:, 1::2]

    def mask_for(self, mask: Tensor) -> Tensor:
        return mask[:, ::2] & mask[:, 1::2]


class Mean(nn.Module):
    """Subtracts the mean over the valid steps: every output depends on the mask."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return x - x.mean(dim=1, keepdim=True)
        valid = mask[..., None]
        mean = (x * valid).sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp(min=1)
        return x - mean

    def stream(self, chunk: Tensor, state: None, mask: Tensor | None = None) -> tuple[Tensor, None]:
        return self(chunk, mask), state


class Padded(nn.Module):
    """Takes True for padding, by a parameter of any name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mean()

    def forward(self, x: Tensor, gap: Tensor | None = None) -> Tensor:
        y: Tensor = self.inner(x, None if gap is None else ~gap)
        return y


class Keywords(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *args: Tensor, **options: Tensor) -> Tensor:
        y: Tensor = self.net(*args, **options)
        return y


class Cumulative(nn.Module):
    """A user's own wrapper, which keeps its module under a name that libraries use too."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Tensor, **options: Tensor) -> Tensor:
        y: Tensor = self.module(*args, **options)
        return y.cumsum(dim=1)


class Positional(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, /) -> Tensor:
        y: Tensor = Mean()(x, mask)
        return y


class Wrapped(nn.Module):
    """Its forward is decorated, as caching, timing and typing libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mean()

        @functools.wraps(self.inner.forward)
        def forward(*args: Tensor, **options: Tensor) -> Tensor:
            return self.inner(*args, **options)  # type: ignore[no-any-return]  # a tensor

        self.forward = forward


class Attending(nn.Module):
    """As nn.TransformerEncoder: `mask` is an attention mask (L, L), steps have another."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None
    ) -> Tensor:
        assert mask is None
        y: Tensor = Mean()(x, None if src_key_padding_mask is None else ~src_key_padding_mask)
        return y


class Transformers(nn.Module):
    """As a model of Transformers: integers, 1 = valid, and an output with a name."""

    class Output(NamedTuple):
        last_hidden_state: Tensor

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Output:  # noqa: ANN401 - theirs
        assert attention_mask is None or attention_mask.dtype == torch.long
        valid = None if attention_mask is None else attention_mask.bool()
        return self.Output(Mean()(x, valid))


MASKED: dict[str, Callable[[], nn.Module]] = {
    "mask": Mean,
    "compiled": lambda: cast(nn.Module, torch.compile(Mean(), backend="eager")),
    "DataParallel": lambda: nn.DataParallel(Mean()),
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(Mean()),
    "keywords": lambda: Keywords(Mean()),
    "twice": lambda: Keywords(torch.optim.swa_utils.AveragedModel(Keywords(Mean()))),
    "functools.wraps": Wrapped,
    "an attention mask too": Attending,
    "Transformers": Transformers,
}


def gappy() -> tuple[Tensor, Tensor]:
    """Features and a mask with padding left, right, in the middle, and everywhere."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]]).bool()
    return torch.randn(4, 5, 4, dtype=F64, generator=torch.Generator().manual_seed(0)), mask


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_reaches_what_can_take_it(name: str) -> None:
    x, mask = gappy()
    expected = Mean()(x, mask).masked_fill(~mask[..., None], 0)
    (y,) = PerModality([MASKED[name]()])([x], mask)
    properties.close(y, expected, name, 1e-12)
    (whole,) = PerModality([MASKED[name]()])([x])
    properties.close(whole, Mean()(x), f"{name}, without a mask", 1e-12)


def test_how_a_module_takes_a_mask_can_be_stated() -> None:
    x, mask = gappy()
    expected = Mean()(x, mask).masked_fill(~mask[..., None], 0)
    with pytest.raises(TypeError, match="does not show how it takes a mask"):
        PerModality([Padded()])([x], mask)
    (y,) = PerModality([Padded()], takes=["~gap"])([x], mask)
    properties.close(y, expected, "~gap", 1e-12)
    layer = PerModality({"face": nn.BatchNorm1d(5, dtype=F64)}, takes={"face": "alone"})
    assert not layer({"face": x}, mask)["face"][~mask].any()
    assert "takes={'face': 'alone'}" in repr(layer)


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(5),
        nn.Conv1d(5, 5, 3, padding=1),
        nn.Sequential(nn.Linear(4, 4), Mean()),
        nn.Softmax(dim=1),
        nn.LayerNorm([5, 4]),
        Keywords(nn.Linear(4, 4)),
        Cumulative(nn.Linear(4, 4)),
        Positional(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_module_that_may_ignore_a_mask_is_refused(module: nn.Module) -> None:
    x, mask = gappy()
    layer = PerModality({"face": module.double()})
    assert layer({"face": x})["face"].shape == x.shape
    with pytest.raises(TypeError, match="the module of 'face' does not show how it takes a mask"):
        layer({"face": x}, mask)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.GELU(), nn.Dropout(0.1)),
        nn.DataParallel(nn.Linear(4, 3)),
        torch.compile(nn.Linear(4, 3), backend="eager"),
        nn.Sequential(nn.Flatten(2), nn.PReLU(), nn.Softmax(dim=-1)),
    ],
    ids=["Sequential", "DataParallel", "compiled", "others"],
)
def test_what_treats_each_step_alone_needs_no_mask(module: nn.Module) -> None:
    x, mask = gappy()
    layer = PerModality([module.double().eval()])
    (y,) = layer([x], mask)
    assert not y[~mask].any()
    properties.close(y[mask], module(x[mask][:, None])[:, 0], "alone", 1e-12)
    (streamed,), _ = layer.stream([x], None, mask)
    assert torch.equal(streamed, y)


def encoder_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0, dtype=F64)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        encoder_layer,
        lambda: nn.TransformerEncoder(encoder_layer(), 2),
        lambda: nn.GRU(4, 4, batch_first=True, dtype=F64),
        lambda: nn.LSTM(4, 3, 2, batch_first=True, proj_size=2, dtype=F64),
    ],
    ids=["layer", "encoder", "GRU", "LSTM"],
)
def test_torchs_sequence_modules_see_the_valid_steps_alone(
    make: Callable[[], nn.Module], training: bool
) -> None:
    """Each sample as if its valid steps were all there is; gradients are finite."""
    torch.manual_seed(0)
    module = make().train(training)
    x, mask = gappy()
    x.requires_grad_()
    (y,) = PerModality([module])([x], mask)
    for n, row in enumerate(mask):
        assert not y[n, ~row].any()
        if row.any():
            alone = module(x[n, row][None])
            alone = alone[0] if isinstance(alone, tuple) else alone
            properties.close(y[n, row], alone[0], f"sample {n}", 1e-10)
    torch.autograd.backward(y.sum())
    for name, p in [("x", x), *module.named_parameters()]:
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name


def test_a_branch_may_be_swapped() -> None:
    x, mask = gappy()
    layer = PerModality({"face": nn.Identity()})
    assert torch.equal(layer({"face": x}, mask)["face"][mask], x[mask])
    layer.branches["face"] = Mean()
    expected = Mean()(x, mask).masked_fill(~mask[..., None], 0)
    assert torch.equal(layer({"face": x}, mask)["face"], expected)
    (chunk, _) = layer.stream({"face": x}, None, mask)
    assert torch.equal(chunk["face"], expected)


def test_an_encoder_that_changes_the_steps_states_how_its_mask_changes() -> None:
    layer = PerModality({"face": Halving(), "voice": nn.Identity()})
    x = {name: torch.randn(2, 6, 3) for name in ("voice", "face")}
    mask = {"voice": None, "face": torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()}
    following = layer.mask_for(x, mask)
    assert list(following) == ["voice", "face"]
    assert following["voice"] is None
    halved = following["face"]
    assert halved is not None
    assert torch.equal(halved, torch.tensor([[1, 0, 0], [1, 1, 1]]).bool())
    y = layer(x, mask)["face"]
    assert y.shape == (2, 3, 3)
    assert not y[~halved].any()
    assert y[halved].all()
    Halving.mask_for, kept = None, Halving.mask_for  # type: ignore[assignment, method-assign]
    try:
        assert layer(x)["face"].shape == (2, 3, 3)
        with pytest.raises(ValueError, match=r"(?s)'face' does not return .* mask_for\(mask\)"):
            layer(x, mask)
    finally:
        Halving.mask_for = kept  # type: ignore[method-assign]


class Returning(nn.Module):
    """Returns what it is built with."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, mask: Tensor | None = None) -> object:
        return self.value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ((torch.zeros(4, 5, 4),), "does not return a tensor"),
        ({"x": torch.zeros(4, 5, 4)}, "does not return a tensor"),
        (None, "does not return a tensor"),
        (torch.zeros(4, 1, 4), "the batch and steps of its input"),
        (torch.zeros(4, 4), "the batch and steps of its input"),
        (torch.zeros(3, 5, 4), "the batch and steps of its input"),
        (torch.zeros(()), "the batch and steps of its input"),
    ],
    ids=["tuple", "dict", "None", "pooled", "pooled flat", "batch", "number"],
)
def test_outputs_of_another_kind_are_refused(value: object, says: str) -> None:
    x, mask = gappy()
    with pytest.raises((TypeError, ValueError), match=says):
        PerModality({"face": Returning(value)})({"face": x}, mask)


def test_wrong_inputs_are_named() -> None:
    layer = PerModality({"face": nn.Identity(), "voice": nn.GRU(3, 3)})
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"face": torch.zeros(3)}, "'face' has no axes for batch and steps"),
        ({"face": [1.0]}, "'face' has no axes for batch and steps"),
        ({"face": torch.zeros(2, 3, 1).to_sparse()}, "'face' is not a dense tensor"),
        ({"face": torch.zeros(2, 3), "voice": torch.zeros(1, 3, 3)}, "samples on axis 0"),
        ({"voice": torch.zeros(1, 3, 3)}, "'voice' takes steps before batch"),
    ]
    for inputs, says in wrong:
        with pytest.raises((TypeError, ValueError), match=says):
            layer(inputs)
    both = PerModality([nn.GRU(4, 2, batch_first=True, bidirectional=True, dtype=F64)])
    x, mask = gappy()
    assert both([x])[0].shape == (4, 5, 4)
    with pytest.raises(TypeError, match="reads backwards from invalid steps"):
        both([x], mask)


@pytest.mark.slow
def test_masks_reach_modules_in_a_compiled_and_an_exported_model() -> None:
    x, mask = gappy()
    layer = PerModality([Mean(), nn.GELU(), encoder_layer()]).eval()
    inputs = ([x, x, x], mask)
    expected = layer(*inputs)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    for strict in (True, False):
        exported = torch.export.export(layer, inputs, strict=strict).module()
        for module in (compiled, exported):
            for y, z in zip(module(*inputs), expected, strict=True):
                properties.close(y, z, "compiled", 1e-10)
    layer.branches["1"] = Mean()
    properties.close(compiled(*inputs)[1], expected[0], "swapped", 1e-12)


def test_printing_explains_the_layer() -> None:
    text = repr(PerModality({"face": nn.Linear(2, 3), "voice": TemporalConvNet(2, [3])}))
    for part in ("PerModality", "face", "Linear", "voice", "TemporalConvNet"):
        assert part in text, f"{part} is not in\n{text}"
