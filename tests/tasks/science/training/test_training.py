from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from tasks.science.data.examples import Dataset
from tasks.science.networks import build_network, draw_state, initial_state
from tasks.science.specs.cell import Cell
from tasks.science.specs.identity import stream, weights_digest
from tasks.science.training.schedules import learning_rate
from tasks.science.training.training import check_trainable, train_group


def with_recipe(cell: Cell, **changes) -> Cell:
    return dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, **changes))


def train_plainly(cell: Cell, seed: int, dataset: Dataset, n_steps: int) -> list[torch.Tensor]:
    """The textbook loop on one network in float64, sharing only the named streams with the code under test."""
    recipe = cell.recipe
    layers: list[nn.Module] = [nn.Flatten()]
    sizes = [36, *[cell.width] * cell.depth]
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(cell.width, 4)).double()
    with torch.no_grad():
        drawn = initial_state(build_network(cell), stream("initialization", seed)).values()
        for parameter, value in zip(network.parameters(), drawn, strict=True):
            parameter.copy_(value)
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(network.parameters(), lr=1.0, weight_decay=recipe.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            network.parameters(), lr=1.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    per_epoch = len(dataset.train) // recipe.batch_size
    for step in range(n_steps):
        epoch, batch = divmod(step, per_epoch)
        order = torch.from_numpy(stream("order", seed, epoch).permutation(len(dataset.train)))
        rows = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step, per_epoch)
        optimizer.zero_grad()
        logits = network(dataset.train.images[rows].double())
        loss = nn.functional.cross_entropy(logits, dataset.train.labels[rows], label_smoothing=recipe.label_smoothing)
        loss.backward()
        optimizer.step()
    return [parameter.detach() for parameter in network.parameters()]


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_decay": 1e-3},
        {"weight_decay": 1e-3, "optimizer": "adam", "learning_rate": 0.005},
        {"schedule": "cosine", "warmup_from": 1e-3, "label_smoothing": 0.1, "skip_nonfinite": True},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_a_seed_trains_as_the_textbook_loop_does(blobs: Dataset, cell: Cell, changes: dict):
    cell = with_recipe(cell, **changes)
    (trained,) = train_group(cell, [3], blobs, dtype=torch.float64)
    for ours, plain in zip(trained.state.values(), train_plainly(cell, 3, blobs, 36), strict=True):
        assert torch.allclose(ours, plain, rtol=0, atol=1e-12)


def test_a_seed_is_the_same_to_the_bit_alone_and_in_any_group(blobs: Dataset, cell: Cell):
    cell = with_recipe(cell, translate=1, flip=True, epochs=2)
    together = {t.seed: weights_digest(t.state) for t in train_group(cell, [0, 1, 2, 5], blobs)}
    apart = {t.seed: weights_digest(t.state) for group in ([5, 1], [0], [2]) for t in train_group(cell, group, blobs)}
    assert together == apart
    assert len(set(together.values())) == 4


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_stack_trains_to_the_weights_of_each_seed_alone(blobs: Dataset, cell: Cell, optimizer: str):
    cell = with_recipe(cell, epochs=4, translate=1, cutout=2, optimizer=optimizer)  # 24 steps
    stacked = list(train_group(cell, [0, 1, 2], blobs, dtype=torch.float64, group_size=3))
    single = list(train_group(cell, [0, 1, 2], blobs, dtype=torch.float64, group_size=1))
    for ours, alone in zip(stacked, single, strict=True):
        for name in ours.state:
            assert torch.allclose(ours.state[name], alone.state[name], rtol=0, atol=1e-8)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(cell: Cell):
    recipe = dataclasses.replace(cell.recipe, epochs=10, warmup=0.2, learning_rate=0.4)
    rates = [learning_rate(recipe, step, 5) for step in range(51)]
    assert rates[0] == rates[50] == 0
    assert max(rates) == rates[10] == 0.4
    assert rates[5] == pytest.approx(0.2)
    assert rates[30] == pytest.approx(0.2)
    assert learning_rate(dataclasses.replace(recipe, warmup=0.0), 0, 5) == 0.4


def test_a_step_that_one_seed_of_a_stack_skips_is_counted_and_changes_no_other_seed(blobs: Dataset, cell: Cell):
    """One train image is infinite: once an epoch, each seed at its own step, the gradients are no numbers."""
    images = blobs.train.images.clone()
    images[7] = math.inf
    spoiled = dataclasses.replace(blobs, train=dataclasses.replace(blobs.train, images=images))
    cell = with_recipe(cell, epochs=3, weight_decay=1e-3, skip_nonfinite=True)
    stacked = list(train_group(cell, [0, 1, 2], spoiled, dtype=torch.float64, group_size=3))
    alone = list(train_group(cell, [0, 1, 2], spoiled, dtype=torch.float64))
    orders = [[stream("order", seed, epoch).permutation(240).tolist() for seed in range(3)] for epoch in range(3)]
    assert any(len({order.index(7) // 40 for order in of_epoch}) > 1 for of_epoch in orders)
    for ours, single in zip(stacked, alone, strict=True):
        assert ours.n_skipped_steps == single.n_skipped_steps == 3
        for name in ours.state:
            assert torch.allclose(ours.state[name], single.state[name], rtol=0, atol=1e-8)
    (ruined,) = train_group(with_recipe(cell, skip_nonfinite=False), [0], spoiled)
    assert (ruined.status, ruined.n_skipped_steps) == ("diverged", 0)


def test_a_training_without_a_step_to_skip_is_the_same_to_the_bit_whether_it_would_skip(blobs: Dataset, cell: Cell):
    (plain,) = train_group(with_recipe(cell, epochs=2), [0], blobs)
    (skipping,) = train_group(with_recipe(cell, epochs=2, skip_nonfinite=True), [0], blobs)
    assert weights_digest(plain.state) == weights_digest(skipping.state)
    assert skipping.n_skipped_steps == 0


def test_a_recipe_that_cannot_be_trained_here_is_refused_with_the_way_out(blobs: Dataset, cell: Cell):
    half = with_recipe(cell, precision="float16", skip_nonfinite=True)
    with pytest.raises(ValueError, match="recipe quick trains in float16, which needs a GPU: on a CPU ask for "
                       "precision=bfloat16 or precision=float32"):  # fmt: skip
        list(train_group(half, [0], blobs))
    check_trainable(half.recipe, "cuda")
    with pytest.raises(
        ValueError, match="mlp cannot read images of 4 x 4 pixels, which recipe quick and blobs show it"
    ):
        list(train_group(with_recipe(cell, resized_crop=4), [0], blobs))


@pytest.mark.gpu
def test_float16_on_a_gpu_learns_what_float32_learns(blobs: Dataset, cell: Cell):
    half = with_recipe(cell, precision="float16", skip_nonfinite=True)
    for trained in train_group(half, [0, 1], blobs, device="cuda"):
        assert trained.status == "trained"
        assert trained.test.accuracy > 0.9
        assert trained.n_skipped_steps < 18


@pytest.mark.parametrize("group_size", [None, 4])
def test_an_endpoint_of_a_half_is_trained_on_that_half_alone(blobs: Dataset, cell: Cell, group_size: int | None):
    """As it would be on a data set that is that half, beside whatever seeds of the other."""
    spec = dataclasses.replace(blobs.spec, halves=True)
    halved = dataclasses.replace(blobs, spec=spec)
    cell_of_halves = dataclasses.replace(cell, data=spec)
    trained = {one.seed: one for one in train_group(cell_of_halves, [0, 1, 2, 3], halved, group_size=group_size)}
    assert list(trained) == [0, 2, 1, 3]
    for seed, side in ((0, "first"), (3, "second")):
        own = dataclasses.replace(blobs, train=halved.trained_on(side).train)
        (alone,) = train_group(cell, [seed], own)
        assert trained[seed].train.n_examples == len(own.train) < len(blobs.train)
        assert trained[seed].test.n_examples == len(blobs.test)
        for name, tensor in alone.state.items():
            if group_size is None:
                assert torch.equal(trained[seed].state[name], tensor)
            else:
                assert torch.allclose(trained[seed].state[name], tensor, atol=1e-4)


def test_training_learns(blobs: Dataset, cell: Cell):
    (trained,) = train_group(cell, [0], blobs)
    assert trained.status == "trained"
    assert trained.message == ""
    assert trained.test.accuracy > 0.9
    assert (trained.train.n_examples, trained.test.n_examples) == (240, 80)


def test_a_training_that_diverges_is_an_outcome_with_its_epoch(blobs: Dataset, cell: Cell):
    wild = with_recipe(cell, learning_rate=1e30)
    diverged, again = train_group(wild, [0, 1], blobs), train_group(wild, [0, 1], blobs, group_size=2)
    for trained in [*diverged, *again]:
        assert trained.status == "diverged"
        assert "non-finite in epoch 1 of 6" in trained.message
        assert math.isnan(trained.train.loss)


def test_one_seed_that_diverges_leaves_the_others_of_its_stack_alone(blobs: Dataset, cell: Cell, monkeypatch):
    def spoil_one(cell, rng):
        state = draw_state(cell, rng)
        if torch.equal(state["output.weight"], spoiled["output.weight"]):
            state["output.bias"][0] = float("nan")
        return state

    spoiled = draw_state(cell, stream("initialization", 1))
    monkeypatch.setattr("tasks.science.training.seed_group.draw_state", spoil_one)
    trained = list(train_group(cell, [0, 1, 2], blobs, group_size=3))
    assert [t.status for t in trained] == ["trained", "diverged", "trained"]


def test_a_network_that_learned_nothing_is_untrained(blobs: Dataset, cell: Cell):
    labels = torch.from_numpy(stream("test", "labels").integers(0, 4, 240))
    noise = dataclasses.replace(blobs, train=dataclasses.replace(blobs.train, labels=labels))
    (trained,) = train_group(with_recipe(cell, learning_rate=1e-9, epochs=1), [0], noise)
    assert trained.status == "untrained"
    assert "guessing among 4 classes" in trained.message


def test_he_normal_weights_have_the_variance_of_their_fan_in_and_biases_are_zero(cell: Cell):
    network = build_network(dataclasses.replace(cell, width=400))
    state = initial_state(network, stream("initialization", 0))
    for name, tensor in state.items():
        if name.endswith("bias"):
            assert not tensor.any()
        else:
            assert tensor.var().item() == pytest.approx(2 / tensor.shape[1], rel=0.1)


def test_building_and_training_draw_nothing_from_the_global_generator(blobs: Dataset, cell: Cell):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    list(train_group(with_recipe(cell, epochs=1), [0], blobs))
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_architecture_or_normalization_that_is_not_there_is_named(cell: Cell):
    with pytest.raises(ValueError, match="there is no architecture 'transformer'; known: mlp"):
        build_network(dataclasses.replace(cell, architecture="transformer"))
    with pytest.raises(ValueError, match="mlp has no normalization 'group'; known: none"):
        build_network(dataclasses.replace(cell, normalization="group"))
