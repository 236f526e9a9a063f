"""Verification of every file of a store, and digests for files of a version that wrote none."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.torch

from infra.sealing import NO_DIGEST, find_png_damage, pack_document, read_sealed
from infra.storage import DamagedError, Entry, Store, StoreError, UnreachableError
from infra.tables import N_READERS, open_table, pack_rows, read_rows, reseal_table
from tasks.science.specs.identity import weights_digest
from tasks.stored.artifacts import load_moments, read_permutation, read_record
from tasks.stored.checkpoints import pack, read_checkpoint
from tasks.stored.imports import read_import
from tasks.stored.requests import read_request
from tasks.tables import schema

_ROWS = {
    table.name: table
    for table in (schema.PATH_ROWS, schema.LAYER_ROWS, schema.END_ROWS, schema.MERGE_ROWS, schema.AXIS_ROWS)
}
_TABLES = {table.name: table for table in schema.TABLES}

FIGURES = frozenset(
    ("barriers", "comparison", "paths", "variance", "correlation", "errors", "closed_form", "predictions")
)
"""The names of a report's figures. Other files beside them are the user's."""


class UnreadableError(StoreError):
    """A file or folder of the store cannot be read, so that it may be damaged or whole."""


def list_files(store: Store) -> tuple[list[Entry], list[UnreadableError]]:
    """Return every file of a store by key, with files behind symbolic links, and the errors of listing."""
    if not store.is_local:
        return store.entries(), []
    root = Path(store.locate(""))
    entries, unlisted, seen = list[Entry](), list[UnreadableError](), set[Path]()

    def leads_on(path: Path) -> bool:
        """Return whether to read `path` here: no link, or the first link to a place outside the store."""
        target = path.resolve()
        if not path.is_symlink() or target in seen or target.is_relative_to(root.resolve()):
            return not path.is_symlink()
        seen.add(target)
        return True

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            unlisted.append(_unread(error))

    for folder, folders, names in os.walk(root, followlinks=True, onerror=note):
        folders[:] = [name for name in folders if leads_on(Path(folder) / name)]
        for path in (Path(folder) / name for name in names):
            try:
                status = path.stat()
            except OSError as error:
                if path.is_symlink():  # Else it was removed in this moment.
                    unlisted.append(_unread(error))
                continue
            if not leads_on(path):
                continue
            when = datetime.fromtimestamp(status.st_mtime, UTC)
            entries.append(Entry(path.relative_to(root).as_posix(), status.st_size, when))
    return sorted(entries, key=lambda entry: entry.key), unlisted


def is_linked(store: Store, key: str) -> bool:
    """Return whether a file lies behind a symbolic link, so that it may belong to another store or name."""
    return store.is_local and Path(store.locate(key)).resolve() != Path(store.locate("")).resolve() / key


def _unread(error: OSError) -> UnreadableError:
    return UnreadableError(f"{error.filename} cannot be read ({error.strerror})")


def find_damaged_files(store: Store, entries: Iterable[Entry]) -> Iterator[tuple[Entry, StoreError | None]]:
    """Read the files among `entries` that repairlab writes; yield each still there with its error, None where whole."""

    def look(entry: Entry) -> StoreError | FileNotFoundError | None:
        try:
            return examine_file(store, entry.key)
        except FileNotFoundError as error:
            return error

    known = [entry for entry in entries if kind_of(entry.key)]
    with ThreadPoolExecutor(1 if store.is_local else N_READERS) as readers:
        for entry, found in zip(known, readers.map(look, known), strict=True):
            if not isinstance(found, FileNotFoundError):
                yield entry, found


def examine_file(store: Store, key: str) -> StoreError | None:
    """Return the DamagedError or UnreadableError of a file that repairlab writes; None where it is whole.

    Raises FileNotFoundError where it is not there, UnreachableError where the store does not answer.
    """
    try:
        _READERS[kind_of(key)](store, key)
    except (StoreError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, FileNotFoundError | UnreachableError):
            raise cause from None
        # What is wrong with content is told without a number of the system's.
        if isinstance(error, DamagedError) and not (isinstance(cause, OSError) and cause.errno):
            return error
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        return UnreadableError(f"{store.url}/{key} cannot be read ({reason})")
    return None


def kind_of(key: str) -> str:
    """Return the kind of file that a key names; empty where repairlab writes no file of such a name."""
    *folders, name = key.split("/")
    stem, _, suffix = name.rpartition(".")
    of_id = suffix if re.fullmatch(r"[0-9a-f]{32}", stem) else ""
    match folders:
        case [("endpoints" | "trainings" | "permutations" | "moments") as kind] if of_id == "safetensors":
            return kind
        case ["rows", table] if table in _ROWS and of_id == "parquet":
            return "rows"
        case ["studies", _, ("requests" | "imported") as kind] if of_id == "json":
            return kind
        case ["studies", _, "figures"] if stem in FIGURES and suffix == "png":
            return "figures"
        case ["studies", _] if name == "report.html":
            return "report"
        case ["studies", _] if stem in _TABLES and suffix == "parquet":
            return "tables"
        case _:
            return ""


def _stem(key: str) -> str:
    return key.rpartition("/")[2].rpartition(".")[0]


def _read_endpoint(store: Store, key: str) -> None:
    read_checkpoint(store, key)
    read_record(store, key)


def _read_permutation(store: Store, key: str) -> None:
    for axis, vector in read_permutation(store, key).items():
        if not np.array_equal(np.sort(vector), np.arange(len(vector))):
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
"""The reader of each kind of file, which raises DamagedError for one that cannot be used."""


def add_digest(store: Store, key: str) -> bool:
    """Seal a readable file of a version that wrote no digests; return whether it is whole now.

    Reports and figures are left as they are, since they are drawn anew from tables.
    """
    try:
        before = store.read(key)
        sealed = _SEALERS[kind_of(key)](key, before)
        if store.read(key) != before:  # Somebody has written it anew.
            return False
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError, StoreError, OSError):
        return False
    except (pa.ArrowException, safetensors.SafetensorError):
        return False
    store.replace(key, sealed)
    if examine_file(store, key) is None:
        return True
    store.replace(key, before)
    return False


def has_no_digest(error: StoreError) -> bool:
    """Return whether a file was refused for want of a digest alone."""
    return NO_DIGEST in str(error)


def _seal_checkpoint(key: str, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["repairlab"])
    _refuse_sealed("digest" in header or "tensors_sha256" in header)
    tensors = safetensors.torch.load(data)
    told = {header.pop(name) for name in ("weights_sha256", "sha256") if name in header}
    if told - {weights_digest(tensors)}:
        raise ValueError
    return pack(key, tensors, header)


def _seal_rows(key: str, data: bytes) -> bytes:
    _refuse_sealed(_is_sealed_parquet(data))
    table, rows = _ROWS[key.split("/")[1]], pq.read_table(io.BytesIO(data))
    wanted = [field for field in table.schema() if field.name not in table.added or field.name in rows.column_names]
    if not rows.schema.equals(pa.schema(wanted)):
        raise ValueError
    return pack_rows(key, table, rows.to_pylist())


def _seal_table(key: str, data: bytes) -> bytes:
    _refuse_sealed(_is_sealed_parquet(data))
    provenance = json.loads((pq.read_schema(io.BytesIO(data)).metadata or {})[b"repairlab"])
    _refuse_sealed("gathering" in provenance)
    # Tables of one study whose provenance agrees count as gathered together: nothing more was written of it.
    text = json.dumps(provenance, sort_keys=True)
    return reseal_table(key, data, {**provenance, "gathering": hashlib.sha256(text.encode()).hexdigest()[:32]})


def _seal_document(key: str, data: bytes) -> bytes:
    fields = json.loads(data)
    _refuse_sealed("digest" in fields)
    return pack_document(key, fields)


def _refuse_sealed(is_sealed: bool) -> None:
    """Raise ValueError for a file that was written with a digest and has lost it by damage."""
    if is_sealed:
        raise ValueError


def _is_sealed_parquet(data: bytes) -> bool:
    """Return whether a Parquet file has a field for a digest or page checksums, as only sealed ones have."""
    told = pq.read_metadata(io.BytesIO(data))
    groups = [told.row_group(group) for group in range(told.num_row_groups)]
    chunks = [group.column(column) for group in groups for column in range(group.num_columns)]
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks if chunk.num_values]
    return b"digest" in (told.metadata or {}) or any(_has_checksum(data, start) for start in starts)


def _has_checksum(data: bytes, start: int) -> bool:
    """Return whether the page header at `start` has a checksum: the fourth field, behind three numbers."""
    for _ in range(3):
        start += 1
        while data[start] & 0x80:
            start += 1
        start += 1
    return data[start] == _NUMBER_NEXT


_NUMBER_NEXT = 0x15
"""The byte that announces a 32-bit number as the next field in Thrift's compact protocol."""

_SEALERS: dict[str, Callable[[str, bytes], bytes]] = {
    **dict.fromkeys(("endpoints", "trainings", "permutations", "moments"), _seal_checkpoint),
    "rows": _seal_rows,
    "tables": _seal_table,
    **dict.fromkeys(("requests", "imported"), _seal_document),
}
