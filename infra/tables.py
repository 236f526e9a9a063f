"""Parquet files with a declared schema, a unique key, and in their metadata what they mean and where they come from."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from infra.checkpoints import damaged
from infra.storage import Store

_BATCH = 1000
"""Row files that are read before what they hold is put together."""

_PART = 2**16
"""Rows that are turned from pandas' form into Arrow's together."""

_N_READERS = 16
"""How many files are asked for at once of a store that is not a folder."""


@dataclass(frozen=True)
class Column:
    """What stands in a column, and what it means, in Markdown."""

    kind: pa.DataType
    description: str


@dataclass(frozen=True)
class Table:
    """A kind of table: its columns in order, the columns that together name a row, and what it holds, in Markdown. The
    last columns may have been `added` since some row files were written, which are read with nulls there."""

    name: str
    columns: Mapping[str, Column]
    key: tuple[str, ...]
    description: str = ""
    added: tuple[str, ...] = ()

    def schema(self) -> pa.Schema:
        """Names and types alone, as in row files, of which there are many."""
        return pa.schema([pa.field(name, column.kind) for name, column in self.columns.items()])

    def described_schema(self, extra: Mapping[str, Column]) -> pa.Schema:
        """With `extra` columns behind its own, and every description: in each field's metadata, the table's own in the
        schema's, and there the columns' once more as JSON, since DuckDB reads no metadata of fields."""
        columns = {**self.columns, **extra}
        told = {name: column.description for name, column in columns.items()}
        return pa.schema(
            [pa.field(name, column.kind, metadata={"description": told[name]}) for name, column in columns.items()],
            metadata={"description": self.description, "columns": json.dumps(told)},
        )


def pack_rows(table: Table, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The bytes of a row file: `rows` in the table's columns and nothing else."""
    # Small and many: dictionaries and statistics would be most of such a file, and most of the time to read it.
    arrow = pa.Table.from_pylist([dict(row) for row in rows], schema=table.schema())
    buffer = io.BytesIO()
    pq.write_table(arrow, buffer, compression="lz4", use_dictionary=False, write_statistics=False)
    return buffer.getvalue()


def read_rows(store: Store, keys: Sequence[str], table: Table) -> tuple[pa.Table, list[int]]:
    """The rows in `keys`, one after another, and how many each has. DamagedError where a file is not whole or has other
    columns."""
    schema = table.schema()
    whole, counts = schema.empty_table(), list[int]()
    # An answer from afar is waited for, not worked for.
    with nullcontext() if store.is_local else ThreadPoolExecutor(_N_READERS) as readers:
        for start in range(0, len(keys), _BATCH):
            some = keys[start : start + _BATCH]
            read = (readers.map if readers else map)(lambda key: _read_rows(store, key, table, schema), some)
            files = list(read)
            counts += [len(rows) for rows in files]
            # A table for every file would take many times what is in it.
            whole = pa.concat_tables([whole, pa.concat_tables(files).combine_chunks()])
    return whole, counts


def _read_rows(store: Store, key: str, table: Table, schema: pa.Schema) -> pa.Table:
    data = store.read(key)
    try:
        # For a file of a few rows `read_table` takes several times as long.
        read = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise damaged(store, key, "not a whole Parquet file") from error
    for name in table.added:
        if name not in read.schema.names:
            kind = table.columns[name].kind
            read = read.append_column(pa.field(name, kind), pa.nulls(len(read), kind))
    if not read.schema.equals(schema):
        raise damaged(store, key, f"its columns are not those of a {table.name} row file")
    return read


def write_table(
    store: Store, key: str, table: Table, frame: pd.DataFrame, provenance: Mapping[str, Any], **extra: Column
) -> None:
    """Writes `frame` under the table's described schema, sorted by its key. NaN becomes null.

    `extra` are columns beyond the declared ones. Raises ValueError where the key is not unique or a column is missing
    or unknown: a table that breaks its contract is not written.
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
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, described.with_metadata(told), compression="zstd") as writer:
        # A part at a time: written out, words of which there are few in many rows take tens of times their room.
        for start in range(0, max(1, len(ordered)), _PART):
            part = ordered[start : start + _PART]
            writer.write_table(pa.Table.from_pandas(part, schema=schema, preserve_index=False))
    store.replace(key, buffer.getvalue())


def read_table(store: Store, key: str) -> pd.DataFrame:
    """A written table as pandas sees it. FileNotFoundError where there is none, DamagedError where it is not whole."""
    data = store.read(key)
    try:
        return pq.read_table(io.BytesIO(data)).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise damaged(store, key, "not a whole Parquet file") from error


def read_descriptions(store: Store, key: str) -> pd.DataFrame:
    """The columns of the table at `key`, a row each: `column`, `type` and `description`, as the file itself tells
    them; empty where it tells none. FileNotFoundError where there is no table, DamagedError where it is not whole."""
    data = store.read(key)
    try:
        schema = pq.read_schema(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise damaged(store, key, "not a whole Parquet file") from error
    told = [(field.metadata or {}).get(b"description", b"").decode(errors="replace") for field in schema]
    return pd.DataFrame({"column": schema.names, "type": [str(kind) for kind in schema.types], "description": told})


def read_provenance(store: Store, key: str) -> dict[str, Any]:
    """What was written as provenance into the table at `key`. DamagedError where it holds none."""
    data = store.read(key)
    try:
        metadata = pq.read_schema(io.BytesIO(data)).metadata or {}
        return dict(json.loads(metadata[b"repairlab"]))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(store, key, "not a table of repairlab") from error
