"""Parquet files with a declared schema, a unique key, and provenance in their metadata."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from infra.checkpoints import damaged
from infra.storage import Store


@dataclass(frozen=True)
class Table:
    """A kind of table: its columns with their types, in order, and the columns that together name a row. The last
    columns may have been `added` since some row files were written, which are read with nulls there."""

    name: str
    columns: Mapping[str, pa.DataType]
    key: tuple[str, ...]
    added: tuple[str, ...] = ()

    def schema(self, extra: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
        return pa.schema([pa.field(name, kind) for name, kind in {**self.columns, **(extra or {})}.items()])


def pack_rows(table: Table, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The bytes of a row file: `rows` in the table's columns and nothing else."""
    return _to_bytes(pa.Table.from_pylist([dict(row) for row in rows], schema=table.schema()))


def read_rows(store: Store, key: str, table: Table) -> pd.DataFrame:
    """The rows in `key`. DamagedError where the file is not whole or has other columns."""
    data = store.read(key)
    try:
        read = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise damaged(store, key, "not a whole Parquet file") from error
    for name in table.added:
        if name not in read.schema.names:
            read = read.append_column(pa.field(name, table.columns[name]), pa.nulls(len(read), table.columns[name]))
    if not read.schema.equals(table.schema()):
        raise damaged(store, key, f"its columns are not those of a {table.name} row file")
    return read.to_pandas()


def write_table(
    store: Store, key: str, table: Table, frame: pd.DataFrame, provenance: Mapping[str, Any], **extra: pa.DataType
) -> None:
    """Writes `frame` under the table's schema, sorted by its key. NaN becomes null.

    `extra` are columns beyond the declared ones. Raises ValueError where the key is not unique or a column is missing
    or unknown: a table that breaks its contract is not written.
    """
    schema = table.schema(extra)
    if set(frame.columns) != set(schema.names):
        raise ValueError(f"{table.name}: missing or unknown columns {sorted(set(frame.columns) ^ set(schema.names))}")
    if frame.duplicated(list(table.key)).any():
        twice = frame[frame.duplicated(list(table.key))].iloc[0][list(table.key)].to_dict()
        raise ValueError(f"{table.name}: two rows have the key {twice}")
    ordered = frame[schema.names].sort_values(list(table.key), ignore_index=True)
    arrow = pa.Table.from_pandas(ordered, schema=schema, preserve_index=False)
    metadata = {**(arrow.schema.metadata or {}), b"repairlab": json.dumps(provenance, sort_keys=True).encode()}
    store.replace(key, _to_bytes(arrow.replace_schema_metadata(metadata)))


def read_table(store: Store, key: str) -> pd.DataFrame:
    """A written table as pandas sees it. FileNotFoundError where there is none, DamagedError where it is not whole."""
    data = store.read(key)
    try:
        return pq.read_table(io.BytesIO(data)).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise damaged(store, key, "not a whole Parquet file") from error


def read_provenance(store: Store, key: str) -> dict[str, Any]:
    """What was written as provenance into the table at `key`. DamagedError where it holds none."""
    data = store.read(key)
    try:
        metadata = pq.read_schema(io.BytesIO(data)).metadata or {}
        return dict(json.loads(metadata[b"repairlab"]))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(store, key, "not a table of repairlab") from error


def _to_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
