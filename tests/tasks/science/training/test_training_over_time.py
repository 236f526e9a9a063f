"""One run through many checkpoints, trainings that go on where they were left, and children of one parent."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import pytest
import torch
from interruption import dying

from tasks.science.data.examples import Dataset
from tasks.science.networks import build_training_network, initial_state
from tasks.science.networks.folding import fold_batch_norm
from tasks.science.networks.mlp import MLP
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.identity import stream, weights_digest
from tasks.science.training.judging import Training
from tasks.science.training.progress import TrainingState
from tasks.science.training.training import train_group, train_states


def with_recipe(cell: Cell, **changes) -> Cell:
    return dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, **changes))


class Shelf:
    """States on the way, kept in memory after every epoch."""

    def __init__(self) -> None:
        self.states: dict[int, TrainingState] = {}

    def load(self, seed: int, latest: int) -> TrainingState | None:
        state = self.states.get(seed)
        return state if state is not None and state.epoch <= latest else None

    def is_due(self) -> bool:
        return True

    def save(self, seed: int, state: TrainingState) -> None:
        self.states[seed] = state


def digests(trained: Iterable[Training]) -> dict[tuple[int, int | None], str]:
    return {(one.seed, one.epoch): weights_digest(one.state) for one in trained}


@pytest.fixture
def augmented(cell: Cell) -> Cell:
    return with_recipe(cell, translate=1, flip=True)


@pytest.fixture
def spoiled(blobs: Dataset) -> Dataset:
    """One train image is infinite, so that every epoch has a step whose gradients are no numbers."""
    images = blobs.train.images.clone()
    images[7] = math.inf
    return dataclasses.replace(blobs, train=dataclasses.replace(blobs.train, images=images))


@pytest.mark.parametrize("normalization", ["none", "batch", "batch-fused"])
def test_a_checkpoint_is_to_the_bit_what_the_longer_run_passes_through(
    blobs: Dataset, augmented: Cell, normalization: str
):
    cell = dataclasses.replace(augmented, normalization=normalization)
    together = digests(train_group(cell, [0, 1], blobs, checkpoints={0: [6, 0, 2], 1: [3]}))
    assert together.keys() == {(0, 0), (0, 2), (0, None), (1, 3)}
    for (seed, epoch), digest in together.items():
        alone = digests(train_group(cell.at(epoch), [seed], blobs))
        assert alone == {(seed, epoch): digest}


def test_a_stack_passes_through_the_checkpoints_of_each_seed_alone(blobs: Dataset, augmented: Cell):
    checkpoints = {seed: [1, 4] for seed in range(3)}
    stacked = list(train_group(augmented, [0, 1, 2], blobs, "cpu", torch.float64, 3, checkpoints=checkpoints))
    alone = {
        (one.seed, one.epoch): one
        for one in train_group(augmented, [0, 1, 2], blobs, dtype=torch.float64, checkpoints=checkpoints)
    }
    assert len(stacked) == len(alone) == 6
    for ours in stacked:
        for name, tensor in alone[ours.seed, ours.epoch].state.items():
            assert torch.allclose(ours.state[name], tensor, rtol=0, atol=1e-8)


def test_epoch_0_is_the_initial_weights_and_is_no_failure(blobs: Dataset, cell: Cell):
    (initial,) = train_group(cell.at(0), [4], blobs)
    drawn = initial_state(build_training_network(cell), stream("initialization", 4))
    assert weights_digest(initial.state) == weights_digest(drawn)
    assert (initial.status, initial.message, initial.epoch) == ("trained", "", 0)
    assert initial.train.loss > 1
    assert 0 < initial.test.accuracy < 0.6


def test_batch_norm_is_folded_at_every_checkpoint(blobs: Dataset, augmented: Cell):
    normalized, fused = (dataclasses.replace(augmented, normalization=word) for word in ("batch", "batch-fused"))
    network = build_training_network(normalized)
    assert isinstance(network, MLP)
    pairs = zip(
        train_group(normalized, [0], blobs, checkpoints={0: [0, 3]}),
        train_group(fused, [0], blobs, checkpoints={0: [0, 3]}),
        strict=True,
    )
    for plain, folded in pairs:
        assert weights_digest(folded.state) == weights_digest(fold_batch_norm(network, plain.state))
        assert folded.test.accuracy == pytest.approx(plain.test.accuracy, abs=1 / 80)


def test_a_checkpoint_behind_a_divergence_is_diverged_and_one_before_it_is_not(blobs: Dataset, cell: Cell, monkeypatch):
    monkeypatch.setattr(
        "tasks.science.training.seed_group.learning_rate",
        lambda _recipe, step, per_epoch: 1e30 if step > 2 * per_epoch else 0.05,
    )
    found = {one.epoch: one for one in train_group(cell, [0], blobs, checkpoints={0: [0, 2, 4, 6]})}
    assert [found[epoch].status for epoch in (0, 2, 4, None)] == ["trained", "trained", "diverged", "diverged"]
    assert found[4].message == found[None].message == "weights or loss became non-finite in epoch 3 of 6"


RECIPES = {
    "sgd": {"weight_decay": 1e-3},
    "sgd without momentum": {"momentum": 0.0},
    "adam": {"optimizer": "adam", "learning_rate": 0.005},
    "sgd, skipping": {"skip_nonfinite": True},
    "adam, skipping": {"optimizer": "adam", "learning_rate": 0.005, "skip_nonfinite": True},
}


@pytest.mark.parametrize("normalization", ["none", "batch-fused"])
@pytest.mark.parametrize("changes", RECIPES.values(), ids=list(RECIPES))
def test_a_training_that_dies_within_an_epoch_goes_on_to_the_same_weights(
    blobs: Dataset, spoiled: Dataset, augmented: Cell, changes: dict, normalization: str
):
    # Running statistics that have seen an infinite image stay infinite.
    data = spoiled if "skip_nonfinite" in changes and normalization == "none" else blobs
    cell = with_recipe(dataclasses.replace(augmented, normalization=normalization), **changes)
    undisturbed = list(train_group(cell, [0], data, checkpoints={0: [2, 6]}))
    shelf = Shelf()
    with dying(6 * 4 + 3):
        list(train_group(cell, [0], data, checkpoints={0: [2, 6]}, progress=shelf))
    assert shelf.states[0].epoch == 4
    assert ("exp_avg/output.weight" in shelf.states[0].memory) == (changes.get("optimizer") == "adam")
    (again,) = train_group(cell, [0], data, checkpoints={0: [6]}, progress=shelf)
    assert weights_digest(again.state) == weights_digest(undisturbed[1].state)
    assert (again.train, again.test) == (undisturbed[1].train, undisturbed[1].test)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_skipped_steps_are_counted_on_where_a_training_was_left(spoiled: Dataset, cell: Cell, optimizer: str):
    cell = with_recipe(cell, optimizer=optimizer, skip_nonfinite=True, learning_rate=0.005)
    (undisturbed,) = train_group(cell, [1], spoiled)
    shelf = Shelf()
    with dying(6 * 3 + 1):
        list(train_group(cell, [1], spoiled, progress=shelf))
    (again,) = train_group(cell, [1], spoiled, progress=shelf)
    assert shelf.states[1].n_skipped == 5  # Left once more after the fifth epoch.
    assert again.n_skipped_steps == undisturbed.n_skipped_steps == 6
    assert weights_digest(again.state) == weights_digest(undisturbed.state)


@pytest.mark.parametrize("changes", RECIPES.values(), ids=list(RECIPES))
def test_a_stack_goes_on_from_the_states_of_its_seeds(blobs: Dataset, augmented: Cell, changes: dict):
    cell, shelf = with_recipe(augmented, **changes), Shelf()
    seeds = [0, 1, 2]
    first = train_group(cell, seeds, blobs, "cpu", torch.float64, 3, progress=shelf)
    undisturbed = list(first)
    assert {state.epoch for state in shelf.states.values()} == {5}
    again = list(train_group(cell, seeds, blobs, "cpu", torch.float64, 3, progress=shelf))
    for ours, theirs in zip(again, undisturbed, strict=True):
        for name, tensor in theirs.state.items():
            assert torch.equal(ours.state[name], tensor)
    # A state of one seed is that of the seed trained alone, as far as a stack can be.
    (alone,) = train_group(cell, [1], blobs, dtype=torch.float64, progress=shelf)
    for name, tensor in undisturbed[1].state.items():
        assert torch.allclose(alone.state[name], tensor, rtol=0, atol=1e-8)


def test_a_state_beyond_a_missing_checkpoint_is_not_gone_on_from(blobs: Dataset, cell: Cell):
    shelf = Shelf()
    (state,) = train_states(cell, 0, [4], blobs)
    shelf.states[0] = state
    found = digests(train_group(cell, [0], blobs, checkpoints={0: [2, 6]}, progress=shelf))
    assert found == digests(train_group(cell, [0], blobs, checkpoints={0: [2, 6]}))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_child_has_its_parents_weights_and_memory_and_examples_of_its_own(
    blobs: Dataset, augmented: Cell, optimizer: str, monkeypatch
):
    cell = with_recipe(augmented, optimizer=optimizer)
    children = dataclasses.replace(cell, spawn=(1, 3))
    (parent,) = train_states(cell, 1, [3], blobs)
    found = digests(train_group(children, [0, 1, 2], blobs, parent=parent))
    (own,) = digests(train_group(cell, [1], blobs)).values()
    assert len({own, *found.values()}) == 4, "a child of the parent's own seed is another training too"

    # Under its parent's names, a child is its parent.
    monkeypatch.setattr(
        "tasks.science.training.seed_group.stream", lambda purpose, seed, *names: stream(purpose, seed, *names[:1])
    )
    assert digests(train_group(children, [1], blobs, parent=parent)) == {(1, None): own}


def test_children_of_epoch_0_share_their_initial_weights_alone(blobs: Dataset, cell: Cell):
    children = dataclasses.replace(cell, spawn=(5, 0))
    (parent,) = train_states(cell, 5, [0], blobs)
    assert weights_digest(parent.weights) == weights_digest(
        initial_state(build_training_network(cell), stream("initialization", 5))
    )
    assert not parent.memory
    assert len(set(digests(train_group(children, [0, 1], blobs, parent=parent)).values())) == 2


def test_a_parent_is_the_same_wherever_its_training_was_left(blobs: Dataset, cell: Cell):
    shelf = Shelf()
    states = list(train_states(cell, 0, [0, 1, 4], blobs, progress=shelf))
    assert [state.epoch for state in states] == [0, 1, 4]
    assert shelf.states[0].epoch == 3
    (again,) = train_states(cell, 0, [4], blobs, progress=shelf)
    for part in ("weights", "memory"):
        assert weights_digest(getattr(again, part)) == weights_digest(getattr(states[2], part))


def test_what_training_does_not_pass_is_refused(blobs: Dataset, cell: Cell):
    children = dataclasses.replace(cell, spawn=(0, 2))
    (state,) = train_states(cell, 0, [1], blobs)
    with pytest.raises(ValueError, match="starts from its parent at the epoch to spawn at, got a state after 1 epochs"):
        list(train_group(children, [0], blobs, parent=state))
    with pytest.raises(ValueError, match="starts from its parent at the epoch to spawn at, got no state"):
        list(train_group(children, [0], blobs))
    with pytest.raises(ValueError, match="starts from no parent, got a state after 1 epochs"):
        list(train_group(cell, [0], blobs, parent=state))
    with pytest.raises(ValueError, match="passes epochs 0 to 6, not epoch 7"):
        list(train_group(cell, [0], blobs, checkpoints={0: [7]}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epoch": 7}, "epoch must be a whole number from 0 to 6, the epochs of recipe quick, or last, got 7"),
        ({"epoch": -1}, "or last, got -1"),
        ({"epoch": 1.5}, "or last, got 1.5"),
        ({"epoch": True}, "or last, got True"),
        ({"epoch": "lost"}, "or last, got 'lost'"),
        ({"spawn": (0, 6)}, "the epoch to spawn at must be a whole number from 0 to 5, so that recipe quick goes on"),
        ({"spawn": (0, -1)}, "the epoch to spawn at must be a whole number from 0 to 5"),
        ({"spawn": (-1, 2)}, r"spawn must be a parent's seed and an epoch of its training, got \(-1, 2\)"),
        ({"spawn": (1,)}, r"spawn must be a parent's seed and an epoch of its training, got \(1,\)"),
        ({"spawn": (0, 3), "epoch": 3}, "spawned at epoch 3 have checkpoints after it alone, got epoch 3"),
    ],
)
def test_a_time_that_cannot_be_is_refused(cell: Cell, changes: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(cell, **changes)


def test_nothing_is_spawned_where_seeds_have_halves(cell: Cell):
    halved = dataclasses.replace(cell, data=dataclasses.replace(cell.data, halves=True))
    with pytest.raises(ValueError, match="blobs is in halves, and a child is trained on the images of its parent"):
        dataclasses.replace(halved, spawn=(0, 1))


def test_the_last_epoch_is_the_end_and_every_other_time_is_an_endpoint_of_its_own(cell: Cell):
    assert dataclasses.replace(cell, epoch=6) == cell
    assert dataclasses.replace(cell, epoch=6).id == cell.id
    at = [cell.at(epoch) for epoch in (0, 1, None)]
    spawned = [dataclasses.replace(cell, spawn=spawn) for spawn in ((0, 0), (0, 1), (1, 1))]
    assert len({Endpoint(one, 0).id for one in (*at, *spawned)}) == 6
    assert [one.at(None) for one in at] == [cell] * 3
    assert spawned[1].parent == Endpoint(at[1], 0)
