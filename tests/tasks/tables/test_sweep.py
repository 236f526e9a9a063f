from __future__ import annotations

import dataclasses

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pipeline import make_request, run_all

from infra.storage import Store
from tasks.science.specs.cell import Cell
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.overrides import override
from tasks.science.specs.recipe import Recipe
from tasks.tables import schema
from tasks.tables.sweep import FIELDS, parse_value


@pytest.fixture
def tables(store: Store, cell: Cell) -> dict[str, pd.DataFrame]:
    """A study of two learning rates, measured on 60 and on all statistics images."""
    cells = [dataclasses.replace(cell, recipe=override(cell.recipe, learning_rate=rate)) for rate in (0.05, 0.1)]
    base = Measurement("default", 3)
    request = dataclasses.replace(
        make_request(*cells, n_seeds=2),
        measurements=(override(base, statistics=60), base),
        swept=("learning_rate", "statistics", "augmented"),
    )
    run_all(store, request)
    root = f"{store.url}/studies/test"
    names = ("cells", "endpoints", "merges", "paths", "barriers", "layers", "axes", "ablation")
    return {name: pd.read_parquet(f"{root}/{name}.parquet") for name in names}


def test_what_is_swept_is_a_column_of_every_table_that_it_tells_rows_of_apart(tables):
    for name in ("paths", "barriers", "layers", "ablation"):
        frame = tables[name]
        assert set(frame["learning_rate"]) == {0.05, 0.1}
        assert set(frame["statistics"].dropna()) == {60}
        assert (frame["statistics"].isna() == (frame["measurement"] == "default")).all()
        assert frame["augmented"].all()
    assert {"learning_rate"} == {"learning_rate", "statistics"} & set(tables["endpoints"].columns)
    assert not {"learning_rate", "statistics"} & set(tables["cells"].columns)
    assert set(tables["cells"]["recipe_learning_rate"]) == {0.05, 0.1}


def test_columns_of_what_is_swept_say_what_they_mean(store: Store, tables):
    written = pq.read_schema(f"{store.url}/studies/test/barriers.parquet")
    assert set(written.names) == set(tables["barriers"].columns)
    for name in ("learning_rate", "statistics"):
        assert written.field(name).type == FIELDS[name].kind
        assert written.field(name).metadata == {b"description": FIELDS[name].description.encode()}


def test_every_field_that_can_be_swept_is_described_and_none_that_there_is_not():
    fields = {f.name for spec in (Recipe, Measurement) for f in dataclasses.fields(spec)} - {"name"}
    assert FIELDS.keys() == fields | {"epoch", "spawn_seed", "spawn_epoch"}
    assert all(column.description.endswith(".") for column in FIELDS.values())


def test_each_choice_of_statistics_images_has_its_own_alignment_and_the_direct_path_is_shared(tables):
    merges = tables["merges"]
    aligned = merges[merges["matcher"] == "activation"]
    assert sorted(aligned["n_statistics"]) == [60, 60, 240, 240]
    assert len(merges[merges["matcher"] == "none"]) == 2
    assert merges[merges["matcher"] == "none"]["statistics"].isna().all()
    counts = tables["barriers"].groupby(["learning_rate", "measurement", "matcher", "correction", "split"]).size()
    assert (counts == 1).all()
    assert len(counts) == 2 * 2 * 2 * 2 * 2


def test_times_are_columns_of_every_table_with_a_cell(store: Store, cell: Cell):
    children = dataclasses.replace(cell, spawn=(0, 1))
    request = dataclasses.replace(
        make_request(cell.at(1), cell, children, n_seeds=3, alphas=3), swept=("epoch", "spawn_seed", "spawn_epoch")
    )
    run_all(store, request)
    root = f"{store.url}/studies/test"
    times = ["epoch", "spawn_seed", "spawn_epoch"]
    for table in schema.TABLES:
        frame = pd.read_parquet(f"{root}/{table.name}.parquet")
        assert set(times) <= set(frame.columns), table.name
        if table.name in ("cells", "endpoints", "merges", "paths", "barriers", "layers", "axes", "ablation"):
            seen = {tuple(None if pd.isna(v) else int(v) for v in row) for row in frame[times].to_numpy()}
            assert seen == {(1, None, None), (None, None, None), (None, 0, 1)}, table.name
    endpoints = pd.read_parquet(f"{root}/endpoints.parquet")
    assert sorted(endpoints["checkpoint_epoch"].dropna()) == [1, 1, 1]
    contrasts = pd.read_parquet(f"{root}/contrasts.parquet")
    across = contrasts[contrasts["factor"] == "epoch"]
    assert set(zip(across["value"], across["other_value"], strict=True)) == {("1", "last")}
    assert across["low"].notna().all()
    assert not set(contrasts["factor"]) & {"spawn_seed", "spawn_epoch"}, "a child differs from its parent in both"


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("learning_rate", "1e-3", 0.001), ("batch_size", "8", 8), ("flip", "True", True), ("augmented", "false", False),
        ("flip_averaged", "true", True),
        ("evaluated_in", "bfloat16", "bfloat16"),
        ("epoch", "5", 5), ("epoch", "last", None),
        ("optimizer", "adam", "adam"), ("statistics", "100", 100), ("statistics", "all", None), ("alphas", "5", 5),
    ],
)  # fmt: skip
def test_a_word_is_read_as_its_field_is(name: str, word: str, value):
    assert parse_value(name, word) == value
    assert type(parse_value(name, word)) is type(value)
