from __future__ import annotations

import pytest
import torch

from tasks.science.correction.correction import goal_moments, preactivation_moments, repair
from tasks.science.correction.preactivations import reorder_layers, report_layers, unit_orders
from tasks.science.data.examples import Dataset
from tasks.science.networks import build_network
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.paths.curves import evaluate_splits, measure_path, measure_side
from tasks.science.paths.interpolation import interpolate
from tasks.science.specs.cell import Cell
from tasks.science.training.training import train_group

ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.fixture(scope="module")
def states(blobs: Dataset, cell: Cell):
    return [trained.state for trained in train_group(cell, [0, 1], blobs)]


@pytest.fixture(scope="module")
def network(cell: Cell):
    return build_network(cell)


@pytest.fixture(scope="module")
def sides(network, states, blobs: Dataset):
    return tuple(measure_side(network, state, blobs.train.images) for state in states)


def moments_plainly(state, images: torch.Tensor, depth: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and deviation of every hidden pre-activation, in float64, from a forward pass written out."""
    values, seen = images.double().flatten(1), []
    for i in range(depth):
        weight, bias = state[f"hidden.{i}.linear.weight"].double(), state[f"hidden.{i}.linear.bias"].double()
        values = values @ weight.T + bias
        seen.append((values.mean(0), values.var(0, correction=0).sqrt()))
        values = values.clamp_min(0)
    return seen


def repair_plainly(a, b, alpha: float, images: torch.Tensor, depth: int) -> dict[str, torch.Tensor]:
    """REPAIR in float64, one layer at a time: run the corrected network up to a layer, measure, rescale, go on."""
    state = {name: ((1 - alpha) * a[name].double() + alpha * b[name].double()) for name in a}
    goals = zip(moments_plainly(a, images, depth), moments_plainly(b, images, depth), strict=True)
    for i, ((mean_a, sd_a), (mean_b, sd_b)) in enumerate(goals):
        mean, sd = moments_plainly(state, images, depth)[i]
        scale = ((1 - alpha) * sd_a + alpha * sd_b) / sd
        weight, bias = f"hidden.{i}.linear.weight", f"hidden.{i}.linear.bias"
        state[weight] = scale[:, None] * state[weight]
        state[bias] = scale * (state[bias] - mean) + (1 - alpha) * mean_a + alpha * mean_b
    return state


def test_the_repaired_network_has_the_goal_mean_and_deviation_in_every_layer(network, sides, blobs: Dataset):
    a, b = sides
    for alpha in ALPHAS:
        goal = goal_moments(a.moments, b.moments, alpha)
        repaired = repair(network, interpolate(a.state, b.state, alpha), goal, blobs.train.images)
        # Measured on the folded weights by a plain forward pass, not by the code that corrected them.
        for (mean, sd), layer in zip(
            moments_plainly(repaired.state, blobs.train.images, 3), goal.values(), strict=True
        ):
            scale = layer.sd.double().square().mean().sqrt()
            assert ((mean - layer.mean).abs() / scale).max() < 1e-5
            assert ((sd - layer.sd).abs() / scale).max() < 1e-5
        for report in report_layers(repaired.moments, goal, a.moments, b.moments):
            assert report.mean_error < 1e-5
            assert report.sd_error < 1e-5
            assert report.variance_ratio == pytest.approx(report.variance_ratio_target, rel=1e-4)


def test_repair_is_that_of_a_plain_float64_reference(network, sides, states, blobs: Dataset):
    a, b = sides
    for alpha in (0.3, 0.5):
        goal = goal_moments(a.moments, b.moments, alpha)
        ours = repair(network, interpolate(a.state, b.state, alpha), goal, blobs.train.images).state
        plain = repair_plainly(*states, alpha, blobs.train.images, 3)
        for name in ours:
            assert torch.allclose(ours[name].double(), plain[name], rtol=1e-4, atol=1e-5), name


def test_repair_of_a_network_with_itself_changes_nothing(network, sides, blobs: Dataset):
    a, _ = sides
    goal = goal_moments(a.moments, a.moments, 0.5)
    state = repair(network, interpolate(a.state, a.state, 0.5), goal, blobs.train.images).state
    for name in state:
        assert torch.allclose(state[name], a.state[name], rtol=1e-5, atol=1e-6)


def test_repair_leaves_its_argument_and_the_classifier_alone(network, sides, blobs: Dataset):
    a, b = sides
    mixed = interpolate(a.state, b.state, 0.5)
    before = {name: tensor.clone() for name, tensor in mixed.items()}
    state = repair(network, mixed, goal_moments(a.moments, b.moments, 0.5), blobs.train.images).state
    assert all(torch.equal(mixed[name], before[name]) for name in mixed)
    assert state.keys() == mixed.keys()
    assert torch.equal(state["output.weight"], mixed["output.weight"])
    assert torch.equal(state["output.bias"], mixed["output.bias"])


def test_a_unit_without_spread_is_shifted_but_not_rescaled(network, sides, blobs: Dataset):
    a, b = sides
    flat = dict(a.state)
    flat["hidden.1.linear.weight"] = flat["hidden.1.linear.weight"].clone()
    flat["hidden.1.linear.weight"][2] = 0
    still = measure_side(network, flat, blobs.train.images)
    goal = goal_moments(still.moments, b.moments, 0.5)
    repaired = repair(network, flat, goal, blobs.train.images)
    state, achieved = repaired.state, repaired.moments
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert not state["hidden.1.linear.weight"][2].any()
    assert achieved["hidden.1.linear"].mean[2] == pytest.approx(goal["hidden.1.linear"].mean[2].item(), rel=1e-5)
    assert report_layers(achieved, goal, still.moments, b.moments)[1].n_dead == 1


def test_a_permuted_endpoint_has_its_moments_in_permuted_order(network, cell: Cell, sides, blobs: Dataset):
    _, b = sides
    spec = cell_permutation_spec(cell)
    permutation = spec.random(torch.Generator().manual_seed(0))
    measured = preactivation_moments(network, spec.apply(b.state, permutation), blobs.train.images)
    reordered = reorder_layers(b.moments, unit_orders(spec, permutation, b.sites.layers, b.state))
    for name in measured:
        assert torch.allclose(measured[name].mean, reordered[name].mean, rtol=1e-4, atol=1e-5)
        assert torch.allclose(measured[name].sd, reordered[name].sd, rtol=1e-4, atol=1e-5)


def test_paths_end_in_the_endpoints_and_are_measured_where_they_should_be(network, sides, blobs: Dataset):
    a, b = sides
    ends = tuple(evaluate_splits(network, side.state, blobs) for side in sides)
    raw = measure_path((a, b), "none", ALPHAS, blobs, blobs.train.images, ends)
    fixed = measure_path((a, b), "repair", ALPHAS, blobs, blobs.train.images)
    assert [point.alpha for point in raw] == [point.alpha for point in fixed] == ALPHAS
    assert (raw[0].splits, raw[-1].splits) == ends
    assert [bool(point.layers) for point in raw] == [False, False, True, False, False]
    assert all(len(point.layers) == 3 for point in fixed)
    for end, point in ((0, fixed[0]), (1, fixed[-1])):
        assert point.splits["test"].loss == pytest.approx(ends[end]["test"].loss, rel=1e-3)


def test_the_variance_ratio_is_of_means_over_units(network, sides, blobs: Dataset):
    a, b = sides
    state = interpolate(a.state, b.state, 0.5)
    achieved = preactivation_moments(network, state, blobs.train.images)
    reports = report_layers(achieved, goal_moments(a.moments, b.moments, 0.5), a.moments, b.moments)
    plain = [moments_plainly(s, blobs.train.images, 3) for s in (state, a.state, b.state)]
    for i, report in enumerate(reports):
        mixed, one, other = (float(moments[i][1].square().mean()) for moments in plain)
        assert report.variance_ratio == pytest.approx(mixed / ((one + other) / 2), rel=1e-4)
        assert report.position == i
        assert report.layer == f"hidden.{i}.linear"
