"""Verification of every file of a store, and digests for those of a version that wrote none."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.torch

from infra.sealing import NO_DIGEST, find_png_damage, pack_document, read_sealed
from infra.storage import DamagedError, Entry, Store
from infra.tables import open_table, pack_rows, read_rows
from tasks import schema
from tasks.artifacts import load_moments, read_record
from tasks.checkpoints import pack, read_checkpoint
from tasks.imports import read_import
from tasks.requests import read_request
from tasks.science.identity import weights_digest

_N_READERS = 16
"""How many files are asked for at once of a store that is not a folder."""

_ROWS = {
    table.name: table
    for table in (schema.PATH_ROWS, schema.LAYER_ROWS, schema.END_ROWS, schema.MERGE_ROWS, schema.AXIS_ROWS)
}
_TABLES = {table.name: table for table in schema.TABLES}


def find_damage(store: Store, entries: Iterable[Entry]) -> Iterator[tuple[Entry, DamagedError | None]]:
    """Read those of `entries` that repairlab writes, and yield each with what is wrong with it, or None."""

    def examine(entry: Entry) -> DamagedError | None:
        try:
            _READERS[_kind(entry.key)](store, entry.key)
        except DamagedError as error:
            return error
        except FileNotFoundError:
            pass  # Removed since it was listed.
        return None

    known = [entry for entry in entries if _kind(entry.key) in _READERS and not entry.is_temporary]
    with ThreadPoolExecutor(1 if store.is_local else _N_READERS) as readers:
        yield from zip(known, readers.map(examine, known), strict=True)


def _kind(key: str) -> str:
    """What a key names, as a word; empty where repairlab writes no such file."""
    match key.split("/"):
        case [("endpoints" | "trainings" | "permutations" | "moments") as kind, _]:
            return kind
        case ["rows", table, _] if table in _ROWS:
            return "rows"
        case ["studies", _, ("requests" | "imported" | "figures") as kind, name] if name.endswith((".json", ".png")):
            return kind
        case ["studies", _, "report.html"]:
            return "report"
        case ["studies", _, name] if name.removesuffix(".parquet") in _TABLES:
            return "tables"
        case _:
            return ""


def _stem(key: str) -> str:
    return key.rpartition("/")[2].rpartition(".")[0]


def _read_endpoint(store: Store, key: str) -> None:
    read_checkpoint(store, key)
    read_record(store, key)


def _read_permutation(store: Store, key: str) -> None:
    for axis, vector in read_checkpoint(store, key)[0].items():
        if not np.array_equal(np.sort(vector.numpy()), np.arange(len(vector))):
            raise store.damaged(key, f"the vector of axis {axis!r} is not a permutation")


def _read_figure(store: Store, key: str) -> None:
    if (reason := find_png_damage(store.read(key), key)) is not None:
        raise store.damaged(key, reason)


_READERS: dict[str, Callable[[Store, str], object]] = {
    "endpoints": _read_endpoint,
    "trainings": read_checkpoint,
    "permutations": _read_permutation,
    "moments": lambda store, key: load_moments(store, _stem(key)),
    "rows": lambda store, key: read_rows(store, [key], _ROWS[key.split("/")[1]]),
    "requests": lambda store, key: read_request(store, key.split("/")[1], _stem(key)),
    "imported": lambda store, key: read_import(store, key.split("/")[1], _stem(key)),
    "tables": lambda store, key: open_table(store, key, _TABLES[_stem(key)]),
    "report": read_sealed,
    "figures": _read_figure,
}
"""How files of each kind are read where they are used: each raises DamagedError for one that cannot be."""


def add_digest(store: Store, key: str) -> bool:
    """Seal a file of a version that wrote no digests, if it can be read, and say whether it is whole now.

    Tables, reports and figures are left as they are: the next run of their study makes them anew.
    """
    before = store.read(key)
    try:
        sealed = _SEALERS[_kind(key)](key, before)
    except (KeyError, ValueError, TypeError, AttributeError, pa.ArrowException, OSError, safetensors.SafetensorError):
        return False
    store.replace(key, sealed)
    try:
        _READERS[_kind(key)](store, key)
    except DamagedError:
        store.replace(key, before)
        return False
    return True


def has_no_digest(error: DamagedError) -> bool:
    """Whether a file was refused for want of a digest alone."""
    return NO_DIGEST in str(error)


def _seal_checkpoint(key: str, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["repairlab"])
    tensors = safetensors.torch.load(data)
    told = {header.pop(name) for name in ("weights_sha256", "sha256", "tensors_sha256") if name in header}
    if told - {weights_digest(tensors)}:
        raise ValueError
    return pack(key, tensors, header)


def _seal_rows(key: str, data: bytes) -> bytes:
    return pack_rows(key, _ROWS[key.split("/")[1]], pq.read_table(io.BytesIO(data)).to_pylist())


def _seal_document(key: str, data: bytes) -> bytes:
    return pack_document(key, json.loads(data))


_SEALERS: dict[str, Callable[[str, bytes], bytes]] = {
    **dict.fromkeys(("endpoints", "trainings", "permutations", "moments"), _seal_checkpoint),
    "rows": _seal_rows,
    **dict.fromkeys(("requests", "imported"), _seal_document),
}
