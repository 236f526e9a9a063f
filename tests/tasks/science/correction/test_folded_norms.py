from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from tasks.science.correction.folded_norms import fold_norms
from tasks.science.correction.sites import find_sites
from tasks.science.evaluation.functional import compute, mode
from tasks.science.networks import build_network
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def draw(network: nn.Module) -> State:
    """Random weights in float64; gammas of either sign, variances above 0."""
    rng = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(tensor.shape, generator=rng, dtype=torch.float64).div_(max(1, tensor[0].numel()) ** 0.5)
        if not name.endswith("running_var")
        else 0.5 + torch.rand(tensor.shape, generator=rng, dtype=torch.float64)
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point()
    }


def resnet20(normalization: str) -> nn.Module:
    data = DataSpec("noise", "", 4, 4, 10, (3, 16, 16))
    return build_network(Cell(data, "resnet20", normalization, 1, 20, Recipe("none", 1, 1, 1.0, 0.0)))


def biased() -> nn.Module:
    """A convolution with a bias, a BatchNorm without weights, and one that reads no convolution."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 5, 3),
            norm=nn.BatchNorm2d(5, eps=1e-2, affine=False),
            relu=nn.ReLU(),
            other=nn.BatchNorm2d(5),
            flat=nn.Flatten(),
            output=nn.Linear(5 * 14 * 14, 2),
        )
    )


def logits(network: nn.Module, state: State) -> torch.Tensor:
    with mode(network, training=False):
        return compute(network, state, IMAGES)


@pytest.mark.parametrize(("build", "n_norms"), [(lambda: resnet20("batch"), 0), (biased, 1)])
def test_the_folded_network_computes_the_same(build, n_norms: int):
    network = build()
    state = draw(network)
    before = {name: tensor.clone() for name, tensor in state.items()}
    folded, folded_state = fold_norms(network, state, find_sites(network, state, IMAGES))
    assert torch.allclose(logits(folded, folded_state), logits(network, state), rtol=1e-9, atol=1e-9)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == n_norms
    assert folded_state.keys() == folded.state_dict().keys() - {"other.num_batches_tracked"}
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert state.keys() == before.keys()
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) > n_norms


def test_a_network_without_such_norms_is_given_back():
    network = resnet20("layer")
    state = draw(network)
    assert fold_norms(network, state, find_sites(network, state, IMAGES)) == (network, state)
