"""Reads the pickles that CIFAR is published as, without letting them run or build anything.

A pickle is a program: it may ask for any function by name and have it called. This reader answers to four names, those
that numpy's arrays are pickled by, and to none of them with numpy's own code: stand-ins take their place, which keep
what they are given and are checked when the program has ended. Any other name is refused before it is looked up. So a
file that was made to do harm can, at worst, be refused or use memory, even where nobody has compared its checksum
(`tasks.data.published` does so before it calls this).
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Kind:
    """Where the pickle says numpy.dtype: keeps the name of the type."""

    def __init__(self, *arguments: Any) -> None:
        self.name = arguments[0] if arguments else None

    def __setstate__(self, state: Any) -> None:
        """The rest (byte order, fields, alignment) says nothing about single bytes."""


class _Array:
    """Where the pickle says numpy.ndarray, or how one is made: keeps its shape, type, order and bytes."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def values(self) -> NDArray[np.uint8]:
        """The array. ValueError unless it is one of unsigned bytes, as many as its shape says."""
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
    """Images (n_examples, n_values) and labels (n_examples,) of one pickled batch: a dict, pickled by Python 2, with
    an array of bytes under `data` and a list of whole numbers from 0 under `labels_key`.

    Raises ValueError, with the reason, for all else. Format: https://www.cs.toronto.edu/~kriz/cifar.html.
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
