"""The learning rate at each step, and updates of stacks that are those of each seed alone."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import nn

from tasks.science.networks import build_network, initial_state
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State
from tasks.science.training.optimization import Updates, clip_gradients, decayed_parameters, finite_seeds
from tasks.science.training.schedules import learning_rate

COSINE = Recipe("cosine", 500, 10, 0.4, 0.2, schedule="cosine", warmup_from=1e-6)
N_STEPS = 6


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_rises_to_its_peak_and_falls_to_zero_and_never_turns_between(schedule: str):
    recipe = dataclasses.replace(COSINE, schedule=schedule)
    rates = [learning_rate(recipe, step, 5) for step in range(51)]
    assert rates[0] == 1e-6
    assert rates[10] == max(rates) == 0.4
    assert rates[50] == 0
    assert all(before < after for before, after in pairwise(rates[:11]))
    assert all(before > after for before, after in pairwise(rates[10:]))


def test_a_warm_up_is_a_straight_line_from_where_it_begins():
    rates = [learning_rate(COSINE, step, 5) for step in range(11)]
    rises = [after - before for before, after in pairwise(rates)]
    assert rises == pytest.approx([(0.4 - 1e-6) / 10] * 10)


def test_a_cosine_is_half_way_down_in_the_middle_and_flat_at_both_ends():
    rates = [learning_rate(COSINE, step, 5) for step in range(51)]
    assert rates[30] == pytest.approx(0.2)
    assert [rates[30 - i] + rates[30 + i] for i in range(21)] == pytest.approx([0.4] * 21)
    line = 0.4 / 40
    assert rates[10] - rates[11] < 0.1 * line
    assert rates[49] - rates[50] < 0.1 * line
    assert rates[29] - rates[30] > 1.5 * line


@pytest.fixture
def cell() -> Cell:
    data = DataSpec("toy", "0" * 64, 48, 48, 10, (1, 6, 6))
    return Cell(data, "mlp", "none", 8, 2, Recipe("toy", 16, 2, 0.02, 0.2))


def train_stack(
    cell: Cell,
    recipe: Recipe,
    seeds: list[int],
    gradients: dict[int, list[State]],
    left_at: int | None = None,
    *,
    stacked: bool = True,
    fused: bool | None = None,
) -> tuple[State, Updates]:
    """The weights of `seeds`, stacked, after one step per gradient, each with a learning rate of its own; before step
    `left_at` what is known of each seed is all that others go on from."""
    network = build_network(cell)
    states = [initial_state(network, stream("initialization", seed)) for seed in seeds]
    parts = [{name: torch.stack([state[name] for state in states]).double() for name in states[0]}]
    if not stacked:
        parts = [{name: state[name].double() for name in state} for state in states]

    def begin(parts: list[State]) -> tuple[list[State], Updates]:
        parts = [{name: tensor.detach().clone().requires_grad_() for name, tensor in part.items()} for part in parts]
        return parts, Updates(recipe, network, parts, stacked=stacked, fused=fused)

    def weight(name: str, index: int) -> torch.Tensor:
        return parts[0][name][index] if stacked else parts[index][name]

    parts, updates = begin(parts)
    for step in range(N_STEPS):
        if step == left_at:
            memories, n_skipped = [updates.memory(index) for index in range(len(seeds))], updates.n_skipped
            parts, updates = begin(parts)
            updates.recall(memories, n_skipped)
        # A loss that is linear in the weights has the gradient that is asked for.
        losses = [
            sum((weight(name, i) * gradients[seed][step][name]).sum() for name in parts[0])
            for i, seed in enumerate(seeds)
        ]
        updates.backward(torch.stack(losses))  # type: ignore[arg-type]
        updates.step(0.01 * (step + 1))
    return {name: torch.stack([weight(name, i) for i in range(len(seeds))]) for name in parts[0]}, updates


def draw_gradients(cell: Cell, seeds: list[int], spoiled: dict[int, list[int]]) -> dict[int, list[State]]:
    """Gradients for each seed and step; those of the `spoiled` steps have one value that is not finite."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: parameter.shape for name, parameter in build_network(cell).named_parameters()}
    drawn: dict[int, list[State]] = {}
    for seed in seeds:
        drawn[seed] = [
            {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
            for _ in range(N_STEPS)
        ]
        for step in spoiled.get(seed, []):
            drawn[seed][step]["output.bias"][0] = float("inf") if step % 2 else float("nan")
    return drawn


SPOILED = {1: [0, 3], 2: [1, 2, 5]}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("clip_norm", [0.0, 3.0])
@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "apart"])
def test_updates_of_a_group_are_those_of_each_seed_alone(
    cell: Cell, optimizer: str, skip: bool, clip_norm: float, stacked: bool
):
    recipe = dataclasses.replace(
        cell.recipe, optimizer=optimizer, weight_decay=1e-2, skip_nonfinite=skip, clip_norm=clip_norm
    )
    gradients = draw_gradients(cell, [0, 1, 2], SPOILED if skip else {})
    together, updates = train_stack(cell, recipe, [0, 1, 2], gradients, stacked=stacked)
    assert updates.n_skipped == ([0, 2, 3] if skip else [0, 0, 0])
    for index in range(3):
        alone, own = train_stack(cell, recipe, [index], gradients, stacked=False)
        assert own.n_skipped == [updates.n_skipped[index]]
        for name, tensor in together.items():
            assert torch.equal(tensor[index], alone[name][0]), name


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "apart"])
def test_fused_updates_skip_and_remember_as_others_do(cell: Cell, optimizer: str, skip: bool, stacked: bool):
    """Told of a gradient that is not finite by a tensor, at the first step as well; equal but for rounding."""
    recipe = dataclasses.replace(
        cell.recipe, optimizer=optimizer, weight_decay=1e-2, skip_nonfinite=skip, clip_norm=3.0
    )
    gradients = draw_gradients(cell, [0, 1, 2], SPOILED if skip else {})
    plain, of_plain = train_stack(cell, recipe, [0, 1, 2], gradients, stacked=stacked)
    for left_at in (None, 1):
        fused, updates = train_stack(cell, recipe, [0, 1, 2], gradients, left_at, stacked=stacked, fused=True)
        assert updates.n_skipped == of_plain.n_skipped
        for name, tensor in plain.items():
            torch.testing.assert_close(fused[name], tensor, rtol=1e-12, atol=1e-12)
        for index in range(3):
            ours, theirs = updates.memory(index), of_plain.memory(index)
            assert ours.keys() == theirs.keys()
            for name in ours:
                torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("left_at", [0, 1, 4])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("skip", "precision"), [(False, "float32"), (True, "float32"), (True, "float16")])
def test_updates_go_on_from_what_they_remember_of_each_seed(
    cell: Cell, optimizer: str, skip: bool, precision: str, left_at: int
):
    """In float16 that is the scale of each seed's loss too, which a skipped step halves."""
    recipe = dataclasses.replace(cell.recipe, optimizer=optimizer, skip_nonfinite=skip, precision=precision)
    gradients = draw_gradients(cell, [0, 1, 2], SPOILED if skip else {})
    undisturbed, before = train_stack(cell, recipe, [0, 1, 2], gradients)
    again, updates = train_stack(cell, recipe, [0, 1, 2], gradients, left_at)
    assert updates.n_skipped == before.n_skipped
    for name, tensor in undisturbed.items():
        assert torch.equal(again[name], tensor), name
    for index in range(3):
        ours, theirs = updates.memory(index), before.memory(index)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        if precision == "float16":
            assert ours["scale/"] == 2.0 ** (16 - updates.n_skipped[index])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_skipped_step_is_one_that_was_never_made(cell: Cell, optimizer: str):
    """Neither decay, momentum nor Adam's count of steps move: torch's own optimizer, not called, gives the same."""
    recipe = dataclasses.replace(cell.recipe, optimizer=optimizer, weight_decay=1e-2, skip_nonfinite=True)
    gradients = draw_gradients(cell, [2], SPOILED)
    ours, _ = train_stack(cell, recipe, [2], gradients)
    state = initial_state(build_network(cell), stream("initialization", 2))
    plain = {name: nn.Parameter(tensor.double()) for name, tensor in state.items()}
    if optimizer == "sgd":
        reference: torch.optim.Optimizer = torch.optim.SGD(plain.values(), lr=1, momentum=0.9, weight_decay=1e-2)
    else:
        reference = torch.optim.Adam(plain.values(), lr=1, weight_decay=1e-2)
    for step, gradient in enumerate(gradients[2]):
        if step in SPOILED[2]:
            continue
        reference.param_groups[0]["lr"] = 0.01 * (step + 1)
        for name, parameter in plain.items():
            parameter.grad = gradient[name].clone()
        reference.step()
    for name, parameter in plain.items():
        assert torch.allclose(ours[name][0], parameter, rtol=0, atol=1e-14), name


def test_without_skipping_a_gradient_that_is_not_finite_ruins_its_seed_alone(cell: Cell):
    gradients = draw_gradients(cell, [0, 1], {1: [3]})
    weights, updates = train_stack(cell, cell.recipe, [0, 1], gradients)
    assert updates.n_skipped == [0, 0]
    assert weights["output.bias"][0].isfinite().all()
    assert not weights["output.bias"][1].isfinite().all()


def test_a_scaled_loss_gives_the_same_updates_and_scales_back_the_seed_that_skips(cell: Cell):
    """Scales are powers of two, so they change no bit; a seed that never skips is scaled as if it were alone."""
    recipe = dataclasses.replace(cell.recipe, skip_nonfinite=True)
    half = dataclasses.replace(recipe, precision="float16")
    gradients = draw_gradients(cell, [0, 1, 2], SPOILED)
    plain, _ = train_stack(cell, recipe, [0, 1, 2], gradients)
    scaled, updates = train_stack(cell, half, [0, 1, 2], gradients)
    assert updates.n_skipped == [0, 2, 3]
    assert [scaler.get_scale() for scaler in updates._scalers] == [2.0**16, 2.0**14, 2.0**13]
    for name, tensor in plain.items():
        assert torch.equal(tensor, scaled[name]), name


KINDS = [("mlp", "batch", 8, 2, 8), ("resnet20", "layer", 1, 20, 8), ("resnet18", "batch", 1, 18, 96)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind[:2]))
def test_weight_decay_reaches_the_norms_that_the_recipe_says(kind: tuple[str, str, int, int, int]):
    architecture, normalization, width, depth, side = kind
    data = DataSpec("toy", "0" * 64, 48, 48, 10, (3, side, side))
    network = build_network(Cell(data, architecture, normalization, width, depth, COSINE))
    names = [name for name, _ in network.named_parameters()]

    def spared(decayed_norms: str) -> set[str]:
        decayed = decayed_parameters(network, dataclasses.replace(COSINE, decayed_norms=decayed_norms))
        assert list(decayed) == names
        return {name for name, reached in decayed.items() if not reached}

    norms = {
        name for name in names if any(word.startswith(("norm", "bn")) or word == "1" for word in name.split(".")[-2:-1])
    }
    assert spared("all") == set()
    assert spared("none") == norms
    assert spared("shortcuts") == {name for name in norms if "shortcut" not in name and "downsample" not in name}
    if architecture == "resnet18":
        # What the authors' ImageNet code spares: the parameters whose name has `bn` in it.
        assert spared("shortcuts") == {name for name in names if "bn" in name}


def test_a_spared_parameter_does_not_decay(cell: Cell):
    normalized = dataclasses.replace(cell, normalization="batch")
    network = build_network(normalized)
    state = initial_state(network, stream("initialization", 0))
    weights = {name: state[name][None].clone().requires_grad_() for name, _ in network.named_parameters()}
    before = {name: tensor.detach().clone() for name, tensor in weights.items()}
    recipe = dataclasses.replace(cell.recipe, weight_decay=0.5, decayed_norms="none")
    updates = Updates(recipe, network, [weights], stacked=True)
    updates.backward(sum(0 * tensor.sum() for tensor in weights.values()).reshape(1))  # type: ignore[union-attr]
    updates.step(0.1)
    for name, tensor in weights.items():
        left = 1.0 if ".norm." in name else 0.95
        assert torch.allclose(tensor, left * before[name]), name


def test_a_long_gradient_is_shortened_and_a_short_one_left_as_it_is(cell: Cell):
    """Each seed by its own length; against torch's clipping of one seed."""
    long, short = (draw_gradients(cell, [0], {})[0][0] for _ in range(2))
    short = {name: gradient * 1e-3 for name, gradient in short.items()}
    stacked = [torch.stack([long[name], short[name]]) for name in long]
    clip_gradients(stacked, 2.0)
    reference = [torch.nn.Parameter(gradient) for gradient in long.values()]
    for parameter, gradient in zip(reference, long.values(), strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(reference, 2.0)
    for gradient, parameter, name in zip(stacked, reference, long, strict=True):
        torch.testing.assert_close(gradient[0], parameter.grad, rtol=1e-5, atol=0)
        assert torch.equal(gradient[1], short[name])
    length = torch.stack([gradient[0].square().sum() for gradient in stacked]).sum().sqrt()
    assert float(length) == pytest.approx(2)


def test_clipping_hides_no_gradient_that_is_not_finite(cell: Cell):
    recipe = dataclasses.replace(cell.recipe, clip_norm=1.0)
    weights, _ = train_stack(cell, recipe, [0, 1], draw_gradients(cell, [0, 1], SPOILED))
    assert finite_seeds(weights.values()) == [True, False]


def test_a_clipped_float16_step_is_clipped_by_its_true_length(cell: Cell):
    """The scale of a loss is taken out before a gradient is measured."""
    recipe = dataclasses.replace(cell.recipe, skip_nonfinite=True, clip_norm=3.0)
    gradients = draw_gradients(cell, [0], {})
    plain, _ = train_stack(cell, recipe, [0], gradients)
    scaled, _ = train_stack(cell, dataclasses.replace(recipe, precision="float16"), [0], gradients)
    for name in plain:
        torch.testing.assert_close(scaled[name], plain[name])
