"""Training over time on a store: checkpoints, trainings that were killed, parents and their children."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import pytest
from interruption import dying
from pipeline import make_request, merges_of, run_all

from infra.paths import endpoint_key, training_key
from infra.storage import Store
from tasks.science.specs.cell import Cell, Endpoint
from tasks.stored.artifacts import load_weights, read_endpoint
from tasks.stored.checkpoints import pack, read_checkpoint, read_header
from tasks.stored.trainings import has_arrived, load_state
from tasks.train import train, train_parent

LAST = None


def digest(store: Store, cell: Cell, seed: int, epoch: int | None = LAST) -> str:
    record = read_endpoint(store, Endpoint(cell.at(epoch), seed))
    assert record is not None
    return record["weights_sha256"]


def states_in(store: Store) -> set[str]:
    return set(store.names("trainings"))


@pytest.fixture
def always_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.stored.trainings.SAVE_SECONDS", 0.0)


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "other"))


def with_recipe(cell: Cell, **changes) -> Cell:
    return dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, **changes))


def test_one_training_stores_every_checkpoint_that_is_missing(store: Store, other: Store, cell: Cell):
    train.fn(cell, [0, 1], store, Path(), (0, 2, LAST))
    assert len(store.names("endpoints")) == 6
    assert states_in(store) == set()
    for epoch in (0, 2, LAST):
        train.fn(cell.at(epoch), [1], other, Path())
        assert digest(other, cell, 1, epoch) == digest(store, cell, 1, epoch)
    kept = store.read(endpoint_key(Endpoint(cell.at(2), 0).id))
    (Path(store.url) / endpoint_key(Endpoint(cell.at(0), 0).id)).unlink()
    train.fn(cell, [0, 1], store, Path(), (0, 2, 4, LAST))
    assert store.read(endpoint_key(Endpoint(cell.at(2), 0).id)) == kept
    assert len(store.names("endpoints")) == 8


def test_an_early_checkpoint_takes_part_in_pairs_though_it_has_learned_nothing(store: Store, cell: Cell):
    request = dataclasses.replace(
        make_request(cell.at(0), with_recipe(cell, learning_rate=0.1).at(0)), swept=("epoch",)
    )
    run_all(store, request)
    pairings = merges_of(store, request)
    assert len(pairings) == len({pairing.id for pairing in pairings}) == 12, (
        "the same weights in two cells are pairs of each"
    )
    assert all(state for state in load_weights(store, [pairings[0].a]).values())


@pytest.mark.usefixtures("always_saving")
@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "adam", "learning_rate": 0.005}, {"skip_nonfinite": True}, {"translate": 1, "flip": True}],
    ids=str,
)
@pytest.mark.parametrize(
    ("architecture", "normalization"),
    [("mlp", "batch-fused"), pytest.param("resnet20", "batch", marks=pytest.mark.slow)],
)
def test_a_killed_training_goes_on_to_the_same_bits(
    store: Store, other: Store, cell: Cell, changes: dict, architecture: str, normalization: str
):
    cell = with_recipe(dataclasses.replace(cell, architecture=architecture, normalization=normalization), **changes)
    if architecture == "resnet20":
        cell = with_recipe(dataclasses.replace(cell, width=1, depth=20), epochs=3)
    n_steps = 6 * (cell.recipe.epochs - 1) + 2
    train.fn(cell, [3], other, Path(), (1, LAST))
    with dying(n_steps):
        train.fn(cell, [3], store, Path(), (1, LAST))
    key = training_key(Endpoint(cell, 3).id)
    assert read_header(store, key)["state"]["epoch"] == cell.recipe.epochs - 1
    assert digest(store, cell, 3, 1) == digest(other, cell, 3, 1)
    # What is left takes the steps of one epoch, and no state stays behind.
    with dying(6):
        train.fn(cell, [3], store, Path(), (1, LAST))
        raise RuntimeError("the power is off")
    assert digest(store, cell, 3) == digest(other, cell, 3)
    assert states_in(store) == set()


@pytest.mark.usefixtures("always_saving")
@pytest.mark.parametrize("damage", ["cut short", "other bits", "no header"])
def test_a_damaged_state_is_ignored_with_a_line_in_the_log(
    store: Store, other: Store, cell: Cell, damage: str, caplog: pytest.LogCaptureFixture
):
    with dying(20):
        train.fn(cell, [0], store, Path())
    key = training_key(Endpoint(cell, 0).id)
    path = Path(store.url) / key
    tensors, _ = read_checkpoint(store, key)
    if damage == "cut short":
        os.truncate(path, 1000)
    elif damage == "other bits":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(pack(key, tensors, {}))
    with caplog.at_level(logging.WARNING):
        train.fn(cell, [0], store, Path())
    assert "a training state is ignored: " in caplog.text
    train.fn(cell, [0], other, Path())
    assert digest(store, cell, 0) == digest(other, cell, 0)
    assert states_in(store) == set()


def test_a_state_is_saved_every_few_minutes_and_not_more_often(store: Store, cell: Cell):
    with dying(20):
        train.fn(cell, [0], store, Path())
    assert states_in(store) == set()


def test_children_start_from_one_training_of_their_parent(store: Store, other: Store, cell: Cell, monkeypatch):
    parents = [Endpoint(cell.at(epoch), 7) for epoch in (0, 2, 4)]
    train_parent.fn(parents, store, Path())
    assert states_in(store) == {f"{parent.id}.safetensors" for parent in parents}
    assert all(has_arrived(store, parent) for parent in parents)
    train.fn(cell, [7], other, Path(), (2,))
    state = load_state(store, parents[1])
    assert state is not None
    (weights,) = load_weights(other, [_member(other, Endpoint(cell.at(2), 7))]).values()
    assert all(bool((state.weights[name] == tensor).all()) for name, tensor in weights.items())

    def never(*_arguments, **_options):
        raise AssertionError("the parent was trained again")

    children = dataclasses.replace(cell, spawn=(7, 2))
    with monkeypatch.context() as patch:
        patch.setattr("tasks.stored.trainings.train_states", never)
        train_parent.fn(parents, store, Path())
        train.fn(children, [0, 1], store, Path(), (3, LAST))
    assert states_in(store) == {f"{parent.id}.safetensors" for parent in parents}
    assert len({digest(store, children, seed, epoch) for seed in (0, 1) for epoch in (3, LAST)}) == 4
    train.fn(children, [1], other, Path())
    assert digest(other, children, 1) == digest(store, children, 1)


def _member(store: Store, endpoint: Endpoint):
    from tasks.stored.artifacts import as_member

    record = read_endpoint(store, endpoint)
    assert record is not None
    return as_member(endpoint, record)


@pytest.mark.usefixtures("always_saving")
def test_a_parent_goes_on_from_what_is_there(store: Store, other: Store, cell: Cell):
    late = Endpoint(cell.at(5), 0)
    with dying(6 * 3 + 2):
        train_parent.fn([late], store, Path())
    assert not has_arrived(store, late)
    assert store.exists(training_key(late.id)), "a state on the way stands under what it leads to"
    with dying(6 * 2):
        train_parent.fn([late], store, Path())
        raise RuntimeError("the power is off")
    with dying(6):  # A parent of a later epoch goes on from an earlier one, and a killed training of its own.
        train_parent.fn([late, Endpoint(cell.at(4), 0), Endpoint(cell.at(3), 0)], other, Path())
    train_parent.fn([late], other, Path())
    for part in ("weights", "memory"):
        ours, theirs = (getattr(load_state(one, late), part) for one in (store, other))
        assert ours.keys() == theirs.keys()
        assert all(bool((ours[name] == theirs[name]).all()) for name in ours)


@pytest.mark.usefixtures("always_saving")
def test_a_child_that_is_killed_goes_on_as_that_child(store: Store, other: Store, cell: Cell):
    children = with_recipe(dataclasses.replace(cell, spawn=(0, 1)), optimizer="adam", learning_rate=0.005)
    train.fn(children, [0], other, Path())
    train_parent.fn([children.parent], store, Path())
    with dying(6 * 3 + 2):
        train.fn(children, [0], store, Path())
    with dying(6 * 2):
        train.fn(children, [0], store, Path())
        raise RuntimeError("the power is off")
    assert digest(store, children, 0) == digest(other, children, 0)
