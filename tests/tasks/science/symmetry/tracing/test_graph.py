"""The graph of a forward pass does not depend on how few operations torch.export has to override for it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import exported_program

from tasks.science.symmetry.tracing import graph
from tasks.science.symmetry.tracing.graph import KEPT_WHOLE, Graph, module_stack, trace_graph


class Composite(nn.Module):
    """Operations that torch.export takes apart or keeps, alone and inside one another."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.conv, self.norm = nn.Conv1d(3, 4, 3, padding="same"), nn.BatchNorm1d(4)
        self.act, self.last = nn.PReLU(4), nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        maps = self.act(self.norm(self.conv(self.encoder(tokens))))
        maps = nn.functional.interpolate(maps, scale_factor=2.0, mode="linear")
        maps = nn.functional.selu(nn.functional.adaptive_avg_pool1d(maps, 8))
        products = torch.einsum("nck,nck->nk", maps, nn.functional.gelu(maps))
        return nn.functional.log_softmax(self.last(products), -1)


def written(traced: Graph) -> list[str]:
    nodes = [f"{node.name} {node.target} {node.args} {node.kwargs} {module_stack(node)}" for node in traced.nodes]
    return [*nodes, *map(str, [traced.state, traced.constants, traced.mutations, traced.results])]


@pytest.mark.parametrize("training", [False, True])
def test_a_graph_is_that_of_the_whole_table_of_decompositions(monkeypatch: pytest.MonkeyPatch, training: bool):
    network, tokens = Composite(), torch.zeros(2, 3, 8)
    found = written(trace_graph(network, (tokens,), training))
    monkeypatch.setattr(graph, "_overriding_few", lambda: nullcontext(dict(graph._decompositions())))
    assert written(trace_graph(network, (tokens,), training)) == found


def test_only_operations_that_are_kept_whole_are_overridden(monkeypatch: pytest.MonkeyPatch):
    overridden: list[str] = []
    honest: Any = exported_program._override_composite_implicit_decomp
    collect = exported_program._collect_all_valid_cia_ops

    def noted(operations: dict[Any, Any]) -> Any:
        overridden.extend(graph._name(operation) for operation in operations if operation.namespace == "aten")
        return honest(operations)

    monkeypatch.setattr(exported_program, "_override_composite_implicit_decomp", noted)
    trace_graph(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (torch.zeros(2, 3),), training=False)
    assert "linear" in overridden
    assert set(overridden) <= KEPT_WHOLE
    assert exported_program._collect_all_valid_cia_ops is collect
