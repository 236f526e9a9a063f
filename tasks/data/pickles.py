"""A reader of the pickles that CIFAR is published as, which runs and builds nothing that they ask for.

A pickle is a program: it may ask for any function by name and have it called. This reader knows four names, those by
which numpy's arrays are pickled, and answers with stand-ins instead of numpy's own code, which keep what they are given
and are checked when the program has ended. Any other name is refused before it is looked up. So a harmful file can at
worst be refused or use memory, even where its checksum was not compared (`tasks.data.published` does so first).
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Kind:
    """A stand-in for numpy.dtype that keeps the name of the type."""

    def __init__(self, *arguments: Any) -> None:
        self.name = arguments[0] if arguments else None

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order, fields and alignment, which say nothing about single bytes."""


class _Array:
    """A stand-in for numpy.ndarray, and for its constructor, that keeps shape, type, order and bytes."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def values(self) -> NDArray[np.uint8]:
        """Return the array. ValueError unless it is one of unsigned bytes, as many as its shape says."""
        match self.state:
            case (int(), tuple() as shape, _Kind(name=b"u1"), int() as by_columns, bytes() as data):
                if not all(isinstance(size, int) and size >= 0 for size in shape):
                    raise ValueError(f"an array of shape {shape}")
                flat = np.frombuffer(data, np.uint8)
                return flat.reshape(shape, order="F" if by_columns else "C")
            case _:
                raise ValueError("an array that is not one of unsigned bytes")


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> type:
        try:
            return _STAND_INS[module_name, global_name]
        except KeyError:
            reason = f"it asks for {module_name}.{global_name}, which no data set needs"
            raise pickle.UnpicklingError(reason) from None


def read_batch(data: bytes, labels_key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the images (n_examples, n_values) and labels (n_examples,) of one pickled batch.

    A batch is a dict, pickled by Python 2, with an array of bytes under `data` and a list of whole numbers from 0 under
    `labels_key`. Raises ValueError, with the reason, for anything else. Format: https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    try:
        # What Python 2 called str comes as bytes.
        batch: Any = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # What is no pickle may make the reader raise nearly anything.
        raise ValueError(f"no pickle of a batch: {str(error) or type(error).__name__}") from error
    if not isinstance(batch, dict):
        raise ValueError(f"a pickled {type(batch).__name__}, not a dict")
    images, labels = batch.get(b"data"), batch.get(labels_key.encode())
    if not isinstance(images, _Array) or not isinstance(labels, list):
        raise ValueError(f"it lacks an array `data` or a list `{labels_key}`")
    if not all(type(label) is int and 0 <= label < 2**31 for label in labels):
        raise ValueError("a label that is no whole number from 0")
    return images.values(), np.array(labels, dtype=np.int64)
