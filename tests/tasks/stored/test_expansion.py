"""One expansion of a request: its artifacts name every file that is written, and the store is asked for each once."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from typing import Any

import pytest
from pipeline import align_all, make_request, measure_all, run_all, train_all

from infra.paths import endpoint_key, row_key
from infra.storage import Store
from tasks.gather import collect
from tasks.science.specs.cell import Cell, Endpoint, Origin
from tasks.science.specs.request import Request
from tasks.stored.expansion import Expansion, MatchRows, UsableMatch


@pytest.fixture
def request_of_all_kinds(cell: Cell) -> Request:
    return dataclasses.replace(
        make_request(dataclasses.replace(cell, width=4, depth=1), n_seeds=3), controls=True, ensembles=True
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Counts what stores are asked: the kind of question, and the key."""
    questions: Counter[tuple[str, str]] = Counter()

    def count(name: str) -> None:
        original = getattr(Store, name)

        def counted(self: Store, key: str, *arguments: Any) -> Any:
            questions[name, key] += 1
            return original(self, key, *arguments)

        monkeypatch.setattr(Store, name, counted)

    for name in ("exists", "size_bytes", "read"):
        count(name)
    return questions


def test_every_file_of_a_request_is_named_by_its_expansion(store: Store, request_of_all_kinds: Request):
    run_all(store, request_of_all_kinds)
    written = {entry.key for entry in store.entries() if not entry.key.startswith("studies/")}
    named = set(Expansion.of(request_of_all_kinds, store).keys())
    assert written <= named
    # What is named beyond that is left by trainings on their way, or made by corrections of blocks.
    assert {key.partition("/")[0] for key in named - written} == {"trainings", "moments"}


def test_artifacts_are_there_once_all_of_their_files_are(store: Store, request_of_all_kinds: Request):
    (cell,) = request_of_all_kinds.cells
    train_all(store, request_of_all_kinds)
    expansion = Expansion.of(request_of_all_kinds, store)
    matches, view = expansion.matches(cell), expansion.view
    assert expansion.missing_endpoints(cell) == []
    assert {match.pairing.matcher for match in view.due(matches)} == {"activation", "random"}
    due = view.due(expansion.paths(cell, matches))
    assert {one.path.pairing.matcher for one in due} == {"none"}
    align_all(store, request_of_all_kinds)
    assert view.due(matches) != []
    view.refresh()
    assert view.due(matches) == []
    assert view.due(expansion.paths(cell, matches)) == expansion.paths(cell, matches)
    measure_all(store, request_of_all_kinds)
    view.refresh()
    assert view.due(expansion.paths(cell, matches)) == []
    store.remove(row_key("layers", expansion.paths(cell, matches)[0].path.id))
    assert Expansion.of(request_of_all_kinds, store).view.due(expansion.all_paths()) == expansion.all_paths()[:1]


def test_a_pairing_without_a_matcher_has_no_files(store: Store, request_of_all_kinds: Request):
    train_all(store, request_of_all_kinds)
    direct = next(
        one.pairing for one in Expansion.of(request_of_all_kinds, store).matches(request_of_all_kinds.cells[0])
    )
    assert direct.matcher == "none"
    assert UsableMatch(direct).keys == MatchRows(direct).keys == ()
    assert UsableMatch(direct).is_in(store)


def test_a_store_is_asked_for_each_thing_once(
    store: Store, request_of_all_kinds: Request, asked: Counter[tuple[str, str]]
):
    run_all(store, request_of_all_kinds)
    store.remove(endpoint_key(Endpoint(request_of_all_kinds.cells[0], 2).id))
    finer = dataclasses.replace(
        request_of_all_kinds,
        measurements=tuple(dataclasses.replace(m, alphas=9) for m in request_of_all_kinds.measurements),
    )
    asked.clear()
    gathered = collect(store, "test", [request_of_all_kinds, finer], {})
    assert len(gathered.findings.pairings) == 1 * 2 + 2
    # The size of an endpoint's file and its header are two requests.
    assert set(asked.values()) == {1}
    asked.clear()
    expansion = Expansion.of(request_of_all_kinds, store)
    for cell in request_of_all_kinds.cells * 2:
        assert len(expansion.missing_endpoints(cell)) == 1
        assert expansion.view.missing(expansion.paths(cell, expansion.matches(cell))) == []
    assert set(asked.values()) == {1}


def test_a_store_that_is_no_folder_is_asked_for_several_things_at_a_time(
    store: Store, request_of_all_kinds: Request, monkeypatch: pytest.MonkeyPatch
):
    meeting = threading.Barrier(3, timeout=20)
    monkeypatch.setattr(Store, "is_local", False)
    monkeypatch.setattr(Store, "exists", lambda _self, _key: meeting.wait() < 0)
    (cell,) = request_of_all_kinds.cells
    assert len(Expansion.of(request_of_all_kinds, store).missing_endpoints(cell)) == 3


def test_imported_cells_have_nothing_to_be_trained(store: Store, cell: Cell):
    imported = dataclasses.replace(cell, origin=Origin("test", ()))
    assert Expansion.of(make_request(imported), store).missing_endpoints(imported) == []
    assert len(Expansion.of(make_request(cell), store).missing_endpoints(cell)) == 3


def test_parents_are_missing_where_missing_endpoints_are_spawned_from_them(store: Store, cell: Cell):
    children = [dataclasses.replace(cell, spawn=(0, epoch)) for epoch in (1, 2)]
    (together,) = Expansion.of(make_request(*children), store).missing_parents()
    assert [(parent.seed, parent.cell.epoch) for parent in together] == [(0, 1), (0, 2)]
    assert Expansion.of(make_request(cell), store).missing_parents() == []
