"""Computes how well anybody could do on the generated data: the exact posterior mean.

Feelings and cues are jointly Gaussian, so conditioning on the cues seen (what a Kalman filter with
an RTS smoother does step by step) is one linear solve per trial. A ceiling is the correlation of
that posterior mean with the noisy label over all frames of all trials: the best CCC that is left
after one global rescaling. It is for the cues before they are drawn, sounded and spelt.

The two switches hide signs. A sign flips a cue as a whole, so the posterior mean is a sum over
sign groups, each with its sign, and the likelihood a quadratic form in the signs: marginalising
them exactly is an enumeration. Readings of a subset of the modalities:

- ``known``: every sign given (an oracle);
- ``hidden``: no sign given, marginalised exactly;
- ``achievable``: sarcasm given if the voice, which shows it, is in the subset, the
  polarity marginalised: what the best model of this data reaches;
- ``blind``: signs ignored;
- ``late``: least squares over the ``blind`` posterior means of the single modalities.
"""

from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
from numpy.typing import NDArray

from examples.affwild2.synthetic import latents
from examples.affwild2.synthetic.latents import Bools, Floats, Latents, Switches

TARGETS = ("valence", "arousal")
READINGS = ("known", "hidden", "achievable", "blind", "late")
SUBSETS = tuple(chain.from_iterable(combinations("VAT", n) for n in (1, 2, 3)))
Table = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class _Seen:
    """All cues of a trial that somebody can see or hear, one row each.

    ``group`` numbers the sign a row hangs on: 0 none, 1 the polarity, 2 + u that of utterance u.
    """

    time: NDArray[np.int64]
    of: NDArray[np.int64]
    value: Floats
    group: NDArray[np.int64]
    modality: NDArray[np.str_]
    covariance: Floats


def ceilings(
    trials: int = 150,
    *,
    seconds: float = 30.0,
    switches: Switches | None = None,
    seed: int = 0,
) -> Table:
    """Simulates trials and returns the ceilings by target, reading and subset.

    Args:
        trials: How many trials to simulate; 150 gives about ±0.02 and takes about a minute.
        seconds: Length of each.
        switches: Sarcasm and idiosyncrasy; ``None`` means the defaults of the generated data.
        seed: Of the simulation.
    """
    switches = Switches() if switches is None else switches
    streams = np.random.SeedSequence(seed).spawn(trials)
    labels: list[Floats] = []
    means: dict[tuple[str, str], list[Floats]] = {}
    for stream in streams:
        rng = np.random.Generator(np.random.PCG64(stream))
        trial = latents.simulate(round(seconds * latents.FPS), switches, rng)
        labels.append(trial.labels)
        for key, mean in _readings(trial, switches).items():
            means.setdefault(key, []).append(mean)
    truth = np.concatenate(labels)
    joined = {key: np.concatenate(parts) for key, parts in means.items()}
    joined |= {("late", name): _late(joined, name, truth) for name in map("+".join, SUBSETS)}
    return {
        target: {
            reading: {
                name: _correlation(joined[reading, name][:, column], truth[:, column])
                for name in map("+".join, SUBSETS)
            }
            for reading in READINGS
        }
        for column, target in enumerate(TARGETS)
    }


def _readings(trial: Latents, switches: Switches) -> dict[tuple[str, str], Floats]:
    seen = _collect(trial, switches)
    prior = np.array([0.5, switches.idiosyncrasy] + [switches.sarcasm] * len(trial.sarcastic))
    truth = np.concatenate([[1, trial.polarity], np.where(trial.sarcastic, -1, 1)]).astype(float)
    nothing = np.where(np.arange(len(prior)) > 0, np.nan, 1.0)  # group 0 has no sign
    heard = np.where(np.arange(len(prior)) == 1, np.nan, truth)
    readings: dict[tuple[str, str], Floats] = {}
    for subset in SUBSETS:
        parts, energy = _condition(seen, np.isin(seen.modality, subset), trial, len(prior))
        signs_known = heard if "A" in subset else nothing
        signs = {
            "known": truth,
            "hidden": _expected_signs(energy, nothing, prior),
            "achievable": _expected_signs(energy, signs_known, prior),
            "blind": np.ones(len(prior)),
        }
        readings |= {(name, "+".join(subset)): parts @ sign for name, sign in signs.items()}
    return readings


def _collect(trial: Latents, switches: Switches) -> _Seen:
    cues = latents.cues_for(switches)
    times = {name: np.flatnonzero(np.isfinite(trial.cues[name])) for name in cues}
    time = np.concatenate(list(times.values()))
    which = np.repeat(np.arange(len(cues)), [len(t) for t in times.values()])
    columns = np.array([[c.of, c.white, c.slow, c.tau, c.bias, c.speaking] for c in cues.values()])
    of, white, slow, tau, bias, factor = columns[which].T
    names = np.array(list(cues))[which]
    lag = np.abs(time[:, None] - time) / latents.FPS
    own = slow**2 * np.exp(-lag / tau) + bias**2
    covariance = _prior(lag, of[:, None] == of) + own * (which[:, None] == which)
    white = white * np.where(trial.speaking[time], factor, 1.0)
    covariance[np.diag_indices(len(time))] += white**2
    group = np.where(names == "word", 2 + trial.utterance[time], (names == "timbre").astype(int))
    return _Seen(
        time,
        of.astype(np.int64),
        np.concatenate([trial.cues[name][times[name]] for name in cues]),
        group,
        np.array([cue.modality for cue in cues.values()])[which],
        covariance,
    )


def _prior(lag: Floats, same: Bools) -> Floats:
    """Covariance of the feelings at two times, of the same or of different columns."""
    scaled = 3**0.5 * lag / latents.LENGTH_SCALE
    moving = latents.SWING**2 * (1 + scaled) * np.exp(-scaled)
    return np.where(same, moving + latents.OFFSET**2, latents.COUPLING * moving)


def _condition(seen: _Seen, rows: Bools, trial: Latents, groups: int) -> tuple[Floats, Floats]:
    """Returns each sign group's share of the posterior mean (T, 2, G) and its energy (G, G)."""
    split = seen.value[rows, None] * (seen.group[rows, None] == np.arange(groups))
    weights = np.linalg.solve(seen.covariance[np.ix_(rows, rows)], split)
    lag = np.abs(np.arange(len(trial.labels))[:, None] - seen.time[rows]) / latents.FPS
    means = [_prior(lag, (seen.of[rows] == column)[None]) @ weights for column in (0, 1)]
    return np.stack(means, axis=1), split.T @ weights


def _expected_signs(energy: Floats, given: Floats, prior: Floats) -> Floats:
    """E[s | cues] by enumeration over the signs that are not given (NaN) and have cues."""
    unknown = np.flatnonzero(np.isnan(given) & (np.diag(energy) > 0))
    signs = np.tile(np.nan_to_num(given, nan=1.0), (2 ** len(unknown), 1))
    bits = np.arange(len(signs))[:, None] >> np.arange(len(unknown)) & 1
    signs[:, unknown] = 1 - 2 * bits
    chance = np.where(bits, prior[unknown], 1 - prior[unknown])
    with np.errstate(divide="ignore"):  # a sign that never flips has log 0
        score = np.log(chance).sum(1) - 0.5 * ((signs @ energy) * signs).sum(1)
    weight = np.exp(score - score.max())
    expected: Floats = weight @ signs / weight.sum()
    return expected


def _late(means: dict[tuple[str, str], Floats], name: str, truth: Floats) -> Floats:
    """Least squares, per target, on the posterior means of the single modalities."""
    columns = []
    for column in (0, 1):
        single = [means["blind", m][:, column] for m in name.split("+")]
        design = np.stack([*single, np.ones(len(truth))], axis=1)
        columns.append(design @ np.linalg.lstsq(design, truth[:, column])[0])
    return np.stack(columns, axis=1)


def _correlation(estimate: Floats, truth: Floats) -> float:
    if np.ptp(estimate) < 1e-12:
        return 0.0
    return float(np.corrcoef(estimate, truth)[0, 1])
