"""Limits on the cost of reading a weights file, checked before and after it is read.

A small file can ask for a lot: an archive that inflates, a tensor that repeats one number, millions of tensors. The
limits lie far beyond what networks need.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from infra.text import one_line

MOST_TENSORS = 20_000
"""Tensors in a file, those beside the weights included."""

MOST_PICKLED_BYTES = 2**24
"""Bytes of a torch file beside the numbers of its tensors."""

MOST_STEPS = 3_000_000
"""Steps of the pickle that a torch file is."""

MOST_GROWTH = 16
"""So many times the size of a file its tensors may take in memory, where several share numbers."""

_SLACK_BYTES = 2**20
_BESIDE_TENSORS = 100
_ZIP_END_BYTES = 22 + 2**16
"""The end of a zip archive, with the longest comment."""

_LEGACY_PICKLES = 4
"""Pickles of torch's old format: a number, a version, the writer's system, the tensors without their numbers."""


class CostlyError(Exception):
    """Error of a file that would take too much time or memory to read; the message says what."""


def check_archive(path: Path) -> None:
    """Raise CostlyError if the zip archive at `path`, a torch file, holds more than allowed."""
    try:
        if _count_entries(path) > MOST_TENSORS + _BESIDE_TENSORS:
            raise CostlyError(f"has more than {MOST_TENSORS:,} tensors")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            n_bytes = sum(entry.file_size for entry in entries)
            if n_bytes > MOST_GROWTH * path.stat().st_size + _SLACK_BYTES:
                raise CostlyError(f"inflates to {n_bytes:,} bytes")
            for entry in entries:
                if entry.filename.endswith("data.pkl"):
                    if entry.file_size > MOST_PICKLED_BYTES:
                        raise CostlyError(f"has {entry.file_size:,} bytes beside the numbers of its tensors")
                    with archive.open(entry) as file:
                        _check_steps(file, 1)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, RuntimeError):
        return  # What is wrong with it is told by who reads it.


def _count_entries(path: Path) -> int:
    """Return the number of entries of a zip archive from its last bytes alone; 65,535 stands for that many or more."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _ZIP_END_BYTES))
        end = file.read()
    start = end.rfind(b"PK\x05\x06")
    return int.from_bytes(end[start + 10 : start + 12], "little") if start >= 0 else 0


def check_legacy(path: Path) -> None:
    """Raise CostlyError if the pickles at `path`, a file of torch's old format, hold more than allowed."""
    try:
        with path.open("rb") as file:
            _check_steps(file, _LEGACY_PICKLES)
    except (OSError, ValueError, EOFError):
        return


def _check_steps(file: IO[bytes], n_pickles: int) -> None:
    """Raise CostlyError if the next pickles in `file` make too many tensors or other objects; none is run."""
    n_tensors = n_steps = 0
    for _ in range(n_pickles):
        for opcode, _, _ in pickletools.genops(file):
            n_steps += 1
            n_tensors += opcode.name in ("BINPERSID", "PERSID")
            if n_tensors > MOST_TENSORS:
                raise CostlyError(f"has more than {MOST_TENSORS:,} tensors")
            if n_steps > MOST_STEPS:
                raise CostlyError("has millions of values beside its tensors")


def plain_tensors(weights: Mapping[str, Tensor], n_bytes: int) -> dict[str, Tensor]:
    """Return `weights` of a file of `n_bytes` as dense tensors.

    Raises CostlyError if some are not dense or take too much memory.
    """
    if len(weights) > MOST_TENSORS:
        raise CostlyError(f"has more than {MOST_TENSORS:,} tensors")
    plain: dict[str, Tensor] = {}
    most = MOST_GROWTH * n_bytes + _SLACK_BYTES
    total = 0
    for name, given in weights.items():
        if kind := _kind(given):
            raise CostlyError(f"has a tensor {one_line(name)} that is {kind}")
        tensor = given.detach()
        total += math.prod(tensor.shape) * tensor.element_size()
        if total > most:
            raise CostlyError(f"has a tensor {one_line(name)} that repeats its numbers, up to {total:,} bytes")
        plain[name] = tensor.resolve_conj().resolve_neg()
    return plain


def _kind(tensor: Tensor) -> str:
    """Return, in a word, why a tensor is not a dense one on the CPU, or an empty string if it is."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_meta:
        return "without numbers (on the meta device)"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantized"
    if tensor.device.type != "cpu":
        return f"on {tensor.device.type}"
    is_plain = type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return "" if is_plain else f"a {type(tensor).__name__}"
