"""Reads face crops and asks video files for the times of their frames.

Crops are numbered, from 1 or from 0; a number that is absent means that no face was found, and the
frame is black. A file that is there but damaged becomes black too, with one line per folder.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.affwild2.dataset.files import DamagedFile
from examples.affwild2.dataset.scan import crop_number
from examples.affwild2.dataset.sound import origin

SIZE, CROP = 48, 40
EVEN = 0.002  # s that a frame may be off an even clock: containers round to 1 ms
GAP = 0.2  # s without a frame that may be damage
FORMATS = {
    ".jpg": {"JPEG", "MPO"},
    ".jpeg": {"JPEG", "MPO"},
    ".png": {"PNG"},
    ".bmp": {"BMP"},
    ".webp": {"WEBP"},
}


@dataclass(frozen=True)
class Faces:
    """Face crops of chosen frames.

    Attributes:
        pixels: RGB, black where there is no face, (T, 48, 48, 3).
        present: Whether there is one, (T,).
        problems: One line about damaged files.
        damaged: These files.
    """

    pixels: NDArray[np.uint8]
    present: NDArray[np.bool_]
    problems: tuple[str, ...]
    damaged: tuple[Path, ...] = ()


class Clock(NamedTuple):
    """When the frames of a video are shown.

    Attributes:
        fps: Frames per second, on average.
        frames: How many there are.
        times: In s from the start of the file, (frames,); ``None``: frame i at i / fps.
        lost: Frames that the file's header counts and that cannot be read.
    """

    fps: float
    frames: int
    times: NDArray[np.float64] | None
    lost: int = 0

    def at(self, index: NDArray[np.int64]) -> NDArray[np.float64]:
        """Times of frames, in s; those after the last one follow at the average rate."""
        if self.times is None:
            return np.asarray(index / self.fps)
        last = len(self.times) - 1
        inside = self.times[np.minimum(index, last)]
        return np.asarray(inside + np.maximum(index - last, 0) / self.fps)

    def gaps(self) -> list[tuple[float, float]]:
        """From when to when no frame is shown, in s; single frames left out are none."""
        if self.times is None or len(self.times) < 2:
            return []
        steps = np.diff(self.times)
        wide = np.flatnonzero(steps > max(GAP, 3 * float(np.median(steps))))
        return [(float(self.times[i]), float(self.times[i + 1])) for i in wide]

    def filled(self, frames: int) -> "Clock":
        """The even clock that this one is without its gaps, if it has about ``frames`` frames.

        A video with a damaged part lacks the frames of that part. One that was recorded at varying
        times has gaps, too, but as many frames as it has labels.

        Args:
            frames: How many the video has, by its labels.

        Returns:
            This clock if it has another form, or a number of frames nearer to ``frames``.
        """
        if self.times is None or not self.gaps():
            return self
        steps, since = np.diff(self.times), self.times - self.times[0]
        short = steps[steps < 1.5 * np.median(steps)].mean()  # containers round single steps
        places = np.round(since / short)
        step = since[-1] / places[-1]
        even = self.times[0] + np.arange(int(places[-1]) + 1) * step
        far = np.abs(even[places.astype(int)] - self.times).max() > EVEN
        if far or abs(len(even) - frames) >= abs(self.frames - frames):
            return self
        return Clock(1 / step, len(even), None if abs(even[0]) < EVEN else even)


def read_faces(folder: Path, index: NDArray[np.int64], size: int = SIZE, first: int = 1) -> Faces:
    """Reads the crops of the frames ``index`` and resizes them (bicubic).

    Args:
        folder: Holds ``00001.jpg`` for frame 0 and so on, or other pictures with numbers.
        index: Frames, counted from 0, (T,).
        size: Side of the square to return.
        first: Number of the crop of frame 0.
    """
    pixels = np.zeros((len(index), size, size, 3), np.uint8)
    present = np.zeros(len(index), bool)
    problems: list[str] = []
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder; every face is black")
        return Faces(pixels, present, tuple(problems))
    crops = _list_crops(folder)
    damaged: dict[Path, str] = {}
    renamed: list[Path] = []
    for i, frame in enumerate(index.tolist()):
        if (name := crops.get(frame + first)) is None:
            continue
        path = folder / name
        try:
            pixels[i], form = _read_picture(path, size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            damaged[path] = _damage(path, error)
            continue
        present[i] = True
        if form not in FORMATS[path.suffix.lower()]:
            renamed.append(path)
    if renamed:
        problems.append(
            f"{renamed[0]}: is of another format than its name says, as are {len(renamed) - 1} "
            "more of its folder; they are read"
        )
    if damaged:
        path, what = next(iter(damaged.items()))
        more = f", as are {len(damaged) - 1} more of its folder" if len(damaged) > 1 else ""
        frames = "those frames are" if more else "the frame is"
        problems.append(f"{path}: {what}{more}; {frames} black")
    elif not present.any():
        problems.append(f"{folder}: holds no {first:05d}.jpg or later; every face is black")
    return Faces(pixels, present, tuple(problems), tuple(damaged))


def last_face(folder: Path) -> int:
    """Returns the highest number among the crops, 0 where there are none."""
    return max(_list_crops(folder), default=0) if folder.is_dir() else 0


def probe(path: Path, *, count: bool = True) -> tuple[float, int]:
    """Reads the average frame rate and the number of frames of a video file.

    Args:
        path: The file.
        count: Counts the frames where the header does not; else they come from the duration.

    Raises:
        DamagedFile: The file is no video, has no frame rate, or is cut short.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DamagedFile(path, "has no pictures")
            stream = container.streams.video[0]
            rate = stream.average_rate
            frames = stream.frames
            if not frames and count:
                frames = sum(packet.size > 0 for packet in container.demux(stream))
            elif not frames and rate and container.duration:
                frames = round(container.duration / av.time_base * rate)
        if not rate or not frames:  # as in live recordings
            times, _ = frame_times(path)
            span = float(np.ptp(times)) if len(times) else 0.0
            rate, frames = Fraction((len(times) - 1) / span) if span else None, len(times)
    except (OSError, av.FFmpegError) as error:
        raise DamagedFile(path, f"cannot be read as video ({_short(error)})") from error
    if not rate or not frames:
        raise DamagedFile(path, "does not give its frame rate or number of frames")
    return float(rate), int(frames)


def frame_times(path: Path) -> tuple[NDArray[np.float64], int]:
    """Reads when each frame of a video is shown, in s from the start of the file.

    Reads all of the file, but decodes nothing.

    Returns:
        The times, (T,), none if the container does not give them; and the number of frames in the
            file, with those that it says not to show.
    """
    stamps, count = list[int](), 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        try:
            for packet in container.demux(stream):
                count += packet.size > 0
                if packet.size and not packet.is_discard:
                    if packet.pts is None:
                        return np.zeros(0), 0
                    stamps.append(packet.pts)
        except av.FFmpegError:
            pass  # a file that is cut: what was read has its times
        times = np.sort(np.array(stamps, np.float64)) * float(stream.time_base or 0)
        return times - origin(container), count


def read_clock(path: Path) -> Clock:
    """Reads the frame rate, the number of frames and, unless they are even, the times of a video.

    Raises:
        DamagedFile: As ``probe``.
    """
    rate, frames = probe(path)
    times, count = frame_times(path)
    if len(times) < 2 or times[-1] <= times[0]:
        return Clock(rate, frames, None)
    steps = np.arange(len(times))
    for fps in (rate, (len(times) - 1) / (times[-1] - times[0])):
        if np.abs(times - steps / fps).max() < EVEN:
            lost = max(0, frames - count) if fps == rate else 0
            return Clock(fps, len(times), None, lost)
    return Clock(fps, len(times), times)


def _list_crops(folder: Path) -> dict[int, str]:
    """Lists the crops of a folder by their numbers."""
    names = sorted((path.name for path in folder.iterdir()), reverse=True)
    return {number: name for name in names if (number := crop_number(name)) is not None}


def crop(faces: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Crops 40×40 out of 48×48, the same for all frames of a window.

    Args:
        faces: (L, 48, 48, 3).
        generator: Draws the offset (0 to 8) and, with probability 1/2, a mirror image for training;
            ``None`` takes the middle.

    Returns:
        (L, 40, 40, 3).
    """
    spare = faces.shape[1] - CROP
    if generator is None:
        top = left = spare // 2
        mirror = False
    else:
        top, left = torch.randint(spare + 1, (2,), generator=generator).tolist()
        mirror = bool(torch.randint(2, (), generator=generator))
    window = faces[:, top : top + CROP, left : left + CROP]
    return window.flip(2) if mirror else window


def to_unit(faces: Tensor) -> Tensor:
    """Maps bytes to [-1, 1] with channels first, (..., H, W, 3) -> (..., 3, H, W); black is -1."""
    return faces.movedim(-1, -3).to(torch.float32) / 127.5 - 1


def _read_picture(path: Path, size: int) -> tuple[NDArray[np.uint8], str]:
    with Image.open(path, formats=("JPEG", "PNG", "BMP", "WEBP")) as picture:
        return np.asarray(picture.convert("RGB").resize((size, size))), picture.format or ""


def _damage(path: Path, error: Exception) -> str:
    if path.exists() and not path.stat().st_size:
        return "is empty"
    return f"is no whole picture ({_short(error).replace(f' {str(path)!r}', '')})"


def _short(error: Exception) -> str:
    """What went wrong, without the path, which the line begins with anyway."""
    message = str(getattr(error, "strerror", None) or error).strip()
    return message.splitlines()[0] if message else type(error).__name__
