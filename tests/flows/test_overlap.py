"""Two runs of one study on one store: the slower one replaces nothing newer by older tables or an older page."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pipeline import align_all, make_request, measure_all, train_all
from processes import PrefectServer, Process, assert_same_tables, finish_study, read_tables, wait_until

from flows.report import page as report
from flows.report.gathered import TABLES_BY_NAME, read_gathering
from flows.report.page import write_report
from flows.results import open_study
from infra.paths import report_key, table_key
from infra.storage import Store, StoreError
from tasks import gather as gathering
from tasks.gather import gather
from tasks.science.data.examples import Dataset
from tasks.science.specs.cell import Cell
from tasks.science.specs.request import Request
from tasks.stored import study_tables

MODULES = {"read_requests": gathering, "build_tables": gathering, "write_table": study_tables}
"""The modules that call these functions."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run has asked for, and a folder with all that it stores before it gathers."""

    request: Request
    folder: Path

    def arrive(self, store: Store) -> None:
        """Everything is in the store at once."""
        shutil.copytree(self.folder, store.url, dirs_exist_ok=True)

    def finish(self, store: Store) -> None:
        self.arrive(store)
        gather.fn("test", store, {})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cell: Cell, blobs: Dataset) -> list[Run]:
    """Two of one study: of two seeds, and of three."""
    request = make_request(dataclasses.replace(cell, width=4, depth=1), n_seeds=2)
    made: list[Run] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in ("tasks.train", "tasks.align", "tasks.stored.pairs"):
            patch.setattr(f"{module}.load_dataset", lambda _name, _folder: blobs)
        for asked in (request, dataclasses.replace(request, seeds=(0, 1, 2))):
            folder = tmp_path_factory.mktemp("run")
            store = Store(str(folder))
            train_all(store, asked)
            align_all(store, asked)
            measure_all(store, asked)
            made.append(Run(asked, folder))
    return made


@pytest.fixture
def slower(runs: list[Run]) -> Run:
    return runs[0]


@pytest.fixture
def faster(runs: list[Run]) -> Run:
    """With another seed: more of everything."""
    return runs[1]


def overtake(monkeypatch: pytest.MonkeyPatch, module: object, name: str, run: Callable[[], object], at: int) -> None:
    """Have `run` happen within `module`, right after the call number `at` of its function `name`, once."""
    calls, function = 0, getattr(module, name)

    def called(*arguments, **options):
        nonlocal calls
        result = function(*arguments, **options)
        calls += 1
        if calls == at:
            run()
        return result

    monkeypatch.setattr(module, name, called)


def assert_all_of(store: Store, run: Run) -> None:
    tables, provenance = read_gathering(store, "test")
    assert run.request.id in provenance["requests"]
    assert sorted(tables["endpoints"]["seed"]) == list(run.request.seeds)
    assert len(tables["barriers"]) == 3 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("name", "at"),
    [("read_requests", 1), ("build_tables", 1), *(("write_table", at) for at in (1, 6, len(TABLES_BY_NAME)))],
)
def test_a_run_that_finishes_while_another_gathers_loses_nothing(
    store: Store, slower: Run, faster: Run, monkeypatch: pytest.MonkeyPatch, name: str, at: int
):
    slower.arrive(store)
    overtake(monkeypatch, MODULES[name], name, lambda: faster.finish(store), at)
    gather.fn("test", store, {})
    assert_all_of(store, faster)


@pytest.mark.parametrize("name", ["build_tables", "write_table"])
def test_the_same_request_whose_rows_another_run_has_made_meanwhile_loses_none(
    store: Store, faster: Run, monkeypatch: pytest.MonkeyPatch, name: str
):
    faster.arrive(store)
    for entry in store.entries():
        if entry.key.startswith("rows/"):
            store.remove(entry.key)
    # No new request tells of the rows: only the tables that the other run has written do.
    overtake(monkeypatch, MODULES[name], name, lambda: faster.finish(store), 1)
    gather.fn("test", store, {})
    assert_all_of(store, faster)


def test_rows_that_come_while_tables_are_made_are_in_them(store: Store, faster: Run, monkeypatch: pytest.MonkeyPatch):
    faster.arrive(store)
    for entry in store.entries():
        if entry.key.startswith("rows/paths"):
            store.remove(entry.key)
    overtake(monkeypatch, gathering, "build_tables", lambda: faster.arrive(store), 1)
    gather.fn("test", store, {})
    assert_all_of(store, faster)


def test_a_run_that_measures_for_long_does_not_keep_another_from_gathering(
    store: Store, faster: Run, monkeypatch: pytest.MonkeyPatch
):
    rounds = 0

    def grows(_self: object, _store: Store) -> bool:
        nonlocal rounds
        rounds += 1
        return True

    faster.arrive(store)
    monkeypatch.setattr(gathering.Gathered, "has_grown", grows)
    gather.fn("test", store, {})
    assert rounds < 4
    assert_all_of(store, faster)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("read_gathering", marks=pytest.mark.slow),
        "make_charts",
        pytest.param("render", marks=pytest.mark.slow),
        "seal_page",
    ],
)
def test_a_page_is_of_the_newest_tables(
    store: Store, slower: Run, faster: Run, monkeypatch: pytest.MonkeyPatch, name: str
):
    slower.finish(store)

    def finish() -> None:
        faster.finish(store)
        write_report(store, "test")

    overtake(monkeypatch, report, name, finish, 1)
    write_report(store, "test")
    found = store.read(report_key("test"))
    store.remove(report_key("test"))
    write_report(store, "test")
    assert store.read(report_key("test")) == found


def test_tables_of_a_run_that_was_killed_as_it_wrote_them_are_told(
    store: Store, slower: Run, faster: Run, monkeypatch: pytest.MonkeyPatch
):
    slower.finish(store)
    older = store.read(table_key("test", "barriers"))
    study = open_study(store, "test")
    assert len(study.ablation)
    assert len(study.provenance["requests"]) == 1
    faster.finish(store)
    with pytest.raises(StoreError, match="gathered anew since it was opened: open it again"):
        _ = study.barriers
    store.replace(table_key("test", "barriers"), older)
    monkeypatch.setattr("flows.report.gathered._WRITING_SECONDS", 0)
    mixed = "come from more than one run, one of which was stopped while it wrote them"
    with pytest.raises(StoreError, match=mixed):
        write_report(store, "test")
    with pytest.raises(StoreError, match=mixed):
        _ = open_study(store, "test").barriers
    gather.fn("test", store, {})
    write_report(store, "test")
    assert_all_of(store, faster)


def test_tables_that_are_still_being_written_are_waited_for(
    store: Store, slower: Run, faster: Run, monkeypatch: pytest.MonkeyPatch
):
    slower.finish(store)
    older = {table: store.read(table_key("test", table)) for table in TABLES_BY_NAME}
    faster.finish(store)
    newer = {table: store.read(table_key("test", table)) for table in TABLES_BY_NAME}
    for table in ("cells", "endpoints"):
        store.replace(table_key("test", table), older[table])
    waits: list[float] = []

    def write_one_more(seconds: float) -> None:
        waits.append(seconds)
        table = ("cells", "endpoints")[len(waits) - 1]
        store.replace(table_key("test", table), newer[table])

    monkeypatch.setattr("flows.report.gathered._WRITING_SECONDS", 0)
    # In place of the module, whose `sleep` other threads call too.
    monkeypatch.setattr("flows.report.gathered.time", SimpleNamespace(sleep=write_one_more, monotonic=time.monotonic))
    read_gathering(store, "test")
    assert len(waits) == 2


FROZEN = """
import os, signal, sys
import {module} as module
function, calls = module.{name}, 0

def stopping(*arguments, **options):
    global calls
    result = function(*arguments, **options)
    calls += 1
    if calls == 1:
        open({mark!r}, "w").close()
        os.kill(os.getpid(), signal.SIGSTOP)
    return result

module.{name} = stopping
from flows.cli import main
main()
"""
"""`repairlab`, which stops itself at a point, as a machine that is put to sleep does."""

MORE = ("digits-depth", "--width", "64", "--depth", "4,6", "--seeds", "4", "--epochs", "40")
LESS = ("digits-depth", "--width", "64", "--depth", "4", "--seeds", "3", "--epochs", "40")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with PrefectServer(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.mark.slow
@pytest.mark.xdist_group("faults")
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("tasks.gather", "build_tables"),
        ("tasks.stored.study_tables", "write_table"),
        ("flows.report.page", "read_gathering"),
    ],
    ids=["after reading rows", "after writing the first table", "before the page"],
)
def test_a_frozen_run_that_goes_on_replaces_nothing_newer(
    tmp_path: Path, store: Store, server: PrefectServer, module: str, name: str
):
    mark = tmp_path / "frozen"
    code = FROZEN.format(module=module, name=name, mark=str(mark))
    words = ("python", "-c", code, "run", *LESS, "--runner", "threads", "--store", store.url)
    with Process(tmp_path / "frozen.log", *words, **server.environment) as frozen:
        wait_until(lambda: mark.exists() or not frozen.is_running)
        assert frozen.is_running, frozen.output()
        finish_study(tmp_path, store, *MORE, **server.environment)
        wanted = read_tables(store)
        frozen.send(signal.SIGCONT)
        assert frozen.wait() == 0, frozen.output()
    assert_same_tables(read_tables(store), wanted)
    page = store.read(report_key("digits-depth"))
    write_report(store, "digits-depth")
    assert store.read(report_key("digits-depth")) == page
