"""Decodes sound to one channel at its own times, as far as it can be decoded.

Level: the mean of the channels. The silent ones and the low-frequency one do not count, so that a
voice in the centre alone is as loud as the same voice in mono.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from examples.affwild2.dataset.files import DamagedFile

Samples = NDArray[np.int16]
Floats = NDArray[np.float32]
SOUND_FILES = {".wav", ".flac", ".ogg", ".mp3", ".opus"}  # what soundfile reads
MANY = 2  # channels; of more, PyAV says which one is which
JITTER = 0.02  # s that time stamps may be off before they count as a gap
HOLE = 0.1  # s of undecodable sound that are reported
SILENCE = 1e-3  # of the loudest channel's peak: -60 dB
LFE, UNNAMED = "LFE", "NONE"  # what PyAV calls the low-frequency channel, and one without a name
LFE_PLACE = 3  # among six or more channels without names


@dataclass(frozen=True)
class Sound:
    """What could be decoded of a sound; time 0 is the start of the file.

    Attributes:
        samples: Mono; zeros where nothing could be decoded.
        missing: From when to when nothing could be decoded, in s.
        problems: One line if there is such a part.
        pauses: From when to when the file has no sound, without a sign of damage, in s.
    """

    samples: Samples
    missing: tuple[tuple[float, float], ...] = ()
    problems: tuple[str, ...] = ()
    pauses: tuple[tuple[float, float], ...] = ()


@dataclass
class _Mixer:
    """Adds up channels block by block; how many count is known at the end."""

    total: list[Floats] = field(default_factory=list)
    peaks: Floats = field(default_factory=lambda: np.zeros(0, np.float32))

    def add(self, block: Floats) -> None:
        """Takes a block, (channels, n)."""
        if block.shape[1] and len(block) >= len(self.peaks):
            peaks = np.abs(block).max(axis=1)
            peaks[: len(self.peaks)] = np.maximum(peaks[: len(self.peaks)], self.peaks)
            self.peaks = peaks
        self.total.append(block.sum(axis=0, dtype=np.float32))

    def mono(self) -> Floats:
        channels = int((self.peaks > SILENCE * self.peaks.max(initial=0.0)).sum())
        total = np.concatenate([np.zeros(0, np.float32), *self.total])
        return np.asarray(total / max(channels, 1), np.float32)


def read_sound(path: Path, rate: int) -> Sound:
    """Reads a sound file, or the sound track of a video, as mono 16-bit samples.

    Args:
        path: A file that soundfile knows (wav, flac, ogg, mp3), or any for PyAV.
        rate: Sampling rate to return.

    Raises:
        DamagedFile: The file cannot be read or has no sound.
    """
    try:
        if path.suffix.lower() in SOUND_FILES:
            try:
                if soundfile.info(path).channels <= MANY:
                    return _at_rate(*_read_file(path), rate)
            except soundfile.SoundFileError:
                if not path.exists() or not path.stat().st_size:
                    raise
        return _read_track(path, rate)
    except (OSError, soundfile.SoundFileError, av.FFmpegError) as error:
        raise DamagedFile(path, f"cannot be read as sound ({_last_line(error)})") from error


def origin(container: av.container.InputContainer) -> float:
    """Returns the time in s at which a file begins, with its first picture or sound.

    What an encoder puts before time 0 to prime its decoder does not count.
    """
    streams = [*container.streams.video[:1], *container.streams.audio[:1]]
    starts = [
        max(0.0, float(stream.start_time * stream.time_base))
        for stream in streams
        if stream.start_time is not None and stream.time_base is not None
    ]
    return min(starts, default=0.0)


def _read_file(path: Path) -> tuple[Floats, int]:
    sound, found = soundfile.read(path, dtype="float32", always_2d=True)
    if not len(sound):
        raise DamagedFile(path, "has a sound track without samples")
    mixer = _Mixer()
    mixer.add(sound.T)
    return mixer.mono(), found


def _at_rate(mono: Floats, found: int, rate: int) -> Sound:
    if found != rate:
        mono = soxr.resample(mono, found, rate)
    scaled = np.clip(np.round(mono * 2.0**15), -(2**15), 2**15 - 1)
    return Sound(np.asarray(scaled, np.int16))


def _read_track(path: Path, rate: int) -> Sound:
    """Places every decoded frame at its time, and remembers the holes between them."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            raise DamagedFile(path, "has no sound track")
        stream = container.streams.audio[0]
        start = origin(container)
        found, length, errors = 0, 0, [0]
        mixer, holes = _Mixer(), list[tuple[float, float]]()
        for frame in _frames(container, stream, errors):
            block = _to_float(frame)
            if not found:
                found = frame.sample_rate
            elif frame.sample_rate != found:
                block = soxr.resample(block.T, frame.sample_rate, found).T
            block = block[_heard(frame)]
            late = 0
            if frame.pts is not None and frame.time_base is not None:
                late = round((float(frame.pts * frame.time_base) - start) * found) - length
            if late > JITTER * found or (late > 0 and not length):
                if length:
                    holes.append((length / found, (length + late) / found))
                mixer.add(np.zeros((len(block), late), np.float32))
                length += late
            elif late < -JITTER * found or (late < 0 and not length):
                block = block[:, -late:]
            mixer.add(block)
            length += block.shape[1]
        expected = 0.0
        if stream.duration is not None and stream.time_base is not None:
            first = max(0.0, float((stream.start_time or 0) * stream.time_base))
            expected = first + float(stream.duration * stream.time_base) - start
    if not length:
        raise DamagedFile(path, "has a sound track without samples")
    end = length / found
    if expected - end > HOLE or (errors[0] and not holes):
        holes.append((end, np.inf))
    lost = sum(min(b, max(expected, end)) - a for a, b in holes)
    sound = _at_rate(mixer.mono(), found, rate)
    if not (errors[0] or expected - end > HOLE) or lost <= HOLE:
        return replace(sound, pauses=tuple(holes))  # silence, unless pictures are missing too
    line = f"{path}: {lost:.1f} s of its sound from {holes[0][0]:.1f} s on cannot be decoded"
    return Sound(sound.samples, tuple(holes), (f"{line}; that part of the voice is missing",))


def _frames(
    container: av.container.InputContainer, stream: av.AudioStream, errors: list[int]
) -> Iterator[av.AudioFrame]:
    """Decodes packet by packet, counting those that cannot be decoded."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError:
            errors[0] += 1
            return
        errors[0] += packet.is_corrupt
        try:
            frames = packet.decode()
        except av.FFmpegError:
            errors[0] += 1
            continue
        yield from frames


def _heard(frame: av.AudioFrame) -> list[int]:
    """The channels without the low-frequency one."""
    names = [channel.name for channel in frame.layout.channels]
    if len(names) > LFE_PLACE + 2 and set(names) == {UNNAMED}:
        names[LFE_PLACE] = LFE
    return [i for i, name in enumerate(names) if name != LFE]


def _to_float(frame: av.AudioFrame) -> Floats:
    """Converts samples of any format to [-1, 1], (channels, n), without mixing channels."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        return np.asarray((values.astype(np.float32) - 128) / 128, np.float32)
    if np.issubdtype(values.dtype, np.integer):
        return np.asarray(values / 2.0 ** (8 * values.dtype.itemsize - 1), np.float32)
    return np.asarray(values, np.float32)


def _last_line(error: Exception) -> str:
    message = str(getattr(error, "strerror", None) or error).strip()
    return message.splitlines()[-1] if message else type(error).__name__
