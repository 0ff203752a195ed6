"""The equations, one function each, against their definitions written out in indices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from crossfuse import functional
from tests.project.test_bad_input_equations import EQUATIONS, MASKS
from tests.support import properties

F64 = torch.float64
OUTPUT = properties.TOLERANCES[F64].output
SIZES = st.fixed_dictionaries(
    {
        "b": st.integers(0, 3),
        "s": st.integers(1, 9),
        "t": st.integers(1, 9),
        "d": st.sampled_from([1, 2, 3, 5, 11]),
        "j": st.sampled_from([1, 2, 3, 7, 13]),
        "k": st.sampled_from([1, 4, 17]),
    }
)


class Numbers:
    """Draws tensors by the letters of their axes."""

    def __init__(self, sizes: dict[str, int], seed: int) -> None:
        self.sizes = sizes
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, axes: str) -> Tensor:
        shape = [self.sizes[axis] for axis in axes]
        return torch.randn(shape, generator=self.generator, dtype=F64)


numbers = st.builds(Numbers, SIZES, st.integers(0, 2**16))


@given(draw=numbers)
def test_joint_features_stand_side_by_side(draw: Numbers) -> None:
    x, y = draw("bsd"), draw("bsj")
    joint = functional.concat_features([x, y])
    assert torch.equal(joint[..., : x.shape[2]], x)
    assert torch.equal(joint[..., x.shape[2] :], y)
    assert torch.equal(functional.concat_features([x]), x)


@given(draw=numbers)
def test_joint_correlation(draw: Numbers) -> None:
    draw.sizes["t"] = draw.sizes["s"]
    x, joint, temporal = draw("bsd"), draw("btj"), draw("st")
    scores = torch.einsum("bsd,st,btj->bdj", x, temporal, joint) / draw.sizes["j"] ** 0.5
    properties.close(functional.rcma_correlation(x, joint, temporal), scores.tanh(), "C", OUTPUT)


@given(draw=numbers)
def test_unaligned_correlation(draw: Numbers) -> None:
    x, y, z = draw("bsd"), draw("btj"), draw("bkd")
    to_y, to_z = draw("st"), draw("sk")
    width = draw.sizes["j"] + draw.sizes["d"]
    scores = torch.cat(
        [
            torch.einsum("bsd,st,btj->bdj", x, to_y, y),
            torch.einsum("bsd,sk,bke->bde", x, to_z, z),
        ],
        dim=2,
    )
    found = functional.rcma_unaligned_correlation(x, [y, z], [to_y, to_z])
    properties.close(found, (scores / width**0.5).tanh(), "C", OUTPUT)


@given(draw=numbers)
def test_timeless_correlation(draw: Numbers) -> None:
    x, joint = draw("bsd"), draw("bsj")
    scores = torch.einsum("bsd,bsj->bdj", x, joint)
    steps = draw.sizes["s"]
    expected = (scores / steps**0.5).tanh()
    properties.close(functional.rcma_timeless_correlation(x, joint, steps), expected, "C", OUTPUT)
    counts = torch.arange(1, draw.sizes["b"] + 1)
    expected = (scores / counts.double().sqrt()[:, None, None]).tanh()
    properties.close(functional.rcma_timeless_correlation(x, joint, counts), expected, "C", OUTPUT)


@given(draw=numbers)
def test_attention_map(draw: Numbers) -> None:
    x, correlation, feature = draw("bsd"), draw("bdj"), draw("dd")
    expected = torch.einsum("bsd,de,bej->bsj", x, feature, correlation).relu()
    for longest in (None, 1, 100):
        found = functional.rcma_attention_map(x, correlation, feature, longest=longest)
        properties.close(found, expected, "H", OUTPUT)


@given(draw=numbers)
def test_attended_features(draw: Numbers) -> None:
    x, attention, output = draw("bsd"), draw("bsj"), draw("jd")
    expected = x + torch.einsum("bsj,jd->bsd", attention, output)
    properties.close(functional.rcma_attended_features(x, attention, output), expected, "X", OUTPUT)
    assert torch.equal(functional.rcma_attended_features(x, attention, output, dropout=1.0), x)


@given(draw=numbers)
def test_joint_attention_map(draw: Numbers) -> None:
    x, correlation, own, joint = draw("bsd"), draw("bdj"), draw("sk"), draw("jk")
    expected = torch.einsum("bsd,sk->bdk", x, own) + torch.einsum("bdj,jk->bdk", correlation, joint)
    found = functional.jca_attention_map(x, correlation, own, joint)
    properties.close(found, expected.relu(), "H", OUTPUT)


@given(draw=numbers)
def test_joint_attended_features(draw: Numbers) -> None:
    x, attention, output = draw("bsd"), draw("bdk"), draw("ks")
    expected = x + torch.einsum("bdk,ks->bsd", attention, output)
    properties.close(functional.jca_attended_features(x, attention, output), expected, "X", OUTPUT)
    assert torch.equal(functional.jca_attended_features(x, attention, output, dropout=1.0), x)


@given(draw=numbers)
def test_released_correlation(draw: Numbers) -> None:
    x, joint, temporal, bias = draw("bsd"), draw("bsj"), draw("ss"), draw("s")
    mixed = torch.einsum("bsd,st->bdt", x, temporal) + bias
    expected = (torch.einsum("bdt,btj->bdj", mixed, joint) / draw.sizes["j"] ** 0.5).tanh()
    found = functional.rcma_released_correlation(x, joint, temporal, bias)
    properties.close(found, expected, "C", OUTPUT)
    dropped = functional.rcma_released_correlation(x, joint, temporal, bias, dropout=1.0)
    assert not dropped.any()
    valid = draw("bs") > 0
    joint = joint * valid[..., None]
    mapping, mapping_bias = draw("jj"), draw("j")
    mapped = (torch.einsum("bsj,ji->bsi", joint, mapping) + mapping_bias) * valid[..., None]
    expected = (torch.einsum("bdt,btj->bdj", mixed, mapped) / draw.sizes["j"] ** 0.5).tanh()
    for longest in (None, 1, 100):
        found = functional.rcma_released_correlation(
            x, joint, temporal, bias, mapping, mapping_bias, valid, longest=longest
        )
        properties.close(found, expected, "C", OUTPUT)


@given(draw=numbers)
def test_released_attention_map(draw: Numbers) -> None:
    x, correlation, feature, bias = draw("bsd"), draw("bdj"), draw("dd"), draw("d")
    mixed = torch.einsum("bsd,de->bse", x, feature) + bias
    expected = torch.einsum("bse,bej->bsj", mixed, correlation).tanh().relu()
    for longest in (None, 1, 100):
        found = functional.rcma_released_attention_map(
            x, correlation, feature, bias, longest=longest
        )
        properties.close(found, expected, "H", OUTPUT)


@given(draw=numbers)
def test_released_attended_features(draw: Numbers) -> None:
    x, attention, output, bias = draw("bsd"), draw("bsj"), draw("jd"), draw("d")
    expected = x + (torch.einsum("bsj,jd->bsd", attention, output) + bias).relu()
    found = functional.rcma_released_attended_features(x, attention, output, bias)
    properties.close(found, expected, "X", OUTPUT)
    alone = functional.rcma_released_attended_features(x, attention, output, bias, dropout=1.0)
    assert torch.equal(alone, x)


def flops(run: Callable[[], Tensor]) -> int:
    """Counts the floating-point operations of the products in one call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("d", "j"), [(3, 11), (11, 3), (5, 5)])
@pytest.mark.parametrize("length", [2, 7, 40])
def test_products_take_the_cheaper_order(d: int, j: int, length: int) -> None:
    draw = Numbers({"b": 2, "s": length, "d": d, "j": j}, 0)
    x, joint, temporal = draw("bsd"), draw("bsj"), draw("ss")
    feature, correlation = draw("dd"), draw("bdj")
    left = flops(lambda: x.mT @ temporal @ joint)
    right = flops(lambda: x.mT @ (temporal @ joint))
    ours = flops(lambda: functional.rcma_correlation(x, joint, temporal))
    assert ours == min(left, right), f"{ours} operations, the orders take {left} and {right}"
    left = flops(lambda: x @ feature @ correlation)
    right = flops(lambda: x @ (feature @ correlation))
    ours = flops(lambda: functional.rcma_attention_map(x, correlation, feature))
    assert ours == min(left, right), f"{ours} operations, the orders take {left} and {right}"


@pytest.mark.parametrize("length", [2, 40])
def test_a_graph_has_the_order_of_long_windows(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """It serves all lengths, and with long windows the choice matters most."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    draw = Numbers({"b": 2, "s": length, "d": 3, "j": 11}, 0)
    x, feature, correlation = draw("bsd"), draw("dd"), draw("bdj")
    expected = flops(lambda: x @ (feature @ correlation))
    assert flops(lambda: functional.rcma_attention_map(x, correlation, feature)) == expected


@pytest.mark.parametrize("equation", EQUATIONS)
def test_equations_compute_where_their_inputs_are(equation: str) -> None:
    given = {**EQUATIONS[equation], **MASKS.get(equation, {})}
    moved = {name: x.to("meta") if isinstance(x, Tensor) else x for name, x in given.items()}
    assert getattr(functional, equation)(**moved).device.type == "meta"


def test_nothing_is_written_to() -> None:
    draw = Numbers({"b": 2, "s": 4, "d": 3, "j": 5, "k": 2}, 0)
    x, joint, own = draw("bsd"), draw("bsj"), draw("sk")
    calls: list[tuple[Callable[..., Tensor], list[Tensor]]] = [
        (functional.rcma_correlation, [x, joint, draw("ss")]),
        (functional.rcma_timeless_correlation, [x, joint, torch.tensor([1, 4])]),
        (functional.rcma_attention_map, [x, draw("bdj"), draw("dd")]),
        (functional.rcma_attended_features, [x, draw("bsj"), draw("jd")]),
        (functional.jca_attention_map, [x, draw("bdj"), own, draw("jk")]),
        (functional.jca_attended_features, [x, draw("bdk"), draw("ks")]),
        (functional.rcma_released_correlation, [x, joint, draw("ss"), draw("s")]),
        (functional.rcma_released_attention_map, [x, draw("bdj"), draw("dd"), draw("d")]),
        (functional.rcma_released_attended_features, [x, draw("bsj"), draw("jd"), draw("d")]),
    ]
    for function, arguments in calls:
        versions = [argument._version for argument in arguments]
        function(*arguments)
        assert [argument._version for argument in arguments] == versions, function.__name__
