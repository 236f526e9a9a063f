"""Networks that are built alike are traced once; any difference that a forward pass may depend on is a new trace."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tasks.science.correction.sites import find_sites
from tasks.science.networks import build_network, initial_state
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream
from tasks.science.specs.recipe import Recipe
from tasks.science.symmetry.tracing import execution, graph
from tasks.science.symmetry.tracing.execution import graph_for
from tasks.science.symmetry.tracing.structure import describe_structure

VECTORS = torch.zeros(2, 6)


def build() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.Linear(8, 3))


def tie(network: nn.Sequential) -> None:
    network[5] = network[4]


def tie_weights(network: nn.Sequential) -> None:
    network[4].weight = nn.Parameter(torch.zeros(8, 8))
    network[4].bias = network[1].bias


def scale(factor: float, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return factor * output


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "eps": lambda network: setattr(network[1], "eps", 0.1),
    "attribute": lambda network: setattr(network[2], "inplace", True),
    "module": lambda network: network.__setitem__(2, nn.Tanh()),
    "no bias": lambda network: setattr(network[4], "bias", None),
    "size": lambda network: network.__setitem__(5, nn.Linear(8, 4)),
    "double": lambda network: network.double(),
    "buffer": lambda network: setattr(network[1], "running_mean", None),
    "shared module": tie,
    "shared tensor": tie_weights,
    "order": lambda network: network.append(network.pop(2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_networks_that_differ_are_described_differently(change: Callable[[nn.Sequential], object]):
    one, alike, other = build(), build(), build()
    change(other)
    described = describe_structure(one, VECTORS)
    assert described is not None
    assert describe_structure(alike, VECTORS) == described
    assert describe_structure(other, VECTORS) != described


def test_another_shape_or_type_of_batch_is_another_structure():
    described = describe_structure(build(), VECTORS)
    assert describe_structure(build(), torch.zeros(3, 6)) != described
    assert describe_structure(build(), VECTORS.double()) != described


class Own(nn.Linear):
    pass


STRANGE: dict[str, Callable[[nn.Sequential], object]] = {
    "own class": lambda network: network.__setitem__(4, Own(8, 8)),
    "hook": lambda network: network[4].register_forward_hook(lambda *_: None),
    "hook of another package": lambda network: network[4].register_forward_hook(functools.partial(scale, 2.0)),
    "hook before": lambda network: network[4].register_forward_pre_hook(lambda *_: None),
    "object": lambda network: setattr(network[4], "note", object()),
    "tensor": lambda network: setattr(network[4], "mask", torch.zeros(8)),
    "forward": lambda network: setattr(network[4], "forward", network[4].forward),
    "hidden buffer": lambda network: network[4].register_buffer("mask", torch.zeros(8), persistent=False),
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE.keys())
def test_what_is_known_by_identity_alone_shares_no_trace(change: Callable[[nn.Sequential], object]):
    network = build()
    change(network)
    assert describe_structure(network, VECTORS) is None


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The class of every network that is traced; nothing was traced before."""
    seen: list[str] = []

    def counted(network: nn.Module, inputs: tuple[Tensor, ...], training: bool) -> graph.Graph:
        seen.append(type(network).__name__)
        return graph.trace_graph(network, inputs, training)

    monkeypatch.setattr(execution, "trace_graph", counted)
    execution._ALIKE.clear()
    return seen


def test_networks_of_one_cell_share_their_trace_and_layout(traces: list[str]):
    data = DataSpec("noise", "", 2, 2, 3, (1, 2, 3))
    cell = Cell(data, "mlp", "none", 5, 2, Recipe("none", 1, 1, 1.0, 0.0))
    images = torch.zeros(2, 1, 2, 3)
    networks = [build_network(cell) for _ in range(2)]
    one, other = (find_sites(network, initial_state(network, stream("alike")), images) for network in networks)
    assert one is other
    assert traces == ["MLP"]


def test_a_person_s_own_network_is_traced_for_itself(traces: list[str]):
    one, other = (nn.Sequential(Own(6, 4), nn.Linear(4, 2)) for _ in range(2))
    assert graph_for(one, VECTORS) is not graph_for(other, VECTORS)
    assert graph_for(one, VECTORS) is graph_for(one, VECTORS)
    assert len(traces) == 2


def test_the_graphs_that_were_asked_for_last_are_kept(traces: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(execution, "_N_ALIKE", 1)

    def ask(width: int) -> None:
        graph_for(nn.Sequential(nn.Linear(6, width)), VECTORS)

    for width in (2, 2, 3, 2):
        ask(width)
    assert len(traces) == 3
    assert len(execution._ALIKE) == 1
