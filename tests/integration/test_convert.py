"""The authors' checkpoints, converted, give the authors' numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from crossfuse import (
    JointCrossAttention,
    LeaderFollowerAttention,
    RecursiveCrossModalAttention,
    TemporalConvNet,
    convert,
)
from tests.support import properties, reference, released

F64 = torch.float64
OUTPUT, GRADIENT = properties.TOLERANCES[F64]
NAMES = list(released.DIMS)
CYCLE = ([1, 2], [2, 0], [0, 1])  # whom modality i of the released code attends to, in its order
State = dict[str, Tensor]


def check_numbers(
    run: Callable[[State], Mapping[str, Tensor]],
    inputs: State,
    outputs: State,
    cotangents: State,
    gradients: State,
) -> None:
    """Compares outputs and the gradients of sum(cotangent * output)."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    found = run(leaves)
    assert set(found) == set(outputs)
    total = torch.stack([(cotangents[name] * y).sum() for name, y in found.items()]).sum()
    for name, y in outputs.items():
        properties.close(found[name], y, f"output {name}", OUTPUT)
    for name, gradient in zip(
        leaves, torch.autograd.grad(total, list(leaves.values())), strict=True
    ):
        properties.close(gradient, gradients[name], f"gradient of {name}", GRADIENT)


@pytest.mark.parametrize("joint", ["others", "all"])
@pytest.mark.parametrize("named", [True, False])
def test_rcma_gives_the_released_numbers(joint: Literal["all", "others"], named: bool) -> None:
    data = released.load(f"rcma_release_{joint}")
    dims = released.DIMS if named else list(released.DIMS.values())
    names = NAMES if named else ["0", "1", "2"]
    layer = RecursiveCrossModalAttention(dims, 13, joint=joint, form="released", dtype=F64)
    layer.load_state_dict(convert.rcma(released.weights(data), modalities=names, joint=joint))

    def run(x: State) -> Mapping[str, Tensor]:
        outputs = layer(x if named else [x[name] for name in NAMES])
        return outputs if named else dict(zip(NAMES, outputs, strict=True))

    parts = ("input", "output", "cotangent", "input_grad")
    check_numbers(run, *(released.part(data, name) for name in parts))


def test_jca_gives_the_released_numbers() -> None:
    data = released.load("jca_release")
    layer = JointCrossAttention({"audio": 6, "video": 6}, 9, 5, dtype=F64)
    layer.load_state_dict(convert.jca(released.weights(data), modalities=["audio", "video"]))
    parts = ("input", "output", "cotangent", "input_grad")
    check_numbers(
        lambda x: layer(released.jca_encoded(data, x)),
        *(released.part(data, name) for name in parts),
    )


def test_tcn_gives_the_released_numbers() -> None:
    data = released.load("tcn_release")
    layer = TemporalConvNet(5, [7, 7, 4], kernel_size=3, dtype=F64)
    layer.load_state_dict(convert.tcn(released.weights(data)))
    parts = ("input", "output", "cotangent", "input_grad")
    check_numbers(lambda x: {"x": layer(x["x"])}, *({"x": data[name].mT} for name in parts))


def test_leader_follower_gives_the_released_numbers() -> None:
    data = released.load("leader_follower_release")
    layer = LeaderFollowerAttention(released.DIMS, 4, leader="video", dtype=F64)
    layer.load_state_dict(convert.leader_follower(released.weights(data), modalities=NAMES))
    # Behind the leader's features, 4 of each modality: theirs in the authors' order, ours sorted.
    blocks = [4 * NAMES.index(name) + n for name in sorted(NAMES) for n in range(4)]
    leader = released.DIMS["video"]
    columns = [*range(leader), *(leader + column for column in blocks)]
    check_numbers(
        lambda x: {"": layer(x)},
        released.part(data, "input"),
        {"": data["output"][..., columns]},
        {"": data["cotangent"][..., columns]},
        released.part(data, "input_grad"),
    )


# Checkpoints of any sizes, in the authors' keys, and what one step of their formulas makes of them


def linear(rows: int, columns: int, seed: int) -> State:
    """The parameters of an nn.Linear: weight (out, in) and bias."""
    generator = torch.Generator().manual_seed(seed)
    shape = {"weight": (rows, columns), "bias": (rows,)}
    return {k: torch.randn(s, generator=generator, dtype=F64) / 3 for k, s in shape.items()}


def rcma_checkpoint(dims: list[int], length: int, steps: int, joint: str, seed: int) -> State:
    maps: dict[str, tuple[int, int]] = {}
    for k in range(steps):
        inner = f"dcn_layers.{k}.dense_coattn"
        for i, dim in enumerate(dims):
            width = sum(dims) if joint == "all" else sum(dims) - dim
            maps[f"{inner}.key{i + 1}_linear"] = (length, length)
            maps[f"{inner}.value{i + 1}_linear"] = (dim, dim)
            maps[f"dcn_layers.{k}.linears.{i}.0"] = (dim, width)
            if joint == "others":
                maps[f"{inner}.query_linear_{('at', 'tv', 'va')[i]}"] = (width, width)
        if joint == "all":
            maps[f"{inner}.query_linear"] = (sum(dims), sum(dims))
    return {
        f"{name}.{kind}": value
        for n, (name, (rows, columns)) in enumerate(maps.items())
        for kind, value in linear(rows, columns, seed + n).items()
    }


def released_step(state: State, k: int, x: list[Tensor], joint: str) -> list[Tensor]:
    """One step of the released code, straight from its formulas, in its own order of the joint."""

    def affine(name: str, y: Tensor) -> Tensor:
        return y @ state[f"dcn_layers.{k}.{name}.weight"].T + state[f"dcn_layers.{k}.{name}.bias"]

    outputs = []
    for i, y in enumerate(x):
        members = range(3) if joint == "all" else CYCLE[i]
        j = torch.cat([x[m] for m in members], dim=-1)
        if joint == "others":
            j = affine(f"dense_coattn.query_linear_{('at', 'tv', 'va')[i]}", j)
        mixed = affine(f"dense_coattn.key{i + 1}_linear", y.mT)
        c = torch.tanh(mixed @ j / j.shape[-1] ** 0.5)
        h = torch.relu(torch.tanh(affine(f"dense_coattn.value{i + 1}_linear", y) @ c))
        outputs.append(y + torch.relu(affine(f"linears.{i}.0", h)))
    return outputs


@given(
    dims=st.lists(st.integers(1, 7), min_size=3, max_size=3),
    length=st.integers(1, 6),
    recursions=st.integers(1, 12),  # two digits, so that keys do not sort as numbers
    joint=st.sampled_from(["others", "all"]),
    seed=st.integers(0, 99),
)
def test_rcma_of_any_size(
    dims: list[int], length: int, recursions: int, joint: Literal["all", "others"], seed: int
) -> None:
    state = rcma_checkpoint(dims, length, recursions, joint, seed)
    named = dict(zip(NAMES, dims, strict=True))
    layer = RecursiveCrossModalAttention(
        named, length, recursions, joint=joint, form="released", dtype=F64
    )
    shuffled = dict(sorted(state.items(), key=lambda item: item[0][::-1]))
    layer.load_state_dict(convert.rcma(shuffled, modalities=NAMES, joint=joint))
    x = [torch.randn(2, length, dim, dtype=F64) for dim in dims]
    found = layer(dict(zip(NAMES, x, strict=True)))
    for k in range(recursions):
        x = released_step(state, k, x, joint)
    for name, theirs in zip(NAMES, x, strict=True):
        properties.close(found[name], theirs, name, OUTPUT)


@given(
    dims=st.lists(st.integers(1, 7), min_size=2, max_size=2),
    length=st.integers(1, 6),
    width=st.integers(1, 5),
)
def test_jca_of_any_size(dims: list[int], length: int, width: int) -> None:
    sizes = {"affine_{}": (length, length), "W_{}": (width, length)}
    sizes |= {"W_c{}": (width, sum(dims)), "W_h{}": (length, width)}
    state = {
        f"{name.format(letter)}.weight": torch.randn(size, dtype=F64) / 3
        for name, size in sizes.items()
        for letter in "av"
    }
    layer = JointCrossAttention({"voice": dims[0], "face": dims[1]}, length, width, dtype=F64)
    layer.load_state_dict(convert.jca(state, modalities=["voice", "face"], dims=dims))
    x = [torch.randn(2, length, dim, dtype=F64) for dim in dims]
    joint, names = torch.cat(x, dim=-1), ["voice", "face"]
    for letter, y, found in zip(
        "av", x, layer(dict(zip(names, x, strict=True))).values(), strict=True
    ):
        w = {name: state[f"{name.format(letter)}.weight"] for name in sizes}
        c = torch.tanh(y.mT @ (w["affine_{}"] @ joint) / sum(dims) ** 0.5)
        h = torch.relu(y.mT @ w["W_{}"].T + c @ w["W_c{}"].T)
        properties.close(found, y + (h @ w["W_h{}"].T).mT, letter, OUTPUT)


@given(widths=st.lists(st.integers(1, 4), min_size=2, max_size=12), kernel=st.integers(1, 4))
def test_tcn_of_any_size(widths: list[int], kernel: int) -> None:
    """Widths that change and widths that stay: only the former have a residual map."""
    state = tcn_checkpoint(widths, kernel)
    layer = TemporalConvNet(widths[0], widths[1:], kernel_size=kernel, dtype=F64)
    layer.load_state_dict(convert.tcn(state))
    x = torch.randn(2, 6, widths[0], dtype=F64)
    blocks = [released_block(state, k) for k in range(len(widths) - 1)]
    properties.close(layer(x), reference.temporal_conv_net(blocks, x), "output", OUTPUT)


def released_block(state: State, k: int) -> reference.ConvBlock:
    """The parameters of one block under the authors' keys, for the twin."""
    head = f"network.{k}"
    first, second = (
        reference.weight_norm(state[f"{head}.conv{n}.weight_g"], state[f"{head}.conv{n}.weight_v"])
        for n in (1, 2)
    )
    biases = state[f"{head}.conv1.bias"], state[f"{head}.conv2.bias"]
    weight = state.get(f"{head}.downsample.weight")
    residual = None if weight is None else (weight, state[f"{head}.downsample.bias"])
    return reference.ConvBlock((first, second), biases, residual)


def tcn_checkpoint(widths: list[int], kernel: int) -> State:
    state: State = {}
    for k in range(len(widths) - 1):
        before, after = widths[k], widths[k + 1]
        for number, layer, columns in ((1, 0, before), (2, 4, after)):
            conv = {
                "bias": torch.randn(after, dtype=F64),
                "weight_g": torch.rand(after, 1, 1, dtype=F64) + 1,
                "weight_v": torch.randn(after, columns, kernel, dtype=F64),
            }
            for part, value in conv.items():
                state[f"network.{k}.conv{number}.{part}"] = value
                state[f"network.{k}.net.{layer}.{part}"] = value
        if before != after:
            state[f"network.{k}.downsample.weight"] = torch.randn(after, before, 1, dtype=F64)
            state[f"network.{k}.downsample.bias"] = torch.randn(after, dtype=F64)
    return state


# Keys

CHECKPOINTS: dict[str, tuple[State, Callable[[State], State]]] = {
    joint: (
        released.weights(released.load(f"rcma_release_{joint}")),
        partial(convert.rcma, modalities=NAMES, joint=joint),
    )
    for joint in ("others", "all")
}
CHECKPOINTS["jca"] = (
    released.weights(released.load("jca_release")),
    partial(convert.jca, modalities=["audio", "video"]),
)
CHECKPOINTS["tcn"] = (released.weights(released.load("tcn_release")), convert.tcn)
CHECKPOINTS["leader_follower"] = (
    released.weights(released.load("leader_follower_release")),
    partial(convert.leader_follower, modalities=NAMES),
)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_key_is_converted_or_dropped_with_a_reason(name: str) -> None:
    """What is left out changes nothing, and a key that is not listed as such is needed."""
    state, run = CHECKPOINTS[name]
    dropped, whole = convert.dropped(state), run(state)
    assert all(dropped.values())
    without = run({key: value for key, value in state.items() if key not in dropped})
    assert without.keys() == whole.keys()
    assert all(torch.equal(without[key], value) for key, value in whole.items())
    for gone in state.keys() - dropped.keys():
        with pytest.raises(ValueError, match=f"missing .*'{gone}'"):
            run({key: value for key, value in state.items() if key != gone})


def test_the_dropped_keys_are_these() -> None:
    counts = {name: len(convert.dropped(state)) for name, (state, _) in CHECKPOINTS.items()}
    assert counts == {"others": 0, "all": 4, "jca": 4, "tcn": 18, "leader_follower": 0}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize(
    "key", ["head.weight", "dcn_layers.9.extra", "network.0.net.5.bias", "encoder3.bias"]
)
def test_an_unknown_key_is_named(name: str, key: str) -> None:
    state, run = CHECKPOINTS[name]
    with pytest.raises(ValueError, match=f"unknown '{key}'"):
        run({**state, key: torch.zeros(1)})


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_another_module_drops_is_unknown_here(name: str) -> None:
    state, run = CHECKPOINTS[name]
    others = {
        key: other_state[key]
        for other, (other_state, _) in CHECKPOINTS.items()
        for key in convert.dropped(other_state)
        if other != name
    }
    for key, value in others.items():
        with pytest.raises(ValueError, match=f"unknown '{key}'"):
            run({**state, key: value})


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_checkpoint_keeps_its_tensors(name: str) -> None:
    state, run = CHECKPOINTS[name]
    before = {key: value.clone() for key, value in state.items()}
    for value in run(state).values():
        assert value.is_contiguous()
        value.fill_(7)
    assert all(torch.equal(state[key], value) for key, value in before.items())


def test_parameters_as_values_are_welcome() -> None:
    """`dict(module.named_parameters())` has the same keys; what comes out is not trained."""
    state, run = CHECKPOINTS["jca"]
    converted = run({key: nn.Parameter(value) for key, value in state.items()})
    assert not any(value.requires_grad for value in converted.values())


@pytest.mark.parametrize("joint", ["others", "all"])
def test_the_wrong_version_of_rcma_is_noticed(joint: Literal["all", "others"]) -> None:
    other: Literal["all", "others"] = "all" if joint == "others" else "others"
    with pytest.raises(ValueError, match="query_linear"):
        convert.rcma(CHECKPOINTS[joint][0], modalities=NAMES, joint=other)


@pytest.mark.parametrize("modalities", [["a", "b"], ["a", "b", "a"], "abc", [], list("abcd")])
def test_the_names_must_fit(modalities: list[str]) -> None:
    state = CHECKPOINTS["all"][0]
    with pytest.raises(ValueError, match=r"convert\.rcma: modalities does not name those of"):
        convert.rcma(state, modalities=modalities, joint="all")
    with pytest.raises(ValueError, match=r"'a\.b' cannot name a modality"):
        convert.rcma(state, modalities=["a.b", "c", "d"], joint="all")


def test_a_checkpoint_file_with_more_in_it_is_refused() -> None:
    with pytest.raises(TypeError, match=r"convert\.tcn: state_dict is not a mapping of names to"):
        convert.tcn({"net": {}, "epoch": 3})  # type: ignore[dict-item]  # the wrong call
    with pytest.raises(TypeError, match="state_dict is not a mapping of names to tensors"):
        convert.tcn("checkpoint.pt")  # type: ignore[arg-type]  # the wrong call
    with pytest.raises(ValueError, match=r"missing 'network\.0\.conv1\.weight_g'"):
        convert.tcn({})


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_function_refuses_what_is_no_mapping_of_tensors(name: str) -> None:
    state, run = CHECKPOINTS[name]
    key = next(iter(state))
    number: dict[Any, Any] = dict(state) | {key: 3}
    unnamed: dict[Any, Any] = dict(state) | {5: torch.ones(1)}
    wrongs: list[tuple[Any, str]] = [
        (number, f"'{key}': int"),
        (unnamed, "5: Tensor"),
        (list(state.values()), "list"),
    ]
    for wrong, got in wrongs:
        with pytest.raises(TypeError, match="not a mapping of names to tensors") as caught:
            run(wrong)
        assert f"got       {got}\n" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key", "change", "got", "expected"),
    [
        ("tcn", "network.0.conv1.weight_v", torch.sum, "()", "(any, any, any)"),
        ("tcn", "network.0.conv1.bias", torch.atleast_2d, "(1, 7)", "(any)"),
        ("leader_follower", "ln.weight", lambda x: x[:2], "(2, 4)", "(3, any)"),
        ("leader_follower", "ln.bias", lambda x: x[0], "(4,)", "(3, any)"),
        (
            "others",
            "dcn_layers.0.dense_coattn.query_linear_va.bias",
            lambda x: x[:5],
            "(5,)",
            "(12, ...)",
        ),
    ],
)
def test_a_wrong_shape_is_shown_beside_that_of_the_authors(
    name: str, key: str, change: Callable[[Tensor], Tensor], got: str, expected: str
) -> None:
    """Any size for what the authors leave free, and an ellipsis for axes that follow."""
    state, run = CHECKPOINTS[name]
    with pytest.raises(ValueError, match="not have the shape of the authors' module") as caught:
        run({**state, key: change(state[key])})
    lines = [line.split(maxsplit=1) for line in str(caught.value).splitlines()]
    assert ["got", got] in lines
    assert ["expected", expected] in lines


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("others", "dcn_layers.0.dense_coattn.key1_linear.weight"),
        ("others", "dcn_layers.0.dense_coattn.key1_linear.bias"),
        ("leader_follower", "encoderQ.video.weight"),
        ("leader_follower", "encoderQ.video.bias"),
    ],
)
def test_a_value_with_an_axis_more_is_refused(name: str, key: str) -> None:
    state, run = CHECKPOINTS[name]
    with pytest.raises(ValueError, match=f"'{key}' does not have the shape"):
        run({**state, key: state[key][None]})


def test_the_joint_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="'some'"):
        convert.rcma(CHECKPOINTS["others"][0], modalities=NAMES, joint="some")  # type: ignore[arg-type]  # the wrong call


@pytest.mark.parametrize("dims", [[4, 5, 3], [4, 7], [12], 12])
def test_dims_fit_the_names_and_the_joint(dims: list[int]) -> None:
    """Each alone is not enough: as many as names, and the features of the joint together."""
    state, _ = CHECKPOINTS["jca"]
    with pytest.raises(ValueError, match="dims does not give the features of each modality"):
        convert.jca(state, modalities=["video", "audio"], dims=dims)


def test_messages_show_what_is_expected() -> None:
    state, run = CHECKPOINTS["leader_follower"]
    with pytest.raises(ValueError, match="expected  some different names"):
        convert.leader_follower(state, modalities=[])
    with pytest.raises(ValueError, match="expected  3 different names"):
        convert.rcma(CHECKPOINTS["others"][0], modalities=[], joint="others")
    with pytest.raises(ValueError, match="missing") as caught:
        run({})
    (line,) = [each for each in str(caught.value).splitlines() if "expected" in each]
    assert line.count("'encoder") == 2, "two of their keys are enough to see which module is meant"
