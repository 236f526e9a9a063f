"""Damage to a store: a file is what was written, to the bit, or is refused by its name, and made anew without it."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from fsspec.implementations.local import LocalFileSystem
from pipeline import make_request, measure_all, merges_of, run_all
from rich.console import Console

from flows.commands import housekeeping
from flows.commands.housekeeping import check_files
from flows.report.gathered import read_gathered, read_gathering
from flows.report.page import SECTIONS, write_report
from infra.paths import table_key
from infra.storage import DamagedError, Store, StoreError, UnreachableError
from infra.tables import open_table, pack_rows, read_descriptions, read_rows, write_table
from tasks.gather import gather
from tasks.imports import save_import
from tasks.science.networks import build_network
from tasks.science.specs.cell import Cell, Endpoint, Origin
from tasks.science.training.training import TrainingState
from tasks.stored.artifacts import load_evaluation, load_weights
from tasks.stored.checkpoints import pack, read_checkpoint
from tasks.stored.integrity import FIGURES, add_digest, find_damaged_files
from tasks.stored.trainings import save_state
from tasks.tables import schema

KINDS = (
    *("endpoints", "trainings", "permutations", "moments", "requests", "imported", "tables", "report", "figures"),
    *(f"rows/{table}" for table in ("paths", "layers", "ends", "merges", "axes")),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cell: Cell, blobs) -> Path:
    """A store with a file of every kind."""
    store = Store(str(tmp_path_factory.mktemp("whole")))
    with pytest.MonkeyPatch.context() as patch:
        for module in ("tasks.train", "tasks.align", "tasks.stored.pairs"):
            patch.setattr(f"{module}.load_dataset", lambda _name, _folder: blobs)
        small = dataclasses.replace(cell, width=4, depth=1)
        run_all(store, make_request(small))
        write_report(store, "test")
        state = load_weights(store, [pairing.a for pairing in merges_of(store, make_request(small))][:1]).popitem()[1]
        save_state(store, Endpoint(small, 7), TrainingState(1, state, {}, 1, 0, 0.5))
        origin = Origin("theirs", ())
        imported = dataclasses.replace(small, origin=origin)
        save_import(store, "theirs", Endpoint(imported, 0), build_network(imported), state, blobs)
    return Path(store.url)


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Store:
    """A copy of it, to be damaged."""
    shutil.copytree(whole, tmp_path / "damaged")
    return Store(str(tmp_path / "damaged"))


def key_of(store: Store, kind: str) -> str:
    """The smallest file of a kind."""
    found = [entry for entry in store.entries() if kind_of(entry.key) == kind]
    return min(found, key=lambda entry: entry.n_bytes).key


def kind_of(key: str) -> str:
    folders = key.split("/")[:-1]
    if folders[0] != "studies":
        return "/".join(folders)
    return folders[2] if len(folders) > 2 else "report" if key.endswith(".html") else "tables"


def find(store: Store, key: str) -> StoreError | None:
    ((_, error),) = find_damaged_files(store, [entry for entry in store.entries() if entry.key == key])
    return error


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_the_store_has_every_kind_and_all_of_it_is_whole(whole: Path):
    store = Store(str(whole))
    assert {kind_of(entry.key) for entry in store.entries()} == set(KINDS)
    found = dict(find_damaged_files(store, store.entries()))
    assert len(found) == len(store.entries())
    assert not any(found.values())


@pytest.mark.parametrize("n_flips", [pytest.param(60), pytest.param(None, marks=pytest.mark.slow, id="all")])
@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_of_a_file_can_be_another(damaged: Store, kind: str, n_flips: int | None):
    key = key_of(damaged, kind)
    path = Path(damaged.url) / key
    n_bits = 8 * path.stat().st_size
    # Tables, pictures and pages are large; the last two have all bits tried in test_sealing.
    bits = range(n_bits) if n_flips is None and n_bits < 50_000 else None
    (entry,) = (entry for entry in damaged.entries() if entry.key == key)
    for bit in bits or random.Random(kind).sample(range(n_bits), n_flips or 400):
        flip(path, bit)
        ((_, error),) = find_damaged_files(damaged, [entry])
        assert error is not None, bit
        assert key in str(error)
        flip(path, bit)


@pytest.mark.slow
def test_random_bits_over_a_whole_store_change_no_table(damaged: Store):
    wanted = read_all(damaged)
    choose = random.Random(18)
    entries = [entry for entry in damaged.entries() if kind_of(entry.key) not in ("figures", "report", "tables")]
    refused = 0
    for _ in range(300):
        entry = choose.choice(entries)
        path, bit = Path(damaged.url) / entry.key, choose.randrange(8 * entry.n_bytes)
        flip(path, bit)
        told = ""
        try:
            gather.fn("test", damaged, {})
        except DamagedError as error:
            told = str(error)
            refused += 1
        assert not told or entry.key in told
        for name, frame in read_all(damaged).items():
            pd.testing.assert_frame_equal(frame, wanted[name], check_exact=True)
        flip(path, bit)
    assert refused > 100


def read_all(store: Store) -> dict[str, pd.DataFrame]:
    return {table.name: read_gathered(store, "test", table.name) for table in schema.TABLES}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("imported", "trainings", "figures")])
def test_what_is_damaged_is_named_and_made_anew_once_it_is_deleted(damaged: Store, cell: Cell, kind: str):
    request = make_request(dataclasses.replace(cell, width=4, depth=1))
    wanted, key = read_all(damaged), key_of(damaged, kind)
    if kind == "endpoints":
        key = next(key for key in keys(damaged, kind) if Endpoint(request.cells[0], 1).id in key)
    flip(Path(damaged.url) / key, 8 * 300 + 3)
    error = find(damaged, key)
    assert error is not None
    assert f"{key} is damaged (" in str(error)
    assert "delete it and run the study again" in str(error)
    if kind.startswith("rows") and kind != "rows/ends":
        with pytest.raises(DamagedError, match=key):
            gather.fn("test", damaged, {})
    assert not check_files(damaged, Console(quiet=True), delete=False, seal=False)
    assert check_files(damaged, Console(quiet=True), delete=True, seal=False)
    assert not damaged.exists(key)
    run_all(damaged, request)
    write_report(damaged, "test")
    assert damaged.exists(key) or kind in ("moments", "rows/ends")
    assert check_files(damaged, Console(quiet=True), delete=False, seal=False)
    for name, frame in read_all(damaged).items():
        clocks = [column for column in frame if column in ("train_seconds", "match_seconds")]
        pd.testing.assert_frame_equal(frame.drop(columns=clocks), wanted[name].drop(columns=clocks), check_exact=True)


def keys(store: Store, kind: str) -> list[str]:
    return [entry.key for entry in store.entries() if kind_of(entry.key) == kind]


def test_a_file_in_the_place_of_another_is_refused(damaged: Store):
    for kind in ("permutations", "moments", "rows/paths", "rows/axes", "endpoints", "figures"):
        first, second = keys(damaged, kind)[:2]
        (Path(damaged.url) / first).write_bytes((Path(damaged.url) / second).read_bytes())
        assert find(damaged, first) is not None, kind


def rows_of(store: Store, key: str, table: schema.Table) -> list[dict[str, Any]]:
    return read_rows(store, [key], table)[0].to_pylist()


HOSTILE: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "a row is twice in it": lambda rows: rows + rows,
    "a row in it has no key": lambda rows: [{**rows[0], "merge_id": None}, *rows[1:]],
    "its rows are of another merge_id": lambda rows: [{**row, "merge_id": "another"} for row in rows],
}


@pytest.mark.parametrize("table", [schema.PATH_ROWS, schema.LAYER_ROWS, schema.MERGE_ROWS, schema.AXIS_ROWS])
@pytest.mark.parametrize("reason", HOSTILE)
def test_rows_that_a_run_would_not_write_are_refused(damaged: Store, table: schema.Table, reason: str):
    key = keys(damaged, f"rows/{table.name}")[0]
    damaged.replace(key, pack_rows(key, table, HOSTILE[reason](rows_of(damaged, key, table))))
    with pytest.raises(DamagedError, match=rf"{key} is damaged \({reason}\): delete it"):
        gather.fn("test", damaged, {})


IMPOSSIBLE: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "it has no rows": lambda _: [],
    "a row in it is of no point of a path": lambda rows: [{**rows[0], "alpha": float("inf")}, *rows[1:]],
    "a row in it is of no point": lambda rows: [{**rows[0], "split": "other"}, *rows[1:]],
    "a row in it is of no": lambda rows: [{**rows[0], "n_examples": -5}, *rows[1:]],
}


@pytest.mark.parametrize("reason", IMPOSSIBLE)
def test_rows_of_no_point_of_a_path_are_refused(damaged: Store, reason: str):
    key = keys(damaged, "rows/paths")[0]
    rows = rows_of(damaged, key, schema.PATH_ROWS)
    damaged.replace(key, pack_rows(key, schema.PATH_ROWS, IMPOSSIBLE[reason](rows)))
    with pytest.raises(DamagedError, match=rf"{key} is damaged \({reason}.*\): delete it"):
        gather.fn("test", damaged, {})


def test_an_evaluation_of_one_split_is_refused(damaged: Store):
    key = keys(damaged, "rows/ends")[0]
    damaged.replace(key, pack_rows(key, schema.END_ROWS, rows_of(damaged, key, schema.END_ROWS)[:1]))
    with pytest.raises(DamagedError, match="it is not of a train and a test split"):
        load_evaluation(damaged, Path(key).stem)


def test_a_permutation_that_permutes_nothing_is_refused_by_its_name(damaged: Store, cell: Cell):
    request = make_request(dataclasses.replace(cell, width=4, depth=1))
    key = keys(damaged, "permutations")[0]
    vectors, header = read_checkpoint(damaged, key)
    for wrong in ({}, {name: torch.zeros_like(vector) for name, vector in vectors.items()}, {"x": torch.arange(4)}):
        damaged.replace(key, pack(key, wrong, header))
        for path in keys(damaged, "rows/paths"):
            damaged.remove(path)
        with pytest.raises(DamagedError, match=f"{key} is damaged .*: delete it"):
            measure_all(damaged, request)


@pytest.mark.parametrize("name", ["ablation", "barriers", "endpoints"])
def test_a_table_that_lacks_a_column_is_refused(damaged: Store, name: str):
    key = table_key("test", name)
    table = next(table for table in schema.TABLES if table.name == name)
    short = dataclasses.replace(table, columns=dict(list(table.columns.items())[:-1]))
    frame, _ = open_table(damaged, key)
    write_table(damaged, key, short, frame[list(short.columns)], {})
    with pytest.raises(DamagedError, match=rf"{key} is damaged \(it has no column {list(table.columns)[-1]} of"):
        write_report(damaged, "test")


def check(store: Store, *, delete: bool = False, seal: bool = False) -> tuple[bool, str]:
    told = Console(file=io.StringIO(), width=200)
    return check_files(store, told, delete=delete, seal=seal), told.file.getvalue()


def without_digest(key: str, data: bytes) -> bytes:
    """A file as it was written before there were digests."""
    if key.endswith(".safetensors"):
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["repairlab"])
        digest = header.pop("tensors_sha256")
        header.pop("digest")
        kind = header["kind"]
        header |= {"weights_sha256": digest} if kind == "endpoint" else {"sha256": digest} if kind == "training" else {}
        return safetensors.torch.save(safetensors.torch.load(data), metadata={"repairlab": json.dumps(header)})
    if key.startswith("studies") and key.endswith(".parquet"):
        return table_without_digest(data)
    if key.endswith(".parquet"):
        buffer = io.BytesIO()
        pq.write_table(pq.read_table(io.BytesIO(data)), buffer)
        return buffer.getvalue()
    if key.endswith(".json"):
        fields = json.loads(data)
        del fields["digest"]
        return json.dumps(fields).encode()
    return data


def table_without_digest(data: bytes, **changed: Any) -> bytes:
    table = pq.read_table(io.BytesIO(data))
    told = dict(table.schema.metadata)
    provenance = json.loads(told[b"repairlab"])
    del provenance["gathering"]
    buffer = io.BytesIO()
    told[b"repairlab"] = json.dumps({**provenance, **changed}).encode()
    pq.write_table(table.replace_schema_metadata(told), buffer)
    return buffer.getvalue()


def test_a_store_of_before_there_were_digests_is_taken_over(damaged: Store, cell: Cell):
    wanted = read_all(damaged)
    for entry in damaged.entries():
        damaged.replace(entry.key, without_digest(entry.key, damaged.read(entry.key)))
    told = Console(record=True, quiet=False, file=io.StringIO(), width=200)
    assert not check_files(damaged, told, delete=False, seal=False)
    assert "`repairlab check --seal` adds" in told.export_text()
    assert check(damaged, seal=True)[0]
    assert not any(error for _, error in find_damaged_files(damaged, damaged.entries()))
    for name, frame in read_gathering(damaged, "test")[0].items():
        pd.testing.assert_frame_equal(frame, wanted[name], check_exact=True)
    descriptions = read_descriptions(damaged, table_key("test", "paths"))["description"]
    assert all(descriptions)
    write_report(damaged, "test")
    run_all(damaged, make_request(dataclasses.replace(cell, width=4, depth=1)))
    for name, frame in read_all(damaged).items():
        pd.testing.assert_frame_equal(frame, wanted[name], check_exact=True)


def test_a_file_of_before_that_is_damaged_gets_no_digest(damaged: Store):
    for kind in ("endpoints", "rows/paths", "requests"):
        key = key_of(damaged, kind)
        old = bytearray(without_digest(key, damaged.read(key)))
        old[-1 if kind == "endpoints" else len(old) // 2] ^= 0xFF
        damaged.replace(key, bytes(old))
        check_files(damaged, Console(quiet=True), delete=False, seal=True)
        assert find(damaged, key) is not None, kind


@pytest.mark.parametrize("kind", ["endpoints", "moments", "rows/paths", "rows/ends", "requests", "imported", "tables"])
def test_a_file_that_lost_its_digest_and_more_by_damage_gets_no_other(damaged: Store, kind: str):
    key = key_of(damaged, kind)
    data = damaged.read(key)
    lost = data.replace(b"repairlab-sha256:", b"repairlab-sha257:")
    assert lost != data
    damaged.replace(key, lost)
    assert not add_digest(damaged, key)
    assert damaged.read(key) == lost


@pytest.mark.parametrize("kind", ["rows/paths", "tables"])
def test_checksums_of_pages_tell_a_file_that_had_a_digest(damaged: Store, kind: str):
    key = key_of(damaged, kind)
    lost = damaged.read(key).replace(b"repairlab-sha256:", b"repairlab-sha257:").replace(b"digest", b"dihest")
    damaged.replace(key, lost)
    assert not add_digest(damaged, key)


def test_rows_of_other_columns_get_no_digest(damaged: Store):
    key = key_of(damaged, "rows/paths")
    rows = pq.read_table(io.BytesIO(damaged.read(key)))
    for other in (rows.drop_columns(["loss"]), rows.rename_columns([f"{name}_" for name in rows.column_names])):
        buffer = io.BytesIO()
        pq.write_table(other, buffer)
        damaged.replace(key, buffer.getvalue())
        assert not add_digest(damaged, key)


def test_tables_of_before_that_two_runs_have_made_are_not_taken_for_one_runs(damaged: Store, monkeypatch):
    for key in keys(damaged, "tables"):
        changed = {"commit": "another"} if "axes" in key else {}
        damaged.replace(key, table_without_digest(damaged.read(key), **changed))
        assert add_digest(damaged, key)
    monkeypatch.setattr("flows.report.gathered._WRITING_SECONDS", 0.0)
    with pytest.raises(StoreError, match="come from more than one run"):
        read_gathering(damaged, "test")


def test_a_report_of_before_is_drawn_anew_and_no_digest_promised(damaged: Store):
    for kind in ("report", "figures"):
        key = key_of(damaged, kind)
        Path(damaged.locate(key)).write_bytes(b"of before")
    for seal in (False, True):
        is_well, said = check(damaged, seal=seal)
        assert not is_well
        assert said.count("has no digest: `repairlab report test` makes it anew") == 2
    write_report(damaged, "test")
    assert check(damaged)[0]


def test_only_files_of_names_that_repairlab_gives_are_examined(damaged: Store):
    names = (
        *("endpoints/README.txt", "endpoints/mine.safetensors", "rows/paths/notes.parquet", "moments/a/b.safetensors"),
        *("studies/test/figures/my-figure.png", "studies/test/requests/notes.json", "studies/test/imported/notes.json"),
        *("studies/test/my.parquet", "studies/test/mine.html", "studies/README.md"),
    )
    for name in names:
        damaged.replace(name, b"mine")
    is_well, said = check(damaged, delete=True)
    assert is_well, said
    assert all(damaged.exists(name) for name in names)


def test_figures_of_a_report_are_those_that_are_examined():
    assert SECTIONS.keys() == FIGURES


def test_a_file_that_was_written_anew_meanwhile_is_not_removed(damaged: Store, monkeypatch):
    first, second = keys(damaged, "rows/paths")[:2]
    good = damaged.read(second)
    for key in (first, second):
        flip(Path(damaged.url) / key, 800)
    found = list(find_damaged_files(damaged, damaged.entries()))
    damaged.replace(second, good)
    monkeypatch.setattr(housekeeping, "find_damaged_files", lambda *_: found)
    is_well, said = check(damaged, delete=True)
    assert is_well
    assert first in said
    assert second not in said
    assert (damaged.exists(first), damaged.read(second)) == (False, good)
    assert f"{len(found) - 1} whole, 1 not whole and removed, 0 not whole and still there" in said


@pytest.mark.parametrize("kind", ["requests", "imported"])
def test_what_makes_a_request_or_an_import_anew_is_said(damaged: Store, kind: str):
    flip(Path(damaged.url) / key_of(damaged, kind), 800)
    wanted = {
        "requests": "the `repairlab run` command of test that made it has to be given again, with its options",
        "imported": "import the weights of theirs again",
    }
    assert wanted[kind] in check(damaged)[1]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES])
def test_a_file_that_cannot_be_read_is_named_and_left_and_the_rest_is_examined(damaged: Store, monkeypatch, code: int):
    sick, bad = key_of(damaged, "endpoints"), key_of(damaged, "tables")
    flip(Path(damaged.url) / bad, 800)
    read = LocalFileSystem.cat_file

    def fails(self: LocalFileSystem, path: str, *args: Any, **options: Any) -> bytes:
        if path.endswith(sick):
            raise OSError(code, os.strerror(code), path)
        return read(self, path, *args, **options)

    monkeypatch.setattr(LocalFileSystem, "cat_file", fails)
    is_well, said = check(damaged, delete=True)
    assert not is_well
    assert f"{sick} cannot be read ({os.strerror(code)})" in said
    assert "1 not whole and removed, 0 not whole and still there, 1 that could not be read" in said
    assert (damaged.exists(sick), damaged.exists(bad)) == (True, False)


@pytest.mark.parametrize("kind", ["rows/paths", "endpoints"])
def test_a_store_that_does_not_answer_is_not_taken_for_damage(damaged: Store, monkeypatch, kind: str):
    before = damaged.entries()
    read = Store.read

    def fails(self: Store, key: str, *args: Any) -> bytes:
        if kind in key:
            raise UnreachableError("the store does not answer")
        return read(self, key, *args)

    monkeypatch.setattr(Store, "read", fails)
    with pytest.raises(UnreachableError, match="does not answer"):
        check(damaged, delete=True)
    assert damaged.entries() == before


def test_a_name_that_no_key_can_be_is_told(damaged: Store):
    Path(damaged.url, "studies", "a\\b").mkdir()
    Path(damaged.url, "studies", "a\\b", "report.html").write_text("x")
    is_well, said = check(damaged)
    assert not is_well
    assert "report.html cannot be read (" in said
    assert "1 that could not be read" in said


def test_a_file_that_is_removed_meanwhile_is_not_counted(damaged: Store, monkeypatch):
    n_files = len(damaged.entries())
    key = key_of(damaged, "rows/paths")
    damaged.replace(key, b"")
    found = list(find_damaged_files(damaged, damaged.entries()))
    damaged.remove(key)
    monkeypatch.setattr(housekeeping, "find_damaged_files", lambda *_: found)
    for seal in (False, True):
        is_well, said = check(damaged, seal=seal)
        assert is_well, said
        assert f"{n_files - 1} files: {n_files - 1} whole" in said


def test_a_file_that_cannot_be_removed_is_told_as_still_there(damaged: Store, monkeypatch):
    key = key_of(damaged, "rows/paths")
    flip(Path(damaged.url) / key, 800)

    def refuses(_self: LocalFileSystem, path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(LocalFileSystem, "rm_file", refuses)
    is_well, said = check(damaged, delete=True)
    assert not is_well
    assert "0 not whole and removed, 1 not whole and still there" in said


@pytest.mark.parametrize("name", [None, "photo.jpg", "endpoints/photo.jpg"])
def test_a_place_without_any_file_of_repairlab_is_not_whole(tmp_path: Path, name: str | None):
    store = Store(str(tmp_path / "nosuch"))
    if name is not None:
        store.replace(name, b"x")
    with pytest.raises(StoreError, match=r"there is nothing of repairlab in .*nosuch"):
        check(store)


def test_what_lies_behind_links_is_read_and_left_there(damaged: Store, tmp_path: Path):
    n_files = len(damaged.entries())
    root = Path(damaged.url)
    (root / "endpoints").rename(tmp_path / "elsewhere")
    (root / "endpoints").symlink_to(tmp_path / "elsewhere")
    (root / "rows/back").symlink_to(root)
    (root / "studies/alias").symlink_to(root / "studies/test")
    is_well, said = check(damaged)
    assert is_well
    assert f"{n_files} files: {n_files} whole" in said
    key = next((root / "endpoints").iterdir())
    flip(key, 8 * 300)
    is_well, said = check(damaged, delete=True)
    assert not is_well
    assert f"endpoints/{key.name} lies behind a symbolic link, and is left there" in said
    assert key.exists()


def test_links_that_lead_nowhere_are_told(damaged: Store, tmp_path: Path):
    (Path(damaged.url) / "moments/gone").symlink_to(tmp_path / "nowhere")
    is_well, said = check(damaged)
    assert not is_well
    assert "moments/gone cannot be read (No such file or directory)" in said
    assert "1 folders or links could not be followed" in said
