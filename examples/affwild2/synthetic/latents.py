"""Simulates one generated trial: hidden feelings, noisy labels, and the six cues that show them.

Everything random about a trial that is not a picture, a sound or a word is drawn here, at 15 frames
per second. Shapes: T frames, U utterances; column 0 is valence, column 1 is arousal.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Modality = Literal["V", "A", "T"]

FPS = 15.0
LENGTH_SCALE = 2.0  # seconds, of the Matérn-3/2 process
SWING, OFFSET = 0.40, 0.25  # spread of the moving part and of the trial's own level
COUPLING = 0.25  # correlation of the moving parts of valence and arousal
WORD_FRAMES = 6  # one content word in 0.4 s


@dataclass(frozen=True)
class Switches:
    """What makes fusion more than adding up.

    Attributes:
        sarcasm: Probability that an utterance's words mean their opposite; only the voice shows it
            (a nasal band).
        idiosyncrasy: Probability that a person's voice timbre shows valence with the sign reversed.
            Above zero the timbre is a clear cue, worthless to whoever does not know its sign.
    """

    sarcasm: float = 0.25
    idiosyncrasy: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"make-data: {name} is a probability, found {value}")


@dataclass(frozen=True)
class Cue:
    """One observed scalar: the feeling plus white noise, slow noise and a bias of the trial.

    Attributes:
        modality: Who carries it: face (V), voice (A) or words (T).
        of: 0 for valence, 1 for arousal.
        white: Standard deviation of the noise of each frame (of each word for words).
        slow: Standard deviation of the autoregressive noise.
        tau: Its time constant in seconds.
        bias: Standard deviation of the trial's constant error.
        speaking: Factor on ``white`` while the person speaks.
    """

    modality: Modality
    of: int
    white: float
    slow: float
    tau: float
    bias: float
    speaking: float = 1.0


CUES = {
    "mouth": Cue("V", 0, 0.40, 0.28, 0.8, 0.35, speaking=6.0),
    "eyes": Cue("V", 1, 1.20, 0.45, 0.8, 0.40),
    "energy": Cue("A", 1, 0.45, 0.25, 0.6, 0.20),
    "timbre": Cue("A", 0, 4.00, 0.90, 0.8, 0.60),
    "word": Cue("T", 0, 0.75, 0.20, 1.0, 0.12),
    "emphasis": Cue("T", 1, 3.50, 0.60, 1.0, 0.40),
}
SIGNED_TIMBRE = Cue("A", 0, 0.45, 0.25, 0.8, 0.0)


@dataclass(frozen=True)
class Latents:
    """What happened in one trial.

    Attributes:
        affect: Valence and arousal before clipping to [-1, 1], (T, 2).
        labels: Mean of four late and noisy raters, three decimals, (T, 2).
        utterance: Number of the utterance spoken, -1 in silence, (T,).
        face_missing: No face was found, (T,).
        mouth_hidden: A bar lies over the mouth, (T,).
        eyes_hidden: A bar lies over the eyes, (T,).
        sarcastic: Whether the words of an utterance are negated, (U,).
        polarity: +1, or -1 where the timbre of the voice shows valence reversed.
        cues: The observed scalars by name, NaN where nobody can see or hear them, (T,) each.
    """

    affect: Floats
    labels: Floats
    utterance: NDArray[np.int64]
    face_missing: Bools
    mouth_hidden: Bools
    eyes_hidden: Bools
    sarcastic: Bools
    polarity: int
    cues: dict[str, Floats]

    @property
    def speaking(self) -> Bools:
        return self.utterance >= 0


def cues_for(switches: Switches) -> dict[str, Cue]:
    """The noise of each cue: the timbre is a clear cue when its sign is the confounder."""
    return CUES | ({"timbre": SIGNED_TIMBRE} if switches.idiosyncrasy > 0 else {})


def simulate(frames: int, switches: Switches, rng: np.random.Generator) -> Latents:
    """Draws one trial.

    Args:
        frames: Length T at 15 frames per second.
        switches: The two confounders.
        rng: The trial's own stream; the same draws are made whatever the switches say.
    """
    affect = _affect(frames, rng)
    labels = _annotate(affect, rng)
    utterance = _runs(_alternate(frames, 4.0, 3.0, rng, shortest=0.8))
    missing = _alternate(frames, 1.0, 7.0, rng)
    bar = _runs(_alternate(frames, 1.5, 10.5, rng))
    over_mouth = rng.random(bar.max() + 2) < 0.5
    sarcastic = rng.random(utterance.max() + 1) < switches.sarcasm
    polarity = -1 if rng.random() < switches.idiosyncrasy else 1
    hidden = bar >= 0
    mouth_hidden, eyes_hidden = hidden & over_mouth[bar], hidden & ~over_mouth[bar]
    seen = {
        "mouth": ~(missing | mouth_hidden),
        "eyes": ~(missing | eyes_hidden),
        "energy": utterance >= 0,
        "timbre": utterance >= 0,
        "word": _word_slots(utterance),
        "emphasis": _word_slots(utterance),
    }
    sign = {
        "timbre": np.full(frames, polarity),
        "word": np.where((utterance >= 0) & np.append(sarcastic, False)[utterance], -1, 1),
    }
    cues = {
        name: np.where(seen[name], sign.get(name, 1) * values, np.nan)
        for name, values in _observe(affect, utterance >= 0, cues_for(switches), rng).items()
    }
    return Latents(
        affect, labels, utterance, missing, mouth_hidden, eyes_hidden, sarcastic, polarity, cues
    )


def slow_noise(
    frames: int, sigma: Floats | float, tau: Floats | float, rng: np.random.Generator
) -> Floats:
    """Draws stationary AR(1) noise (a sampled Ornstein-Uhlenbeck process), (T, ...).

    Args:
        frames: Length T.
        sigma: Standard deviation of each series.
        tau: Time constant of each series in seconds.
        rng: Source of randomness.
    """
    sigma, tau = np.broadcast_arrays(np.asarray(sigma, float), np.asarray(tau, float))
    keep = np.exp(-1 / (FPS * tau))
    noise = rng.standard_normal((frames, *sigma.shape)) * sigma
    noise[1:] *= np.sqrt(1 - keep**2)
    for t in range(1, frames):
        noise[t] += keep * noise[t - 1]
    return noise


def _matern(frames: int, series: int, rng: np.random.Generator) -> Floats:
    """Draws unit-variance Matérn-3/2 processes as second-order AR, (T, series)."""
    rate, dt = 3**0.5 / LENGTH_SCALE, 1 / FPS
    step = np.exp(-rate * dt) * np.array([[1 + rate * dt, dt], [-(rate**2) * dt, 1 - rate * dt]])
    stationary = np.diag([1.0, rate**2])
    spread = np.linalg.cholesky(stationary - step @ stationary @ step.T)
    draws = rng.standard_normal((frames, 2, series))
    state = np.sqrt(stationary) @ draws[0]
    values = np.empty((frames, series))
    for t in range(frames):
        if t:
            state = step @ state + spread @ draws[t]
        values[t] = state[0]
    return values


def _affect(frames: int, rng: np.random.Generator) -> Floats:
    moving = _matern(frames, 2, rng)
    moving[:, 1] = COUPLING * moving[:, 0] + (1 - COUPLING**2) ** 0.5 * moving[:, 1]
    return SWING * moving + OFFSET * rng.standard_normal(2)


def _annotate(affect: Floats, rng: np.random.Generator) -> Floats:
    """Lets four raters follow the feeling with delays up to 0.2 s and independent errors."""
    frames = np.arange(len(affect))
    noise = slow_noise(len(affect), np.full((4, 2), 0.16), 1.0, rng)
    ratings = np.zeros_like(affect)
    for rater, delay in enumerate(rng.uniform(0, 0.2, 4) * FPS):
        late = [np.interp(frames - delay, frames, column) for column in affect.T]
        ratings += np.clip(np.stack(late, axis=1), -1, 1) + noise[:, rater]
    return np.clip(np.round(ratings / 4, 3), -1, 1)


def _alternate(
    frames: int, on: float, off: float, rng: np.random.Generator, shortest: float = 0.2
) -> Bools:
    """Switches on and off for exponential times with these means in seconds."""
    states = np.zeros(frames, bool)
    state, t = bool(rng.random() < on / (on + off)), 0
    while t < frames:
        stay = max(shortest, rng.exponential(on if state else off))
        end = t + max(1, round(stay * FPS))
        states[t:end] = state
        state, t = not state, end
    return states


def _runs(states: Bools) -> NDArray[np.int64]:
    """Numbers the runs of True; -1 elsewhere."""
    starts = states & ~np.append(False, states[:-1])
    return np.where(states, np.cumsum(starts) - 1, -1)


def _word_slots(utterance: NDArray[np.int64]) -> Bools:
    """Marks the frame at the middle of every word: one in each 0.4 s of speech."""
    slots = np.zeros(len(utterance), bool)
    for number in range(utterance.max() + 1):
        spoken = np.flatnonzero(utterance == number)
        slots[spoken[WORD_FRAMES // 2 : len(spoken) - 2 : WORD_FRAMES]] = True
    return slots


def _observe(
    affect: Floats, speaking: Bools, cues: dict[str, Cue], rng: np.random.Generator
) -> dict[str, Floats]:
    slow = slow_noise(
        len(affect),
        np.array([cue.slow for cue in cues.values()]),
        np.array([cue.tau for cue in cues.values()]),
        rng,
    )
    white, bias = rng.standard_normal(slow.shape), rng.standard_normal(len(cues))
    return {
        name: affect[:, cue.of]
        + white[:, i] * cue.white * np.where(speaking, cue.speaking, 1.0)
        + slow[:, i]
        + bias[i] * cue.bias
        for i, (name, cue) in enumerate(cues.items())
    }
