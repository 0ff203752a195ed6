"""Reads sound and turns it into the two kinds of log-mel pictures of the papers.

VGGish (what the released code feeds its network): 16 kHz, magnitude spectrum, 64 HTK mel bands that
are triangles in mel, ``log(mel + 0.01)``, one row each 10 ms, stored once per video as M (N, 64).
The patch of a video frame is the 96 rows that begin at the frame's time, so it looks 0.975 s ahead:
gather it when it is needed (``gather_patches``) rather than storing 96 rows per frame.

Joint cross-attention (what the paper's text describes): 44.1 kHz, power in dB, 64×107 per 32 video
frames at 30 fps. An option: it does not fit VGGish.
"""

from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from examples.affwild2.dataset.sound import Samples, read_sound

Floats = NDArray[np.float32]

RATE, WINDOW, HOP, FFT = 16_000, 400, 160, 512
BANDS, LOWEST, HIGHEST = 64, 125.0, 7500.0
ROWS_PER_SECOND, PATCH = 100, 96
MISSING = -1  # instead of a row: nothing is known of the sound at that time
BLOCK = 4096  # rows transformed at once, so that an hour of sound fits in memory


def read_audio(path: Path, rate: int = RATE) -> Samples:
    """Reads a sound file, or the sound track of a video, as mono 16-bit samples.

    Args:
        path: A file that soundfile knows (wav, flac, ogg, mp3), or any for PyAV.
        rate: Sampling rate to return.

    Raises:
        DamagedFile: The file cannot be read or has no sound.
    """
    return read_sound(path, rate).samples


def log_mel(samples: Samples) -> Floats:
    """Computes VGGish's log-mel rows, (N, 64), one each 10 ms.

    One second of the last value is appended first, so that the last video frames have a patch.
    """
    if not len(samples):
        raise ValueError("log_mel: found no samples; read_audio refuses such files")
    extended = np.pad(samples, (0, RATE), mode="edge").astype(np.float32) / 2**15
    frames = sliding_window_view(extended, WINDOW)[::HOP]
    window = _hann(WINDOW)
    filters = mel_filters()
    rows = [
        np.log(np.abs(np.fft.rfft(frames[i : i + BLOCK] * window, FFT)) @ filters + 0.01)
        for i in range(0, len(frames), BLOCK)
    ]
    return np.concatenate(rows).astype(np.float32)


def mel_filters() -> NDArray[np.float64]:
    """Returns triangles that are linear in mel, without area normalisation, (257, 64).

    The constant part of a frame lies below the lowest band, so it is no sound.
    """
    mel = _hertz_to_mel(np.linspace(0, RATE / 2, FFT // 2 + 1))[:, None]
    edges = np.linspace(_hertz_to_mel(LOWEST), _hertz_to_mel(HIGHEST), BANDS + 2)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rise, fall = (mel - low) / (middle - low), (high - mel) / (high - middle)
    return np.asarray(np.maximum(0.0, np.minimum(rise, fall)))


def patch_rows(mel_length: int, fps: float, frames: int) -> NDArray[np.int64]:
    """Returns the row of M at which the patch of each video frame begins, (frames,).

    Frame i begins at ``round(i * 100 / fps)``, halves to even; frames after the last whole patch
    repeat it.

    Args:
        mel_length: Rows N of M, at least 96.
        fps: Video frames per second.
        frames: How many video frames need a patch.

    Raises:
        ValueError: ``fps`` is not a positive number, or there is no whole patch.
    """
    if not (np.isfinite(fps) and fps > 0):
        raise ValueError(f"patch_rows: fps must be a positive number, found {fps}")
    if mel_length < PATCH:
        raise ValueError(f"patch_rows: a patch has {PATCH} rows, found only {mel_length}")
    step = ROWS_PER_SECOND / fps
    last = int((mel_length - PATCH) // step)
    return np.round(np.minimum(np.arange(frames), last) * step).astype(np.int64)


def rows_at(mel_length: int, times: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the row of M nearest to each time in s, (T,); times after the last patch repeat it.

    Raises:
        ValueError: There is no whole patch.
    """
    if mel_length < PATCH:
        raise ValueError(f"rows_at: a patch has {PATCH} rows, found only {mel_length}")
    rows = np.round(times * ROWS_PER_SECOND)
    return np.clip(rows, 0, mel_length - PATCH).astype(np.int64)


def gather_patches(mel: Floats, rows: NDArray[np.int64]) -> Floats:
    """Gathers the patches that begin at ``rows``: (N, 64), (T,) -> (T, 96, 64)."""
    return np.asarray(mel[rows[:, None] + np.arange(PATCH)])


def decibel_patches(samples: Samples, fps: float = 30.0, steps: int = 32) -> Floats:
    """Computes the joint cross-attention front end: one picture per ``steps`` video frames.

    Power spectrum of 20 ms Hann windows each 10 ms (FFT 1024, centred, reflected at the ends), 64
    HTK mel bands linear in Hz up to 22.05 kHz, in dB no more than 80 below the loudest, then
    ``(x + 14.8) / 19.895``.

    Args:
        samples: Mono at 44.1 kHz.
        fps: Video frames per second.
        steps: Video frames per picture.

    Returns:
        (pictures, 64, 107) for 32 steps at 30 fps; the last picture is
            filled up with silence.
    """
    rate, window, hop, fft = 44_100, 882, 441, 1024
    length = round(steps / fps * rate)
    pictures = -(-len(samples) // length)
    filters = _hertz_filters(rate, fft, BANDS)
    taper = np.pad(_hann(window), (fft - window) // 2)
    out = np.empty((pictures, BANDS, 1 + length // hop), np.float32)
    for i in range(pictures):
        piece = samples[i * length : (i + 1) * length]
        part = np.pad(piece / 2**15, (0, length - len(piece)))
        frames = sliding_window_view(np.pad(part, fft // 2, mode="reflect"), fft)[::hop]
        power = (np.abs(np.fft.rfft(frames * taper)) ** 2) @ filters
        decibel = 10 * np.log10(np.maximum(power, 1e-10))
        out[i] = ((np.maximum(decibel, decibel.max() - 80) + 14.8) / 19.895).T
    return out


def _hertz_filters(rate: int, fft: int, bands: int) -> NDArray[np.float64]:
    """Returns triangles between points equally far apart in mel, linear in Hz."""
    hertz = np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    edges = 700 * np.expm1(np.linspace(0, _hertz_to_mel(rate / 2), bands + 2) / 1127)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rise, fall = (hertz - low) / (middle - low), (high - hertz) / (high - middle)
    return np.asarray(np.maximum(0.0, np.minimum(rise, fall)))


def _hertz_to_mel(hertz: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1127 * np.log1p(np.asarray(hertz) / 700))


def _hann(length: int) -> NDArray[np.float64]:
    """The periodic Hann window."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length))
