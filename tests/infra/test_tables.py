from __future__ import annotations

import errno
import json
import re
from functools import partial
from io import BytesIO
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_storage import BUCKET

from infra import tables
from infra.storage import DamagedError, Store, UnreachableError
from infra.tables import (
    Column,
    Table,
    pack_rows,
    read_descriptions,
    read_provenance,
    read_rows,
    read_table,
    write_table,
)

NAME, SIZE = Column(pa.string(), "What it is called."), Column(pa.int64(), "How long it is, in metres.")
MASS = Column(pa.float64(), "What it weighs, or null; ± 1 %.")
TABLE = Table("things", {"name": NAME, "size": SIZE, "mass": MASS}, ("name", "size"), "A thing.")
READERS = (read_table, read_descriptions, read_provenance)
ROWS = [{"name": "b", "size": 1, "mass": 0.5}, {"name": "a", "size": 2, "mass": float("nan")}]


def rows_of(store: Store, key: str, table: Table) -> pd.DataFrame:
    return read_rows(store, [key], table)[0].to_pandas()


def test_rows_come_back_in_their_order_and_an_empty_file_keeps_its_columns(store: Store):
    store.create("x", pack_rows("x", TABLE, ROWS))
    assert rows_of(store, "x", TABLE)["name"].tolist() == ["b", "a"]
    store.create("y", pack_rows("y", TABLE, []))
    assert list(rows_of(store, "y", TABLE).columns) == ["name", "size", "mass"]


@pytest.mark.parametrize("where", ["folder", pytest.param("s3", marks=[pytest.mark.slow, pytest.mark.s3])])
def test_many_files_are_one_table_in_the_order_of_their_keys(
    store: Store, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    if where == "s3":
        request.getfixturevalue("s3_credentials")
        store = Store(f"s3://{BUCKET}/{tmp_path.name}")
    monkeypatch.setattr(tables, "_BATCH", 3)
    files = {f"x{i}": [{"name": f"{i}", "size": j, "mass": i / 3} for j in range(i % 3)] for i in range(8)}
    for key, rows in files.items():
        store.create(key, pack_rows(key, TABLE, rows))
    found, counts = read_rows(store, list(files), TABLE)
    assert counts == [len(rows) for rows in files.values()]
    assert found.to_pylist() == [row for rows in files.values() for row in rows]
    nothing, none = read_rows(store, [], TABLE)
    assert (len(nothing), none, nothing.schema) == (0, [], TABLE.schema())


def test_a_table_in_parts_is_the_table_in_one(store: Store, monkeypatch: pytest.MonkeyPatch):
    frame = pd.DataFrame([{"name": f"{i}", "size": i, "mass": i / 3} for i in range(10)])
    write_table(store, "whole", TABLE, frame, {})
    monkeypatch.setattr(tables, "_PART", 4)
    write_table(store, "parts", TABLE, frame.assign(name=pd.Categorical(frame["name"])), {})
    pd.testing.assert_frame_equal(read_table(store, "parts"), read_table(store, "whole"), check_exact=True)


def test_a_column_that_was_added_later_is_null_in_rows_of_before(store: Store):
    later = Table(TABLE.name, {**TABLE.columns, "age": Column(pa.int64(), "Years.")}, TABLE.key, added=("age",))
    store.create("x", pack_rows("x", TABLE, ROWS))
    assert rows_of(store, "x", later)["age"].isna().all()
    store.create("y", pack_rows("y", later, [{**ROWS[0], "age": 3}]))
    assert rows_of(store, "y", later)["age"].tolist() == [3]


def test_a_table_is_sorted_by_its_key_with_provenance_and_nulls(store: Store):
    write_table(store, "t.parquet", TABLE, pd.DataFrame(ROWS), {"version": "1"})
    frame = pd.read_parquet(f"{store.url}/t.parquet")
    assert frame["name"].tolist() == ["a", "b"]
    assert frame["mass"].isna().tolist() == [True, False]
    assert read_provenance(store, "t.parquet") == {"version": "1"}
    assert read_table(store, "t.parquet").equals(frame)


def test_a_file_says_what_its_columns_mean_those_of_no_table_among_them(store: Store):
    age = Column(pa.int64(), "Years.")
    write_table(store, "t.parquet", TABLE, pd.DataFrame(ROWS).assign(age=1), {"version": "1"}, age=age)
    schema = pq.read_schema(f"{store.url}/t.parquet")
    told = {"name": NAME, "size": SIZE, "mass": MASS, "age": age}
    assert {field.name: Column(field.type, field.metadata[b"description"].decode()) for field in schema} == told
    assert schema.metadata[b"description"] == b"A thing."
    assert json.loads(schema.metadata[b"columns"]) == {name: column.description for name, column in told.items()}
    assert read_provenance(store, "t.parquet") == {"version": "1"}
    described = read_descriptions(store, "t.parquet")
    assert described.iloc[2].to_list() == ["mass", "double", MASS.description]


@pytest.mark.parametrize("error", [TimeoutError("slow"), UnreachableError("away"), OSError(errno.ESTALE, "stale")])
def test_a_store_that_does_not_answer_is_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch, error: OSError):
    store.create("x", pack_rows("x", TABLE, ROWS))

    def read(*_: object) -> bytes:
        raise error

    for reader in (partial(read_rows, keys=["x"], table=TABLE), *(partial(read, key="x") for read in READERS)):
        with pytest.raises(FileNotFoundError):
            reader(Store(f"{store.url}-nowhere"))
        with monkeypatch.context() as patch:
            patch.setattr(Store, "read", read)
            with pytest.raises(type(error), match=re.escape(str(error))):
                reader(store)


def test_row_files_hold_no_descriptions():
    packed = pack_rows("x", TABLE, ROWS)
    schema = pq.read_schema(BytesIO(packed))
    assert schema.equals(TABLE.schema(), check_metadata=True)
    assert schema.metadata is None
    assert b"metres" not in packed


def test_the_same_rows_in_any_order_make_the_same_bytes(store: Store):
    write_table(store, "t", TABLE, pd.DataFrame(ROWS), {})
    before = store.read("t")
    write_table(store, "t", TABLE, pd.DataFrame(ROWS[::-1]), {})
    assert store.read("t") == before


def test_a_key_that_is_not_unique_or_columns_that_are_wrong_are_not_written(store: Store):
    with pytest.raises(ValueError, match="things: two rows have the key"):
        write_table(store, "t", TABLE, pd.DataFrame([ROWS[0], ROWS[0]]), {})
    with pytest.raises(ValueError, match=r"missing or unknown columns \['mass'\]"):
        write_table(store, "t", TABLE, pd.DataFrame([{"name": "a", "size": 1}]), {})
    assert not store.exists("t")


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda _: b"", lambda data: b"\0" * len(data)])
def test_a_damaged_file_is_a_sentence(store: Store, damage):
    store.create("x", damage(pack_rows("x", TABLE, ROWS)))
    for read in (partial(read_rows, keys=["x"], table=TABLE), *(partial(read, key="x") for read in READERS)):
        with pytest.raises(DamagedError, match=r"x is damaged \(.*\): delete it and run the study again"):
            read(store)


def test_rows_of_another_kind_are_a_sentence(store: Store):
    other = Table("others", {"name": NAME}, ("name",))
    store.create("x", pack_rows("x", other, [{"name": "a"}]))
    with pytest.raises(DamagedError, match="its columns are not those of a things row file"):
        read_rows(store, ["x"], TABLE)
