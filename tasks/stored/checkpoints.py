"""Named tensors with a JSON header, as sealed safetensors files: a format that cannot execute code.

The header can be read and verified alone: it is sealed, and holds the digest of the tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch

from infra.sealing import SLOT, find_damage, seal
from infra.storage import Store
from infra.text import one_line
from tasks.science.specs.identity import weights_digest

_UNREADABLE = (safetensors.SafetensorError, ValueError, KeyError, AttributeError, TypeError, RuntimeError)
"""The errors that tensors of an impossible type, shape or place raise."""

_SHA256 = re.compile("[0-9a-f]{64}")
_METADATA = "repairlab"
_LENGTH_BYTES = 8
_FIRST_READ_BYTES = 2**16


def pack(key: str, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> bytes:
    """Return the bytes of the file to be stored under `key`; `header` must be JSON (NaN allowed).

    The header is extended by `tensors_sha256`, the `weights_digest` of the tensors.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    told = {**header, "tensors_sha256": weights_digest(contiguous), "digest": SLOT}
    data = safetensors.torch.save(contiguous, metadata={_METADATA: json.dumps(told, sort_keys=True)})
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    return seal(data[:end], key) + data[end:]


def read_header(store: Store, key: str) -> dict[str, Any]:
    """Return the header of `key`, without reading its tensors.

    Raises DamagedError where the header is not as written, or the file is cut short or no checkpoint of repairlab.
    """
    size = store.size_bytes(key)
    start = store.read(key, 0, min(size, _FIRST_READ_BYTES))
    end = _LENGTH_BYTES + int.from_bytes(start[:_LENGTH_BYTES], "little")
    if size < _LENGTH_BYTES or end > size:
        raise store.damaged(key, "cut short")
    return _parse_header(store, key, start[:end] if end <= len(start) else store.read(key, 0, end), size)


def read_checkpoint(store: Store, key: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return tensors, on the CPU, and header of `key`.

    Raises DamagedError as `read_header`, and where the tensors are not as written.
    """
    data = store.read(key)
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or end > len(data):
        raise store.damaged(key, "cut short")
    header = _parse_header(store, key, data[:end], len(data))
    try:
        tensors = safetensors.torch.load(data)
        found = weights_digest(tensors)
    except _UNREADABLE as error:
        raise store.damaged(key, one_line(str(error).partition("\n")[0])) from error
    if header["tensors_sha256"] != found:
        raise store.damaged(key, "its tensors are not those that were written")
    return tensors, header


def compute_digest(store: Store, key: str) -> str | None:
    """Return the `weights_digest` of the tensors in `key` as they are, sealed or not; None where there are none."""
    try:
        return weights_digest(safetensors.torch.load(store.read(key)))
    except _UNREADABLE:
        return None


def _parse_header(store: Store, key: str, data: bytes, size: int) -> dict[str, Any]:
    """Return the header in `data`, the beginning of a file of `size` bytes."""
    if (reason := find_damage(data, key)) is not None:
        raise store.damaged(key, reason)
    try:
        entries = json.loads(data[_LENGTH_BYTES:])
        header = json.loads(entries["__metadata__"][_METADATA])
        ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
        if not _SHA256.fullmatch(header["tensors_sha256"]) or header.pop("digest", None) is None:
            raise TypeError
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise store.damaged(key, "not a checkpoint of repairlab") from error
    if len(data) + max(ends, default=0) != size:
        raise store.damaged(key, "cut short")
    return header
