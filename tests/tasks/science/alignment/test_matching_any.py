"""Matching of networks that users write: nested axes, functional weights, tied and shared ones."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.science.alignment.assignment import assign
from tasks.science.alignment.matching import match
from tasks.science.alignment.nested_assignment import assign_tree
from tasks.science.merging import merge_networks
from tasks.science.specs.state import State
from tasks.science.symmetry.families import Families
from tasks.science.symmetry.permutation import Axis, Permutation, PermutationSpec, Slot
from tasks.science.symmetry.proof import FUNCTION_TOLERANCE, function_error
from tasks.science.symmetry.tracing import trace_permutation_spec
from tests.tasks.science.handwritten import CASES
from tests.tasks.science.permuting import inverse

NETWORKS = [
    "Attention", "CalledTwice", "ChannelShuffle", "ConcatEitherOrder", "DepthwiseMultiplier", "EncoderLayer",
    "FunctionalWeights", "GLU", "GroupedConv", "GroupedQueries", "GroupedTransposed", "GroupNormed",
    "HandMadeAttention", "InstanceNormed", "LearnedQueries", "LowRank", "MixAcrossHeads", "NormedQueries",
    "OuterOfTwo", "Recurrent", "SharedModule", "SqueezeExcite", "TiedWeights",
]  # fmt: skip


def randomise(network: nn.Module) -> State:
    """Every entry random, tied ones alike; variances positive."""
    generator = torch.Generator().manual_seed(1)
    drawn: dict[int, Tensor] = {}
    for key, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in drawn and tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            scale = (2 / max(tensor.numel() / max(len(tensor), 1), 1)) ** 0.5 if tensor.ndim > 1 else 0.5
            drawn[id(tensor)] = 0.5 + noise.abs() if key.endswith("running_var") else noise * scale
    return {
        key: drawn[id(tensor)].clone() if tensor.is_floating_point() else tensor.detach().clone()
        for key, tensor in network.state_dict(keep_vars=True).items()
    }


SLOW = ["Attention", "EncoderLayer", "LearnedQueries"]  # traced for every size of batch that they see


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NETWORKS])
def test_a_permuted_copy_of_any_network_is_recovered(name: str):
    build, shape, _ = CASES[name]
    torch.manual_seed(0)
    network = build().eval()
    spec = trace_permutation_spec(copy.deepcopy(network), (torch.randn(*shape),))
    state = randomise(network)
    for seed in (3, 4):
        generator = torch.Generator().manual_seed(seed)
        shuffle = spec.random(generator)
        shuffled, back = spec.apply(state, shuffle), inverse(spec, shuffle)
        images = torch.randn(80, *shape[1:], generator=generator)
        for matcher in ("activation", "activation/reading=pre", "weight/restarts=5"):
            (found,) = match(network, spec, [state, shuffled], [(0, 1)], matcher, images)
            if (name, matcher) == ("LearnedQueries", "weight/restarts=5"):
                # Two axes that share one small tensor: every order of visits ends in a local optimum.
                continue
            n_wrong = sum(int((found.permutation[axis] != back[axis]).sum()) for axis in back)
            n_dead = sum(axis.n_dead for axis in found.axes) if matcher == "activation" else 0
            assert n_wrong <= max(n_dead, 0), (matcher, found)
            assert found.permutation.keys() == back.keys()
            restored = spec.apply(shuffled, found.permutation)
            assert n_wrong or all(torch.equal(restored[key], state[key]) for key in state)
    assert all(isinstance(parameter, nn.Parameter) for parameter in network.parameters())


class Folded(nn.Module):
    """Every map of every image is normalised by itself, as one image of n * c channels; an extra head in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.folded, self.b, self.c = nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 2, 1)
        self.inner, self.head = nn.Conv2d(5, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(x)
        n, c, h, w = x.shape
        folded = F.batch_norm(x.reshape(1, n * c, h, w), None, None, training=True)
        x = self.b(self.folded(folded).reshape(n, c, h, w)).relu()
        return (self.c(x), self.head(self.inner(x).relu())) if self.training else self.c(x)


@pytest.mark.parametrize("traced_at", [1, 2])
def test_units_are_not_read_where_the_batch_is_folded_in_nor_where_training_mode_alone_goes(traced_at: int):
    torch.manual_seed(0)
    network = Folded().eval()
    spec = trace_permutation_spec(network, (torch.randn(traced_at, 3, 4, 4),))
    assert [axis.size for axis in spec.axes] == [6, 5, 4]
    assert {r.module for r in spec.by_name["a"].readings} == {"a"}
    state = randomise(network)
    shuffle = spec.random(torch.Generator().manual_seed(0))
    for matcher in ("activation", "activation/reading=pre", "weight"):
        pair = [state, spec.apply(state, shuffle)]
        (found,) = match(network, spec, pair, [(0, 1)], matcher, torch.randn(60, 3, 4, 4))
        assert found.permutation == inverse(spec, shuffle)


def test_an_axis_that_nothing_reads_is_matched_by_its_weights():
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 9), nn.Linear(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))

    network = Dense()
    traced = trace_permutation_spec(network, (torch.randn(2, 6),))
    blind = Axis(traced.axes[1].name, 9, traced.axes[1].slots, (), traced.axes[1].family)
    spec = PermutationSpec((traced.axes[0], blind), traced.fixed, traced.shapes)
    state = randomise(network)
    shuffle = spec.random(torch.Generator().manual_seed(0))
    (found,) = match(network, spec, [state, spec.apply(state, shuffle)], [(0, 1)], "activation", torch.randn(100, 6))
    assert found.permutation == inverse(spec, shuffle)
    assert [axis.axis for axis in found.axes] == [traced.axes[0].name]


class Spatial(nn.Module):
    """Attention over places of a map whose channels are those of the image: nothing in it can move."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 1, 3, padding=1), nn.Linear(2 * 36, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.cat([images.mean(1, keepdim=True), images.amax(1, keepdim=True)], 1)
        return self.out((images * torch.sigmoid(self.conv(maps))).flatten(1))


MATCHINGS = ["none", "activation", "activation/reading=pre", "activation-published/batch=20", "weight", "random"]


@pytest.mark.parametrize("matcher", MATCHINGS)
@pytest.mark.parametrize("build", [Spatial, lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 4))])
def test_networks_in_which_nothing_can_move_are_matched_as_they_are(build: Callable[[], nn.Module], matcher: str):
    network, images = build(), torch.randn(40, 2, 6, 6)
    spec = trace_permutation_spec(network, (images[:2],))
    state = randomise(network)
    (found,) = match(network, spec, [state, state], [(0, 1)], matcher, images)
    assert (len(spec.axes), len(found.permutation), found.axes) == (0, 0, ())
    merged = merge_networks(network, state, state, images, matcher=matcher, correction="none")
    assert merged.function_error == 0
    assert all(torch.equal(merged.aligned[key], state[key]) for key in state)


@pytest.mark.parametrize("matcher", ["activation", "activation-published/batch=20"])
def test_axes_of_which_none_can_be_read_are_matched_by_their_weights(matcher: str):
    network, images = (
        nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Linear(5, 4)),
        torch.randn(40, 2, 6, 6),
    )
    spec = trace_permutation_spec(network, (images[:2],))
    spec = dataclasses.replace(spec, axes=tuple(dataclasses.replace(axis, readings=()) for axis in spec.axes))
    state, shuffle = randomise(network), spec.random(torch.Generator().manual_seed(3))
    (found,) = match(network, spec, [state, spec.apply(state, shuffle)], [(0, 1)], matcher, images)
    assert found.permutation == inverse(spec, shuffle)


def test_the_best_permutation_of_a_tree_is_the_best_of_all():
    """Three heads of three channels: every order of heads, and of the channels in each, tried one by one."""
    heads = Axis("heads", 3, (Slot("w", 0, np.arange(9).reshape(3, 3)),), (), "heads")
    inner = tuple(
        Axis(f"c[{h}]", 3, (Slot("w", 0, 3 * h + np.arange(3)[:, None]),), (), "c", "heads", h) for h in range(3)
    )
    spec = PermutationSpec((heads, *inner))
    families = Families(spec)
    a, b = np.random.default_rng(0).standard_normal((2, 9, 4))
    value, pairs = assign_tree(families, "heads", {"c": a @ b.T}, assign)
    best = max(
        sum(float(a[3 * h + c] @ b[3 * order[h] + orders[h][c]]) for h, c in product(range(3), range(3)))
        for order in permutations(range(3))
        for orders in product(list(permutations(range(3))), repeat=3)
    )
    assert value == pytest.approx(best)
    vectors = {spec.named[pair.family, pair.b]: pair.partners for pair in pairs}
    moved = spec.apply({"w": torch.from_numpy(b)}, Permutation(vectors))["w"].numpy()
    assert float((a * moved).sum()) == pytest.approx(best)


def test_a_network_of_two_names_for_one_layer_is_left_as_it_was():
    build, shape, _ = CASES["SharedModule"]
    network = build().eval()
    before = {name: id(parameter) for name, parameter in network.named_parameters(remove_duplicate=False)}
    state = randomise(network)
    assert function_error(network, state, state, torch.randn(20, *shape[1:])) < FUNCTION_TOLERANCE
    assert {name: id(p) for name, p in network.named_parameters(remove_duplicate=False)} == before
