"""What may be removed from a store: nothing that a study refers to, and not what is young."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import time
from pathlib import Path

import pytest
from pipeline import make_request, run_all, train_all
from rich.console import Console

from flows.commands.housekeeping import collect_garbage, print_usage
from infra.paths import endpoint_key
from infra.storage import Store, StoreError
from tasks.gather import gather
from tasks.imports import save_import
from tasks.science.networks import build_network
from tasks.science.specs.cell import Endpoint, Origin
from tasks.science.specs.measurement import Measurement
from tasks.science.training.training import train_group
from tasks.stored import references
from tasks.stored.references import take_inventory
from tasks.stored.requests import read_requests, save_request


def grow_old(store: Store) -> None:
    for path in Path(store.url).rglob("*"):
        if path.is_file():
            day_before_yesterday = time.time() - 2 * 86400
            os.utime(path, (day_before_yesterday, day_before_yesterday))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, cell, blobs) -> Path:
    """A store with a study that was gathered, imports among it."""
    store = Store(str(tmp_path_factory.mktemp("ran")))
    with pytest.MonkeyPatch.context() as patch:
        for module in ("tasks.train", "tasks.align", "tasks.stored.pairs"):
            patch.setattr(f"{module}.load_dataset", lambda _name, _folder: blobs)
        small = dataclasses.replace(cell, width=4, depth=1)
        run_all(store, make_request(small))
        imported = dataclasses.replace(small, origin=Origin("test", ()))
        for trained in train_group(small, range(2), blobs):
            save_import(store, "test", Endpoint(imported, trained.seed), build_network(imported), trained.state, blobs)
        run_all(store, make_request(imported, n_seeds=2))
    return Path(store.url)


@pytest.fixture
def gathered(ran: Path, tmp_path: Path) -> Store:
    """A copy of it."""
    shutil.copytree(ran, tmp_path / "gathered")
    return Store(str(tmp_path / "gathered"))


def keys(store: Store) -> set[str]:
    return {entry.key for entry in store.entries()}


def garbage(store: Store) -> set[str]:
    return {entry.key for entry in take_inventory(store).garbage()}


def collect(store: Store, *, dry_run: bool = False) -> str:
    console = Console(width=80, file=io.StringIO())
    collect_garbage(store, console, dry_run=dry_run)
    return console.file.getvalue()


def test_all_that_a_study_made_is_kept_and_a_run_after_the_collection_makes_nothing(store: Store, cell):
    request = make_request(cell)
    run_all(store, request)
    grow_old(store)
    before = keys(store)
    assert garbage(store) == set()
    assert "0 files" in collect(store)
    assert keys(store) == before


def test_moments_and_evaluations_go_with_the_samples_that_they_are_of(store: Store, cell):
    request = make_request(cell)
    run_all(store, request)
    before = keys(store)
    few = dataclasses.replace(request, measurements=(Measurement("few", 5, statistics=40, evaluation=30),))
    run_all(store, few)
    (path,) = [p for p in Path(store.url).rglob("requests/*.json") if p.stem == few.id]
    path.unlink()
    gather.fn("test", store, {})
    grow_old(store)
    orphans = {key.rpartition("/")[0] for key in garbage(store)}
    assert {"moments", "rows/ends"} <= orphans
    collect(store)
    assert keys(store) == before


def test_what_no_request_names_goes_once_it_is_a_day_old_and_a_dry_run_removes_nothing(store: Store, cell):
    run_all(store, make_request(cell))
    kept = keys(store)
    other = make_request(dataclasses.replace(cell, width=8))
    run_all(store, other)
    (path,) = [p for p in Path(store.url).rglob("requests/*.json") if p.stem == other.id]
    path.unlink()
    gather.fn("test", store, {})
    assert garbage(store) == set(), "it is young"
    grow_old(store)
    orphans = keys(store) - kept
    assert {key.partition("/")[0] for key in orphans} == {"endpoints", "permutations", "moments", "rows"}
    assert garbage(store) == orphans
    assert f"{len(orphans)} files" in collect(store, dry_run=True)
    assert keys(store) == kept | orphans
    collect(store)
    assert keys(store) == kept


def test_what_is_no_part_of_a_store_is_never_garbage(store: Store, cell):
    run_all(store, make_request(cell))
    other = Store(f"{store.url}/runs")
    run_all(other, make_request(cell))
    for name in ("thesis.tex", "photos/a.jpg", ".ssh/id"):
        path = Path(store.url) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("dear")
    grow_old(store)
    before = set(Path(store.url).rglob("*"))
    assert garbage(store) == set()
    collect(store)
    assert set(Path(store.url).rglob("*")) == before


def test_a_folder_without_any_study_has_no_garbage(store: Store, cell):
    """As the parent of stores, or one whose studies were moved away."""
    train_all(store, make_request(cell))
    shutil.rmtree(Path(store.url) / "studies")
    grow_old(store)
    assert garbage(store) == set()


def test_a_study_that_was_not_gathered_is_kept_whole(store: Store, cell, monkeypatch):
    """A version with other revisions, under which its files had other names, may have been killed in it."""
    train_all(store, make_request(cell))
    monkeypatch.setattr(references, "REVISIONS", {**references.REVISIONS, "train": 99})
    (Path(store.url) / "endpoints/of-another-version.safetensors").write_bytes(b"x")
    grow_old(store)
    assert garbage(store) == set()
    assert "test: not gathered to its end by this version" in collect(store)


def test_a_study_that_begins_meanwhile_stops_the_collection(store: Store, cell, monkeypatch):
    run_all(store, make_request(cell))
    (Path(store.url) / "rows/paths/nobodys.parquet").write_bytes(b"x")
    grow_old(store)
    inventory = take_inventory(store)
    monkeypatch.setattr("flows.commands.housekeeping.take_inventory", lambda _store: inventory)
    later = make_request(cell, alphas=7)
    save_request(store, later)
    with pytest.raises(StoreError, match="a study has begun on this store in the meantime"):
        collect(store)
    assert store.exists("rows/paths/nobodys.parquet")


def test_what_killed_writers_left_goes_and_what_leads_to_an_endpoint_stays(store: Store, cell):
    request = make_request(cell)
    run_all(store, request)
    left = Path(store.url) / "endpoints" / ".half.0123"
    left.write_bytes(b"half")
    for endpoint in (Endpoint(cell, 0), Endpoint(cell, 99)):
        state = Path(store.url) / "trainings" / f"{endpoint.id}.safetensors"
        state.parent.mkdir(exist_ok=True)
        state.write_bytes(b"x")
    grow_old(store)
    assert garbage(store) == {"endpoints/.half.0123", f"trainings/{Endpoint(cell, 99).id}.safetensors"}


def test_while_an_endpoint_is_missing_nothing_that_was_measured_of_pairs_goes(store: Store, cell):
    request = make_request(cell)
    run_all(store, request)
    # As after a run whose endpoints were a colleague's, when the colleague's store is not named.
    (Path(store.url) / endpoint_key(Endpoint(cell, 0).id)).unlink()
    grow_old(store)
    before = keys(store)
    said = collect(store)
    assert "test: not all endpoints are there, so all measured pairs are kept" in said
    assert keys(store) == before


def test_endpoints_of_every_request_count_where_several_name_a_cell(store: Store, cell):
    requests = [dataclasses.replace(make_request(cell), seeds=seeds) for seeds in ((0, 1), (0, 2))]
    for request in requests:
        train_all(store, request)
    assert take_inventory(store).unfinished == ()
    for seed in (1, 2):
        key = endpoint_key(Endpoint(cell, seed).id)
        weights = store.read(key)
        store.remove(key)
        assert take_inventory(store).unfinished == ("test",)
        store.create(key, weights)


def test_what_another_version_gathered_is_left_alone(store: Store, cell, monkeypatch):
    run_all(store, make_request(cell))
    (Path(store.url) / "rows/paths/nobodys.parquet").write_bytes(b"x")
    grow_old(store)
    assert garbage(store) == {"rows/paths/nobodys.parquet"}
    monkeypatch.setattr(references, "REVISIONS", {**references.REVISIONS, "train": 99})
    assert garbage(store) == set()
    assert "test: not gathered to its end by this version" in collect(store)


@pytest.mark.parametrize("kind", ["requests", "imported", "ablation.parquet", "axes.parquet", "endpoints/"])
@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_study_of_which_something_is_damaged_or_gone_is_kept_whole(gathered: Store, kind: str, is_deleted: bool):
    """Trained endpoints are not to go with the file that names them."""
    key = next(entry.key for entry in gathered.entries() if kind in entry.key)
    if is_deleted:
        gathered.remove(key)
    else:
        gathered.replace(key, b"{")
    gathered.replace("rows/paths/nobodys.parquet", b"x")
    grow_old(gathered)
    is_known = is_deleted and kind in ("axes.parquet", "endpoints/")
    assert garbage(gathered) - {"rows/paths/nobodys.parquet"} == set()
    assert (take_inventory(gathered).foreign == ()) == is_known
    collect(gathered)
    print_usage(gathered, Console(quiet=True))


@pytest.mark.parametrize("left", ["tables", "imported", "report.html"])
def test_a_study_without_requests_is_kept_whole(gathered: Store, left: str):
    other = Path(gathered.url) / "studies/other"
    shutil.copytree(Path(gathered.url) / "studies/test", other)
    shutil.rmtree(other / "requests")
    (other / "report.html").write_text("x")
    for path in other.rglob("*.*"):
        if left not in str(path) and not (left == "tables" and path.suffix == ".parquet"):
            path.unlink()
    gathered.replace("endpoints/others.safetensors", b"x")
    grow_old(gathered)
    assert garbage(gathered) == set()
    assert take_inventory(gathered).foreign == ("other",)
    for path in (*other.rglob("*.*"),):
        path.unlink()
    (other / "mine.txt").write_text("x")
    Path(gathered.url, "studies/mine.parquet").write_text("x")
    assert garbage(gathered) == {"endpoints/others.safetensors"}


def test_rows_between_a_colleagues_endpoints_are_kept_and_the_colleagues_files_are_not_looked_at(
    store: Store, cell, tmp_path: Path
):
    theirs = Store(str(tmp_path / "theirs"))
    train_all(theirs, make_request(cell))
    mine = Store(store.url, theirs.url)
    run_all(mine, make_request(cell))
    grow_old(store)
    grow_old(theirs)
    assert not any(key.startswith("endpoints/") for key in keys(store))
    assert garbage(mine) == set()
    assert garbage(store) == set()
    assert len(read_requests(mine, "test")) == 1


def test_usage_is_told_by_kind_and_study(store: Store, cell):
    run_all(store, make_request(cell))
    inventory = take_inventory(store)
    assert inventory.count_kinds()["endpoints"][0] == 3
    assert sum(n for _, n in inventory.count_kinds().values()) == sum(entry.n_bytes for entry in store.entries())
    assert inventory.bytes_of("test") == sum(entry.n_bytes for entry in store.entries())
    console = Console(width=80, file=io.StringIO())
    print_usage(store, console)
    assert "no study refers to 0 files" in console.file.getvalue()


def test_an_empty_store_has_nothing(store: Store):
    inventory = take_inventory(store)
    assert (inventory.entries, inventory.studies, inventory.garbage()) == ([], {}, [])


def test_between_imported_endpoints_that_are_upstream_nothing_goes_when_the_upstream_is_not_named(
    store: Store, cell, blobs, tmp_path: Path
):
    theirs = Store(str(tmp_path / "theirs"))
    imported = dataclasses.replace(cell, origin=Origin("test", ()))
    for trained in train_group(cell, range(3), blobs):
        endpoint = Endpoint(imported, trained.seed)
        save_import(theirs, "test", endpoint, build_network(imported), trained.state, blobs)
    mine = Store(store.url, theirs.url)
    run_all(mine, make_request(imported))
    grow_old(store)
    before = keys(store)
    assert any(key.startswith("rows/paths") for key in before)
    assert garbage(mine) == set()
    assert take_inventory(store).unfinished == ("test",)
    collect(store)
    assert keys(store) == before
