"""The which_fusion example: its best guesses by their laws, its methods, and a run to the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.which_fusion.__main__ import Options, jobs, main
from examples.which_fusion.methods import COMPARED, METHODS, TITLES, Net, applicable
from examples.which_fusion.report import cells, tables
from examples.which_fusion.results import read, work
from examples.which_fusion.streams import MEMORY, NAMES, RELATIONS, guesses, normal, smoothed
from examples.which_fusion.train import BEST, SINGLES, Budget, Run, average, best_agreement

TINY = Budget(windows=4, tested=3, batch=4)
FEW = ("same", "sign", "sign-30")


SHORT = [name for name in sorted(RELATIONS) if RELATIONS[name].steps < 1000]


@pytest.mark.parametrize("name", SHORT)
def test_the_best_guess_is_a_conditional_mean(name: str) -> None:
    count = 24000 // RELATIONS[name].steps * (5 if name == "slow" else 1)  # slow steps are alike
    windows = RELATIONS[name].windows(count, world=3, draw=5)
    best, target = windows.best.double().flatten(), windows.target.double().flatten()
    # A conditional mean is as large as its covariance with what it guesses: 24000 steps suffice.
    assert (best * target).mean().item() == pytest.approx(best.square().mean().item(), rel=0.02)
    assert best.mean().item() == pytest.approx(0, abs=0.05)
    assert 0.75 < best_agreement(windows) < 1


@pytest.mark.parametrize("name", SHORT)
def test_streams_have_unit_scale_and_are_zero_where_missing(name: str) -> None:
    windows = RELATIONS[name].windows(200, world=1, draw=2)
    for stream, mask in zip(windows.streams.values(), windows.masks.values(), strict=True):
        valid = torch.ones(stream.shape[:2], dtype=torch.bool) if mask is None else mask
        assert stream[valid].std().item() == pytest.approx(1, abs=0.05)
        assert not stream[~valid].any()
    lengths = {stream: x.shape[1] for stream, x in windows.streams.items()}
    assert lengths == dict(RELATIONS[name].lengths)


@given(memory=st.floats(0, 0.99), seed=st.integers(0, 99))
def test_neighbouring_steps_correlate_as_the_memory_says(memory: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = normal(2000, 2, 2, memory=memory, generator=generator)
    torch.testing.assert_close(x.var(dim=(0, 2)), torch.ones(2), rtol=0, atol=0.15)
    torch.testing.assert_close(
        (x[:, 1:] * x[:, :-1]).mean(dim=(0, 2)), torch.full((1,), memory), rtol=0, atol=0.12
    )


def test_slow_streams_are_slow_in_every_direction() -> None:
    windows = RELATIONS["slow"].windows(300, world=1, draw=2)
    for stream in windows.streams.values():
        found = torch.einsum("nlc,nld->cd", stream[:, 1:], stream[:, :-1]) / (300 * 59)
        torch.testing.assert_close(found, MEMORY * torch.eye(8), rtol=0, atol=0.12)


def test_a_sign_is_guessed_better_in_a_longer_window() -> None:
    reached = [
        best_agreement(RELATIONS[f"sign-{steps}"].windows(6000 // steps, world=0, draw=1))
        for steps in (30, 300, 3000)
    ]
    assert reached == sorted(reached)


def test_long_windows_get_as_many_updates() -> None:
    budget = Budget()
    for steps in (30, 60, 300, 3000):
        found = budget.at_length(steps)
        assert found.windows // found.batch == budget.windows // budget.batch
        assert found.batch <= budget.batch
        assert found.tested >= 30
    assert budget.at_length(60) == budget


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


APPLICABLE = [(m, r) for m in METHODS for r in SHORT if applicable(METHODS[m], RELATIONS[r])]


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


def test_unaligned_layers_are_run_on_different_lengths_only() -> None:
    run = {r for r in RELATIONS if applicable(METHODS["rcma-unaligned"], RELATIONS[r])}
    assert run == {"lengths"}
    narrow = {m for m in METHODS if applicable(METHODS[m], RELATIONS["sign-3000"])}
    assert narrow == {m for m in METHODS if METHODS[m].main}


def test_candidates_are_run_if_named_and_where_the_relation_varies() -> None:
    candidates = {name for name in METHODS if METHODS[name].candidate}
    assert candidates == set(METHODS) - set(COMPARED)
    assert {job.method for job in jobs(Options())} & candidates == set()
    named = jobs(Options(methods=("chosen", "random-start")))
    assert {job.relation for job in named} == {"sign", "lengths", "slow"}


def test_the_average_leaves_out_what_is_missing() -> None:
    alone = {name: torch.full((2, 60), float(k)) for k, name in enumerate(NAMES)}
    masks: dict[str, torch.Tensor | None] = dict.fromkeys(NAMES)
    masks["third"] = torch.tensor([[True], [False]]).expand(2, 60)
    torch.testing.assert_close(average(alone, masks), torch.tensor([[1.0], [0.5]]).expand(2, 60))


def test_the_best_and_those_within_its_spread_are_bold() -> None:
    reached = {
        "best": (0.9, 0.9),
        "concatenation": (0.5, 0.52),
        "cross": (0.3, 0.31),
        "self": (0.8, 0.82),
        "rcma": (0.79, 0.82),
        "jca": (0.6, 0.62),
        "early": (0.85,),  # a single run has no spread: neither best nor compared with
        "lmf": (0.1,),
    }
    runs = [
        Run("sign", method, seed, value, 2.0, 7)
        for method, values in reached.items()
        for seed, value in enumerate(values)
    ]
    marks = {method: cell.mark for (_, method), cell in cells(runs).items()}
    assert marks == {
        "best": "",
        "concatenation": "",
        "cross": "▼",
        "self": "bold",
        "rcma": "bold",
        "jca": "",
        "early": "",
        "lmf": "",
    }
    header, body = tables(runs)["table"]
    assert len(header) == 4
    rows = {row[0]: row[1:] for row in body}
    assert rows["best attainable"] == ["0.900 ± 0.000", "—", "—"]
    assert rows["RCMA"] == ["**0.805 ± 0.021**", "7", "2.0"]
    assert rows[TITLES["cross"]][0] == "0.305 ± 0.007 ▼"
    assert rows[TITLES["early"]][0] == "0.850"


@pytest.mark.slow
def test_runs_from_end_to_end_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (BEST, SINGLES, "concatenation", "rcma")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table -->\n<!-- /table -->\n<!-- lengths -->\n<!-- /lengths -->\n")
    options = Options(
        seeds=2, out=tmp_path, processes=1, budget=TINY, readme=readme, methods=kept, relations=FEW
    )
    plan = jobs(options)
    assert len(plan) == 2 * (len(FEW) * 4 - 1)
    main(options)
    assert "Concordance on new windows" in capsys.readouterr().out
    assert (tmp_path / "which_fusion.png").stat().st_size > 1000
    file = tmp_path / "runs.json"
    runs = json.loads(file.read_text())["runs"]
    assert {run["method"] for run in runs} == {"best", "average", *NAMES, *kept} - {SINGLES}
    assert readme.read_text().count("| RCMA |") == 2
    assert read(file, TINY) == [Run(**run) for run in runs]
    assert read(file, Budget()) == []

    def no_work(job: object) -> None:
        raise AssertionError(f"{job} was there already")

    monkeypatch.setattr("examples.which_fusion.results.work", no_work)
    main(options)
    again = [run.agreement for job in plan[:4] for run in work(job)]
    assert again == [
        run["agreement"]
        for method in ("best", *NAMES, "average", "concatenation", "rcma")
        for run in runs
        if (run["relation"], run["method"], run["seed"]) == ("same", method, 0)
    ]


def test_wrong_names_are_refused() -> None:
    with pytest.raises(SystemExit, match="no method 'rmca': there are best"):
        jobs(Options(methods=("rmca",)))
    with pytest.raises(SystemExit, match="no relation 'sing': there are same"):
        jobs(Options(relations=("sing",)))
