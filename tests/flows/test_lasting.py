"""What ends a study's run between its request and its report is told as what it is; and what would end it there is told
before anything is trained."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import flows.study
from flows.cli import main
from flows.options import StudyOptions
from flows.study import MissingFileError, carry_out, lasting
from infra.paths import endpoint_key, request_key, row_key
from infra.settings import Settings
from infra.storage import DamagedError, Store, StoreError
from tasks.published import DataError
from tasks.requests import read_requests, save_request
from tasks.science.request import Request
from tasks.science.specs import Cell, Endpoint

OPTIONS = StudyOptions(study="digits-depth", depth=[2], width=[32], seeds=3, epochs=4, alphas=3)  # pyright: ignore


@pytest.fixture
def asked(tmp_path: Path) -> Request:
    return flows.study.find_request(OPTIONS, Store(str(tmp_path / "empty")), tmp_path)[0]


def finish(store: Store, cell: Cell, *seeds: int) -> None:
    """Has a file lie in the place of each endpoint."""
    for seed in seeds:
        store.replace(endpoint_key(Endpoint(cell, seed).id), b"weights")


@contextmanager
def running(store: Store, request: Request) -> Iterator[Callable[..., None]]:
    save_request(store, request)
    with lasting(store, request) as check_kept:
        yield check_kept


def test_endpoints_that_go_from_the_own_store_are_told_of_it(store: Store, asked: Request):
    (cell,) = asked.cells
    finish(store, cell, 0, 1)
    with running(store, asked) as check_kept:
        check_kept([cell], [Endpoint(cell, 2).id])
    store.remove(endpoint_key(Endpoint(cell, 1).id))
    with (
        pytest.raises(StoreError, match=rf"^the store {store.url} was emptied, or lost some of its files, while"),
        running(store, asked) as check_kept,
    ):
        check_kept([cell], [Endpoint(cell, 2).id])


@pytest.mark.parametrize("theirs", [(0, 1), (0,)])
def test_endpoints_that_go_from_upstream_are_told_of_the_upstream(
    store: Store, asked: Request, tmp_path: Path, theirs: tuple[int, ...]
):
    (cell,) = asked.cells
    upstream = Store(str(tmp_path / "upstream"))
    finish(upstream, cell, *theirs)
    both = Store(store.url, upstream.url)
    with (
        pytest.raises(StoreError, match=rf"^the upstream {upstream.url} was emptied, or lost some of its files, while"),
        running(both, asked) as check_kept,
    ):
        finish(store, cell, *{0, 1, 2} - set(theirs))
        check_kept([cell], [])
        upstream.remove(endpoint_key(Endpoint(cell, 0).id))
        check_kept([cell], [])
    # What this run has made, and lost, is its own store's.
    finish(upstream, cell, 0)
    with (
        pytest.raises(StoreError, match=rf"^the store {store.url} was emptied"),
        running(both, asked) as check_kept,
    ):
        store.remove(endpoint_key(Endpoint(cell, 2).id))
        check_kept([cell], [])


def test_a_file_that_is_missing_elsewhere_is_not_told_as_a_store_that_was_emptied(
    store: Store, asked: Request, tmp_path: Path
):
    (cell,) = asked.cells
    finish(store, cell, 0, 1, 2)
    with (
        pytest.raises(
            MissingFileError, match=rf"^digits-depth stopped, .* is missing \({tmp_path}/no\.ttf\): "
        ) as caught,
        running(store, asked) as check_kept,
    ):
        check_kept([cell], [])
        (tmp_path / "no.ttf").read_bytes()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DataError)
    with (
        pytest.raises(StoreError, match=rf"^the store {store.url} was emptied"),
        running(store, asked) as check_kept,
    ):
        check_kept([cell], [])
        store.remove(endpoint_key(Endpoint(cell, 1).id))
        (tmp_path / "no.ttf").read_bytes()


@pytest.mark.parametrize("read", [Store.read, Store.size_bytes])
def test_a_file_that_a_store_misses_is_told_of_the_store(
    store: Store, asked: Request, tmp_path: Path, read: Callable[[Store, str], object]
):
    with pytest.raises(StoreError, match=rf"^the store {store.url} was emptied"), running(store, asked):
        read(store, row_key("paths", "x"))
    upstream = tmp_path / "upstream"
    upstream.mkdir()
    both = Store(store.url, str(upstream))
    with (
        pytest.raises(StoreError, match=rf"^the store {store.url}, or its upstream {upstream}, was emptied"),
        running(both, asked),
    ):
        read(both, row_key("paths", "x"))


def test_another_error_is_itself_where_nothing_went(store: Store, asked: Request):
    with pytest.raises(ZeroDivisionError), running(store, asked):
        _ = 1 / 0
    with pytest.raises(StoreError, match="was emptied"), running(store, asked):
        store.remove(request_key(asked.study, asked.id))
        _ = 1 / 0


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
