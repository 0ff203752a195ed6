"""Arrays on disk that are open only while they are read.

A ``numpy.memmap`` keeps a file descriptor as long as it lives; a corpus of 600 trials would need
more of them than many systems allow.
"""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from examples.affwild2.dataset.files import DamagedFile

SCATTERED = 4  # rows wanted one in so many, or fewer, are read one by one


class Mapped:
    """The rows of one array in an .npy or a .safetensors file, read when they are asked for.

    Raises:
        DamagedFile: The file cannot be read, is cut, or (.safetensors) holds more than one tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape, self.dtype = self._header()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:  # noqa: ANN401  # whatever numpy takes
        try:
            if self.path.suffix == ".safetensors":
                with safe_open(self.path, framework="np") as file:
                    part = file.get_slice(next(iter(file.keys())))  # the only tensor
                    return np.asarray(part[key] if isinstance(key, slice) else part[:][key])
            array = np.load(self.path, mmap_mode="r")
            scattered = (
                isinstance(key, np.ndarray)
                and key.dtype != np.bool_
                and key.size
                and np.ptp(key) > SCATTERED * key.size
            )
            if scattered and hasattr(mmap, "MADV_RANDOM"):  # not on Windows
                array.base.madvise(mmap.MADV_RANDOM)  # else the system reads far more than wanted
            return np.array(array[key])
        except (OSError, ValueError, EOFError, SafetensorError) as error:
            raise DamagedFile(self.path, f"cannot be read ({error})") from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: ANN401  # numpy's
        return np.asarray(self[:], dtype)

    def _header(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        if self.path.suffix == ".safetensors":
            return self._only_tensor()
        try:
            array = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DamagedFile(self.path, f"cannot be read as an array ({error})") from error
        if not isinstance(array, np.ndarray):
            raise DamagedFile(self.path, "is not one array")
        return array.shape, array.dtype

    def _only_tensor(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        try:
            with safe_open(self.path, framework="np") as file:
                names = list(file.keys())
                if len(names) != 1:
                    raise DamagedFile(self.path, f"must hold one tensor, found {names}")
                part = file.get_slice(names[0])
                shape = tuple(part.get_shape())
                return shape, np.asarray(part[:0]).dtype
        except (OSError, TypeError, SafetensorError) as error:
            raise DamagedFile(self.path, f"cannot be read as an array ({error})") from error
