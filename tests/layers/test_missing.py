"""The laws of ModalityDropout and MissingTokens."""

from __future__ import annotations

from collections.abc import Callable
from math import comb, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from crossfuse import MissingTokens, ModalityDropout, RecursiveCrossModalAttention
from tests.support import properties
from tests.support.reference import Structure
from tests.support.strategies import Streams, filled, streams

F64 = torch.float64
probabilities = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


def present_in(valid: dict[str, Tensor]) -> Tensor:
    """How many modalities each sample has (B,)."""
    return torch.stack([mask.any(dim=1) for mask in valid.values()]).sum(dim=0)


def arguments(case: Streams) -> tuple[Structure, Structure, dict[str, Tensor]]:
    """Inputs, mask argument, and the full mask of each present modality."""
    inputs, mask = case.inputs(), case.mask()
    return inputs, mask, properties.mask_of(inputs, mask)


# ModalityDropout


@given(case=streams(least=1, aligned=False), p=probabilities, keep=st.integers(1, 6))
def test_dropping_never_leaves_fewer_than_keep(case: Streams, p: float, keep: int) -> None:
    inputs, mask, valid = arguments(case)
    masks = properties.places(ModalityDropout(p, keep=keep)(inputs, mask))
    assert present_in(masks).ge(present_in(valid).clamp(max=keep)).all()


@given(case=streams(least=1, aligned=False), p=probabilities)
def test_a_modality_is_dropped_whole_or_left_alone(case: Streams, p: float) -> None:
    inputs, mask, valid = arguments(case)
    for name, row in properties.places(ModalityDropout(p)(inputs, mask)).items():
        assert row.dtype == torch.bool
        for sample, before in zip(row, valid[name], strict=True):
            assert torch.equal(sample, before) or not sample.any()


@given(case=streams(least=1, aligned=False), p=probabilities)
def test_nothing_is_dropped_in_evaluation(case: Streams, p: float) -> None:
    inputs, mask, valid = arguments(case)
    layer = ModalityDropout(p).eval()
    properties.does_not_mutate(layer, inputs, mask)
    masks = properties.places(layer(inputs, mask))
    assert masks.keys() == valid.keys()
    assert all(torch.equal(masks[name], row) for name, row in valid.items())


@given(case=streams(least=1, aligned=False))
def test_without_probability_nothing_is_dropped_and_with_certainty_all_but_keep(
    case: Streams,
) -> None:
    inputs, mask, valid = arguments(case)
    for name, row in properties.places(ModalityDropout(0.0)(inputs, mask)).items():
        assert torch.equal(row, valid[name])
    masks = properties.places(ModalityDropout(1.0, keep=2)(inputs, mask))
    assert torch.equal(present_in(masks), present_in(valid).clamp(max=2))


@given(case=streams(least=1, aligned=False))
def test_the_masks_have_the_structure_of_the_modalities(case: Streams) -> None:
    inputs, mask, _ = arguments(case)
    for layer in (ModalityDropout(0.5), ModalityDropout(0.5).eval()):
        masks = layer(inputs, mask)
        if not case.named:
            assert type(masks) is tuple
            assert [row is None for row in masks] == [x is None for x in inputs]
        else:
            assert type(masks) is dict
            assert list(masks) == list(inputs)
            absent = {name: x for name, x in inputs.items() if x is not None}
            masks = layer(absent, mask)
            assert {name for name, row in masks.items() if row is not None} == set(absent)


def test_a_mask_for_an_absent_modality_is_handed_on_as_none() -> None:
    """A misspelt name is not lost either: the next layer, which knows the names, refuses it."""
    face = torch.randn(2, 3, 4)
    masks = ModalityDropout(0.5)({"face": face}, {"face": None, "vioce": torch.ones(2, 3).bool()})
    assert masks["vioce"] is None
    fuse = RecursiveCrossModalAttention({"face": 4, "voice": 2}, 3)
    with pytest.raises(ValueError, match="mask has unknown names: 'vioce'"):
        fuse({"face": face}, masks)


def rate(n: int, p: float, keep: int) -> float:
    """The share of n present modalities that is dropped, summed over all outcomes."""
    outcomes = [comb(n, k) * p**k * (1 - p) ** (n - k) * min(k, n - keep) for k in range(n + 1)]
    return sum(outcomes) / n


# A share is off by more than 5.2 standard deviations with a probability of 2e-7. 38 are tested, so
# that a right implementation would fail with one choice of seeds in 130 000; these are fixed.
SIGMAS = 5.2


@pytest.mark.parametrize("p", [0.1, 0.3, 0.8])
@pytest.mark.parametrize(("n", "keep"), [(2, 1), (3, 1), (3, 2), (4, 2)])
def test_the_drop_rate_is_as_asked(n: int, keep: int, p: float) -> None:
    samples = 20_000
    torch.manual_seed(n + 10 * keep)
    masks = ModalityDropout(p, keep=keep)([torch.zeros(samples, 1, 1)] * n)
    expected = rate(n, p, keep)
    allowed = SIGMAS * sqrt(expected * (1 - expected) / samples)
    for k, mask in enumerate(masks):
        dropped = 1 - mask.double().mean().item()
        assert abs(dropped - expected) <= allowed, f"modality {k}: {dropped:.4f}, not {expected}"


def test_the_formula_of_the_docstring_is_the_rate() -> None:
    for n in range(1, 6):
        for keep in range(1, n + 1):
            for p in (0.0, 0.2, 0.7, 1.0):
                back = sum(
                    (k - n + keep) * comb(n, k) * p**k * (1 - p) ** (n - k)
                    for k in range(n - keep + 1, n + 1)
                )
                assert p - back / n == pytest.approx(rate(n, p, keep))
                assert keep > 1 or p - p**n / n == pytest.approx(rate(n, p, keep))


def test_modalities_and_samples_are_dropped_apart() -> None:
    """With four modalities and keep=1, two given ones go together as often as chance has it."""
    torch.manual_seed(3)
    samples, p, n = 20_000, 0.3, 4
    first, second, *_ = ModalityDropout(p)([torch.zeros(samples, 1, 1)] * n)
    both = (~first & ~second).double().mean().item()
    # All four fall with p^4; one of them comes back, which leaves both in half of the cases.
    expected = p**2 - p**4 / 2
    assert abs(both - expected) <= SIGMAS * sqrt(expected * (1 - expected) / samples)
    twins = (first[:-1] == first[1:]).double().mean().item()
    share = rate(n, p, 1)
    equal = share**2 + (1 - share) ** 2
    assert abs(twins - equal) <= 2 * SIGMAS * sqrt(equal * (1 - equal) / samples)


def test_dropping_is_seeded() -> None:
    x = [torch.zeros(64, 2, 1)] * 3
    torch.manual_seed(1)
    first = ModalityDropout(0.5)(x)
    torch.manual_seed(1)
    again = ModalityDropout(0.5)(x)
    other = ModalityDropout(0.5)(x)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@given(case=streams(batch=(1, 3)))
def test_a_layer_reads_what_is_dropped_as_missing(case: Streams) -> None:
    """Nothing of a dropped modality is left in the other outputs."""
    inputs, mask, _ = arguments(case)
    fuse = filled(RecursiveCrossModalAttention(case.layer_dims, case.length, dtype=F64), 1)
    masks = ModalityDropout(0.7)(inputs, mask)
    gone = {name: ~row.any(dim=1)[:, None, None] for name, row in properties.places(masks).items()}
    spoilt = {
        name: x.masked_fill(gone[name], float("nan"))
        for name, x in properties.places(inputs).items()
    }
    expected = properties.places(fuse(inputs, masks))
    for name, y in properties.places(fuse(properties.replace(inputs, spoilt), masks)).items():
        properties.close(y, expected[name], name, 0.0)
        assert not y.masked_select(gone[name]).any()


def test_dropout_takes_features_of_any_axes_and_nothing_at_all() -> None:
    masks = ModalityDropout(0.5)({"video": torch.zeros(2, 3, 1, 8, 8), "audio": None})
    assert masks["video"].all()
    assert ModalityDropout(0.5)([None, None]) == (None, None)
    assert ModalityDropout(0.5)([torch.zeros(0, 3, 2)])[0].shape == (0, 3)


# MissingTokens


def tokens_for(case: Streams) -> MissingTokens:
    return filled(MissingTokens(case.layer_dims, dtype=F64), case.seed)


def vector(layer: MissingTokens, name: str) -> Tensor:
    return layer.get_parameter(f"tokens.{name}.vector")


@given(case=streams(least=1))
def test_a_missing_modality_is_filled_where_another_is_valid(case: Streams) -> None:
    """Every entry of features and masks, from the definition, sample by sample."""
    layer, (inputs, mask, valid) = tokens_for(case), arguments(case)
    features, masks = (properties.places(part) for part in layer(inputs, mask))
    assert set(features) == set(masks) == set(case.names)
    given_ = dict(zip(case.names, inputs.values() if case.named else inputs, strict=True))
    nowhere = torch.zeros(case.batch, case.length, dtype=torch.bool)
    for name in case.names:
        for b in range(case.batch):
            row = valid.get(name, nowhere)[b]
            if row.any():
                x = given_[name][b].masked_fill(~row[:, None], 0)
            else:
                row = torch.stack([other[b] for other in valid.values()]).any(dim=0)
                x = row[:, None] * vector(layer, name)
            assert torch.equal(masks[name][b], row), f"mask of {name}, sample {b}"
            assert torch.equal(features[name][b], x), f"{name}, sample {b}"


@given(case=streams(least=1, aligned=False, missing=False))
def test_a_stream_of_its_own_length_is_filled_at_all_steps(case: Streams) -> None:
    layer, (inputs, mask, valid) = tokens_for(case), arguments(case)
    if len(set(case.lengths)) == 1:
        return
    features, masks = (properties.places(part) for part in layer(inputs, mask))
    anything = present_in(valid) > 0
    for name, x in properties.places(inputs).items():
        gone = ~valid[name].any(dim=1)
        row = torch.where(gone[:, None], anything[:, None], valid[name])
        whole = torch.where(gone[:, None, None], vector(layer, name), x)
        assert torch.equal(masks[name], row)
        assert torch.equal(features[name], whole.masked_fill(~row[..., None], 0))


@given(case=streams(least=1, missing=False, masks=False))
def test_what_is_there_is_untouched(case: Streams) -> None:
    layer, inputs = tokens_for(case), case.inputs()
    properties.does_not_mutate(layer, inputs)
    features, masks = layer(inputs)
    properties.same_structure(lambda x, _: layer(x)[0], inputs)
    for name, x in properties.places(inputs).items():
        assert torch.equal(properties.places(features)[name], x)
        assert properties.places(masks)[name].all()


@given(case=streams(least=2), data=st.data())
def test_missing_for_all_is_missing_for_each(case: Streams, data: st.DataObject) -> None:
    """None, an absent key and a mask row of False: the same features, masks and gradients."""
    inputs = case.whole().inputs()
    names = list(inputs) if case.named else list(range(len(inputs)))
    name = data.draw(st.sampled_from(names))
    layer, valid = tokens_for(case), properties.mask_of(inputs, case.mask())
    dark = {**valid, str(name): torch.zeros_like(valid[str(name)])}
    masked = properties.replace(inputs, dark)
    none = properties.replace(inputs, {str(name): None})
    absent = {k: x for k, x in inputs.items() if k != name} if case.named else none
    expected = both(layer, inputs, masked)
    for other in (none, absent):
        mask = properties.replace(other, dark) if case.named else masked
        for part, value in both(layer, other, mask).items():
            assert torch.equal(value, expected[part]), part


def both(layer: MissingTokens, inputs: Structure, mask: Structure) -> dict[str, Tensor]:
    """Features, masks and the tokens' gradients, by name."""
    features, masks = (properties.places(part) for part in layer(inputs, mask))
    total = torch.stack([y.sum() for y in features.values()]).sum()
    gradients = gradients_of(total, layer)
    return {
        **{f"features {k}": y.detach() for k, y in features.items()},
        **{f"mask {k}": row for k, row in masks.items()},
        **{f"gradient {k}": gradient for k, gradient in gradients.items()},
    }


def gradients_of(total: Tensor, layer: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter, zero where it takes no part."""
    named = dict(layer.named_parameters())
    if not total.requires_grad:
        return {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    found = torch.autograd.grad(
        total, list(named.values()), materialize_grads=True, allow_unused=True
    )
    return dict(zip(named, found, strict=True))


@given(case=streams(least=1))
def test_a_token_learns_exactly_when_it_stands_in(case: Streams) -> None:
    layer, (inputs, mask, valid) = tokens_for(case), arguments(case)
    found = both(layer, inputs, mask)
    for name in case.names:
        empty = torch.zeros(case.batch, case.length, dtype=torch.bool)
        used = (found[f"mask {name}"] & ~valid.get(name, empty)).any()
        assert found[f"gradient tokens.{name}.vector"].any() == used, name


@given(case=streams(least=1))
def test_garbage_at_invalid_steps_stays_out(case: Streams) -> None:
    """Not in the features, nor in a gradient."""
    layer, (inputs, mask, valid) = tokens_for(case), arguments(case)
    spoilt = {
        name: x.masked_fill(~valid[name][..., None], float("nan"))
        for name, x in properties.places(inputs).items()
    }
    expected = both(layer, inputs, mask)
    for part, value in both(layer, properties.replace(inputs, spoilt), mask).items():
        assert torch.equal(value, expected[part]), part
    properties.finite_gradients(
        lambda x, m: layer(x, m)[0], properties.replace(inputs, spoilt), mask
    )


@given(case=streams(least=1, batch=(1, 3)))
def test_padding_adds_nothing(case: Streams) -> None:
    """A token stands at no step at which the whole sample is padding."""
    layer, (inputs, mask, valid) = tokens_for(case), arguments(case)
    longer = {
        name: torch.nn.functional.pad(x, (0, 0, 0, 2), value=float("nan"))
        for name, x in properties.places(inputs).items()
    }
    marks: dict[str, Tensor | None] = {
        name: torch.nn.functional.pad(row, (0, 2)) for name, row in valid.items()
    }
    features, masks = (properties.places(part) for part in layer(inputs, mask))
    wide = properties.replace(inputs, marks)
    padded, padded_masks = layer(properties.replace(inputs, longer), wide)
    for name, y in properties.places(padded).items():
        assert torch.equal(y[:, : case.length], features[name])
        assert not y[:, case.length :].any()
        row = properties.places(padded_masks)[name]
        assert torch.equal(row[:, : case.length], masks[name])
        assert not row[:, case.length :].any()


@given(case=streams(least=2, batch=(1, 3), masks=False))
def test_the_filled_modalities_feed_a_layer(case: Streams) -> None:
    fuse = filled(RecursiveCrossModalAttention(case.layer_dims, case.length, dtype=F64), 1)
    features, masks = tokens_for(case)(case.inputs())
    outputs = properties.places(fuse(features, masks))
    for name, y in outputs.items():
        assert y.shape == (case.batch, case.length, case.by_name[name])
        assert y.any(), f"{name} is missing still"


def test_dropout_then_tokens_then_fusion_trains_everything() -> None:
    """The use that they are made for: every token and every weight gets a gradient."""
    torch.manual_seed(0)
    dims = {"face": 3, "voice": 5}
    drop, tokens = ModalityDropout(0.5), MissingTokens(dims)
    fuse = RecursiveCrossModalAttention(dims, 4, form="paper")
    x = {name: torch.randn(16, 4, dim) for name, dim in dims.items()}
    outputs = fuse(*tokens(x, drop(x)))
    total = torch.stack([y.square().sum() for y in outputs.values()]).sum()
    for name, gradient in gradients_of(total, nn.ModuleList([tokens, fuse])).items():
        assert gradient.any(), name


def test_absent_names_come_after_the_callers() -> None:
    layer = MissingTokens({"a": 1, "b": 2, "c": 3})
    features, masks = layer({"c": torch.randn(2, 4, 3), "a": None})
    assert list(features) == list(masks) == ["c", "a", "b"]
    assert {name: x.shape[2] for name, x in features.items()} == {"a": 1, "b": 2, "c": 3}


def test_tokens_take_half_precision_under_autocast() -> None:
    layer = MissingTokens([3, 2])
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = layer([torch.randn(2, 4, 3, dtype=torch.bfloat16), None])
    assert features[1].dtype == torch.bfloat16


def test_initialisation_is_small_and_seeded() -> None:
    torch.manual_seed(1)
    first = MissingTokens([10_000])
    torch.manual_seed(1)
    second = MissingTokens([10_000])
    assert torch.equal(vector(first, "0"), vector(second, "0"))
    assert vector(first, "0").std().item() == pytest.approx(0.02, rel=0.05)
    torch.manual_seed(1)
    nn.init.zeros_(vector(second, "0"))
    second.reset_parameters()
    assert torch.equal(vector(first, "0"), vector(second, "0"))


def test_state_dict_factories_and_names() -> None:
    properties.state_dict_round_trip(
        lambda: _Features(MissingTokens({"a": 2, "b": 3})), {"a": torch.randn(2, 4, 2), "b": None}
    )
    layer = MissingTokens({"a": 2, "copy": 3}, device="meta", dtype=torch.bfloat16)
    shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert shapes == {"tokens.a.vector": (2,), "tokens.copy.vector": (3,)}
    for value in layer.parameters():
        assert (value.device.type, value.dtype) == ("meta", torch.bfloat16)


class _Features(nn.Module):
    """The features alone, for laws about one structure."""

    def __init__(self, tokens: MissingTokens) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, modalities: Structure, mask: Structure = None) -> Structure:
        return self.tokens(modalities, mask)[0]


def test_printing_explains_the_layers() -> None:
    assert repr(ModalityDropout(0.2, keep=2)) == "ModalityDropout(p=0.2, keep=2)"
    text = repr(MissingTokens({"face": 2, "voice": 3}))
    assert "{'face': 2, 'voice': 3}" in text
    assert "vector=(3,)" in text


# Both


class _Pipeline(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.tokens = ModalityDropout(0.5), MissingTokens({"a": 2, "b": 3}, dtype=F64)

    def forward(self, modalities: Structure, mask: Structure = None) -> Structure:
        return self.tokens(modalities, self.drop(modalities, mask))[0]


def pair(batch: int, length: int) -> dict[str, Tensor]:
    return {name: torch.randn(batch, length, dim, dtype=F64) for name, dim in (("a", 2), ("b", 3))}


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_one_graph_serves_every_batch_and_length(training: bool) -> None:
    layer = _Pipeline().train(training)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    for batch, length in ((4, 5), (3, 7), (9, 2)):
        x, mask = pair(batch, length), torch.rand(batch, length) < 0.8
        torch.manual_seed(batch)
        expected = layer(x, mask)
        torch.manual_seed(batch)
        for name, y in compiled(x, mask).items():
            properties.close(y, expected[name], name, 1e-12)
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_they_export(training: bool) -> None:
    layer = _Pipeline().train(training)
    dynamic = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("steps")} for name in "ab"}
    program = torch.export.export(layer, (pair(4, 5),), dynamic_shapes={"modalities": dynamic})
    x = pair(3, 7)
    torch.manual_seed(3)
    expected = layer(x)
    torch.manual_seed(3)
    for name, y in program.module()(x).items():
        properties.close(y, expected[name], name, 1e-12)


# Wrong calls


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="ModalityDropout: p must be a probability"):
        ModalityDropout(20)
    with pytest.raises(ValueError, match="ModalityDropout: keep must be a positive int"):
        ModalityDropout(0.2, keep=0)
    with pytest.raises(ValueError, match=r"MissingTokens: dims\['0'\] must be a positive int"):
        MissingTokens([0])


def test_bad_inputs_are_named() -> None:
    x = torch.randn(2, 3, 4)
    numbers: Structure = [1.0]
    with pytest.raises(TypeError, match="ModalityDropout: 'a' has no axes for batch and steps"):
        ModalityDropout(0.2)({"a": torch.ones(3)})
    with pytest.raises(TypeError, match="ModalityDropout: 'a' has no axes for batch and steps"):
        ModalityDropout(0.2)({"a": numbers})
    with pytest.raises(ValueError, match="ModalityDropout: '1' has 1 samples on axis 0"):
        ModalityDropout(0.2)([x, x[:1]])
    with pytest.raises(ValueError, match="ModalityDropout: mask does not have the batch"):
        ModalityDropout(0.2)([x, x], torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="MissingTokens: every modality is missing"):
        MissingTokens([4, 4])([None, None])
    with pytest.raises(ValueError, match="MissingTokens: a modality is missing and its number"):
        MissingTokens([4, 4, 4])([x, x[:, :2], None])
    with pytest.raises(TypeError, match="MissingTokens: '0' has another dtype than"):
        MissingTokens([4])([x.double()])
