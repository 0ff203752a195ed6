"""Sounds the voices of the generated data: loudness, pitch and colour show the cues.

A train of glottal pulses at 16 kHz is filtered block by block in the frequency domain (the three
formants of the vowel spoken, a tilt for arousal, a bright band for valence, a nasal band for
sarcasm), brought to the block's level and added up. Pink noise lies under all, silence included.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.affwild2.synthetic.latents import FPS, Floats, Latents

RATE, BLOCK, HOP = 16_000, 512, 128
CUE_LIMIT = 1.6  # cues are clipped here before they sound
LEVEL, LEVEL_STEP = -26.0, 9.0  # dBFS, and dB per unit of the energy cue
VOWELS = np.array(
    [[730, 1090, 2440], [530, 1840, 2480], [270, 2290, 3010], [570, 840, 2410], [300, 870, 2240]],
    float,
)  # formants in Hz of a, e, i, o, u


@dataclass(frozen=True)
class Syllables:
    """The rhythm of speech, shared by the mouth and the voice.

    Attributes:
        phase: Syllables spoken so far, per sample at 16 kHz.
        opening: How far the mouth is open, 0 to 1, per frame (T,).
    """

    phase: Floats
    opening: Floats


def draw_syllables(trial: Latents) -> Syllables:
    """Counts syllables at 3.5 to 6 a second, the faster the higher the arousal."""
    frame = _frame_of_sample(len(trial.utterance))
    rate = np.where(trial.speaking, 3.5 + 1.5 * np.clip(_cue(trial, "energy"), -0.9, CUE_LIMIT), 0)
    phase = np.cumsum(rate[frame]) / RATE
    middle = ((np.arange(len(rate)) + 0.5) / FPS * RATE).astype(int)
    opening = np.where(trial.speaking, _envelope(phase[middle]), 0.0)
    return Syllables(phase, opening)


def draw_voice(trial: Latents, syllables: Syllables, rng: np.random.Generator) -> NDArray[np.int16]:
    """Sounds one trial.

    Args:
        trial: What is said and how it is meant.
        syllables: From ``draw_syllables``.
        rng: The trial's stream for sound.

    Returns:
        Samples at 16 kHz, as long as the trial's frames.
    """
    frames = len(trial.utterance)
    samples = len(syllables.phase)
    frame = _frame_of_sample(frames)
    base, vowels = rng.uniform(90, 230), rng.integers(len(VOWELS), size=4096)
    vibrato = 1 + 0.01 * np.sin(2 * np.pi * 5.5 * np.arange(samples) / RATE)
    pitch = base * 2 ** (0.35 * _cue(trial, "energy")[frame]) * vibrato
    cycle = np.cumsum(pitch) / RATE
    source = np.diff(np.floor(cycle), prepend=0.0) + 0.02 * rng.standard_normal(samples)

    starts = np.arange(0, samples + BLOCK, HOP)
    middle = np.clip(starts - BLOCK // 2, 0, samples - 1)  # of each block, before padding
    at = frame[middle]
    vowel = vowels[syllables.phase[middle].astype(int) % len(vowels)]
    gain = _filter(trial, at, vowel)
    envelope = 0.75 + 0.25 * _envelope(syllables.phase[middle])
    level = 10 ** ((LEVEL + LEVEL_STEP * _cue(trial, "energy")[at]) / 20) * envelope
    speech = _overlap_add(source, starts, gain, np.where(trial.speaking[at], level, 0.0))
    noise = _pink(samples, rng) * 10 ** ((LEVEL - rng.uniform(5, 20)) / 20)
    return (np.clip(speech + noise, -1, 1 - 2**-15) * 2**15).astype(np.int16)


def _cue(trial: Latents, name: str) -> Floats:
    return np.clip(np.nan_to_num(trial.cues[name]), -CUE_LIMIT, CUE_LIMIT)


def _frame_of_sample(frames: int) -> NDArray[np.int64]:
    samples = round(frames / FPS * RATE)
    return np.minimum((np.arange(samples) * FPS / RATE).astype(np.int64), frames - 1)


def _envelope(phase: Floats) -> Floats:
    """Opens and closes once per syllable."""
    opening: Floats = 0.5 - 0.5 * np.cos(2 * np.pi * phase)
    return opening


def _filter(trial: Latents, at: NDArray[np.int64], vowel: NDArray[np.int64]) -> Floats:
    """Amplitude response of every block, (blocks, BLOCK // 2 + 1)."""
    hertz = np.linspace(0, RATE / 2, BLOCK // 2 + 1)
    arousal, valence = _cue(trial, "energy")[at], _cue(trial, "timbre")[at]
    formants = VOWELS[vowel]
    formants[:, 1] *= 1 + 0.08 * valence
    away = (hertz[:, None] - formants[:, None]) / np.array([90.0, 130.0, 180.0])
    peaks = 1 / (1 + away**2)
    gain = 0.3 + peaks @ np.array([1.0, 0.6, 0.3])
    sarcastic = np.append(trial.sarcastic, False)[trial.utterance[at]]
    decibel = np.outer(6 * arousal, _band(hertz, 2000, 8000))
    decibel += np.outer(10 * valence, _band(hertz, 3600, 5600))
    decibel += np.outer(9 * sarcastic, _band(hertz, 900, 1400))
    shaped: Floats = gain * 10 ** (decibel / 20)
    return shaped


def _band(hertz: Floats, low: float, high: float) -> Floats:
    return ((hertz >= low) & (hertz <= high)).astype(float)


def _overlap_add(source: Floats, starts: NDArray[np.int64], gain: Floats, level: Floats) -> Floats:
    """Filters blocks of the source, brings each to its level and adds them up."""
    window = np.sin(np.pi * (np.arange(BLOCK) + 0.5) / BLOCK)
    padded = np.pad(source, (BLOCK, 2 * BLOCK))
    blocks = padded[starts[:, None] + np.arange(BLOCK)] * window
    voiced = np.fft.irfft(np.fft.rfft(blocks) * gain)
    power = np.sqrt((voiced**2).mean(1)) + 1e-9
    voiced *= (level / power)[:, None] * window * (2 * HOP / BLOCK)
    total = np.zeros(len(padded))
    for start, block in zip(starts.tolist(), voiced, strict=True):
        total[start : start + BLOCK] += block
    return total[BLOCK : BLOCK + len(source)]


def _pink(samples: int, rng: np.random.Generator) -> Floats:
    """Noise whose power falls by 3 dB an octave, of unit RMS."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    noise = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 50.0), samples)
    unit: Floats = noise / noise.std()
    return unit
