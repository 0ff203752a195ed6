"""The laws of RecursiveCrossModalAttention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias, get_args

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from crossfuse import RecursiveCrossModalAttention
from tests.support import properties, reference, released
from tests.support.reference import Structure
from tests.support.strategies import Streams, filled, permuted_rows, streams

F64 = torch.float64
Form: TypeAlias = Literal["stable", "paper", "released"]
Joint: TypeAlias = Literal["all", "others"]


@dataclass(frozen=True)
class Case:
    """Inputs, and how the layer for them is built."""

    streams: Streams
    kind: str = "longest"  # what `length` is: "longest", "each" or "none"
    spare: int = 0  # how much longer than the inputs the layer's windows are
    recursions: int = 2
    joint: Joint = "others"
    share_weights: bool = False
    gate: bool = False
    form: Form = "paper"

    @property
    def length(self) -> int | dict[str, int] | list[int] | None:
        if self.kind == "none":
            return None
        if self.kind == "longest":
            return self.streams.length + self.spare
        each = [length + self.spare for length in self.streams.lengths]
        return dict(zip(self.streams.names, each, strict=True)) if self.streams.named else each

    def layer(
        self, dtype: torch.dtype = F64, *, checkpoint: bool = False, dropout: float = 0.0
    ) -> RecursiveCrossModalAttention:
        layer = RecursiveCrossModalAttention(
            self.streams.layer_dims,
            self.length,
            self.recursions,
            joint=self.joint,
            share_weights=self.share_weights,
            gate=self.gate,
            form=self.form,
            checkpoint=checkpoint,
            dropout=dropout,
            dtype=dtype,
        )
        return filled(layer, self.streams.seed)

    def redeclared(self, names: Sequence[str]) -> RecursiveCrossModalAttention:
        """The layer with its mappings written in another order."""
        dims, length = self.streams.by_name, self.length
        return RecursiveCrossModalAttention(
            {name: dims[name] for name in names},
            {name: length[name] for name in names} if isinstance(length, dict) else length,
            self.recursions,
            joint=self.joint,
            share_weights=self.share_weights,
            gate=self.gate,
            form=self.form,
            dtype=F64,
        )

    @property
    def twin(self) -> properties.Twin:
        length: reference.Length = None
        if self.kind == "each":
            each = [n + self.spare for n in self.streams.lengths]
            length = dict(zip(self.streams.names, each, strict=True))
        elif self.kind == "longest":
            length = self.streams.length + self.spare
        return partial(
            reference.recursive_cross_modal_attention,
            dims=self.streams.by_name,
            length=length,
            recursions=self.recursions,
            joint=self.joint,
            share_weights=self.share_weights,
            gate=self.gate,
            form=self.form,
        )


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    spare: int = 0,
    least: int | None = None,
    named: bool | None = None,
    masks: bool = True,
    missing: bool = True,
    batch: tuple[int, int] = (0, 3),
    most: int = 5,
) -> Case:
    form: Form = draw(st.sampled_from(get_args(Form)))
    kind = draw(st.sampled_from(["longest"] if form == "released" else ["longest", "none", "each"]))
    joint: Joint = draw(st.sampled_from(get_args(Joint)))
    few = least or (2 if joint == "others" else 1)
    drawn = draw(
        streams(
            least=few,
            most=most,
            aligned=kind != "each",
            named=named,
            masks=masks,
            missing=missing,
            batch=batch,
        )
    )
    return Case(
        drawn,
        kind,
        spare + draw(st.integers(0, 2)),
        draw(st.integers(1, 3)),
        joint,
        draw(st.booleans()),
        draw(st.booleans()),
        form,
    )


def plain(dims: Sequence[int] = (2, 3, 5), batch: int = 2, length: int = 4) -> Streams:
    """Named streams without masks or gaps."""
    n = len(dims)
    empty = ((0,) * batch,) * n
    return Streams(tuple(dims), batch, (length,) * n, True, "none", empty, frozenset(), 3)


# The edges: one step, an empty batch, one modality, everything masked.
ONE_STEP = Case(plain(length=1))
NO_SAMPLES = Case(plain(batch=0))
ONE_MODALITY = Case(plain(dims=(3,)), joint="all")
ALL_MASKED = Case(Streams((2, 3), 2, (3, 3), True, "each", ((7, 7), (7, 7)), frozenset(), 2))
# A mask of its own for each modality and sample, which matters most where a mask is counted (the
# layer without length) or combined with others (the released joint).
HOLES = Streams((2, 3, 5), 2, (5,) * 3, True, "each", ((3, 31), (9, 0), (16, 1)), frozenset(), 3)
COUNTED = Case(HOLES, "none")
COMBINED = Case(HOLES, form="released")


@example(case=ONE_STEP)
@example(case=NO_SAMPLES)
@example(case=ONE_MODALITY)
@example(case=ALL_MASKED)
@example(case=COUNTED)
@example(case=COMBINED)
@given(case=cases())
def test_agrees_with_the_paper(case: Case) -> None:
    properties.agrees_with(case.layer(), case.twin, case.streams.inputs(), case.streams.mask())


@pytest.mark.parametrize("joint", ["others", "all"])
def test_reproduces_the_published_numbers(joint: Joint) -> None:
    data = released.load(f"rcma_release_{joint}")
    layer = RecursiveCrossModalAttention(released.DIMS, 13, joint=joint, form="released", dtype=F64)
    layer.load_state_dict(released.rcma_state(data, joint))
    released.reproduces(layer, *released.numbers(data))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(case=cases(most=3, batch=(1, 3)))
def test_agrees_with_the_paper_in_every_dtype(dtype: torch.dtype, case: Case) -> None:
    """Two steps without gates, whose temperature of 0.1 would magnify the rounding tenfold."""
    case = replace(case, recursions=min(case.recursions, 2), gate=False)
    if case.form == "stable":
        # A layer norm over two features and a correlation over two steps magnify rounding too.
        dims = tuple(dim + 8 for dim in case.streams.dims)
        lengths = tuple(length + 8 for length in case.streams.lengths)
        case = replace(case, streams=replace(case.streams, dims=dims, lengths=lengths))
    layer = case.layer(dtype)
    properties.agrees_with(layer, case.twin, case.streams.inputs(dtype), case.streams.mask())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["longest", "each", "none"])
def test_gradients_in_half_precision_agree_as_a_whole(kind: str, dtype: torch.dtype) -> None:
    """Single slopes flip where a relu's argument rounds across zero; the vector hardly turns.

    How many flip is chance (a few of thousands), so this is about the median of several draws.
    """
    errors: dict[str, list[float]] = {"inputs": [], "parameters": []}
    for seed in range(9):
        streams = replace(plain(dims=(11, 13, 17), batch=5, length=9), seed=seed)
        case = Case(streams, kind, recursions=1)
        inputs = case.streams.inputs(dtype)
        half = properties.evaluate(case.layer(dtype), inputs)
        layer = case.layer(dtype).double()
        exact = properties.evaluate(layer, {name: x.double() for name, x in inputs.items()})
        for part, found in errors.items():
            ours = torch.cat([g.flatten().double() for g in getattr(half, part).values()])
            true = torch.cat([g.flatten() for g in getattr(exact, part).values()])
            found.append(((ours - true).norm() / true.norm()).item())
    for part, found in errors.items():
        error = sorted(found)[len(found) // 2]
        assert error <= properties.TOLERANCES[dtype].output, f"{part}: off by {error:.3g} in norm"


@example(case=NO_SAMPLES)
@given(case=cases())
def test_gives_back_the_structure(case: Case) -> None:
    layer, mask = case.layer(), case.streams.mask()
    properties.same_structure(layer, case.streams.inputs(), mask)
    properties.does_not_mutate(layer, case.streams.inputs(), mask)


@given(case=cases(named=True))
def test_the_order_of_the_keys_does_not_matter(case: Case) -> None:
    layer, inputs = case.layer(), case.streams.inputs()
    backwards = dict(reversed(inputs.items()))
    properties.same_structure(layer, backwards)
    given_order, reverse = layer(inputs), layer(backwards)
    for name, x in inputs.items():
        assert x is None or torch.equal(given_order[name], reverse[name])


@given(case=cases(named=True), data=st.data())
def test_the_declared_order_does_not_matter(case: Case, data: st.DataObject) -> None:
    """A layer declared in another order computes the same from the same state dict."""
    names = data.draw(st.permutations(case.streams.names), label="order")
    properties.declared_in_any_order(
        case.layer(), case.redeclared(names), case.streams.inputs(), case.streams.mask()
    )


@given(case=cases(batch=(1, 3)))
def test_samples_do_not_mix(case: Case) -> None:
    properties.batch_independent(case.layer(), case.streams.inputs(), case.streams.mask())


@given(case=cases(spare=2))
def test_masked_steps_do_not_matter(case: Case) -> None:
    layer = case.layer()
    properties.padding_invariant(layer, case.streams.inputs(), case.streams.mask(), padding=2)


@given(case=cases(least=2), data=st.data())
def test_a_missing_modality_is_a_masked_one(case: Case, data: st.DataObject) -> None:
    inputs = case.streams.whole().inputs()
    mask = case.streams.mask()
    names = list(inputs) if case.streams.named else list(range(len(inputs)))
    name = data.draw(st.sampled_from(names))
    properties.missing_equals_masked(case.layer(), inputs, name, mask)


def permuted(case: Case, order: Sequence[int]) -> RecursiveCrossModalAttention:
    """The layer with its modalities declared in another order, and its parameters moved along."""
    old, source = case.streams, case.layer().state_dict()
    names = old.names
    moved = Case(
        Streams(
            tuple(old.dims[n] for n in order),
            old.batch,
            tuple(old.lengths[n] for n in order),
            old.named,
            old.masked,
            tuple(old.invalid[n] for n in order),
            frozenset(place for place, n in enumerate(order) if n in old.missing),
            old.seed,
        ),
        *[getattr(case, name) for name in list(Case.__dataclass_fields__)[1:]],
    )
    lengths = [length + case.spare for length in old.lengths]
    state = {}
    for key, value in source.items():
        head, _, tail = key.partition(".")
        index, name, part = (
            tail.split(".", 2) if head == "recursions" else ("", *tail.split(".", 1))
        )
        n = names.index(name)
        members = [m for m in range(len(names)) if case.joint == "all" or m != n]
        sizes = [old.dims[m] for m in members]
        into = [members.index(m) for m in order if m in members]
        rows = permuted_rows(sizes, into)
        meets_joint = "value" if case.form == "stable" else "output"
        if part in (meets_joint, "joint_bias"):
            value = value[rows]
        elif part == "joint":
            value = value[rows][:, rows]
        elif part == "temporal" and case.kind == "each":
            value = value[:, permuted_rows([lengths[m] for m in members], into)]
        place = str(order.index(n))
        state[".".join((head, *index, place, part))] = value
    layer = moved.layer()
    layer.load_state_dict(state)
    return layer


@given(case=cases(named=False), data=st.data())
def test_reordering_the_modalities_reorders_the_outputs(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.streams.dims))))
    inputs, mask = case.streams.inputs(), case.streams.mask()
    properties.modality_equivariant(case.layer(), permuted(case, order), inputs, mask, order)


@example(case=ALL_MASKED)
@example(case=NO_SAMPLES)
@given(case=cases())
def test_gradients_are_finite(case: Case) -> None:
    properties.finite_gradients(case.layer(), case.streams.inputs(), case.streams.mask())


@pytest.mark.parametrize("form", ["stable", "paper", "released"])
@pytest.mark.parametrize("joint", ["others", "all"])
@pytest.mark.parametrize("gate", [False, True])
def test_every_parameter_learns(form: Form, joint: Joint, gate: bool) -> None:
    case = Case(plain(dims=(5, 7, 11), batch=3, length=6), joint=joint, form=form, gate=gate)
    properties.every_parameter_gets_a_gradient(case.layer(), case.streams.inputs())


@pytest.mark.parametrize("kind", ["longest", "each", "none"])
def test_the_state_dict_is_the_whole_state(kind: str) -> None:
    case = Case(plain(), kind, gate=True)
    properties.state_dict_round_trip(case.layer, case.streams.inputs())


def test_parameter_names_are_the_contract() -> None:
    state = RecursiveCrossModalAttention(
        {"face": 2, "voice": 3}, 4, 2, form="paper", joint="others"
    ).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    expected = {
        f"recursions.{k}.{name}.{part}": shape
        for k in range(2)
        for name, d, joint in (("face", 2, 3), ("voice", 3, 2))
        for part, shape in (("temporal", (4, 4)), ("feature", (d, d)), ("output", (joint, d)))
    }
    assert shapes == expected


def test_parameter_names_of_the_stable_form() -> None:
    state = RecursiveCrossModalAttention({"face": 2, "voice": 3}, 4, 1).state_dict()
    expected = {
        f"recursions.0.{name}.{part}": shape
        for name, d in (("face", 2), ("voice", 3))
        for part, shape in (
            ("temporal", (4, 4)),
            ("key", (d, d)),
            ("value", (5, d)),
            ("feature", (d, d)),
            ("output", (d, d)),
            ("hidden", (d, d)),
            ("hidden_bias", (d,)),
            ("back", (d, d)),
        )
    }
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    timeless = RecursiveCrossModalAttention({"face": 2, "voice": 3}, None, 1).state_dict()
    assert set(timeless) == {name for name in expected if "temporal" not in name}


def test_parameter_names_of_the_other_forms() -> None:
    def names(form: str = "paper", **options: bool | str) -> set[str]:
        layer = RecursiveCrossModalAttention([2, 3], 4, form=form, **options)  # type: ignore[arg-type]  # drawn options
        return set(layer.state_dict())

    published = {
        f"recursions.{k}.{n}.{p}"
        for k in "01"
        for n in "01"
        for p in ("temporal", "feature", "output")
    }
    biases = {f"{name}_bias" for name in published}
    joints = {
        f"recursions.{k}.{n}.{p}" for k in "01" for n in "01" for p in ("joint", "joint_bias")
    }
    assert names() == published
    assert names(joint="all") == published
    assert names(share_weights=True) == {
        name for name in published if name.startswith("recursions.0")
    }
    assert names(form="released", joint="all") == published | biases
    assert names(form="released", joint="others") == published | biases | joints
    timeless = RecursiveCrossModalAttention([2, 3], form="paper")
    assert set(timeless.state_dict()) == {name for name in published if "temporal" not in name}


def test_shapes_of_unaligned_parameters() -> None:
    lengths = {"a": 7, "b": 4, "c": 9}
    layer = RecursiveCrossModalAttention({"a": 2, "b": 3, "c": 5}, lengths, 1, joint="others")
    assert layer.state_dict()["recursions.0.b.temporal"].shape == (4, 7 + 9)
    layer = RecursiveCrossModalAttention({"a": 2, "b": 3, "c": 5}, lengths, 1)
    assert layer.state_dict()["recursions.0.b.temporal"].shape == (4, 7 + 4 + 9)


@given(case=cases(masks=False), form=st.sampled_from(["stable", "paper"]), data=st.data())
def test_equal_lengths_with_equal_blocks_are_the_aligned_layer(
    case: Case, form: Form, data: st.DataObject
) -> None:
    aligned = Case(data.draw(streams()), "longest", 1, case.recursions, form=form, gate=case.gate)
    apart = Case(aligned.streams, "each", 1, case.recursions, form=form, gate=case.gate)
    one, many = aligned.layer(), apart.layer()
    others = len(aligned.streams.dims) - 1
    many.load_state_dict(
        {
            key: value.repeat(1, others) if key.endswith("temporal") else value
            for key, value in one.state_dict().items()
        }
    )
    inputs, mask = aligned.streams.inputs(), aligned.streams.mask()
    expected = properties.evaluate(one, inputs, mask)._replace(parameters={})
    actual = properties.evaluate(many, inputs, mask)._replace(parameters={})
    properties.same_result(actual, expected, "unaligned", properties.TOLERANCES[F64])


@given(case=cases())
def test_shared_weights_are_equal_weights(case: Case) -> None:
    shared = Case(case.streams, case.kind, case.spare, 3, case.joint, True, form=case.form)
    own = Case(case.streams, case.kind, case.spare, 3, case.joint, False, form=case.form)
    one, three = shared.layer(), own.layer()
    state = {
        f"recursions.{k}.{key.split('.', 2)[2]}": value
        for key, value in one.state_dict().items()
        for k in range(3)
    }
    three.load_state_dict(state)
    inputs, mask = case.streams.inputs(), case.streams.mask()
    for place, y in properties.places(one(inputs, mask)).items():
        properties.close(properties.places(three(inputs, mask))[place], y, place, 1e-12)


@given(case=cases())
def test_inspecting_changes_nothing(case: Case) -> None:
    layer, inputs, mask = case.layer(), case.streams.inputs(), case.streams.mask()
    seen, outputs = layer.inspect(inputs, mask), properties.places(layer(inputs, mask))
    assert len(seen.recursions) == case.recursions
    last = properties.places(seen.recursions[-1].features)
    for place, y in properties.places(seen.outputs).items():
        assert torch.equal(y, outputs[place]), f"{place}: the outputs are not those of forward"
        assert case.gate or torch.equal(y, last[place]), f"{place}: not the last features"
    for recursion in seen.recursions:
        for place, c in properties.places(recursion.correlations).items():
            h, y = properties.places(recursion.attention_maps)[place], outputs[place]
            assert c.abs().le(1 + 1e-12).all()
            if case.form == "stable":
                heads, width = c.shape[1:3]
                assert c.shape == (y.shape[0], heads, width, width)
                assert (h.shape, heads * width) == (y.shape, y.shape[2])
            else:
                assert c.shape == (y.shape[0], y.shape[2], h.shape[2])
                assert h.shape[:2] == y.shape[:2]
                assert h.ge(0).all()


@given(case=cases())
def test_recomputing_gives_the_same_numbers(case: Case) -> None:
    inputs, mask = case.streams.inputs(), case.streams.mask()
    kept, recomputed = case.layer(), case.layer(checkpoint=True)
    expected = properties.evaluate(kept, inputs, mask)
    actual = properties.evaluate(recomputed, inputs, mask)
    properties.same_result(actual, expected, "checkpoint", properties.Tolerance(0.0, 0.0))


def test_recomputing_repeats_the_dropout() -> None:
    """With dropout, the recomputed step must drop what the first pass dropped."""
    streams_ = plain()
    layer = filled(
        RecursiveCrossModalAttention(
            streams_.layer_dims, 4, dropout=0.5, checkpoint=True, dtype=F64
        ),
        1,
    )
    same = filled(RecursiveCrossModalAttention(streams_.layer_dims, 4, dropout=0.5, dtype=F64), 1)
    torch.manual_seed(0)
    actual = properties.evaluate(layer, streams_.inputs())
    torch.manual_seed(0)
    expected = properties.evaluate(same, streams_.inputs())
    properties.same_result(actual, expected, "checkpoint", properties.TOLERANCES[F64])


@given(case=cases())
def test_dropping_everything_leaves_the_input(case: Case) -> None:
    """x + dropout(...) with p = 1: the residual is what is left, in training only."""
    case = replace(case, gate=False)
    kept, dropping = case.layer(), case.layer(dropout=1.0)
    inputs, mask = case.streams.inputs(), case.streams.mask()
    is_the_input(dropping(inputs, mask), inputs, mask)
    dropping.eval()
    properties.does_not_mutate(dropping, inputs, mask)
    expected = properties.places(kept(inputs, mask))
    for place, y in properties.places(dropping(inputs, mask)).items():
        assert torch.equal(y, expected[place]), f"{place}: dropout in evaluation mode"


def is_the_input(outputs: Structure, inputs: Structure, mask: Structure) -> None:
    """Asserts that the outputs are the inputs, zero at invalid steps."""
    valid = properties.mask_of(inputs, mask)
    for place, y in properties.places(outputs).items():
        expected = properties.places(inputs)[place].masked_fill(~valid[place][..., None], 0)
        assert torch.equal(y, expected), f"{place} is not what came in"


@given(case=cases())
def test_stable_starts_as_the_identity(case: Case) -> None:
    layer = RecursiveCrossModalAttention(
        case.streams.layer_dims,
        case.length,
        case.recursions,
        joint=case.joint,
        dtype=F64,
    )
    inputs, mask = case.streams.inputs(), case.streams.mask()
    is_the_input(layer(inputs, mask), inputs, mask)


@pytest.mark.parametrize("length", [40, None])
@pytest.mark.parametrize("autocast", [False, True])
def test_sixteen_stable_recursions_stay_finite(length: int | None, autocast: bool) -> None:
    layer = RecursiveCrossModalAttention([64, 16, 32], length, 16)
    layer = filled(layer, 5)
    inputs = [torch.randn(2, 40, dim) for dim in (64, 16, 32)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        properties.finite_gradients(layer, inputs)


def test_initialisation_is_xavier_and_seeded() -> None:
    def build() -> RecursiveCrossModalAttention:
        torch.manual_seed(1)
        return RecursiveCrossModalAttention({"a": 40, "b": 60}, 50, form="paper", joint="others")

    first, second = build(), build()
    for name, value in first.named_parameters():
        bound = (6 / sum(value.shape)) ** 0.5
        assert value.abs().max() <= bound, name
        assert value.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name
        assert torch.equal(value, second.get_parameter(name))
    torch.manual_seed(1)
    with torch.no_grad():
        for value in second.parameters():
            value.zero_()
    second.reset_parameters()
    for name, value in first.named_parameters():
        assert torch.equal(value, second.get_parameter(name)), name


def test_the_stable_form_starts_with_steps_of_the_same_time() -> None:
    layer = RecursiveCrossModalAttention([2, 3], 4)
    for name, value in layer.named_parameters():
        if name.endswith("temporal"):
            assert torch.equal(value, torch.eye(4)), name
        elif name.endswith(("output", "hidden_bias", "back")):
            assert not value.any(), name
        else:
            assert 0 < value.abs().max() <= (6 / sum(value.shape)) ** 0.5, name


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((2, 2), [[1, 0], [0, 1]]),
        ((2, 4), [[1, 1, 0, 0], [0, 0, 1, 1]]),
        ((3, 2), [[1, 0], [0.5, 0.5], [0, 1]]),
    ],
)
def test_steps_of_different_rates_meet_for_the_time_that_they_share(
    lengths: tuple[int, int], expected: list[list[float]]
) -> None:
    layer = RecursiveCrossModalAttention(
        [2, 3], lengths, form="paper", joint="others", temporal_init="identity", dtype=F64
    )
    found = layer.get_parameter("recursions.0.0.temporal").detach()
    properties.close(found, torch.tensor(expected, dtype=F64), "T", 1e-12)


@given(seed=st.integers(0, 999), copies=st.integers(2, 4))
def test_the_stable_correlation_does_not_depend_on_the_length(seed: int, copies: int) -> None:
    """A window repeated end to end has the same C, and the same outputs, repeated."""
    layer = filled(RecursiveCrossModalAttention([4, 6], dtype=F64), seed)
    generator = torch.Generator().manual_seed(seed)
    x = [torch.randn(2, 5, dim, generator=generator, dtype=F64) for dim in (4, 6)]
    once, often = layer.inspect(x), layer.inspect([y.repeat(1, copies, 1) for y in x])
    for one, many in zip(once.recursions, often.recursions, strict=True):
        for c, again in zip(one.correlations, many.correlations, strict=True):
            properties.close(again, c, "C", 1e-10)
    for y, again in zip(once.outputs, often.outputs, strict=True):
        properties.close(again, y.repeat(1, copies, 1), "outputs", 1e-10)


@given(case=cases(), more=st.integers(1, 3))
def test_a_lengthened_layer_computes_the_same(case: Case, more: int) -> None:
    """With one length or one for each, gates, the released biases, shared weights."""
    layer, length = case.layer(), case.length
    if length is None:
        with pytest.raises(ValueError, match="length is not of the kind of this layer's"):
            layer.lengthened(9)
        return
    longer: int | dict[str, int] | list[int] = (
        length + more
        if isinstance(length, int)
        else {name: n + more for name, n in length.items()}
        if isinstance(length, dict)
        else [n + more for n in length]
    )
    inputs, mask = case.streams.inputs(), case.streams.mask()
    grown = layer.lengthened(longer)
    assert grown.length == longer
    expected = properties.places(layer(inputs, mask))
    for other in (grown, grown.lengthened(length)):
        for place, y in properties.places(other(inputs, mask)).items():
            properties.close(y, expected[place], place, 1e-12)


@pytest.mark.parametrize("form", ["stable", "paper", "released"])
def test_factory_arguments_reach_every_parameter(
    form: Form,
) -> None:
    layer = RecursiveCrossModalAttention(
        [2, 3], 4, form=form, gate=True, device="meta", dtype=torch.bfloat16
    )
    for name, value in layer.named_parameters():
        assert value.device.type == "meta", name
        assert value.dtype == torch.bfloat16, name


def test_printing_explains_the_layer() -> None:
    layer = RecursiveCrossModalAttention({"face": 2, "voice": 3}, 7, 3)
    text = repr(layer)
    for part in (
        "RecursiveCrossModalAttention",
        "'face': 2",
        "length=7",
        "recursions=3",
        "joint='all'",
        "form='stable'",
    ):
        assert part in text, f"{part} is not in\n{text}"


def test_other_containers_are_welcome() -> None:
    """Any Mapping or Sequence will do, and lists of dims too."""
    from collections import OrderedDict
    from types import MappingProxyType

    x = plain().inputs()
    layer = filled(
        RecursiveCrossModalAttention(OrderedDict(video=2, audio=3, text=5), 4, dtype=F64), 0
    )
    expected = layer(x)
    for other in (OrderedDict(x), MappingProxyType(x)):
        given_ = layer(other)
        assert type(given_) is dict
        assert all(torch.equal(given_[name], y) for name, y in expected.items())
    in_order = filled(RecursiveCrossModalAttention((2, 3, 5), 4, dtype=F64), 0)
    assert type(in_order(list(x.values()))) is tuple


def test_inputs_that_are_not_contiguous() -> None:
    layer = filled(RecursiveCrossModalAttention([2, 3], 4, dtype=F64), 0)
    x = [torch.randn(2, dim, 4, dtype=F64) for dim in (2, 3)]
    expected = layer([y.mT.contiguous() for y in x])
    for y, z in zip(layer([y.mT for y in x]), expected, strict=True):
        properties.close(y, z, "transposed", 1e-12)


def test_expanded_masks_and_inputs() -> None:
    """One sample expanded over the batch, as broadcasting users do."""
    layer = filled(RecursiveCrossModalAttention([2, 3], 4, dtype=F64), 0)
    x = [torch.randn(1, 4, dim, dtype=F64).expand(3, 4, dim) for dim in (2, 3)]
    mask = torch.tensor([[True, False, True, True]]).expand(3, 4)
    properties.padding_invariant(layer, x, mask)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["longest", "none"])
def test_the_compiled_layer_is_the_layer(kind: str) -> None:
    case = Case(
        Streams((2, 3), 2, (4, 4), True, "each", ((1, 0), (0, 6)), frozenset(), 2), kind, spare=3
    )
    layer = case.layer()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for mask in (None, case.streams.mask()):
        properties.eager_equals_compiled(layer, compiled, case.streams.inputs(), mask)


def test_gradcheck() -> None:
    """Autograd against finite differences, once, in the smallest case that has everything."""
    case = Case(plain(dims=(2, 3), batch=1, length=2), recursions=1)
    layer = case.layer()

    def run(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer({"video": a, "audio": b}).values())

    inputs = [x.requires_grad_() for x in case.streams.tensors()]
    assert torch.autograd.gradcheck(run, inputs)
