from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from tasks.science.networks.inspection import find_normalization, graph_digest

SHAPE = (1, 6, 6)


def network(width: int = 4, dropout: float = 0.1, eps: float = 1e-5, shift: float = 0.0) -> nn.Module:
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("by", torch.tensor(shift), persistent=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images + self.by

    return nn.Sequential(
        Shift(), nn.Conv2d(1, width, 3), nn.BatchNorm2d(width, eps=eps), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(),
        nn.Linear(16 * width, 4),
    )  # fmt: skip


def test_a_graph_is_the_same_whatever_the_weights_and_the_mode():
    first, second = network(), network().train()
    assert not torch.equal(first[1].weight, second[1].weight)
    assert graph_digest(first, SHAPE) == graph_digest(second, SHAPE)


def test_what_a_network_computes_in_training_or_evaluation_is_in_its_graph():
    others = [{}, {"width": 5}, {"dropout": 0.2}, {"eps": 1e-3}, {"shift": 1.0}]
    digests = [graph_digest(network(**changed), SHAPE) for changed in others]
    assert all(a != b for a, b in itertools.combinations(digests, 2))


def test_digests_leave_the_random_state_and_the_network_as_they_were():
    some = network().train()
    before, weight = torch.get_rng_state(), some[1].weight.clone()
    graph_digest(some, SHAPE)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(some[1].weight, weight)
    assert some.training


@pytest.mark.parametrize(
    ("norm", "word"),
    [
        (nn.BatchNorm2d(4), "batch"),
        (nn.BatchNorm2d(4, track_running_stats=False), "layer"),
        (nn.GroupNorm(2, 4), "layer"),
        (nn.InstanceNorm2d(4), "layer"),
        (nn.Identity(), "none"),
    ],
)
def test_normalization_is_read_off_the_modules(norm: nn.Module, word: str):
    assert find_normalization(nn.Sequential(nn.Conv2d(1, 4, 3), norm)) == word
