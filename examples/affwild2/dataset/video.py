"""Reads face crops and asks video files for their frame rate.

Face crops are numbered from 1; a number that is absent means that no face was found, and the frame
is black. A file that is there but damaged becomes black too, with one line that names it.
"""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.affwild2.dataset.files import DamagedFile

SIZE, CROP = 48, 40


@dataclass(frozen=True)
class Faces:
    """Face crops of chosen frames.

    Attributes:
        pixels: RGB, black where there is no face, (T, 48, 48, 3).
        present: Whether there is one, (T,).
        problems: One line per damaged file.
    """

    pixels: NDArray[np.uint8]
    present: NDArray[np.bool_]
    problems: tuple[str, ...]


def read_faces(folder: Path, index: NDArray[np.int64], size: int = SIZE) -> Faces:
    """Reads the crops of the frames ``index`` and resizes them (bicubic).

    Args:
        folder: Holds ``00001.jpg`` for frame 0 and so on.
        index: Frames, counted from 0, (T,).
        size: Side of the square to return.
    """
    pixels = np.zeros((len(index), size, size, 3), np.uint8)
    present = np.zeros(len(index), bool)
    problems: list[str] = []
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder; every face is black")
        return Faces(pixels, present, tuple(problems))
    for i, frame in enumerate(index.tolist()):
        path = folder / f"{frame + 1:05d}.jpg"
        try:
            pixels[i] = _read_picture(path, size)
            present[i] = True
        except FileNotFoundError:
            continue
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            problems.append(f"{path}: {_damage(path, error)}; the frame is black")
    if not present.any() and not problems:
        problems.append(f"{folder}: holds no 00001.jpg or later; every face is black")
    return Faces(pixels, present, tuple(problems))


def last_face(folder: Path) -> int:
    """Returns the highest number among the crops, 0 where there are none."""
    numbers = [int(path.stem) for path in folder.glob("*.jpg") if path.stem.isdecimal()]
    return max(numbers, default=0)


def probe(path: Path) -> tuple[float, int]:
    """Reads the frame rate and the number of frames of a video file.

    Raises:
        DamagedFile: The file is no video, has no frame rate, or is cut short.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DamagedFile(path, "has no pictures")
            stream = container.streams.video[0]
            rate = stream.average_rate
            frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
    except (OSError, av.FFmpegError) as error:
        raise DamagedFile(path, f"cannot be read as video ({_short(error)})") from error
    if not rate or not frames:
        raise DamagedFile(path, "does not give its frame rate or number of frames")
    return float(rate), int(frames)


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


def _read_picture(path: Path, size: int) -> NDArray[np.uint8]:
    with Image.open(path, formats=("JPEG",)) as picture:
        return np.asarray(picture.convert("RGB").resize((size, size)))


def _damage(path: Path, error: Exception) -> str:
    if not path.stat().st_size:
        return "is empty"
    return f"is no whole JPEG ({_short(error).replace(f' {str(path)!r}', '')})"


def _short(error: Exception) -> str:
    """What went wrong, without the path, which the line begins with anyway."""
    message = str(getattr(error, "strerror", None) or error).strip()
    return message.splitlines()[0] if message else type(error).__name__
