"""Named tensors with a JSON header, as safetensors: a format that cannot execute code.

The header can be read alone, without the tensors, and tells a truncated file by its length.
"""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
import torch

from infra.storage import DamagedError, Store

_METADATA = "repairlab"
_LENGTH_BYTES = 8
_FIRST_READ_BYTES = 2**16


def pack(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> bytes:
    """The bytes of a safetensors file; `header` must be JSON (NaN allowed)."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(contiguous, metadata={_METADATA: json.dumps(header, sort_keys=True)})


def read_header(store: Store, key: str) -> dict[str, Any]:
    """The header of `key`. DamagedError where the file is cut short or no checkpoint of ours."""
    size = store.size_bytes(key)
    start = store.read(key, 0, min(size, _FIRST_READ_BYTES))
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    end = _LENGTH_BYTES + length
    if size < _LENGTH_BYTES or end > size:
        raise damaged(store, key, "cut short")
    text = start[_LENGTH_BYTES:end] if end <= len(start) else store.read(key, _LENGTH_BYTES, end)
    try:
        entries = json.loads(text)
        header = json.loads(entries["__metadata__"][_METADATA])
        ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
        if not isinstance(header, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise damaged(store, key, "not a checkpoint of repairlab") from error
    if end + max(ends, default=0) != size:
        raise damaged(store, key, "cut short")
    return header


def read_checkpoint(store: Store, key: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors, on the CPU, and header of `key`. DamagedError where the file is not whole."""
    header = read_header(store, key)
    try:
        return safetensors.torch.load(store.read(key)), header
    except safetensors.SafetensorError as error:
        raise damaged(store, key, str(error)) from error


def damaged(store: Store, key: str, reason: str) -> DamagedError:
    """The error for a file that cannot be used, with the way out."""
    if store.upstream is not None and not store.own.exists(key):
        return DamagedError(
            f"{store.locate(key)}, upstream, is damaged ({reason}): leave out --upstream to make your own"
        )
    return DamagedError(f"{store.locate(key)} is damaged ({reason}): delete it and run the study again to make it anew")
