"""The which_fusion example: its best guesses by their laws, its methods, and a run to the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.which_fusion.__main__ import Options, jobs, main
from examples.which_fusion.methods import METHODS, TITLES, Net, applicable, from_identity
from examples.which_fusion.report import cells, rows, verdicts
from examples.which_fusion.results import work
from examples.which_fusion.streams import NAMES, RELATIONS, guesses, smoothed
from examples.which_fusion.train import Budget, Run, average, best_agreement

TINY = Budget(windows=4, tested=3, batch=4)


@pytest.mark.parametrize("name", sorted(RELATIONS))
def test_the_best_guess_is_a_conditional_mean(name: str) -> None:
    windows = RELATIONS[name].windows(400, world=3, draw=5)
    best, target = windows.best.double().flatten(), windows.target.double().flatten()
    # A conditional mean is as large as its covariance with what it guesses: 24000 steps tell.
    assert (best * target).mean().item() == pytest.approx(best.square().mean().item(), rel=0.02)
    assert best.mean().item() == pytest.approx(0, abs=0.05)
    assert 0.75 < best_agreement(windows) < 1


@pytest.mark.parametrize("name", sorted(RELATIONS))
def test_streams_have_unit_scale_and_are_zero_where_missing(name: str) -> None:
    windows = RELATIONS[name].windows(200, world=1, draw=2)
    for stream, mask in zip(windows.streams.values(), windows.masks.values(), strict=True):
        valid = torch.ones(stream.shape[:2], dtype=torch.bool) if mask is None else mask
        assert stream[valid].std().item() == pytest.approx(1, abs=0.05)
        assert not stream[~valid].any()
    lengths = {stream: x.shape[1] for stream, x in windows.streams.items()}
    assert lengths == dict(RELATIONS[name].lengths)


def test_a_world_is_the_same_in_all_its_windows() -> None:
    one, again, other = (
        RELATIONS["same"].windows(500, world, draw) for world, draw in ((0, 1), (0, 2), (4, 1))
    )
    directions = [
        torch.einsum("nl,nlc->c", windows.target, windows.streams["strong"])
        / windows.target.numel()
        for windows in (one, again, other)
    ]
    torch.testing.assert_close(directions[0], directions[1], atol=0.05, rtol=0)
    assert (directions[0] - directions[2]).abs().max() > 0.1
    assert not torch.equal(one.target, again.target)


@given(seed=st.integers(0, 999), observations=st.integers(1, 4), hidden=st.integers(1, 3))
def test_guesses_agree_with_the_joint_normal_distribution(
    seed: int, observations: int, hidden: int
) -> None:
    torch.manual_seed(seed)
    gains = torch.rand(2, observations, hidden) * (0.8 / hidden)
    views = torch.randn(5, observations)
    likelihood, mean = guesses(views, gains)
    for k, gain in enumerate(gains):
        noise = torch.diag(1 - gain.square().sum(dim=-1))
        covariance = gain @ gain.mT + noise
        expected = views @ torch.linalg.inv(covariance) @ gain
        torch.testing.assert_close(mean[:, k], expected, rtol=1e-3, atol=1e-4)
        normal = torch.distributions.MultivariateNormal(torch.zeros(observations), covariance)
        constant = observations * torch.log(torch.tensor(2 * torch.pi)) / 2
        torch.testing.assert_close(
            likelihood[:, k], normal.log_prob(views) + constant, rtol=1e-3, atol=1e-3
        )


@given(seed=st.integers(0, 999), steps=st.integers(1, 6))
def test_smoothed_agrees_with_all_paths_counted(seed: int, steps: int) -> None:
    torch.manual_seed(seed)
    flip = 0.2
    told = torch.randn(1, steps, 2)
    paths = torch.cartesian_prod(*[torch.arange(2)] * steps).reshape(-1, steps)
    flips = (paths[:, 1:] != paths[:, :-1]).sum(dim=1)
    prior = flip**flips * (1 - flip) ** (steps - 1 - flips)
    weight = prior * told[0].gather(1, paths.mT).sum(dim=0).exp()
    ones = (paths * weight[:, None]).sum(dim=0) / weight.sum()
    torch.testing.assert_close(smoothed(told, flip)[0, :, 1], ones, rtol=1e-4, atol=1e-5)


APPLICABLE = [(m, r) for m in METHODS for r in RELATIONS if applicable(METHODS[m], RELATIONS[r])]


@pytest.mark.parametrize(("method", "relation"), APPLICABLE)
def test_every_method_predicts_every_relation(method: str, relation: str) -> None:
    about = RELATIONS[relation]
    windows = about.windows(4, world=0, draw=0)
    unaligned = METHODS[method].unaligned
    net = Net(METHODS[method].make(about), width=4, dropout=0.0, unaligned=unaligned)
    predicted = net(windows)
    assert predicted.shape == windows.target.shape
    predicted.sum().backward()
    assert torch.isfinite(predicted).all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_from_identity_meets_equal_moments() -> None:
    relation = RELATIONS["lengths"]
    fusion = from_identity(METHODS["rcma-stable-unaligned"].make)(relation)
    weights = dict(fusion.named_parameters())
    for name in NAMES:
        weight = weights[f"layer.recursions.0.{name}.temporal"]
        others = [steps for other, steps in relation.lengths.items() if other != name]
        for block in weight.split(others, dim=1):
            rows, columns = block.shape
            row, column = torch.arange(rows)[:, None], torch.arange(columns)
            overlap = (row * columns < (column + 1) * rows) & (column * rows < (row + 1) * columns)
            assert torch.equal(block != 0, overlap)
            torch.testing.assert_close(block.sum(dim=1), torch.ones(rows))


def test_the_average_leaves_out_what_is_missing() -> None:
    alone = {name: torch.full((2, 60), float(k)) for k, name in enumerate(NAMES)}
    masks: dict[str, torch.Tensor | None] = dict.fromkeys(NAMES)
    masks["third"] = torch.tensor([[True], [False]]).expand(2, 60)
    torch.testing.assert_close(average(alone, masks), torch.tensor([[1.0], [0.5]]).expand(2, 60))


def test_marks_tell_who_leads_and_who_loses() -> None:
    reached = {
        "best": (0.9, 0.9),
        "concatenation": (0.5, 0.52),
        "rcma": (0.3, 0.31),
        "rcma-stable": (0.8, 0.82),
        "rcma-stable-any": (0.79, 0.82),
        "rcma-stable-any-all": (0.6, 0.62),
    }
    runs = [
        Run("sign", method, seed, value, 0.0)
        for method, values in reached.items()
        for seed, value in enumerate(values)
    ]
    marks = {method: cell.mark for (_, method), cell in cells(runs).items()}
    assert marks == {
        "best": "",
        "concatenation": "",
        "rcma": "▼",
        "rcma-stable": "★",
        "rcma-stable-any": "★",
        "rcma-stable-any-all": "",
    }
    header, body = rows(runs)
    assert len(header) == 2
    assert [row[0] for row in body][:2] == ["best attainable", TITLES["concatenation"]]
    assert verdicts(runs)[1] == [
        [
            "sign drawn for each window",
            "concatenation 0.510",
            "+0.295 ± 0.007",
            "+0.100 ± 0.000",
            "+0.300 ± 0.000",
        ]
    ]


@pytest.mark.slow
def test_runs_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {name: METHODS[name] for name in ("concatenation", "rcma-stable-any")}
    monkeypatch.setattr("examples.which_fusion.__main__.METHODS", kept)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table -->\n<!-- /table -->\n<!-- verdict -->\n<!-- /verdict -->\n")
    options = Options(seeds=2, out=tmp_path, processes=1, budget=TINY, readme=readme)
    plan = jobs(options)
    assert len(plan) == 2 * len(RELATIONS) * 3
    main(options)
    assert "Concordance on new windows" in capsys.readouterr().out
    assert (tmp_path / "which_fusion.png").stat().st_size > 1000
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert {run["method"] for run in runs} == {"best", "average", *NAMES, *kept}
    assert "| RCMA, stable, length=None |" in readme.read_text()
    again = [run.agreement for job in plan[:2] for run in work(job)]
    first = [run for run in runs if run["relation"] == "same" and run["seed"] == 0]
    assert set(again) == {run["agreement"] for run in first if run["method"] != "rcma-stable-any"}
