"""What ends a study's run between its request and its report is told as what it is; and what would end it there is told
before anything is trained."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flows.study
from flows.cli import main
from flows.lasting import Lasting, MissingFileError
from flows.options import StudyOptions
from flows.study import carry_out
from infra.paths import endpoint_key, request_key, row_key
from infra.settings import Settings
from infra.storage import DamagedError, Store, StoreError
from tasks.data.published import DataError
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.request import Request
from tasks.stored.requests import read_requests, save_request

OPTIONS = StudyOptions(study="digits-depth", depth=[2], width=[32], seeds=3, epochs=4, alphas=3)  # pyright: ignore


@pytest.fixture
def asked(tmp_path: Path) -> Request:
    return flows.study.find_request(OPTIONS, Store(str(tmp_path / "empty")), tmp_path)[0]


def finish(store: Store, cell: Cell, *seeds: int) -> None:
    """Has a file lie in the place of each endpoint."""
    for seed in seeds:
        store.replace(endpoint_key(Endpoint(cell, seed).id), b"weights")


def run(store: Store, request: Request, *steps: Callable[[Any], object]) -> None:
    """Takes `steps` while a study runs, each with what looks whether endpoints are still there."""
    save_request(store, request)
    with Lasting(store, request) as lasting:
        for step in steps:
            step(lasting.check_kept)


def test_endpoints_that_go_from_the_own_store_are_told_of_it(store: Store, asked: Request):
    (cell,) = asked.cells
    finish(store, cell, 0, 1)
    failed = [Endpoint(cell, 2).id]
    run(store, asked, lambda check: check([cell], failed))
    store.remove(endpoint_key(Endpoint(cell, 1).id))
    with pytest.raises(StoreError, match=rf"^the store {store.url} was emptied, or lost some of its files, while"):
        run(store, asked, lambda check: check([cell], failed))


@pytest.mark.parametrize("theirs", [(0, 1), (0,)])
def test_endpoints_that_go_from_upstream_are_told_of_the_upstream(
    store: Store, asked: Request, tmp_path: Path, theirs: tuple[int, ...]
):
    (cell,) = asked.cells
    upstream = Store(str(tmp_path / "upstream"))
    finish(upstream, cell, *theirs)
    both = Store(store.url, upstream.url)
    with pytest.raises(StoreError, match=rf"^the upstream {upstream.url} was emptied, or lost some of its files, "):
        run(
            both,
            asked,
            lambda _: finish(store, cell, *{0, 1, 2} - set(theirs)),
            lambda check: check([cell], []),
            lambda _: upstream.remove(endpoint_key(Endpoint(cell, 0).id)),
            lambda check: check([cell], []),
        )
    # What this run has made, and lost, is its own store's.
    finish(upstream, cell, 0)
    store.remove(endpoint_key(Endpoint(cell, 2).id))
    with pytest.raises(StoreError, match=rf"^the store {store.url} was emptied"):
        run(both, asked, lambda check: check([cell], []))


def test_a_file_that_is_missing_elsewhere_is_not_told_as_a_store_that_was_emptied(
    store: Store, asked: Request, tmp_path: Path
):
    (cell,) = asked.cells
    finish(store, cell, 0, 1, 2)
    font = tmp_path / "no.ttf"
    with pytest.raises(MissingFileError, match=rf"^digits-depth stopped, .* is missing \({font}\): ") as caught:
        run(store, asked, lambda check: check([cell], []), lambda _: font.read_bytes())
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DataError)
    with pytest.raises(StoreError, match=rf"^the store {store.url} was emptied"):
        run(
            store,
            asked,
            lambda check: check([cell], []),
            lambda _: store.remove(endpoint_key(Endpoint(cell, 1).id)),
            lambda _: font.read_bytes(),
        )


@pytest.mark.parametrize("read", [Store.read, Store.size_bytes])
def test_a_file_that_a_store_misses_is_told_of_the_store(
    store: Store, asked: Request, tmp_path: Path, read: Callable[[Store, str], object]
):
    key = row_key("paths", "x")
    with pytest.raises(StoreError, match=rf"^the store {store.url} was emptied"):
        run(store, asked, lambda _: read(store, key))
    upstream = tmp_path / "upstream"
    upstream.mkdir()
    both = Store(store.url, str(upstream))
    with pytest.raises(StoreError, match=rf"^the store {store.url}, or its upstream {upstream}, was emptied"):
        run(both, asked, lambda _: read(both, key))


def test_another_error_is_itself_where_nothing_went(store: Store, asked: Request):
    with pytest.raises(ZeroDivisionError):
        run(store, asked, lambda _: 1 / 0)
    with pytest.raises(StoreError, match="was emptied"):
        run(store, asked, lambda _: store.remove(request_key(asked.study, asked.id)), lambda _: 1 / 0)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data.replace(b"sha256:", b"sha-256")])
def test_a_request_that_cannot_be_read_is_told_before_anything_is_trained(
    store: Store, asked: Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: Callable[[bytes], bytes]
):
    earlier = dataclasses.replace(asked, seeds=(0, 1))
    save_request(store, earlier)
    key = request_key(earlier.study, earlier.id)
    store.replace(key, damage(store.read(key)))

    def refuse(*_arguments: Any, **_options: Any) -> None:
        pytest.fail("something was stored or submitted")

    for name in ("save_request", "tag_run", "train_endpoints"):
        monkeypatch.setattr(flows.study, name, refuse)
    with pytest.raises(DamagedError, match=rf"{earlier.id}\.json is damaged"):
        carry_out(OPTIONS, Settings(store=store.url, data_dir=tmp_path))


def test_a_dry_run_tells_it_as_well(
    store: Store, asked: Request, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save_request(store, asked)
    assert read_requests(store, asked.study) == {asked.id: asked}
    store.replace(request_key(asked.study, asked.id), b"{}")
    monkeypatch.setattr(sys, "argv", ["repairlab", "run", "digits-depth", "--dry-run", "--store", store.url])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert f"{asked.id}.json is damaged (it is cut short" in capsys.readouterr().err
