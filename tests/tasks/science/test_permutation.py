from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.func import functional_call

from tasks.science.networks import build_network, initial_state
from tasks.science.permutation import Permutation
from tasks.science.specs import Cell, stream


@pytest.fixture
def network(cell: Cell):
    return build_network(dataclasses.replace(cell, width=12, depth=4))


@pytest.fixture
def state(network):
    drawn = initial_state(network, stream("test"))
    # Biases are zero at initialisation: a forgotten one would not show.
    return {name: (tensor + 0.1 * torch.randn_like(tensor)).double() for name, tensor in drawn.items()}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(1)


def test_a_permuted_network_computes_the_same_function(network, state, generator):
    spec = network.permutation_spec()
    images = torch.randn(50, 1, 6, 6, dtype=torch.float64, generator=generator)
    logits = functional_call(network, state, (images,))
    permuted = spec.apply(state, spec.random(generator))
    assert not torch.equal(permuted["hidden.0.linear.weight"], state["hidden.0.linear.weight"])
    assert torch.allclose(functional_call(network, permuted, (images,)), logits, rtol=1e-12, atol=1e-12)


def test_every_hidden_axis_moves_and_no_input_or_class_does(network):
    moved = {(slot.tensor, slot.dim) for axis in network.permutation_spec().axes for slot in axis.slots}
    hidden = {(f"hidden.{i}.linear.{name}", 0) for i in range(4) for name in ("weight", "bias")}
    assert moved == hidden | {(f"hidden.{i}.linear.weight", 1) for i in (1, 2, 3)} | {("output.weight", 1)}


def test_position_i_takes_unit_perm_i(network, state):
    spec = network.permutation_spec()
    permutation = spec.identity()
    indices = torch.tensor([2, 0, 1, *range(3, 12)])
    permutation = Permutation({**permutation.indices, "hidden.1": indices})
    permuted = spec.apply(state, permutation)
    assert torch.equal(permuted["hidden.1.linear.weight"][0], state["hidden.1.linear.weight"][2])
    assert torch.equal(permuted["hidden.2.linear.weight"][:, 1], state["hidden.2.linear.weight"][:, 0])


def test_the_inverse_undoes_and_compose_does_one_after_the_other(network, state, generator):
    spec = network.permutation_spec()
    first, then = spec.random(generator), spec.random(generator)
    there_and_back = spec.apply(spec.apply(state, first), spec.inverse(first))
    one_by_one = spec.apply(spec.apply(state, first), then)
    at_once = spec.apply(state, spec.compose(first, then))
    for name in state:
        assert torch.equal(there_and_back[name], state[name])
        assert torch.equal(one_by_one[name], at_once[name])
    assert all(torch.equal(spec.apply(state, spec.identity())[name], state[name]) for name in state)


def test_apply_leaves_what_it_was_given_and_keeps_every_key(network, state, generator):
    spec = network.permutation_spec()
    before = {name: tensor.clone() for name, tensor in state.items()}
    state["extra"] = torch.ones(3)
    permuted = spec.apply(state, spec.random(generator))
    assert permuted.keys() == state.keys()
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_weights_or_vectors_that_do_not_fit_are_refused(network, state):
    spec = network.permutation_spec()
    short = {name: tensor for name, tensor in state.items() if name != "hidden.2.linear.bias"}
    with pytest.raises(ValueError, match=r"no tensor 'hidden\.2\.linear\.bias', which axis hidden\.2 moves"):
        spec.apply(short, spec.identity())
    with pytest.raises(ValueError, match=r"has shape \(12, 11\); axis hidden\.0 needs 12 units along dimension 1"):
        spec.apply({**state, "hidden.1.linear.weight": torch.ones(12, 11)}, spec.identity())
    twice = Permutation({**spec.identity().indices, "hidden.0": torch.zeros(12, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"hidden\.0: not a permutation of 0\.\.11"):
        spec.apply(state, twice)
    with pytest.raises(ValueError, match=r"missing or unknown: hidden\.3"):
        spec.inverse(Permutation({k: v for k, v in spec.identity().indices.items() if k != "hidden.3"}))
