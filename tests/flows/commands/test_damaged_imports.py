"""Imported files that were damaged: importing the same weights again makes them whole, and nothing else changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch

from flows.commands.declared import ImportOptions
from flows.commands.imports import import_files, make_cell
from infra.paths import endpoint_key, import_key
from infra.sealing import NO_DIGEST
from infra.storage import DamagedError, Store, StoreError
from tasks.data.datasets import load_dataset
from tasks.science.networks import build_network, initial_state
from tasks.science.specs.cell import Endpoint
from tasks.science.specs.identity import stream
from tasks.stored.artifacts import read_record
from tasks.stored.imports import read_imports
from tasks.stored.integrity import find_damaged_files

FACTS = {"width": "4", "depth": "1", "normalization": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of two networks, w0 and w1, and the store `whole` that they were imported into."""
    folder = tmp_path_factory.mktemp("imports")
    options = options_of(folder)
    store = Store(str(folder / "whole"))
    cell = make_cell(options, load_dataset("digits", folder).spec)
    for seed in range(2):
        state = initial_state(build_network(cell), stream("test", seed))
        safetensors.torch.save_file(state, folder / f"w{seed}.safetensors")
    import_files(options, store, folder, print)
    return folder


def options_of(folder: Path, pattern: str = "w?.safetensors", seed_from: str = "name") -> ImportOptions:
    files = [str(folder / pattern)]
    return ImportOptions(files=files, network="mlp", data="digits", study="theirs", facts=FACTS, seed_from=seed_from)


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Store:
    """A copy of `whole`, to be damaged."""
    shutil.copytree(folder / "whole", tmp_path / "store")
    return Store(str(tmp_path / "store"))


def contents(store: Store) -> dict[str, bytes]:
    return {entry.key: store.read(entry.key) for entry in store.entries()}


def flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit of the mark that it is sealed": lambda data: flipped(data, data.index(b"-sha256:")),
    "a bit of the digest": lambda data: flipped(data, data.index(b"-sha256:") + 20),
    "a bit at the end": lambda data: flipped(data, -3),
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda data: data[:0],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("kind", ["weights", "document"])
def test_importing_the_same_weights_again_makes_a_damaged_file_whole(
    folder: Path, store: Store, kind: str, damage: Callable[[bytes], bytes]
):
    before = contents(store)
    endpoint = read_imports(store, "theirs")[0]
    key = endpoint_key(endpoint.id) if kind == "weights" else import_key("theirs", endpoint.id)
    store.replace(key, damage(store.read(key)))
    assert [error is None for _, error in find_damaged_files(store, store.entries())].count(False) == 1
    import_files(options_of(folder), store, folder, print)
    assert contents(store) == before


def test_what_is_whole_is_not_written_again(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Store, "replace", None)
    before = {path: path.stat().st_mtime_ns for path in Path(store.url).rglob("*.*")}
    import_files(options_of(folder), store, folder, print)
    assert {path: path.stat().st_mtime_ns for path in Path(store.url).rglob("*.*")} == before


def test_other_weights_never_replace_damaged_ones_that_can_still_be_told(folder: Path, store: Store):
    endpoint = next(endpoint for endpoint in read_imports(store, "theirs") if endpoint.seed == 0)
    key = endpoint_key(endpoint.id)
    store.replace(key, damaged := flipped(store.read(key), -3))
    with pytest.raises(StoreError, match=r"seed 0 of .* was imported as theirs already, with other weights"):
        import_files(options_of(folder, "w1.safetensors", "order"), store, folder, print)
    assert store.read(key) == damaged


def test_weights_of_a_version_without_digests_are_not_replaced_by_others(folder: Path, store: Store):
    endpoint = next(endpoint for endpoint in read_imports(store, "theirs") if endpoint.seed == 0)
    key = endpoint_key(endpoint.id)
    store.replace(key, unsealed := store.read(key).replace(b"-sha256:", b"--------"))
    with pytest.raises(DamagedError, match=NO_DIGEST):
        read_record(store, key)
    with pytest.raises(StoreError, match="with other weights"):
        import_files(options_of(folder, "w1.safetensors", "order"), store, folder, print)
    assert store.read(key) == unsealed
    import_files(options_of(folder, "w0.safetensors"), store, folder, print)
    assert read_record(store, key)["status"] == "untrained"


def test_a_damaged_document_of_other_weights_is_told(folder: Path, store: Store):
    endpoint = next(endpoint for endpoint in read_imports(store, "theirs") if endpoint.seed == 1)
    key = import_key("theirs", endpoint.id)
    store.replace(key, damaged := flipped(store.read(key), 60))
    with pytest.raises(
        DamagedError, match=rf"{endpoint.id}\.json is damaged .*: delete it and import the weights again"
    ):
        import_files(options_of(folder, "w0.safetensors"), store, folder, print)
    assert store.read(key) == damaged


def test_damage_upstream_is_made_whole_in_the_own_store(folder: Path, store: Store, tmp_path: Path):
    endpoint = read_imports(store, "theirs")[0]
    whole = contents(store)
    keys = (endpoint_key(endpoint.id), import_key("theirs", endpoint.id))
    for key in keys:
        store.replace(key, flipped(store.read(key), 60))
    damaged = contents(store)
    own = Store(str(tmp_path / "own"), store.url)
    import_files(options_of(folder), own, folder, print)
    assert contents(own) == {key: whole[key] for key in keys}
    assert contents(store) == damaged


def test_an_endpoint_is_the_same_after_it_was_made_whole(folder: Path, store: Store):
    before = read_imports(store, "theirs")
    store.replace(import_key("theirs", before[0].id), b"")
    import_files(options_of(folder), store, folder, print)
    assert read_imports(store, "theirs") == before == [Endpoint(before[0].cell, seed) for seed in (0, 1)]
