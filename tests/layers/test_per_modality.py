"""The laws of PerModality."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from crossfuse import PerModality, TemporalConvNet
from tests.support import properties
from tests.support.per_modality import Cumulative
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


def test_printing_explains_the_layer() -> None:
    text = repr(PerModality({"face": nn.Linear(2, 3), "voice": TemporalConvNet(2, [3])}))
    for part in ("PerModality", "face", "Linear", "voice", "TemporalConvNet"):
        assert part in text, f"{part} is not in\n{text}"
