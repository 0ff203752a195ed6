"""Each law of `tests.support.properties` passes an honest layer and catches a planted violation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from tests.support import properties, reference
from tests.support.reference import Structure
from tests.support.strategies import every_cutting

DIMS = {"a": 2, "b": 3, "c": 5}
Change = Callable[["Summing", dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]


class Summing(nn.Module):
    """An honest fusion: each modality gets a linear map of the others' sums over time.

    `plant` may spoil the outputs, given the raw inputs and the honest outputs.
    """

    def __init__(self, plant: Change | None = None, *, clean: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.plant, self.clean = plant, clean
        self.maps = nn.ParameterDict(
            {
                f"{i}{j}": self._weight(DIMS[j], DIMS[i], generator)
                for i in DIMS
                for j in DIMS
                if i != j
            }
        )

    @staticmethod
    def _weight(rows: int, columns: int, generator: torch.Generator) -> nn.Parameter:
        return nn.Parameter(torch.randn(rows, columns, generator=generator, dtype=torch.float64))

    def forward(self, modalities: Structure, mask: Structure = None) -> Structure:
        raw = {
            name: x
            for name, x in reference.by_name(modalities, list(DIMS)).items()
            if x is not None
        }
        masks = reference.by_name(mask, list(DIMS))
        kept = {
            name: x
            if (m := masks[name]) is None or not self.clean
            else x.masked_fill(~m[..., None], 0)
            for name, x in raw.items()
        }
        outputs = {}
        for i, x in kept.items():
            total = x
            for j, y in kept.items():
                if j != i:
                    total = total + (y.sum(dim=1) @ self.maps[f"{i}{j}"])[:, None]
            own = masks[i]
            outputs[i] = (
                total if own is None or not self.clean else total.masked_fill(~own[..., None], 0)
            )
        if self.plant is not None:
            outputs = self.plant(self, raw, outputs)
        if isinstance(modalities, Mapping):
            return {name: outputs.get(name) for name in modalities}
        return tuple(outputs.get(name) for name in DIMS)


def planted(change: Callable[[dict[str, Tensor], dict[str, Tensor]], None]) -> Summing:
    """A Summing whose outputs are changed in place of the dict."""

    def plant(_: Summing, raw: dict[str, Tensor], outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = dict(outputs)
        change(raw, outputs)
        return outputs

    return Summing(plant)


def inputs(batch: int = 2, steps: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(batch, steps, dim, generator=generator, dtype=torch.float64)
        for name, dim in DIMS.items()
    }


MASK = torch.tensor([[True, True, False, True], [False, True, True, False]])


def test_an_honest_layer_obeys_every_law() -> None:
    layer, x = Summing(), inputs()
    for mask in (None, MASK, {"b": MASK}):
        properties.same_structure(layer, x, mask)
        properties.same_structure(
            layer, tuple(x.values()), mask if not isinstance(mask, dict) else (None, MASK, None)
        )
        properties.does_not_mutate(layer, x, mask)
        properties.batch_independent(layer, x, mask)
        properties.padding_invariant(layer, x, mask, padding=2)
        properties.finite_gradients(layer, x, mask)
        properties.every_parameter_gets_a_gradient(layer, x, mask)
        properties.eager_equals_compiled(layer, layer, x, mask)
        properties.agrees_with(layer, twin, x, mask)
        for name in DIMS:
            properties.missing_equals_masked(layer, x, name, mask)
    properties.state_dict_round_trip(Summing, x)


def twin(state: dict[str, Tensor], modalities: Structure, mask: Structure) -> Structure:
    """Summing, by hand."""
    masks = reference.by_name(mask, list(DIMS))
    kept = {
        n: x if (m := masks[n]) is None else torch.where(m[..., None], x, 0.0)
        for n, x in modalities.items()
    }
    outputs = {}
    for i, x in kept.items():
        y = x + sum(
            torch.einsum("btd,de->be", kept[j], state[f"maps.{i}{j}"])[:, None]
            for j in kept
            if j != i
        )
        own = masks[i]
        outputs[i] = y if own is None else torch.where(own[..., None], y, 0.0)
    return outputs


def test_close_tells_the_size_of_the_error() -> None:
    with pytest.raises(AssertionError, match=r"y: off by 0\.125 of scale 8, allowed 1e-10"):
        properties.close(torch.tensor([8.0, 1.0]), torch.tensor([8.0, 2.0]), "y", 1e-10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_close_does_not_accept_what_is_not_finite(bad: float) -> None:
    with pytest.raises(AssertionError):
        properties.close(torch.tensor([bad]), torch.tensor([1.0]), "y", 1.0)
    with pytest.raises(AssertionError, match="not finite"):
        properties.close(torch.tensor([bad]), torch.tensor([bad]), "y", 1.0)


def test_close_compares_shapes() -> None:
    with pytest.raises(AssertionError, match=r"shape \(1, 2\) != \(2,\)"):
        properties.close(torch.zeros(1, 2), torch.zeros(2), "y", 1.0)


def test_a_missing_output_is_noticed() -> None:
    whole = properties.evaluate(Summing(), inputs())
    less = whole._replace(outputs={name: y for name, y in whole.outputs.items() if name != "b"})
    with pytest.raises(AssertionError, match="outputs"):
        properties.same_result(less, whole, "less", properties.TOLERANCES[torch.float64])


def test_evaluate_gives_the_gradients_of_autograd() -> None:
    layer = nn.Linear(2, 3, dtype=torch.float64)
    x = inputs()["a"]
    result = properties.evaluate(lambda m, _: layer(m), x)
    expected = properties.cotangents(result.outputs)[""] @ layer.weight
    properties.close(result.inputs[""], expected, "gradient", 1e-12)


def test_same_structure_catches() -> None:
    x = inputs()
    layer = Summing()

    def swapped(m: Structure, mask: Structure = None) -> Structure:
        return dict(reversed(list(layer(m, mask).items())))

    with pytest.raises(AssertionError, match="names"):
        properties.same_structure(swapped, x)
    with pytest.raises(AssertionError, match="expected dict"):
        properties.same_structure(lambda m, k: tuple(layer(m, k).values()), x)
    with pytest.raises(AssertionError, match="expected tuple"):
        properties.same_structure(lambda m, k: list(layer(m, k)), tuple(x.values()))
    with pytest.raises(AssertionError, match="dtype"):
        properties.same_structure(lambda m, k: {n: y.float() for n, y in layer(m, k).items()}, x)
    with pytest.raises(AssertionError, match="shape"):
        properties.same_structure(lambda m, k: {n: y[:, 1:] for n, y in layer(m, k).items()}, x)
    with pytest.raises(AssertionError, match="missing"):
        properties.same_structure(lambda m, k: {**layer(m, k), "b": x["b"]}, {**x, "b": None})


def test_batch_independent_catches_mixing() -> None:
    def mix(_: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        outputs["b"] = outputs["b"] + 1e-6 * outputs["b"].mean(dim=0, keepdim=True)

    with pytest.raises(AssertionError, match=r"sample 0, output 'b': off by"):
        properties.batch_independent(planted(mix), inputs())


def test_batch_independent_catches_mixing_of_gradients_only() -> None:
    def mix(_: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        leak = outputs["b"].mean(dim=0, keepdim=True)
        outputs["b"] = outputs["b"] + leak - leak.detach()

    with pytest.raises(AssertionError, match=r"gradient of input '[abc]'"):
        properties.batch_independent(planted(mix), inputs())


def test_batch_independent_catches_multiplying_by_zero() -> None:
    def mix(_: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        outputs["b"] = outputs["b"] + 0 * outputs["b"].flip(0)

    with pytest.raises(AssertionError, match="among NaN"):
        properties.batch_independent(planted(mix), inputs())


def test_modality_equivariant_catches_a_favourite() -> None:
    x = tuple(inputs().values())
    order = (2, 0, 1)

    def honest(m: Structure, _: Structure = None) -> Structure:
        total = sum(y.mean(dim=(1, 2)) for y in m)
        return tuple(y + total[:, None, None] for y in m)

    def unfair(m: Structure, _: Structure = None) -> Structure:
        return tuple(y + m[0].mean(dim=(1, 2))[:, None, None] for y in m)

    properties.modality_equivariant(honest, honest, x, None, order)
    with pytest.raises(AssertionError, match="modality 2 at place 0: output"):
        properties.modality_equivariant(unfair, unfair, x, None, order)


def test_declared_in_any_order_catches_the_order() -> None:
    class Declared(nn.Module):
        """Concatenates in declared order, or sorted, and maps."""

        def __init__(self, names: list[str], *, order: bool) -> None:
            super().__init__()
            self.names = names if order else sorted(names)
            self.weight = nn.Parameter(torch.arange(10.0, dtype=torch.float64))

        def forward(self, modalities: Structure, mask: Structure = None) -> Tensor:
            return torch.cat([modalities[name] for name in self.names], dim=-1) * self.weight

    for order in (False, True):
        layer, other = (Declared(names, order=order) for names in (list("abc"), list("bca")))
        if order:
            with pytest.raises(AssertionError, match="another order: output '': off"):
                properties.declared_in_any_order(layer, other, inputs())
        else:
            properties.declared_in_any_order(layer, other, inputs())


def test_padding_invariant_catches_multiplying_by_the_mask() -> None:
    layer = Summing(clean=False)

    def multiplied(m: Structure, mask: Structure = None) -> Structure:
        masks = reference.by_name(mask, list(DIMS))
        clean = {n: x if (k := masks[n]) is None else x * k[..., None] for n, x in m.items()}
        out = layer(clean, None)
        return {n: y if (k := masks[n]) is None else y * k[..., None] for n, y in out.items()}

    with pytest.raises(AssertionError, match=r"not finite|off by nan|nan in masked steps"):
        properties.padding_invariant(multiplied, inputs(), MASK)


def test_padding_invariant_catches_outputs_at_masked_steps() -> None:
    def leave(raw: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        outputs["a"] = outputs["a"] + 1.0

    with pytest.raises(AssertionError, match=r"output 'a' is .* at masked steps"):
        properties.padding_invariant(planted(leave), inputs(), MASK)


def test_padding_invariant_catches_reading_masked_steps() -> None:
    def read(raw: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        outputs["a"] = torch.where(
            outputs["a"] == 0, 0, outputs["a"] + raw["b"].nan_to_num(3, 4, 5).sum()
        )

    with pytest.raises(AssertionError, match=r"gradient of input 'b' is|in masked steps"):
        properties.padding_invariant(planted(read), inputs(), MASK)


def test_padding_invariant_catches_dependence_on_the_length() -> None:
    def divide(raw: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        outputs["a"] = outputs["a"] / raw["a"].shape[1]

    properties.padding_invariant(planted(divide), inputs(), MASK)
    with pytest.raises(AssertionError, match="2 steps of padding: output 'a'"):
        properties.padding_invariant(planted(divide), inputs(), MASK, padding=2)


def test_missing_equals_masked_catches_counting_modalities() -> None:
    def count(raw: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        outputs["a"] = (
            outputs["a"] / len(raw) if "a" in outputs else outputs.get("a", torch.zeros(()))
        )

    with pytest.raises(AssertionError, match="'b' masked against None: output 'a'"):
        properties.missing_equals_masked(planted(count), inputs(), "b")


def test_missing_equals_masked_catches_what_comes_back() -> None:
    x = inputs()
    layer = Summing()
    with pytest.raises(AssertionError, match="came out as a tensor"):
        properties.missing_equals_masked(lambda m, k: {n: layer(x, k)[n] for n in m}, x, "b")

    def returning(m: Structure, mask: Structure = None) -> Structure:
        out = dict(layer(m, mask))
        return out if "b" in m else {**out, "b": None}

    with pytest.raises(AssertionError, match="came back"):
        properties.missing_equals_masked(returning, x, "b")


def test_missing_equals_masked_catches_one_sample_differing() -> None:
    def look(raw: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        if "b" in outputs and "a" in outputs:
            empty = (outputs["b"] == 0).flatten(1).all(dim=1)
            some = empty.any() & ~empty.all()
            outputs["a"] = outputs["a"] + 1e-3 * some

    with pytest.raises(AssertionError, match="'b' missing in sample 0: sample 0, output 'a'"):
        properties.missing_equals_masked(planted(look), inputs(), "b")


def test_finite_gradients_catches_an_infinite_slope() -> None:
    def root(raw: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        outputs["a"] = outputs["a"] + (raw["a"] * 0).abs().sqrt()

    with pytest.raises(
        AssertionError, match="gradient of input 'a': 16 of 16 entries are not finite"
    ):
        properties.finite_gradients(planted(root), inputs())


def test_every_parameter_gets_a_gradient_catches_a_dead_one() -> None:
    def detach(_: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        outputs["c"] = outputs["c"].detach() + outputs["b"][..., :1]

    with pytest.raises(
        AssertionError, match=r"2 of 6 parameters get no gradient: \['maps\.ca', 'maps\.cb'\]"
    ):
        properties.every_parameter_gets_a_gradient(planted(detach), inputs())
    with pytest.raises(AssertionError, match="no trainable parameter"):
        properties.every_parameter_gets_a_gradient(Bare(), inputs()["a"])


def test_agrees_with_catches_wrong_values_and_wrong_gradients() -> None:
    def value(_: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        outputs["c"] = outputs["c"] * (1 + 1e-8)

    def slope(_: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        outputs["c"] = outputs["c"] + 1e-6 * (outputs["c"] - outputs["c"].detach())

    with pytest.raises(AssertionError, match="against the twin: output 'c': off by"):
        properties.agrees_with(planted(value), twin, inputs())
    with pytest.raises(AssertionError, match=r"against the twin: gradient of (input|parameter)"):
        properties.agrees_with(planted(slope), twin, inputs())


def test_agrees_with_catches_wrong_parameter_gradients() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x * self.weight.detach()

    with pytest.raises(AssertionError, match="gradient of parameter 'weight'"):
        properties.agrees_with(Frozen(), lambda state, x, _: x * state["weight"], inputs()["a"])


def test_does_not_mutate_catches_every_kind() -> None:
    layer = Summing()

    def scale(m: Structure, mask: Structure = None) -> Structure:
        m["a"].mul_(2)

    def there_and_back(m: Structure, mask: Structure = None) -> Structure:
        m["a"].neg_().neg_()

    def pop(m: Structure, mask: Structure = None) -> Structure:
        m.pop("a")

    def mark(m: Structure, mask: Structure = None) -> Structure:
        mask.fill_(True)

    def roll(m: Structure, mask: Structure = None) -> Structure:
        torch.rand(1)

    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.calls: Tensor

        def forward(self, m: Structure, mask: Structure = None) -> Structure:
            self.calls += 1

    properties.does_not_mutate(layer, inputs(), MASK)
    for spoil, message in (
        (scale, "input a was changed in 16 entries"),
        (there_and_back, "input a was written to in place"),
        (pop, "container was changed"),
        (mark, "mask  was changed in 3 entries"),
        (roll, "global random generator"),
        (Counter(), "state calls was changed"),
    ):
        with pytest.raises(AssertionError, match=message):
            properties.does_not_mutate(spoil, inputs(), MASK.clone())


def test_eager_equals_compiled_catches_another_number() -> None:
    layer = Summing()
    with pytest.raises(AssertionError, match="compiled against eager: output 'a'"):
        properties.eager_equals_compiled(
            layer, lambda m, k: {n: y + 1e-8 for n, y in layer(m, k).items()}, inputs()
        )
    with pytest.raises(AssertionError, match="compiled against eager: gradient of"):
        properties.eager_equals_compiled(
            layer,
            lambda m, k: {n: y.detach() + m[n] - m[n].detach() for n, y in layer(m, k).items()},
            inputs(),
        )


@pytest.mark.slow
def test_one_graph_serves_catches_a_graph_for_each_length() -> None:
    class Baked(nn.Module):
        def __init__(self, *, bake: bool) -> None:
            super().__init__()
            self.bake = bake

        def forward(self, x: Tensor, mask: Structure = None) -> Tensor:
            return x * (2 if self.bake and x.shape[1] == 7 else x.shape[1])

    calls = [(torch.randn(b, t, 2), None) for b, t in ((6, 7), (3, 9), (5, 4))]
    properties.one_graph_serves(Baked(bake=False), calls)
    with pytest.raises(AssertionError, match="2 graphs, after 1 at first"):
        properties.one_graph_serves(Baked(bake=True), calls)


def test_state_dict_round_trip_catches_hidden_state() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
            self.offset = torch.rand((), dtype=torch.float64)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x * self.weight + self.offset

    with pytest.raises(AssertionError, match="after the round trip"):
        properties.state_dict_round_trip(Hidden, inputs()["a"])


class Bare(nn.Module):
    """A layer without parameters."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


class Running(nn.Module):
    """A running sum of weighted steps: the smallest stream."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.cumsum(dim=1)

    def stream(self, chunk: Tensor, state: Structure) -> tuple[Tensor, Structure]:
        start = torch.zeros_like(chunk[:, :1]) if state is None else state
        total = chunk.cumsum(dim=1) + start
        return self.weight * total, total[:, -1:]


class Forgetful(Running):
    def stream(self, chunk: Tensor, state: Structure) -> tuple[Tensor, Structure]:
        return super().stream(chunk, None)


class CutOff(Running):
    def stream(self, chunk: Tensor, state: Structure) -> tuple[Tensor, Structure]:
        y, total = super().stream(chunk, state)
        return y, total.detach()


class Writing(Running):
    def stream(self, chunk: Tensor, state: Structure) -> tuple[Tensor, Structure]:
        result = super().stream(chunk, state)
        if state is not None:
            state.data.add_(1)
        return result


class Remembering(Running):
    calls = 0

    def stream(self, chunk: Tensor, state: Structure) -> tuple[Tensor, Structure]:
        self.calls += 1
        y, total = super().stream(chunk, state)
        return y + self.calls, total


class Unweighted(Running):
    def stream(self, chunk: Tensor, state: Structure) -> tuple[Tensor, Structure]:
        y, total = super().stream(chunk, state)
        return y / self.weight * self.weight.detach(), total


@pytest.mark.parametrize("cuts", every_cutting(4), ids=str)
def test_an_honest_stream_obeys_its_law(cuts: list[int]) -> None:
    properties.stream_equals_whole(Running(), inputs()["a"], cuts)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Forgetful(), r"cut at \[2\]: output"),
        (CutOff(), r"cut at \[2\]: gradient of input"),
        (Writing(), "the state was changed by the chunk from 2 to 4"),
        (Remembering(), "the same state gave another answer for the chunk from 0 to 2, off by 1"),
        (Unweighted(), r"cut at \[2\]: gradient of parameter 'weight'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_stream_equals_whole_catches(layer: Running, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        properties.stream_equals_whole(layer, inputs()["a"], [2])


def test_causal_catches_the_future() -> None:
    x = inputs()["a"]
    properties.causal(lambda m, _: m.cumsum(dim=1), x)
    with pytest.raises(AssertionError, match="with NaN after it"):
        properties.causal(lambda m, _: m + m.mean(dim=1, keepdim=True), x)
    with pytest.raises(AssertionError, match="with respect to later inputs"):
        properties.causal(lambda m, _: m.cumsum(dim=1) + _hidden_slope(m), x)


def _hidden_slope(m: Tensor) -> Tensor:
    """Zero in value, with a slope towards every step."""
    safe = m.nan_to_num().sum(dim=1, keepdim=True)
    return safe - safe.detach()


def test_the_rcma_twin_by_hand() -> None:
    """Two modalities of one feature and one step: C = tanh(2·0.5·3), H = relu(2·1·C), X + H·10."""
    state = {
        f"recursions.0.{name}.{part}": torch.tensor([[value]], dtype=torch.float64)
        for name in "ab"
        for part, value in (("temporal", 0.5), ("feature", 1.0), ("output", 10.0))
    }
    x = {
        "a": torch.tensor([[[2.0]]], dtype=torch.float64),
        "b": torch.tensor([[[3.0]]], dtype=torch.float64),
    }
    y = reference.recursive_cross_modal_attention(
        state, x, dims={"a": 1, "b": 1}, length=1, recursions=1, form="paper", joint="others"
    )
    c = torch.tanh(torch.tensor(3.0, dtype=torch.float64))
    properties.close(y["a"].flatten(), (2 + 20 * c).reshape(1), "a", 1e-14)
    properties.close(y["b"].flatten(), (3 + 30 * c).reshape(1), "b", 1e-14)


def test_the_concordance_twin_by_hand() -> None:
    """x = 0, 2 and y = 1, 5: means 1 and 3, biased variances 1 and 4, covariance 2."""
    x, y = (
        torch.tensor([0.0, 2.0], dtype=torch.float64),
        torch.tensor([1.0, 5.0], dtype=torch.float64),
    )
    assert reference.concordance(x, y).item() == pytest.approx(2 * 2 / (1 + 4 + 4), rel=1e-14)
    assert reference.concordance(x, y, mixed_moments=True).item() == pytest.approx(
        4 / (2 + 8 + 4), rel=1e-14
    )


def test_the_tcn_twin_by_torch() -> None:
    """Without masks, one block is two of torch's convolutions with padding on the left."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(2, 9, 3)
    block = reference.ConvBlock(
        (draw(5, 3, 3), draw(5, 5, 3)), (draw(5), draw(5)), (draw(5, 3, 1), draw(5))
    )
    y = x.mT
    for weight, bias in zip(block.weights, block.biases, strict=True):
        y = nn.functional.leaky_relu(
            nn.functional.conv1d(nn.functional.pad(y, (2, 0)), weight, bias), 0.01
        )
    assert block.residual is not None
    y = nn.functional.leaky_relu(y + nn.functional.conv1d(x.mT, *block.residual), 0.01)
    properties.close(reference.temporal_conv_net([block], x), y.mT, "one block", 1e-12)
