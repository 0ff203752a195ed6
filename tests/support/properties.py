"""The laws, by name. Each is a function that raises AssertionError with the violation's size.

A *layer* here is any callable `layer(modalities, mask)` whose modalities are a mapping, a sequence
or one tensor; where it is a module, its parameters' gradients are compared too. Dropout must be
off. `tests/project/test_properties.py` plants a violation of each law and checks that it is caught.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tests.support.reference import Structure, by_name

Layer = Callable[..., Structure]
Twin = Callable[[dict[str, Tensor], Structure, Structure], Structure]


class Tolerance(NamedTuple):
    """Largest error allowed, as a share of max(1, the largest expected entry).

    Gradients in half precision are not compared entry by entry (None): where the argument of a
    relu rounds across zero, its slope is another.
    """

    output: float
    gradient: float | None


# For the halves, 16 units of their roundoff.
TOLERANCES = {
    torch.float64: Tolerance(1e-10, 1e-8),
    torch.float32: Tolerance(1e-5, 1e-4),
    torch.bfloat16: Tolerance(2.0**-4, None),
    torch.float16: Tolerance(2.0**-7, None),
}
GARBAGE = (float("nan"), float("inf"), -1e30)


class Result(NamedTuple):
    """What a layer gave: outputs by place, and the gradients of a fixed functional of them."""

    outputs: dict[str, Tensor]
    inputs: dict[str, Tensor]
    parameters: dict[str, Tensor]


def places(values: Structure) -> dict[str, Tensor]:
    """The tensors in a mapping, a sequence or a lone tensor, by name or index; None is left out."""
    if isinstance(values, Tensor):
        return {"": values}
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    return {str(name): value for name, value in items if value is not None}


def replace(values: Structure, tensors: Mapping[str, Tensor | None]) -> Structure:
    """The same structure with other tensors at the places named."""
    if isinstance(values, Tensor):
        return tensors.get("", values)
    if isinstance(values, Mapping):
        return {name: tensors.get(str(name), value) for name, value in values.items()}
    return tuple(tensors.get(str(index), value) for index, value in enumerate(values))


def close(actual: Tensor, expected: Tensor, what: str, tolerance: float | None) -> None:
    """Asserts that two tensors agree in shape and, to the tolerance, in every entry."""
    __tracebackhide__ = True
    assert actual.shape == expected.shape, (
        f"{what}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    )
    if actual.numel() == 0 or (tolerance is None and torch.isfinite(actual).all()):
        return
    tolerance = 0.0 if tolerance is None else tolerance
    actual, expected = actual.detach().double(), expected.detach().double()
    assert torch.isfinite(expected).all(), f"{what}: the expected value is not finite"
    scale = max(1.0, expected.abs().max().item())
    error = (actual - expected).abs().max().item() / scale
    assert error <= tolerance, (
        f"{what}: off by {error:.3g} of scale {scale:.3g}, allowed {tolerance:.3g}"
    )


def evaluate(
    layer: Layer,
    modalities: Structure,
    mask: Structure = None,
    *,
    weigh: Mapping[str, Tensor] | None = None,
    owner: nn.Module | None = None,
) -> Result:
    """Runs forward and backward of sum(weight * output) on copies of the inputs.

    Without `weigh` the weights are `cotangents`. The parameters are those of `owner`, else of the
    layer itself where it is a module.
    """
    leaves = {place: x.detach().clone().requires_grad_() for place, x in places(modalities).items()}
    owner = layer if owner is None and isinstance(layer, nn.Module) else owner
    parameters = {} if owner is None else dict(owner.named_parameters())
    outputs = places(layer(replace(modalities, leaves), mask))
    weights = cotangents(outputs) if weigh is None else weigh
    total = sum(((weights[place] * y).sum() for place, y in outputs.items()), torch.zeros(()))
    sources = {
        **{f"input {k}": v for k, v in leaves.items()},
        **{f"parameter {k}": v for k, v in parameters.items()},
    }
    trained = {name: source for name, source in sources.items() if source.requires_grad}
    gradients = _gradients(total, trained)
    return Result(
        {place: y.detach() for place, y in outputs.items()},
        {place: gradients[f"input {place}"] for place in leaves},
        {name: gradients[f"parameter {name}"] for name, p in parameters.items() if p.requires_grad},
    )


def _gradients(total: Tensor, sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Autograd's gradients, zero where a source takes no part."""
    found: Sequence[Tensor | None] = [None] * len(sources)
    if total.requires_grad and sources:
        found = torch.autograd.grad(total, list(sources.values()), allow_unused=True)
    return {
        name: torch.zeros_like(source) if gradient is None else gradient
        for (name, source), gradient in zip(sources.items(), found, strict=True)
    }


def cotangents(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fixed weights for the outputs by their shapes, in eighths and so exact in every dtype."""
    weights = {}
    for place, y in outputs.items():
        generator = torch.Generator().manual_seed(7)
        weights[place] = torch.randint(-8, 9, y.shape, generator=generator).to(y.dtype) / 8
    return weights


def same_result(actual: Result, expected: Result, what: str, tolerance: Tolerance) -> None:
    """Asserts that outputs and all gradients agree."""
    __tracebackhide__ = True
    for part, allowed in (
        ("outputs", tolerance.output),
        ("inputs", tolerance.gradient),
        ("parameters", tolerance.gradient),
    ):
        ours, theirs = getattr(actual, part), getattr(expected, part)
        assert ours.keys() == theirs.keys(), f"{what}: {part} {list(ours)} != {list(theirs)}"
        kind = "output" if part == "outputs" else f"gradient of {part[:-1]}"
        for place, value in ours.items():
            close(value, theirs[place], f"{what}: {kind} {place!r}", allowed)


def tolerance_of(modalities: Structure) -> Tolerance:
    """The table's row for the inputs' dtype."""
    return TOLERANCES[next(iter(places(modalities).values())).dtype]


def mask_of(modalities: Structure, mask: Structure) -> dict[str, Tensor]:
    """A full mask per modality that is present, True = valid."""
    tensors = places(modalities)
    if isinstance(modalities, Sequence):
        names = [str(index) for index in range(len(modalities))]
        given = by_name(mask, names)
    elif isinstance(modalities, Tensor):
        given = {"": mask}
    else:
        given = by_name(mask, list(tensors))
    full: dict[str, Tensor] = {}
    for place, x in tensors.items():
        own = given[place]
        full[place] = torch.ones(x.shape[:2], dtype=torch.bool) if own is None else own
    return full


def _sample_of(mask: Structure, sample: int) -> Structure:
    """The mask argument of one sample alone."""
    if mask is None or isinstance(mask, Tensor):
        return None if mask is None else mask[sample : sample + 1]
    return replace(mask, {place: m[sample : sample + 1] for place, m in places(mask).items()})


def _per_modality(modalities: Structure, masks: Mapping[str, Tensor]) -> Structure:
    """A mask argument of the modalities' own structure."""
    if isinstance(modalities, Tensor):
        return masks[""]
    if isinstance(modalities, Mapping):
        return {name: masks.get(str(name)) for name in modalities}
    return tuple(masks.get(str(index)) for index in range(len(modalities)))


def same_structure(layer: Layer, modalities: Structure, mask: Structure = None) -> None:
    """Mapping in, dict in the same order out; sequence in, tuple out; shape, dtype, None kept."""
    __tracebackhide__ = True
    given = layer(modalities, mask)
    if isinstance(modalities, Mapping):
        assert type(given) is dict, f"mapping in, {type(given).__name__} out, expected dict"
        assert list(given) == list(modalities), (
            f"names {list(given)} out, expected {list(modalities)}"
        )
        pairs = [(str(name), given[name], modalities[name]) for name in modalities]
    else:
        assert type(given) is tuple, f"sequence in, {type(given).__name__} out, expected tuple"
        assert len(given) == len(modalities), f"{len(given)} out, expected {len(modalities)}"
        pairs = [(str(n), y, x) for n, (y, x) in enumerate(zip(given, modalities, strict=True))]
    for name, y, x in pairs:
        assert (y is None) == (x is None), f"{name!r}: missing in and missing out do not agree"
        if y is not None:
            assert y.shape == x.shape, (
                f"{name!r}: shape {tuple(y.shape)}, expected {tuple(x.shape)}"
            )
            assert y.dtype == x.dtype, f"{name!r}: dtype {y.dtype}, expected {x.dtype}"
            assert y.device == x.device, f"{name!r}: device {y.device}, expected {x.device}"


def does_not_mutate(layer: Layer, modalities: Structure, mask: Structure = None) -> None:
    """Inputs, masks, containers, parameters, buffers and the global generator stay as they are."""
    __tracebackhide__ = True
    state = dict(layer.state_dict(keep_vars=True)) if isinstance(layer, nn.Module) else {}
    masks = {} if mask is None else places(mask)
    watched = {
        **{f"input {k}": v for k, v in places(modalities).items()},
        **{f"mask {k}": v for k, v in masks.items()},
        **{f"state {k}": v for k, v in state.items()},
    }
    before = {name: (tensor.detach().clone(), tensor._version) for name, tensor in watched.items()}
    shape = _container(modalities), _container(mask)
    generator = torch.get_rng_state()
    layer(modalities, mask)
    assert (_container(modalities), _container(mask)) == shape, "the caller's container was changed"
    for name, tensor in watched.items():
        old, version = before[name]
        changed = (tensor.detach() != old).sum().item()
        same = torch.equal(torch.nan_to_num(tensor.detach()), torch.nan_to_num(old))
        assert same, f"{name} was changed in {changed} entries"
        assert tensor._version == version, f"{name} was written to in place"
    assert torch.equal(torch.get_rng_state(), generator), "the global random generator was used"


def _container(values: Structure) -> list[tuple[str, int]]:
    if values is None or isinstance(values, Tensor):
        return []
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    return [(str(name), id(value)) for name, value in items]


def state_dict_round_trip(
    build: Callable[[], nn.Module], modalities: Structure, mask: Structure = None
) -> None:
    """A fresh layer that loads the saved state gives the same bits."""
    __tracebackhide__ = True
    layer, fresh = build(), build()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise.to(parameter.dtype) / 4)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    expected, actual = places(layer(modalities, mask)), places(fresh(modalities, mask))
    for place, y in expected.items():
        error = (actual[place] - y).abs().max().item() if y.numel() else 0.0
        assert torch.equal(actual[place], y), (
            f"output {place!r} changed by {error:.3g} after the round trip"
        )


def agrees_with(
    layer: nn.Module,
    twin: Twin,
    modalities: Structure,
    mask: Structure = None,
    tolerance: Tolerance | None = None,
) -> None:
    """Outputs, and gradients of inputs and parameters, equal those of `twin(state, inputs, mask)`.

    The twin computes in float64 from the same (rounded) inputs and parameters.
    """
    __tracebackhide__ = True
    allowed = tolerance or tolerance_of(modalities)
    shadow = _Shadow(layer, twin)
    exact = replace(modalities, {place: x.double() for place, x in places(modalities).items()})
    expected = evaluate(shadow, exact, mask)
    renamed = {name: expected.parameters[f"state.{n}"] for n, name in enumerate(shadow.names)}
    actual = evaluate(layer, modalities, mask)
    same_result(actual, expected._replace(parameters=renamed), "against the twin", allowed)


class _Shadow(nn.Module):
    """The twin with float64 copies of the layer's parameters as its own."""

    def __init__(self, layer: nn.Module, twin: Twin) -> None:
        super().__init__()
        self.twin, self.names = twin, [name for name, _ in layer.named_parameters()]
        self.state = nn.ParameterList(p.detach().clone().double() for p in layer.parameters())

    def forward(self, modalities: Structure, mask: Structure = None) -> Structure:
        return self.twin(dict(zip(self.names, self.state, strict=True)), modalities, mask)


def finite_gradients(layer: Layer, modalities: Structure, mask: Structure = None) -> None:
    """Every output and every gradient is finite."""
    __tracebackhide__ = True
    result = evaluate(layer, modalities, mask)
    for part in ("outputs", "inputs", "parameters"):
        for place, value in getattr(result, part).items():
            bad = int((~torch.isfinite(value)).sum())
            kind = "output" if part == "outputs" else f"gradient of {part[:-1]}"
            assert bad == 0, f"{kind} {place!r}: {bad} of {value.numel()} entries are not finite"


def every_parameter_gets_a_gradient(
    layer: nn.Module, modalities: Structure, mask: Structure = None
) -> None:
    """No dead parameter: each gets a gradient with at least one entry that is not zero."""
    __tracebackhide__ = True
    gradients = evaluate(layer, modalities, mask).parameters
    assert gradients, "the layer has no trainable parameter"
    dead = [name for name, gradient in gradients.items() if not gradient.abs().sum() > 0]
    assert not dead, f"{len(dead)} of {len(gradients)} parameters get no gradient: {dead}"


def batch_independent(layer: Layer, modalities: Structure, mask: Structure = None) -> None:
    """Each sample's output and gradient are those it has alone, whatever stands in the others."""
    __tracebackhide__ = True
    tensors, allowed = places(modalities), tolerance_of(modalities)
    batch = next(iter(tensors.values())).shape[0]
    whole = evaluate(layer, modalities, mask)
    for b in range(batch):
        one = replace(modalities, {place: x[b : b + 1] for place, x in tensors.items()})
        own = {place: y[b : b + 1] for place, y in cotangents(whole.outputs).items()}
        alone = evaluate(layer, one, _sample_of(mask, b), weigh=own)
        for place, y in whole.outputs.items():
            close(
                y[b : b + 1], alone.outputs[place], f"sample {b}, output {place!r}", allowed.output
            )
        for place, gradient in whole.inputs.items():
            close(
                gradient[b : b + 1],
                alone.inputs[place],
                f"sample {b}, gradient of input {place!r}",
                allowed.gradient,
            )
    for b in range(batch):
        poisoned = {place: torch.full_like(x, float("nan")) for place, x in tensors.items()}
        for place, x in tensors.items():
            poisoned[place][b] = x[b]
        for place, y in places(layer(replace(modalities, poisoned), mask)).items():
            close(
                y[b],
                whole.outputs[place][b],
                f"sample {b} among NaN, output {place!r}",
                allowed.output,
            )


def modality_equivariant(
    layer: Layer,
    permuted: Layer,
    modalities: Sequence[Tensor | None],
    mask: Structure,
    order: Sequence[int],
) -> None:
    """`permuted`, with parameters in the new order, maps permuted inputs to permuted outputs."""
    __tracebackhide__ = True
    masks = [mask] * len(order) if mask is None or isinstance(mask, Tensor) else list(mask)
    expected = evaluate(layer, modalities, mask)
    moved_inputs = tuple(modalities[source] for source in order)
    weights = cotangents(expected.outputs)
    moved = {
        str(place): weights[str(source)]
        for place, source in enumerate(order)
        if str(source) in weights
    }
    moved_mask = (
        mask
        if mask is None or isinstance(mask, Tensor)
        else tuple(masks[source] for source in order)
    )
    actual = evaluate(permuted, moved_inputs, moved_mask, weigh=moved)
    allowed = tolerance_of(modalities)
    for place, source in enumerate(order):
        if modalities[source] is not None:
            what = f"modality {source} at place {place}"
            close(
                actual.outputs[str(place)],
                expected.outputs[str(source)],
                f"{what}: output",
                allowed.output,
            )
            close(
                actual.inputs[str(place)],
                expected.inputs[str(source)],
                f"{what}: gradient",
                allowed.gradient,
            )


def declared_in_any_order(
    layer: nn.Module, redeclared: nn.Module, modalities: Structure, mask: Structure = None
) -> None:
    """The layer built from its mapping in another order computes the same from the same state."""
    __tracebackhide__ = True
    redeclared.load_state_dict(layer.state_dict())
    same_result(
        evaluate(redeclared, modalities, mask),
        evaluate(layer, modalities, mask),
        "declared in another order",
        tolerance_of(modalities),
    )


def padding_invariant(
    layer: Layer, modalities: Structure, mask: Structure = None, *, padding: int = 0
) -> None:
    """Nothing in a masked step matters, and padding on the right equals the shorter input.

    Values and gradients; the outputs and the inputs' gradients are zero at masked steps. With
    `padding` the layer must accept inputs that much longer.
    """
    __tracebackhide__ = True
    tensors, valid, allowed = (
        places(modalities),
        mask_of(modalities, mask),
        tolerance_of(modalities),
    )
    plain = evaluate(layer, modalities, mask)
    _zero_where_masked(plain, valid)
    for garbage in GARBAGE:
        dirty = {
            place: x.masked_fill(~valid[place][..., None], garbage) for place, x in tensors.items()
        }
        result = evaluate(layer, replace(modalities, dirty), _per_modality(modalities, valid))
        same_result(result, plain, f"{garbage} in masked steps", allowed)
    if not padding:
        return
    longer = {
        place: torch.cat([x, x.new_full((x.shape[0], padding, x.shape[2]), float("nan"))], dim=1)
        for place, x in tensors.items()
    }
    marks = {
        place: torch.cat([m, m.new_zeros(m.shape[0], padding)], dim=1) for place, m in valid.items()
    }
    weights = {
        place: torch.cat([w, w.new_ones(w.shape[0], padding, w.shape[2])], dim=1)
        for place, w in cotangents(plain.outputs).items()
    }
    padded = evaluate(
        layer, replace(modalities, longer), _per_modality(modalities, marks), weigh=weights
    )
    _zero_where_masked(padded, marks)
    cut = padded._replace(
        outputs={place: y[:, : y.shape[1] - padding] for place, y in padded.outputs.items()},
        inputs={place: g[:, : g.shape[1] - padding] for place, g in padded.inputs.items()},
    )
    same_result(cut, plain, f"{padding} steps of padding", allowed)


def _zero_where_masked(result: Result, valid: Mapping[str, Tensor]) -> None:
    __tracebackhide__ = True
    for part, kind in (("outputs", "output"), ("inputs", "gradient of input")):
        for place, value in getattr(result, part).items():
            if place in valid:
                left = value.masked_fill(valid[place][..., None], 0).abs().sum().item()
            else:  # one output for all modalities: masked where none is valid
                anywhere = torch.stack(list(valid.values())).any(dim=0)
                left = value.masked_fill(anywhere[..., None], 0).abs().sum().item()
            assert left == 0, (
                f"{kind} {place!r} is {left:.3g} in sum at masked steps, expected zero"
            )


def missing_equals_masked(
    layer: Layer, modalities: Structure, name: Structure, mask: Structure = None
) -> None:
    """`name` as None, with its key left out or with an all-False mask: the same numbers.

    And for one sample: a row of False gives that sample what it has when the modality is missing
    for all, and the other samples what they had.
    """
    __tracebackhide__ = True
    place, allowed = str(name), tolerance_of(modalities)
    valid = mask_of(modalities, mask)
    none = replace(modalities, {place: None})
    missing = evaluate(layer, none, mask)
    fused = layer(none, mask)
    one_tensor = isinstance(fused, Tensor)
    if not one_tensor:
        out = fused[name] if isinstance(fused, Mapping) else fused[int(name)]
        assert out is None, f"{name!r} was None and came out as a tensor"
    if isinstance(modalities, Mapping):
        without = {key: value for key, value in modalities.items() if key != name}
        same_result(
            evaluate(layer, without, mask), missing, f"{name!r} left out against None", allowed
        )
        assert one_tensor or name not in layer(without, mask), (
            f"{name!r} was left out and came back"
        )
    weights = cotangents(evaluate(layer, modalities, mask).outputs)
    dark = {**valid, place: torch.zeros_like(valid[place])}
    masked = evaluate(layer, modalities, _per_modality(modalities, dark), weigh=weights)
    if not one_tensor:
        assert masked.outputs[place].abs().sum() == 0, f"{name!r} was masked out and came back"
    assert masked.inputs[place].abs().sum() == 0, f"{name!r} was masked out and has a gradient"
    rest = masked._replace(
        outputs={key: y for key, y in masked.outputs.items() if one_tensor or key != place},
        inputs={key: g for key, g in masked.inputs.items() if key != place},
    )
    same_result(rest, missing, f"{name!r} masked against None", allowed)
    _missing_in_one_sample(
        layer, modalities, place, valid, masked, evaluate(layer, modalities, mask)
    )


def _missing_in_one_sample(
    layer: Layer,
    modalities: Structure,
    place: str,
    valid: Mapping[str, Tensor],
    missing: Result,
    present: Result,
) -> None:
    __tracebackhide__ = True
    allowed = tolerance_of(modalities)
    for b in range(valid[place].shape[0]):
        row = valid[place].clone()
        row[b] = False
        mixed = evaluate(layer, modalities, _per_modality(modalities, {**valid, place: row}))
        for key, y in mixed.outputs.items():
            for sample in range(y.shape[0]):
                expected = missing if sample == b else present
                what = f"{place!r} missing in sample {b}: sample {sample}"
                close(
                    y[sample],
                    expected.outputs[key][sample],
                    f"{what}, output {key!r}",
                    allowed.output,
                )


def causal(layer: Layer, x: Tensor, mask: Tensor | None = None) -> None:
    """No output depends on a later input: not in value, not in gradient."""
    __tracebackhide__ = True
    whole = layer(x, mask)
    for t in range(x.shape[1] - 1):
        spoilt = x.clone()
        spoilt[:, t + 1 :] = float("nan")
        early = layer(spoilt, mask)[:, : t + 1]
        close(
            early,
            whole[:, : t + 1],
            f"outputs to step {t} with NaN after it",
            tolerance_of(x).output,
        )
        leaf = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(leaf, mask)[:, : t + 1].sum(), leaf)
        leak = gradient[:, t + 1 :].abs().sum().item()
        assert leak == 0, (
            f"outputs to step {t} have a gradient of {leak:.3g} with respect to later inputs"
        )


class Streaming(Protocol):
    """A layer that also takes its input in chunks, the state being handed on by the caller."""

    def __call__(self, modalities: Structure) -> Structure: ...

    def stream(self, chunk: Structure, state: Structure) -> tuple[Structure, Structure]: ...


def stream_equals_whole(layer: Streaming, modalities: Structure, cuts: Sequence[int]) -> None:
    """The pieces of any cutting join up to the whole, with gradients; the state is a value."""
    __tracebackhide__ = True
    steps = next(iter(places(modalities).values())).shape[1]
    edges = [0, *sorted(set(cuts)), steps]

    def joined(whole: Structure, _: Structure = None) -> Structure:
        __tracebackhide__ = True
        state: Structure = None
        pieces: list[Structure] = []
        for start, stop in pairwise(edges):
            chunk = replace(whole, {place: x[:, start:stop] for place, x in places(whole).items()})
            piece, state = _replayed(layer, chunk, state, f"the chunk from {start} to {stop}")
            pieces.append(piece)
        parts = {
            place: torch.cat([places(piece)[place] for piece in pieces], dim=1)
            for place in places(pieces[0])
        }
        return replace(pieces[0], parts)

    owner = layer if isinstance(layer, nn.Module) else None
    same_result(
        evaluate(joined, modalities, owner=owner),
        evaluate(lambda m, _: layer(m), modalities, owner=owner),
        f"cut at {list(cuts)}",
        tolerance_of(modalities),
    )


def _replayed(
    layer: Streaming, chunk: Structure, state: Structure, where: str
) -> tuple[Structure, Structure]:
    """Streams a chunk twice from one state, which must give the same and leave the state alone."""
    __tracebackhide__ = True
    frozen = [(tensor, tensor.detach().clone()) for tensor in _tensors(state)]
    first, _ = layer.stream(chunk, state)
    piece, following = layer.stream(chunk, state)
    for tensor, copy in frozen:
        assert torch.equal(tensor, copy), f"the state was changed by {where}"
    for place, y in places(piece).items():
        error = (places(first)[place] - y).abs().max().item() if y.numel() else 0.0
        assert error == 0, f"the same state gave another answer for {where}, off by {error:.3g}"
    return piece, following


def _tensors(state: Structure) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, tuple | list):
        for value in state:
            yield from _tensors(value)


def eager_equals_compiled(
    layer: nn.Module, compiled: Layer, modalities: Structure, mask: Structure = None
) -> None:
    """Outputs and gradients survive compilation. `compiled` shares the layer's parameters."""
    __tracebackhide__ = True
    same_result(
        evaluate(compiled, modalities, mask, owner=layer),
        evaluate(layer, modalities, mask),
        "compiled against eager",
        tolerance_of(modalities),
    )


def one_graph_serves(layer: nn.Module, calls: Iterable[tuple[Structure, Structure]]) -> None:
    """All calls (modalities, mask) run in what the first one compiled, with eager's numbers.

    The first call's sizes must differ from each other and from every dim: equal ones share a
    symbol.
    """
    __tracebackhide__ = True
    from torch._dynamo.testing import CompileCounterWithBackend  # takes long to import

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled, graphs = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True), 0
    for modalities, mask in calls:
        eager_equals_compiled(layer, compiled, modalities, mask)
        graphs = graphs or counter.frame_count  # a first call may start over to fix a number
    assert counter.frame_count == graphs, f"{counter.frame_count} graphs, after {graphs} at first"
