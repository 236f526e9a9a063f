"""Parquet files with a declared schema and a unique key; their metadata say what they mean and where they come from."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from infra.sealing import SLOT, read_sealed, seal
from infra.storage import Store

_BATCH = 1000
"""Row files that are read before what they hold is put together."""

_PART = 2**16
"""Rows that are turned from pandas' form into Arrow's together."""

N_READERS = 16
"""Files read at once from a store that is not a folder."""


@dataclass(frozen=True)
class Column:
    """Type of a column, and its meaning in Markdown."""

    kind: pa.DataType
    description: str


@dataclass(frozen=True)
class Table:
    """Kind of table: its columns in order, the key columns that name a row, and its meaning in Markdown.

    The last `added` columns are newer than some row files, which are read with nulls there.
    """

    name: str
    columns: Mapping[str, Column]
    key: tuple[str, ...]
    description: str = ""
    added: tuple[str, ...] = ()

    def schema(self) -> pa.Schema:
        """Names and types alone, as in row files, of which there are many."""
        return pa.schema([pa.field(name, column.kind) for name, column in self.columns.items()])

    def described_schema(self, extra: Mapping[str, Column]) -> pa.Schema:
        """Return the schema with `extra` columns behind its own, and with every description.

        Descriptions of columns stand in the metadata of their fields, and once more as JSON in that of the schema,
        beside the table's own, since DuckDB reads no metadata of fields.
        """
        columns = {**self.columns, **extra}
        told = {name: column.description for name, column in columns.items()}
        return pa.schema(
            [pa.field(name, column.kind, metadata={"description": told[name]}) for name, column in columns.items()],
            metadata={"description": self.description, "columns": json.dumps(told)},
        )


def pack_rows(key: str, table: Table, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the bytes of the row file `key`: `rows` in the table's columns and nothing else."""
    # Small and many: dictionaries and statistics would be most of such a file, and most of the time to read it.
    arrow = pa.Table.from_pylist([dict(row) for row in rows], schema=table.schema())
    return _pack(key, arrow.schema, [arrow], compression="lz4", use_dictionary=False, write_statistics=False)


def _pack(key: str, schema: pa.Schema, parts: Iterable[pa.Table], **options: Any) -> bytes:
    """Return a sealed Parquet file for `key`, with a checksum in every page for other readers."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, write_page_checksum=True, **options) as writer:
        for part in parts:
            writer.write_table(part)
        writer.add_key_value_metadata({"digest": SLOT})
    return seal(buffer.getvalue(), key)


def _open(store: Store, key: str) -> pq.ParquetFile:
    """Return the verified Parquet file `key`. Raises DamagedError if it is not what was written there."""
    data = read_sealed(store, key)
    try:
        return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise store.damaged(key, "not a whole Parquet file") from error


def read_rows(store: Store, keys: Sequence[str], table: Table) -> tuple[pa.Table, list[int]]:
    """Return the rows in `keys`, one after another, and the number of rows of each.

    Raises DamagedError for a file that is not what was written, has other columns, or a row twice.
    """
    schema = table.schema()
    whole, counts = schema.empty_table(), list[int]()
    # An answer from afar is waited for, not worked for.
    with nullcontext() if store.is_local else ThreadPoolExecutor(N_READERS) as readers:
        for start in range(0, len(keys), _BATCH):
            some = keys[start : start + _BATCH]
            read = (readers.map if readers else map)(lambda key: _read_rows(store, key, table, schema), some)
            files = list(read)
            counts += [len(rows) for rows in files]
            # A table for every file would take many times what is in it.
            batch = pa.concat_tables(files).combine_chunks()
            _check_keys(store, some, table, batch, counts[start:])
            whole = pa.concat_tables([whole, batch])
    return whole, counts


def _check_keys(store: Store, keys: Sequence[str], table: Table, batch: pa.Table, counts: Sequence[int]) -> None:
    """Raise DamagedError for a row without a key, or with the key of another row of its file.

    `batch` holds the files one after another.
    """
    positions = np.repeat(np.arange(len(keys)), counts)
    frame = batch.select(list(table.key)).to_pandas().assign(**{"": positions})
    for wrong, reason in (
        (frame.isna().any(axis=1), "a row in it has no key"),
        (frame.duplicated(), "a row is twice in it"),
    ):
        if wrong.any():
            raise store.damaged(keys[int(positions[wrong.argmax()])], reason)


def _read_rows(store: Store, key: str, table: Table, schema: pa.Schema) -> pa.Table:
    read = _read_all(store, key, use_threads=False)
    for name in table.added:
        if name not in read.schema.names:
            kind = table.columns[name].kind
            read = read.append_column(pa.field(name, kind), pa.nulls(len(read), kind))
    if not read.schema.equals(schema):
        raise store.damaged(key, f"its columns are not those of a {table.name} row file")
    return read


def _read_all(store: Store, key: str, *, use_threads: bool) -> pa.Table:
    # Not within what follows: a store that does not answer is no damage.
    file = _open(store, key)
    try:
        # For a file of a few rows `pyarrow.parquet.read_table` takes several times as long.
        return file.read(use_threads=use_threads)
    except (pa.ArrowException, OSError) as error:
        raise store.damaged(key, "not a whole Parquet file") from error


def write_table(
    store: Store, key: str, table: Table, frame: pd.DataFrame, provenance: Mapping[str, Any], **extra: Column
) -> None:
    """Write `frame` under the table's described schema, sorted by its key. NaN becomes null.

    `extra` are columns beyond the declared ones. Raises ValueError if the key is not unique or a column is missing or
    unknown: a table that breaks its contract is not written.
    """
    schema = table.described_schema(extra)
    if set(frame.columns) != set(schema.names):
        raise ValueError(f"{table.name}: missing or unknown columns {sorted(set(frame.columns) ^ set(schema.names))}")
    if frame.duplicated(list(table.key)).any():
        twice = frame[frame.duplicated(list(table.key))].iloc[0][list(table.key)].to_dict()
        raise ValueError(f"{table.name}: two rows have the key {twice}")
    ordered = frame[schema.names].sort_values(list(table.key), ignore_index=True)
    described = pa.Table.from_pandas(ordered[:0], schema=schema, preserve_index=False).schema
    told = {**(described.metadata or {}), b"repairlab": json.dumps(provenance, sort_keys=True).encode()}
    # A part at a time: written out, words of which there are few in many rows take tens of times their room.
    starts = range(0, max(1, len(ordered)), _PART)
    parts = (
        pa.Table.from_pandas(ordered[start : start + _PART], schema=schema, preserve_index=False) for start in starts
    )
    store.replace(key, _pack(key, described.with_metadata(told), parts, compression="zstd"))


def read_table(store: Store, key: str, table: Table | None = None) -> pd.DataFrame:
    """Return a written table as a data frame; with `table`, its declared columns are checked to be there.

    Raises FileNotFoundError if there is none, DamagedError if it is not what was written or lacks a column.
    """
    return open_table(store, key, table)[0]


def open_table(store: Store, key: str, table: Table | None = None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return what `read_table` and `read_provenance` do, from one reading."""
    read = _read_all(store, key, use_threads=True)
    for name, column in (table.columns if table else {}).items():
        if name not in read.schema.names or read.schema.field(name).type != column.kind:
            raise store.damaged(key, f"it has no column {name} of {column.kind}")
    return read.to_pandas(), _provenance(store, key, read.schema)


def read_descriptions(store: Store, key: str) -> pd.DataFrame:
    """Return the columns of the table at `key`, one per row: `column`, `type` and `description`, as the file has them.

    Raises FileNotFoundError if there is no table, DamagedError if it is not whole.
    """
    schema = _schema(store, key)
    told = [(field.metadata or {}).get(b"description", b"").decode(errors="replace") for field in schema]
    return pd.DataFrame({"column": schema.names, "type": [str(kind) for kind in schema.types], "description": told})


def read_provenance(store: Store, key: str) -> dict[str, Any]:
    """Return the provenance of the table at `key`. Raises DamagedError if it holds none."""
    return _provenance(store, key, _schema(store, key))


def _schema(store: Store, key: str) -> pa.Schema:
    file = _open(store, key)
    try:
        return file.schema_arrow
    except pa.ArrowException as error:
        raise store.damaged(key, "not a whole Parquet file") from error


def _provenance(store: Store, key: str, schema: pa.Schema) -> dict[str, Any]:
    try:
        return dict(json.loads((schema.metadata or {})[b"repairlab"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise store.damaged(key, "not a table of repairlab") from error


def reseal_table(key: str, data: bytes, provenance: Mapping[str, Any]) -> bytes:
    """Return the table in `data` with this `provenance` in place of its own, sealed for `key`.

    Raises ArrowException or OSError if it is not a whole Parquet file.
    """
    table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    told = {**(table.schema.metadata or {}), b"repairlab": json.dumps(provenance, sort_keys=True).encode()}
    return _pack(key, table.schema.with_metadata(told), [table.replace_schema_metadata(told)], compression="zstd")
