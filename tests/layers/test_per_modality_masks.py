"""How PerModality gives a mask to modules of every kind."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn

from crossfuse import PerModality
from tests.support import properties
from tests.support.layers import foreign_warnings_silenced
from tests.support.per_modality import Cumulative

F64 = torch.float64


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


class Positional(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, /) -> Tensor:
        y: Tensor = Mean()(x, mask)
        return y


class BuiltIn(nn.Module):
    """Its forward has no signature."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = torch.relu


def _of_torch_ao(name: str) -> nn.Module:
    """A module as those of torch.ao, whose import is slow: Linear is alone, others are not."""
    module: nn.Module = type(name, (nn.ReLU,), {"__module__": "torch.ao.nn.quantized"})()
    return module


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


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "compiled" else []) for n in MASKED]
)
def test_a_mask_reaches_what_can_take_it(name: str) -> None:
    x, mask = gappy()
    expected = Mean()(x, mask).masked_fill(~mask[..., None], 0)
    (y,) = PerModality([MASKED[name]()])([x], mask)
    properties.close(y, expected, name, 1e-12)
    (whole,) = PerModality([MASKED[name]()])([x])
    properties.close(whole, Mean()(x), f"{name}, without a mask", 1e-12)


@pytest.mark.parametrize("name", ["mask", "DataParallel", "AveragedModel"])
def test_a_mask_reaches_the_stream_of_what_a_wrapper_holds(name: str) -> None:
    x, mask = gappy()
    expected = Mean()(x, mask).masked_fill(~mask[..., None], 0)
    (y,), _ = PerModality([MASKED[name]()]).stream([x], None, mask)
    properties.close(y, expected, name, 1e-12)


def test_a_mask_reaches_a_scripted_module() -> None:
    x, mask = gappy()
    with foreign_warnings_silenced():
        scripted = torch.jit.script(Scripted())
    (y,) = PerModality([scripted])([x], mask)
    properties.close(y, 2 * x.masked_fill(~mask[..., None], 0), "scripted", 1e-12)


class Scripted(nn.Module):
    """Subtracts where the mask is False."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + torch.where(mask.unsqueeze(-1), x, -x)


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


@pytest.mark.parametrize("name", ["self", "rest", "first", 3])
def test_only_a_keyword_parameter_can_be_stated(name: str) -> None:
    class Encoder(nn.Module):
        def forward(self, first: Tensor, /, x: Tensor, *rest: Tensor, gap: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match=r"expected  'alone', or one of 'gap', 'x'\n"):
        PerModality([Encoder()], takes=[name])
    assert PerModality([Encoder()], takes=["~gap"]).takes == {"0": "~gap"}


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
        nn.Unflatten(1, (5, 1)),
        BuiltIn(),
        _of_torch_ao("LSTM"),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_module_that_may_ignore_a_mask_is_refused(module: nn.Module) -> None:
    x, mask = gappy()
    layer = PerModality({"face": module.double()})
    assert layer({"face": x})["face"].shape[:2] == x.shape[:2]
    with pytest.raises(TypeError, match="the module of 'face' does not show how it takes a mask"):
        layer({"face": x}, mask)


ALONE: dict[str, Callable[[], nn.Module]] = {
    "Sequential": lambda: nn.Sequential(
        nn.Linear(4, 3), nn.LayerNorm(3), nn.GELU(), nn.Dropout(0.1)
    ),
    "DataParallel": lambda: nn.DataParallel(nn.Linear(4, 3)),
    "compiled": lambda: cast(nn.Module, torch.compile(nn.Linear(4, 3), backend="eager")),
    "others": lambda: nn.Sequential(nn.Flatten(2), nn.PReLU(), nn.Softmax(dim=-1)),
    "heads": lambda: nn.Sequential(nn.Unflatten(2, (2, 2)), nn.Flatten(2)),
    "quantised": lambda: _of_torch_ao("Linear"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "compiled" else []) for n in ALONE]
)
def test_what_treats_each_step_alone_needs_no_mask(name: str) -> None:
    module = ALONE[name]()
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


def test_the_valid_steps_of_long_streams_stay_in_order() -> None:
    module, mask = nn.GRU(4, 4, batch_first=True, dtype=F64), torch.rand(1, 99) < 0.5
    x = torch.randn(1, 99, 4, dtype=F64)
    (y,) = PerModality([module])([x], mask)
    properties.close(y[mask], module(x[mask])[0], "the valid steps", 1e-10)


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
