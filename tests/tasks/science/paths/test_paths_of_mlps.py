"""Paths of plain MLPs, whose alphas share first layers, against one alpha at a time by the plain functions."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tasks.science.correction import first_layer
from tasks.science.correction.correction import goal_moments, preactivation_moments, repair
from tasks.science.correction.mlp import Ramp
from tasks.science.data.examples import Dataset, Examples
from tasks.science.evaluation.metrics import Evaluation
from tasks.science.networks import build_network
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.paths.curves import CorrectedPath, Side, evaluate_splits, measure_path, measure_side
from tasks.science.paths.interpolation import interpolate
from tasks.science.specs.cell import Cell
from tasks.science.specs.measurement import Viewing
from tasks.science.specs.state import State
from tasks.science.training.training import train_group

ALPHAS = [0.0, 0.1, 0.5, 0.7, 1.0]


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of the 240 train images, the last one shorter."""
    monkeypatch.setattr(first_layer, "CHUNK_IMAGES", 100)


@pytest.fixture(scope="module")
def states(blobs: Dataset, cell: Cell) -> list[State]:
    return [trained.state for trained in train_group(cell, [0, 1], blobs)]


def in_type(states: list[State], dataset: Dataset, dtype: torch.dtype) -> tuple[list[State], Dataset]:
    def cast(examples: Examples) -> Examples:
        return dataclasses.replace(examples, images=examples.images.to(dtype))

    changed = dataclasses.replace(dataset, train=cast(dataset.train), test=cast(dataset.test))
    return [{name: tensor.to(dtype) for name, tensor in state.items()} for state in states], changed


def sides_of(cell: Cell, states: list[State], dataset: Dataset) -> tuple[Side, Side]:
    """A, and B with its units reordered."""
    spec = cell_permutation_spec(cell)
    a, b = (measure_side(build_network(cell), state, dataset.train.images) for state in states)
    return a, b.permuted(spec, spec.random(torch.Generator().manual_seed(0)))


def close(ours: Evaluation, plain: Evaluation, rtol: float) -> bool:
    numbers = ("loss", "calibrated_loss", "temperature")
    pairs = [(getattr(ours, name), getattr(plain, name)) for name in numbers if getattr(plain, name) is not None]
    return ours.accuracy == plain.accuracy and all(x == pytest.approx(y, rel=rtol) for x, y in pairs)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("correction", ["none", "repair", "rescale", "reshift", "repair-closed-form"])
def test_a_path_is_that_of_one_alpha_at_a_time(blobs, cell, states, correction: str, dtype, rtol: float):
    states, dataset = in_type(states, blobs, dtype)
    network, (a, b) = build_network(cell), sides_of(cell, states, dataset)
    path = CorrectedPath((a, b), correction, dataset.train.images)
    points = measure_path((a, b), correction, ALPHAS, dataset, dataset.train.images)
    assert [point.alpha for point in points] == ALPHAS
    for alpha, point in zip(ALPHAS, points, strict=True):
        state = interpolate(a.state, b.state, alpha)
        if correction in ("repair", "rescale", "reshift"):
            part = {"repair": "both", "rescale": "deviation", "reshift": "mean"}[correction]
            state = repair(network, state, goal_moments(a.moments, b.moments, alpha), dataset.train.images, part).state
        elif correction == "repair-closed-form":
            state = path.at(alpha).state
        plain = evaluate_splits(network, state, dataset)
        assert all(close(point.splits[split], plain[split], rtol) for split in plain)


@pytest.mark.parametrize("correction", ["repair", "rescale", "reshift"])
def test_moments_that_follow_are_those_that_are_measured_on_the_corrected_weights(blobs, cell, states, correction: str):
    states, dataset = in_type(states, blobs, torch.float64)
    states[0]["hidden.1.linear.weight"][2] = 0  # A unit without spread.
    network, sides = build_network(cell), sides_of(cell, states, dataset)
    for alpha in ALPHAS:
        corrected = CorrectedPath(sides, correction, dataset.train.images).at(alpha)
        measured = preactivation_moments(network, corrected.state, dataset.train.images)
        for name, moments in corrected.achieved.items():
            assert torch.allclose(moments.mean, measured[name].mean, rtol=1e-9, atol=1e-9)
            assert torch.allclose(moments.sd, measured[name].sd, rtol=1e-9, atol=1e-9)


def test_a_point_is_the_same_to_the_bit_alone_and_beside_others(blobs, cell, states):
    images = blobs.train.images
    together = sides_of(cell, states, blobs)
    for correction in ("none", "repair"):
        measure_path(together, correction, [0.3], blobs, images)
        points = measure_path(together, correction, ALPHAS, blobs, images)
        for point in points:
            alone = sides_of(cell, states, blobs)
            assert measure_path(alone, correction, [point.alpha], blobs, images) == [point]


def test_where_first_layers_are_too_large_to_be_kept_numbers_move_by_rounding_alone(blobs, cell, states, monkeypatch):
    images = blobs.train.images
    kept = measure_path(sides_of(cell, states, blobs), "repair", ALPHAS, blobs, images)
    monkeypatch.setattr(first_layer, "KEPT_LAYER_BYTES", 0)
    sides = sides_of(cell, states, blobs)
    made = measure_path(sides, "repair", ALPHAS, blobs, images)
    assert all(not side.model.first._kept for side in sides)
    for one, other in zip(kept, made, strict=True):
        assert all(close(one.splits[split], other.splits[split], 1e-5) for split in one.splits)


@pytest.mark.parametrize("viewing", [Viewing(flip_averaged=True), Viewing(evaluated_in="bfloat16")])
def test_what_is_not_viewed_plainly_is_evaluated_as_of_any_network(blobs, cell, states, viewing: Viewing):
    network, (a, b) = build_network(cell), sides_of(cell, states, blobs)
    (point,) = measure_path((a, b), "none", [0.3], blobs, blobs.train.images, viewing=viewing)
    plain = evaluate_splits(network, interpolate(a.state, b.state, 0.3), blobs, viewing=viewing)
    assert point.splits == plain


def test_a_network_that_is_no_number_has_no_right_answer(blobs, cell, states):
    broken = {name: tensor.clone() for name, tensor in states[0].items()}
    broken["hidden.0.linear.weight"][0, 0] = torch.nan
    sides = sides_of(cell, [broken, states[1]], blobs)
    for correction in ("none", "repair"):
        (point,) = measure_path(sides, correction, [0.3], blobs, blobs.train.images)
        assert point.splits["test"].accuracy == 0
        assert point.splits["test"].calibrated_loss is None


def test_a_ramp_and_what_reads_it_compute_a_scaled_and_shifted_relu():
    rng = torch.Generator().manual_seed(0)
    values, weight = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((4, 9), (3, 4)))
    scale, shift, bias = (torch.rand(n, generator=rng, dtype=torch.float64) for n in (4, 4, 3))
    ramp = Ramp(scale, -shift / scale)
    wanted = weight @ (scale[:, None] * values + shift[:, None]).relu() + bias[:, None]
    reading, offset = ramp.read(weight, bias)
    assert torch.allclose(reading @ ramp.bend(values) + offset[:, None], wanted, rtol=1e-12, atol=1e-12)
