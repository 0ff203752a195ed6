"""The laws of functional.concordance and ConcordanceLoss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torchmetrics.functional.regression import concordance_corrcoef

from crossfuse import ConcordanceLoss
from crossfuse.functional import concordance
from tests.support import properties, reference

F64 = torch.float64
MOMENTS = ("biased", "unbiased", "mixed")
OVER = ("window", "batch")
TIGHT = properties.TOLERANCES[F64].output
HALF_PRECISION = (torch.bfloat16, torch.float16)
options = pytest.mark.parametrize("moments", MOMENTS)


@dataclass(frozen=True)
class Case:
    """Two series (B, L, ...), their mask, and the seed of their numbers."""

    batch: int
    length: int
    more: tuple[int, ...] = ()
    invalid: tuple[int, ...] | None = None  # per window, a bit set of invalid steps
    seed: int = 0

    def series(self, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
        """Two series that agree in part, off zero."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch, self.length, *self.more)
        x, y = (torch.randn(shape, generator=generator, dtype=F64) for _ in range(2))
        return (x + 0.5).to(dtype), (x * 0.7 + y).to(dtype)

    def mask(self) -> Tensor | None:
        if self.invalid is None:
            return None
        rows = [[not (bits >> t) & 1 for t in range(self.length)] for bits in self.invalid]
        return torch.tensor(rows, dtype=torch.bool).reshape(self.batch, self.length)

    def valid(self) -> Tensor:
        mask = self.mask()
        return torch.ones(self.batch, self.length, dtype=torch.bool) if mask is None else mask


@st.composite
def cases(draw: st.DrawFn, *, batch: tuple[int, int] = (0, 3), least: int = 1) -> Case:
    size, length = draw(st.integers(*batch)), draw(st.integers(least, 9))
    more = draw(st.sampled_from([(), (1,), (2,), (3, 2)]))
    bits = st.integers(0, 2**length - 1)
    invalid = tuple(draw(bits) for _ in range(size)) if draw(st.booleans()) else None
    return Case(size, length, more, invalid, draw(st.integers(0, 2**16)))


NOTHING = Case(0, 4)
DARK = Case(2, 3, (2,), (7, 0))
ONE_STEP = Case(3, 1)


def definition(x: Tensor, y: Tensor, moments: str) -> Tensor:
    """The coefficient of two 1-d series of valid steps; 0 where there are none."""
    if len(x) == 0:
        return x.new_zeros(())
    if moments == "unbiased":
        (xx, xy), (_, yy) = torch.cov(torch.stack([x, y]))
        ratio: Tensor = 2 * xy / (xx + yy + (x.mean() - y.mean()).square())
        return ratio
    return reference.concordance(x, y, mixed_moments=moments == "mixed")


def by_definition(case: Case, over: str, moments: str) -> Tensor:
    """Window by window and series by series, the invalid steps cut out."""
    count = math.prod(case.more)
    x, y = (one.reshape(case.batch, case.length, count) for one in case.series())
    valid = case.valid()
    groups = [[b] for b in range(case.batch)] if over == "window" else [list(range(case.batch))]
    values = [
        definition(
            torch.cat([x[b, valid[b], k] for b in group] or [x.new_zeros(0)]),
            torch.cat([y[b, valid[b], k] for b in group] or [x.new_zeros(0)]),
            moments,
        )
        for group in groups
        for k in range(count)
    ]
    shape = (case.batch, *case.more) if over == "window" else case.more
    return torch.stack(values).reshape(shape) if values else x.new_zeros(shape)


def several_steps(case: Case, over: str) -> bool:
    """Whether every group has no valid step or at least two, as unbiased variances need."""
    counts = case.valid().sum(1) if over == "window" else case.valid().sum()[None]
    return bool((counts != 1).all())


@options
@pytest.mark.parametrize("over", OVER)
@example(case=NOTHING)
@example(case=DARK)
@example(case=ONE_STEP)
@given(case=cases())
def test_equals_the_definition(over: str, moments: str, case: Case) -> None:
    found = concordance(*case.series(), case.mask(), over=over, moments=moments)
    if moments == "biased" or several_steps(case, over):
        properties.close(found, by_definition(case, over, moments), "coefficient", TIGHT)


@given(case=cases(batch=(1, 3), least=3))
def test_unbiased_moments_are_those_of_torchmetrics(case: Case) -> None:
    case = replace(case, invalid=None)
    x, y = case.series()
    found = concordance(x, y, moments="unbiased").reshape(case.batch, -1)
    for b in range(case.batch):
        theirs = concordance_corrcoef(
            *(one[b].reshape(case.length, -1).squeeze(1) for one in (x, y))
        )
        properties.close(found[b], theirs.reshape(-1), "against torchmetrics", TIGHT)
    apart = concordance(x, y).reshape(case.batch, -1)
    assert (apart - found).abs().max() > 1e-9, "the two conventions do not differ here"


@options
@given(case=cases())
def test_is_symmetric(moments: str, case: Case) -> None:
    (x, y), mask = case.series(torch.float32), case.mask()
    forth, back = (concordance(*both, mask, moments=moments) for both in ((x, y), (y, x)))
    assert torch.equal(forth, back)


@options
@pytest.mark.parametrize("dtype", [F64, torch.float32, *HALF_PRECISION], ids=str)
@given(case=cases(), noise=st.sampled_from([0.0, 1e-6, 1e-3, 1.0]), shift=st.sampled_from([0, 3]))
def test_lies_between_minus_one_and_one(
    moments: str, dtype: torch.dtype, case: Case, noise: float, shift: float
) -> None:
    x, y = case.series(dtype)
    centre = x.mean(dim=1, keepdim=True)
    for other in (x + noise * y, 2 * centre - x + noise * y, x + shift, y * noise):
        found = concordance(x, other, case.mask(), moments=moments)
        assert found.abs().le(1).all(), found


@given(case=cases(batch=(1, 3)), at=st.integers(0, 8))
def test_is_one_exactly_where_the_series_are_equal(case: Case, at: int) -> None:
    """For the smallest change that float32 can see in the square, too."""
    x, _ = case.series(torch.float32)
    valid = case.valid()
    same = concordance(x, x, case.mask())
    known = valid.any(dim=1).reshape(-1, *[1] * len(case.more)).expand_as(same)
    assert torch.equal(same, known.to(same.dtype))
    other = x.clone()
    step = at % case.length
    other[:, step] += 0.01
    changed = valid[:, step].reshape(-1, *[1] * len(case.more)).expand_as(same)
    found = concordance(x, other, case.mask())
    assert found[changed].lt(1).all()
    assert torch.equal(found[~changed], same[~changed])


@options
@given(
    case=cases(least=2),
    shift=st.sampled_from([-100.0, 0.25, 7.0]),
    scale=st.sampled_from([1e-3, 0.3, 1e4]),
)
def test_a_common_shift_and_a_positive_scale_do_not_matter(
    moments: str, case: Case, shift: float, scale: float
) -> None:
    """With the floor of the denominator scaled like the denominator: it is in squared units."""
    (x, y), mask = case.series(), case.mask()
    moved, floor = (x * scale + shift, y * scale + shift), 1e-8
    found = concordance(*moved, mask, moments=moments, eps=floor * scale**2)
    properties.close(
        found, concordance(x, y, mask, moments=moments, eps=floor), "coefficient", 1e-8
    )


@options
@given(case=cases())
def test_turning_one_series_around_its_mean_turns_the_sign(moments: str, case: Case) -> None:
    case = replace(case, invalid=None)
    x, y = case.series()
    y = y - y.mean(dim=1, keepdim=True) + x.mean(dim=1, keepdim=True)
    turned = 2 * x.mean(dim=1, keepdim=True) - y
    if case.length > 1:
        found = concordance(x, turned, moments=moments)
        properties.close(found, -concordance(x, y, moments=moments), "coefficient", TIGHT)


@options
@given(case=cases())
def test_masking_is_leaving_out(moments: str, case: Case) -> None:
    (x, y), valid = case.series(), case.valid()
    found = concordance(x, y, case.mask(), moments=moments)
    for b in range(case.batch):
        kept = x[b, valid[b]][None], y[b, valid[b]][None]
        properties.close(found[b], concordance(*kept, moments=moments)[0], "cut out", TIGHT)


@given(case=cases(batch=(1, 3)), over=st.sampled_from(OVER))
def test_nothing_in_a_masked_step_matters(case: Case, over: str) -> None:
    valid = case.valid().reshape(case.batch, case.length, *[1] * len(case.more))
    clean = [series.requires_grad_() for series in case.series()]
    expected = concordance(clean[0], clean[1], case.mask(), over=over)
    gradients = torch.autograd.grad(expected.sum(), clean)
    for garbage in properties.GARBAGE:
        dirty = [x.detach().masked_fill(~valid, garbage).requires_grad_() for x in clean]
        found = concordance(dirty[0], dirty[1], case.valid(), over=over)
        assert torch.equal(found, expected)
        for ours, theirs in zip(torch.autograd.grad(found.sum(), dirty), gradients, strict=True):
            assert torch.equal(ours, theirs)
            assert not ours.masked_fill(valid, 0).any()


@options
@given(case=cases())
def test_over_the_batch_is_over_one_long_window(moments: str, case: Case) -> None:
    (x, y), valid = case.series(), case.valid()
    long = x.flatten(0, 1)[None], y.flatten(0, 1)[None]
    expected = concordance(*long, valid.flatten()[None], moments=moments)[0]
    found = concordance(x, y, case.mask(), over="batch", moments=moments)
    properties.close(found, expected, "coefficient", TIGHT)


# Each gives prediction and target from noise: windows without variance, in one or both.
DEGENERATE: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "both zero": lambda x: (x * 0, x * 0),
    "equal constants": lambda x: (x * 0 + 0.3, x * 0 + 0.3),
    "other constants": lambda x: (x * 0 + 0.3, x * 0 - 0.3),
    "nearly equal constants": lambda x: (x * 0 + 0.3, x * 0 + 0.3001),
    "a constant target": lambda x: (x, x * 0 + 0.3),
    "a constant prediction": lambda x: (x * 0, x),
    "almost no noise": lambda x: (x * 1e-5, x.flip(1) * 1e-5),
    "tiny numbers": lambda x: (x * 1e-7, x.flip(1) * 1e-7),
    "far from zero": lambda x: (x * 0 + 6e4, x * 0 + 6e4),
    "equal": lambda x: (x, x),
}


@options
@pytest.mark.parametrize("dtype", [F64, torch.float32, *HALF_PRECISION], ids=str)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_windows_have_finite_values_and_gradients(
    kind: str, dtype: torch.dtype, moments: str
) -> None:
    for case in (Case(2, 5), Case(2, 5, (2,), (31, 12)), Case(2, 1), Case(0, 3), Case(2, 300)):
        x, y = (one.to(dtype).requires_grad_() for one in DEGENERATE[kind](case.series()[0]))
        for over in OVER:
            found = concordance(x, y, case.mask(), over=over, moments=moments)
            assert found.isfinite().all()
            assert found.abs().le(1).all()
            loss = ConcordanceLoss(over=over, moments=moments)(x, y, case.mask())
            for total in (found.sum(), loss):
                for gradient in torch.autograd.grad(total, (x, y), retain_graph=True):
                    assert gradient.isfinite().all(), f"{case}, over {over}"


def test_constant_windows_agree_only_if_equal() -> None:
    constant, noise = torch.full((1, 5), 0.3), torch.randn(1, 5)
    assert concordance(constant, constant) == 1
    assert concordance(constant, -constant).abs() < 1e-6
    assert concordance(constant, noise).abs() < 1e-6
    assert concordance(noise, constant).abs() < 1e-6
    assert concordance(constant, constant, torch.zeros(1, 5, dtype=torch.bool)) == 0


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
@given(case=cases(), over=st.sampled_from(OVER))
def test_halves_are_summed_in_float32(dtype: torch.dtype, case: Case, over: str) -> None:
    x, y = case.series(dtype)
    found = concordance(x, y, case.mask(), over=over)
    assert found.dtype == torch.float32
    assert torch.equal(found, concordance(x.float(), y.float(), case.mask(), over=over))
    assert torch.equal(found, concordance(x, y.float(), case.mask(), over=over))
    assert concordance(x, y.double(), case.mask()).dtype == F64
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(concordance(leaf, y, case.mask()).sum(), leaf)
    assert gradient.dtype == dtype


@given(case=cases(least=2))
def test_a_large_common_offset_costs_nothing(case: Case) -> None:
    """In float32, for series that it holds exactly at that offset (in units of 1/16)."""
    x, y = (torch.round(16 * series).float() / 16 for series in case.series())
    expected = concordance(x, y, case.mask())
    found = concordance(x + 2**17, y + 2**17, case.mask())
    properties.close(found, expected, "coefficient", 1e-5)


def test_long_windows_in_float32_keep_their_digits() -> None:
    x, y = (torch.round(1024 * series).float() / 1024 for series in Case(2, 100_000).series())
    properties.close(concordance(x, y), concordance(x.double(), y.double()), "coefficient", 1e-6)


@options
@pytest.mark.parametrize("over", OVER)
def test_gradcheck(over: str, moments: str) -> None:
    case = Case(2, 4, (2,), (3, 0), seed=4)

    def run(x: Tensor, y: Tensor) -> Tensor:
        return concordance(x, y, case.mask(), over=over, moments=moments)

    both = [series.requires_grad_() for series in case.series()]
    assert torch.autograd.gradcheck(run, both)
    assert torch.autograd.gradgradcheck(run, both)


@options
@pytest.mark.parametrize("over", OVER)
@example(case=NOTHING)
@example(case=DARK)
@given(case=cases())
def test_the_loss_is_the_mean_over_what_counts(over: str, moments: str, case: Case) -> None:
    both, valid = case.series(), case.valid()
    agreement = concordance(*both, case.mask(), over=over, moments=moments)
    if over == "window":
        agreement = agreement[valid.any(dim=1)]
    elif not valid.any():
        agreement = agreement[:0] if case.more else agreement.reshape(1)[:0]
    expected = (1 - agreement).mean() if agreement.numel() else torch.zeros((), dtype=F64)
    loss = ConcordanceLoss(over=over, moments=moments)(*both, case.mask())
    properties.close(loss, expected, "loss", TIGHT)


def test_windows_without_a_valid_step_leave_the_loss_alone() -> None:
    x, y = (series.requires_grad_() for series in Case(3, 6).series())
    mask = torch.tensor([True, False, True])[:, None].expand(3, 6)
    loss = ConcordanceLoss()
    properties.close(loss(x, y, mask), loss(x[[0, 2]], y[[0, 2]]), "loss", TIGHT)
    (gradient,) = torch.autograd.grad(loss(x, y, mask), x)
    assert not gradient[1].any()
    assert gradient[0].any()


def test_training_on_the_loss_reaches_agreement() -> None:
    _, target = Case(4, 20, (2,)).series(torch.float32)
    prediction = torch.nn.Parameter(torch.randn_like(target))
    optimizer = torch.optim.Adam([prediction], lr=0.05)
    loss = ConcordanceLoss()
    first = loss(prediction, target).item()
    for _ in range(300):
        optimizer.zero_grad()
        loss(prediction, target).backward()
        optimizer.step()
    assert loss(prediction, target) < 0.01 < first


def test_nothing_is_written_to() -> None:
    (x, y), mask = Case(2, 5, (), (3, 0)).series(), Case(2, 5, (), (3, 0)).mask()
    assert mask is not None
    watched = [x, y, mask]
    before = [(one.clone(), one._version) for one in watched]
    ConcordanceLoss()(x, y, mask)
    for one, (copy, version) in zip(watched, before, strict=True):
        assert torch.equal(one, copy)
        assert one._version == version


def test_printing_explains_the_loss() -> None:
    text = repr(ConcordanceLoss(over="batch", moments="mixed", eps=1e-6))
    assert text == "ConcordanceLoss(over='batch', moments='mixed', eps=1e-06)"
    assert not ConcordanceLoss().state_dict()


def test_wrong_calls_are_answered() -> None:
    x = torch.randn(2, 4)
    numbers: reference.Structure = x.numpy()
    wrong: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: concordance(x, x, over="step"), ValueError, "concordance: unknown over"),
        (lambda: concordance(x, x, moments="raw"), ValueError, "concordance: unknown moments"),
        (lambda: concordance(x, x, eps=0.0), ValueError, "concordance: eps must be positive"),
        (lambda: ConcordanceLoss(over="all"), ValueError, "ConcordanceLoss: unknown over"),
        (lambda: ConcordanceLoss(moments=""), ValueError, "ConcordanceLoss: unknown moments"),
        (lambda: ConcordanceLoss(eps=-1), ValueError, "ConcordanceLoss: eps must be positive"),
        (lambda: concordance(numbers, x), TypeError, "'prediction' is not a tensor of real"),
        (lambda: concordance(x, x * 1j), TypeError, "'target' is not a tensor of real numbers"),
        (lambda: concordance(x[0], x[0]), ValueError, "are not of one shape"),
        (lambda: concordance(x, x[..., None]), ValueError, "are not of one shape"),
        (lambda: concordance(x, x[:1]), ValueError, "are not of one shape"),
        (lambda: concordance(x, x.to("meta")), ValueError, "'prediction' is on another device"),
        (lambda: concordance(x, x, x), TypeError, "mask is not a bool tensor"),
        (lambda: concordance(x, x, x[0] > 0), ValueError, "mask does not have the batch and steps"),
        (lambda: ConcordanceLoss()(x, x[:, :3]), ValueError, "are not of one shape"),
    ]
    for call, kind, says in wrong:
        with pytest.raises(kind, match=says) as caught:
            call()
        assert str(caught.value).count("\n") == 3, caught.value


@pytest.mark.slow
@pytest.mark.parametrize(("over", "moments"), [("window", "biased"), ("batch", "mixed")])
def test_one_compiled_graph_serves_every_batch_and_length(over: str, moments: str) -> None:
    # The first sizes differ: equal ones share a symbol.
    torch.compiler.reset()
    loss, counter = (
        ConcordanceLoss(over=over, moments=moments),
        CompileCounterWithBackend("aot_eager"),
    )
    compiled, graphs = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True), 0
    for batch, length in ((4, 7), (2, 9), (5, 3)):
        both = Case(batch, length, (2,)).series(torch.float32)
        mask = torch.rand(batch, length) > 0.3
        properties.close(compiled(*both, mask), loss(*both, mask), "compiled", 1e-6)
        graphs = graphs or counter.frame_count  # a first call may start over to fix a number
    assert counter.frame_count == graphs


@pytest.mark.slow
def test_an_exported_loss_takes_any_batch_and_length() -> None:
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    loss, both = ConcordanceLoss(), Case(3, 7).series(torch.float32)
    mask = torch.rand(3, 7) > 0.3
    exported = torch.export.export(loss, (*both, mask), dynamic_shapes=(free,) * 3).module()
    both, mask = Case(2, 11).series(torch.float32), torch.rand(2, 11) > 0.3
    properties.close(exported(*both, mask), loss(*both, mask), "exported", 1e-6)
