"""A store may come from a stranger: whatever lies in it, nothing of it is ever run."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from flows.options import OwnStudy
from infra.paths import endpoint_key, import_key, request_key, table_key, training_key
from infra.sealing import SLOT, seal
from infra.storage import DamagedError, Store
from infra.tables import Column, Table, read_descriptions, read_provenance, read_rows, read_table
from tasks.science.specs.cell import Endpoint
from tasks.science.specs.identity import safe_name
from tasks.stored.artifacts import read_endpoint
from tasks.stored.checkpoints import pack, read_checkpoint, read_header
from tasks.stored.imports import read_imports
from tasks.stored.requests import read_requests
from tasks.stored.trainings import load_state

ROOT = Path(__file__).parent.parent
RECORD = {
    **{"status": "trained", "message": "", "n_train_examples": 10, "n_parameters": 10, "n_skipped_steps": 0},
    **{"train_loss": 0.1, "train_accuracy": 0.9, "test_loss": 0.1, "test_accuracy": 0.9},
    **{"train_seconds": 1.0, "device": "cpu"},
}
"""What an endpoint may say of itself."""

TABLE = Table("things", {"name": Column(pa.string(), "")}, ("name",))


class Payload:
    """As a pickle: a program that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it-was-run"


@pytest.fixture(params=["pickle", "torch", "header"])
def hostile_checkpoint(request: pytest.FixtureRequest, mark: Path) -> bytes:
    if request.param == "pickle":
        return pickle.dumps(Payload(mark))
    if request.param == "torch":
        buffer = io.BytesIO()
        torch.save(Payload(mark), buffer)
        return buffer.getvalue()
    header = {"repairlab": pickle.dumps(Payload(mark), protocol=0).decode("latin-1")}
    return safetensors.torch.save({"w": torch.zeros(1)}, metadata=header)


def test_the_payload_would_do_harm(mark: Path):
    pickle.loads(pickle.dumps(Payload(mark)))  # noqa: S301
    assert mark.exists()


def test_a_checkpoint_of_a_strangers_is_refused_and_not_run(store: Store, cell, hostile_checkpoint: bytes, mark: Path):
    endpoint = Endpoint(cell, 0)
    for key in (endpoint_key(endpoint.id), training_key(endpoint.id)):
        store.create(key, hostile_checkpoint)
    with pytest.raises(DamagedError, match="is damaged"):
        read_header(store, endpoint_key(endpoint.id))
    with pytest.raises(DamagedError, match="is damaged"):
        read_checkpoint(store, endpoint_key(endpoint.id))
    with pytest.raises(DamagedError, match="is damaged"):
        read_endpoint(store, endpoint)
    assert load_state(store, endpoint) is None
    assert not mark.exists()


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"record": "x"},
        {"record": []},
        {"record": {}},
        {"record": {**RECORD, "width": 8}},
        {"record": {**RECORD, "study": "another"}},
        {"record": {**RECORD, "status": ["trained"]}},
        {"record": {**RECORD, "status": "wonderful"}},
        {"record": {**RECORD, "test_accuracy": "0.99"}},
        {"record": {**RECORD, "test_accuracy": [0.99]}},
        {"record": {**RECORD, "n_parameters": True}},
        {"record": {**RECORD, "n_parameters": -1}},
        {"record": {**RECORD, "n_train_examples": 1e9}},
        {"record": {**RECORD, "device": 3}},
        {"record": {**RECORD, "message": None}},
    ],
    ids=str,
)
def test_a_header_that_says_something_else_is_refused_in_a_sentence(store: Store, cell, header):
    endpoint = Endpoint(cell, 0)
    key = endpoint_key(endpoint.id)
    store.create(key, pack(key, {"w": torch.zeros(1)}, header))
    with pytest.raises(DamagedError, match="is damaged"):
        read_endpoint(store, endpoint)


def test_a_record_that_is_whole_is_read(store: Store, cell):
    key = endpoint_key(Endpoint(cell, 0).id)
    store.create(key, pack(key, {"w": torch.zeros(1)}, {"record": RECORD}))
    record = read_endpoint(store, Endpoint(cell, 0))
    assert record is not None
    assert {name: record[name] for name in RECORD} == RECORD


def test_offsets_that_are_no_numbers_are_refused_in_a_sentence(store: Store):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": ["a", "b"]}
    header = json.dumps({"tensors_sha256": "0", "digest": SLOT})
    text = json.dumps({"w": entry, "__metadata__": {"repairlab": header}}).encode()
    store.create("x", seal(len(text).to_bytes(8, "little") + text, "x"))
    with pytest.raises(DamagedError, match="is damaged"):
        read_header(store, "x")


def test_a_file_that_is_no_request_lies_beside_them_unread(store: Store):
    store.create("studies/s/requests/notes.txt", b"dear diary")
    assert read_requests(store, "s") == {}


def hostile_parquet(mark: Path, key: str) -> bytes:
    """A column of pyarrow's old extension type, which readers before pyarrow 14 built by loading a pickle."""
    told = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Payload(mark)),
    }
    schema = pa.schema([pa.field("name", pa.string(), metadata=told)])
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema) as writer:
        writer.write_table(pa.Table.from_pylist([{"name": "a"}], schema=schema))
        writer.add_key_value_metadata({"digest": SLOT})
    return seal(buffer.getvalue(), key)


@pytest.mark.parametrize("kind", ["parquet", "pickle"])
def test_a_table_of_a_strangers_is_not_run(store: Store, kind: str, mark: Path):
    store.create("t.parquet", hostile_parquet(mark, "t.parquet") if kind == "parquet" else pickle.dumps(Payload(mark)))
    reads = [lambda: read_rows(store, ["t.parquet"], TABLE)]
    reads += [lambda read=read: read(store, "t.parquet") for read in (read_table, read_descriptions)]
    for read in reads:
        with contextlib.suppress(DamagedError):
            read()
    with pytest.raises(DamagedError, match="is damaged"):
        read_provenance(store, "t.parquet")
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '{"study": "s"}',
        json.dumps({"study": "../../etc", "cells": [], "seeds": [0, 1], "measurements": []}),
        json.dumps({"study": "another", "cells": [], "seeds": ["a", "b"], "measurements": []}),
        "[" * 100_000,
        '{"study": ' + "1" * 10_000 + "}",
        '{"py/object": "os.system", "py/reduce": ["touch"]}',
        "\0",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_request_of_a_strangers_is_refused_in_a_sentence(store: Store, text: str, is_sealed: bool):
    def written(key: str) -> bytes:
        told = f'{{"digest": "{SLOT}", {text.strip()[1:]}' if text.startswith("{") else f"{text}{SLOT}"
        return seal(told.encode(), key) if is_sealed else text.encode()

    store.create(request_key("s", "0123"), written(request_key("s", "0123")))
    with pytest.raises(DamagedError, match=r"0123\.json is damaged \(.*\): delete it"):
        read_requests(store, "s")
    store.create(import_key("s", "0123"), written(import_key("s", "0123")))
    with pytest.raises(DamagedError, match=r"0123\.json"):
        read_imports(store, "s")


def test_bytes_that_are_no_text_are_refused_likewise(store: Store):
    store.create(request_key("s", "0123"), b"\xff\xfe\x00")
    store.create(import_key("s", "0123"), b"\xff\xfe\x00")
    with pytest.raises(DamagedError):
        read_requests(store, "s")
    with pytest.raises(DamagedError):
        read_imports(store, "s")


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "..", ".", "", "a\0", "-x", "a b"])
def test_a_name_that_would_leave_its_folder_is_refused(store: Store, name: str):
    with pytest.raises(ValueError, match="is no name"):
        safe_name(name)
    with pytest.raises(ValueError, match="is no name"):
        OwnStudy(name=name, dataset="digits", architecture="mlp", depth=2, recipe="small/digits").preset()
    assert store.entries() == []
    assert table_key("s", "ablation").startswith("studies/s/")


def test_no_code_of_ours_loads_a_pickle_but_through_readers_that_run_nothing():
    """Torch's loader is called weights-only; `pickle` is imported where CIFAR's files are read by an unpickler that
    calls nothing, and for the errors that torch raises."""
    importing: set[str] = set()
    for path in (p for folder in ("flows", "tasks", "infra") for p in (ROOT / folder).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                words = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                if words & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}:
                    importing.add(name)
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert called not in ("pickle.loads", "pickle.load", "pd.read_pickle", "eval", "exec"), (name, called)
                assert called != "torch.load" or options.get("weights_only") == "True", name
                assert "allow_pickle" not in options, name
    assert importing == {"tasks/data/pickles.py", "infra/weights.py"}
