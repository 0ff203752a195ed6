"""Pickles read without the code that one may run: only names that are admitted are looked up."""

import io
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
from typing_extensions import override

# What a pickled NumPy array names, written by any version of NumPy. None of it runs other code.
ARRAYS: Mapping[tuple[str, str], Any] = {
    ("_codecs", "encode"): str.encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
}


def unpickled(content: bytes, example: str, admitted: Mapping[tuple[str, str], Any]) -> Any:  # noqa: ANN401 - what was pickled
    """Reads a pickle that names nothing but what is admitted, by module and name."""
    return _Unpickler(content, example, admitted).load()


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, content: bytes, example: str, admitted: Mapping[tuple[str, str], Any]
    ) -> None:
        super().__init__(io.BytesIO(content))
        self.example, self.admitted = example, admitted

    @override
    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"{self.example}: the recordings name {module}.{name}, which is not admitted"
            ) from None
