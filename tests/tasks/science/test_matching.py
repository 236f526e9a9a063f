from __future__ import annotations

import dataclasses
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from tasks.science.examples import Dataset
from tasks.science.matching import FUNCTION_TOLERANCE, assign, function_error, match_activations
from tasks.science.moments import axis_correlations, read_activations
from tasks.science.networks import build_network
from tasks.science.permutation import Permutation
from tasks.science.specs import Cell
from tasks.science.training import train_group


@pytest.fixture(scope="module")
def states(blobs: Dataset, cell: Cell):
    return [trained.state for trained in train_group(cell, [0, 1, 2], blobs)]


@pytest.fixture(scope="module")
def network(cell: Cell):
    return build_network(cell)


def correlate_plainly(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlations of columns in float64; 0 where a column is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    norms = np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0))
    return np.divide(a.T @ b, norms, out=np.zeros_like(norms), where=norms > 0)


def test_correlations_are_those_of_a_float64_reference(network, states, blobs: Dataset):
    axes = network.permutation_spec().axes
    images = blobs.train.images.repeat(9, 1, 1, 1)  # more than one batch, and a last one that is not full
    plain = [
        read_activations(network, {k: v.double() for k, v in state.items()}, images.double(), axes) for state in states
    ]
    for measured in axis_correlations(network, states, [(0, 1), (1, 2)], axes, images):
        for (a, b), ours in measured.correlations.items():
            name = measured.axis.name
            reference = correlate_plainly(plain[a][name].numpy(), plain[b][name].numpy())
            assert np.abs(ours - reference).max() < 1e-5


def test_large_means_cost_no_accuracy():
    """Without the shift, float32 sums of squares around a mean of 1000 would leave nothing of a deviation of 1."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))
            self.read = nn.Identity()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.read(images.flatten(1) * self.scale + 1000)

    from tasks.science.permutation import Axis

    images = torch.randn(3000, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    axis = Axis("x", 8, (), "read")
    one, other = {"scale": torch.ones(8)}, {"scale": torch.arange(1.0, 9.0)}
    (measured,) = axis_correlations(Shifted(), [one, other], [(0, 1)], [axis], images)
    flat = images.flatten(1).double().numpy()
    assert np.abs(measured.correlations[0, 1] - correlate_plainly(flat, flat)).max() < 1e-4


def test_how_axes_and_pairs_are_grouped_changes_no_bit(network, states, blobs: Dataset):
    axes = network.permutation_spec().axes
    pairs = [(0, 1), (0, 2), (1, 2)]
    together = list(axis_correlations(network, states, pairs, axes, blobs.train.images))
    one_axis = list(axis_correlations(network, states, pairs, axes, blobs.train.images, accumulator_bytes=1))
    one_pair = [list(axis_correlations(network, states, [pair], axes, blobs.train.images)) for pair in pairs]
    for index, measured in enumerate(together):
        for position, pair in enumerate(pairs):
            assert np.array_equal(measured.correlations[pair], one_axis[index].correlations[pair])
            assert np.array_equal(measured.correlations[pair], one_pair[position][index].correlations[pair])


def test_the_assignment_is_the_best_of_all_on_six_units():
    rng = np.random.default_rng(0)
    for _ in range(20):
        correlation = rng.uniform(-1, 1, (6, 6))
        best = max(permutations(range(6)), key=lambda p: sum(correlation[i, j] for i, j in enumerate(p)))
        assert assign(correlation).tolist() == list(best)


def test_a_shuffled_copy_is_matched_back_exactly(network, states, blobs: Dataset):
    spec = network.permutation_spec()
    shuffle = spec.random(torch.Generator().manual_seed(3))
    shuffled = spec.apply(states[0], shuffle)
    (match,) = match_activations(network, spec, [states[0], shuffled], [(0, 1)], blobs.train.images)
    back = spec.inverse(shuffle)
    for measured in axis_correlations(network, [states[0]], [(0, 0)], spec.axes, blobs.train.images):
        live = torch.from_numpy(~measured.dead[0])
        found, wanted = match.permutation.indices[measured.axis.name], back.indices[measured.axis.name]
        assert live.sum() >= 12
        assert torch.equal(found[live], wanted[live])
    restored = spec.apply(shuffled, match.permutation)
    assert torch.equal(
        functional_call(network, restored, (blobs.test.images,)).argmax(1),
        functional_call(network, states[0], (blobs.test.images,)).argmax(1),
    )
    assert all(axis.matched_correlation > 0.99999 for axis in match.axes)


def test_one_pass_finds_what_layer_by_layer_alignment_finds(network, states, blobs: Dataset):
    """The published schedule: align a layer, permute B, run it again, align the next."""
    spec = network.permutation_spec()
    (match,) = match_activations(network, spec, states[:2], [(0, 1)], blobs.train.images)
    a = {name: tensor.double() for name, tensor in states[0].items()}
    b = {name: tensor.double() for name, tensor in states[1].items()}
    images = blobs.train.images.double()
    identity = spec.identity().indices
    for axis in spec.axes:
        seen_a, seen_b = (read_activations(network, state, images, [axis])[axis.name].numpy() for state in (a, b))
        correlation = correlate_plainly(seen_a, seen_b)
        partners = assign(correlation)
        b = spec.apply(b, Permutation({**identity, axis.name: torch.from_numpy(partners)}))
        ours = match.permutation.indices[axis.name].numpy()
        rows = np.arange(axis.size)
        assert correlation[rows, ours].sum() == pytest.approx(correlation[rows, partners].sum(), abs=1e-4)


def test_dead_units_reach_the_solver_as_zeros(network, states, blobs: Dataset):
    spec = network.permutation_spec()
    dying = {name: tensor.clone() for name, tensor in states[1].items()}
    dying["hidden.1.linear.bias"][:4] = -1e4
    (match,) = match_activations(network, spec, [states[0], dying], [(0, 1)], blobs.train.images)
    assert match.axes[1].n_dead >= 4
    assert np.isfinite(match.objective)
    assert all(np.isfinite(axis.matched_correlation) for axis in match.axes)


def test_matching_raises_the_correlation_over_the_identity(network, states, blobs: Dataset):
    spec = network.permutation_spec()
    for match in match_activations(network, spec, states, [(0, 1), (1, 2)], blobs.train.images):
        for axis in match.axes:
            assert axis.matched_correlation > axis.identity_correlation


def test_correlations_that_are_not_finite_never_reach_the_solver():
    with pytest.raises(ValueError, match="must be finite"):
        assign(np.array([[1.0, np.nan], [0.0, 1.0]]))


def test_the_function_error_sees_what_is_no_symmetry(network, states, blobs: Dataset):
    spec = network.permutation_spec()
    shuffled = spec.apply(states[0], spec.random(torch.Generator().manual_seed(3)))
    assert function_error(network, states[0], shuffled, blobs.train.images) < FUNCTION_TOLERANCE / 1e3
    axes = tuple(dataclasses.replace(axis, slots=axis.slots[:1] + axis.slots[2:]) for axis in spec.axes)
    forgetful = dataclasses.replace(spec, axes=axes)  # leaves biases where they are
    wrong = forgetful.apply(states[0], spec.random(torch.Generator().manual_seed(3)))
    assert function_error(network, states[0], wrong, blobs.train.images) > FUNCTION_TOLERANCE * 1e3
