"""Activations where a permutation spec says that they are read.

Where every reading is the output of a module, forward hooks take them from the network itself. Where one is not (a
functional nonlinearity, a sum in a forward method), the traced graph is run instead, operation by operation: the names
of its operations are those in the spec.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from tasks.science.evaluation import compute, lay_out
from tasks.science.permutation import Reading
from tasks.science.specs import State
from tasks.science.tracing.graph import Graph, trace_graph

Key = tuple[str, int]
Receive = Callable[[Key, Tensor], None]


class MisreadError(ValueError):
    """What `reading` names is not what it says, in a batch of another size than the traced one."""

    def __init__(self, reading: Reading) -> None:
        super().__init__(f"{reading.node} does not carry the units that were traced there")
        self.reading = reading


class Reader(Protocol):
    """Runs a network and hands out what is read on the way."""

    def visit(self, state: State, batch: Tensor, wanted: Sequence[tuple[Key, Reading]], receive: Receive) -> None:
        """Calls `receive` with each key and its activations (n_samples, n_units, n_each), valid during the call only:
        the network may overwrite them later."""
        ...


def make_reader(network: nn.Module, readings: Sequence[Reading]) -> Reader:
    """What can read all of `readings` from `network`."""
    if all(reading.module is not None for reading in readings):
        return HookReader(network)
    return GraphReader(network)


def select(tensor: Tensor, reading: Reading) -> Tensor:
    """A reading's activations (n_samples, n_units, n_each) from the tensor that it names; a view where that can be.

    Raises MisreadError where the tensor has no such positions.
    """
    positions = reading.positions
    if tensor.ndim <= reading.dim or tensor.shape[reading.dim] <= positions.max():
        raise MisreadError(reading)
    n = tensor.shape[reading.dim]
    rows = tensor.movedim(reading.dim, -1).reshape(-1, n)
    if not np.array_equal(positions.ravel(), np.arange(n)):
        rows = rows.index_select(1, torch.from_numpy(positions.ravel()).to(tensor.device))
    return rows.reshape(len(rows), *positions.shape)


class HookReader:
    """Reads the outputs of modules, by path and number of the call."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def visit(self, state: State, batch: Tensor, wanted: Sequence[tuple[Key, Reading]], receive: Receive) -> None:
        by_module: dict[str, list[tuple[Key, Reading]]] = {}
        for key, reading in wanted:
            if reading.module is None:
                raise ValueError(f"{reading.node} is no module's output")
            by_module.setdefault(reading.module, []).append((key, reading))
        handles = [
            self.network.get_submodule(path).register_forward_hook(_observer(of_module, receive))
            for path, of_module in by_module.items()
        ]
        try:
            compute(self.network, state, lay_out(self.network, batch))
        finally:
            for handle in handles:
                handle.remove()


def _observer(of_module: Sequence[tuple[Key, Reading]], receive: Receive) -> Callable[[nn.Module, Any, Any], None]:
    n_calls = 0

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal n_calls
        for key, reading in of_module:
            if reading.call == n_calls:
                receive(key, select(output, reading))
        n_calls += 1

    return hook


class GraphReader:
    """Reads the results of operations, by their names in the graph; traces once per size of batch."""

    def __init__(self, network: nn.Module) -> None:
        self.network = on_cpu(network)
        self.graphs: dict[tuple[int, ...], Graph] = {}

    def visit(self, state: State, batch: Tensor, wanted: Sequence[tuple[Key, Reading]], receive: Receive) -> None:
        shape = tuple(batch.shape)
        if shape not in self.graphs:
            # Traced in float32 whatever the batch is: the names of the operations are those of the spec.
            self.graphs[shape] = trace_graph(self.network, (batch.float(),), training=False)
        graph = self.graphs[shape]
        of_node: dict[str, list[tuple[Key, Reading]]] = {}
        for key, reading in wanted:
            of_node.setdefault(reading.node, []).append((key, reading))
        left = set(of_node)
        last_use: dict[Node, Node] = {source: node for node in graph.nodes for source in node.all_input_nodes}
        values: dict[Node, Any] = {}
        for node in graph.nodes:
            if not left or node.op == "output":
                break
            values[node] = self._result(node, values, graph, state, batch)
            for key, reading in of_node.get(node.name, []):
                receive(key, select(values[node], reading))
            left.discard(node.name)
            for source in {*node.all_input_nodes, node}:
                if last_use.get(source, source) is node:
                    del values[source]

    def _result(self, node: Node, values: dict[Node, Any], graph: Graph, state: State, batch: Tensor) -> Any:
        if node.op == "placeholder":
            if node.name in graph.state:
                return state[graph.state[node.name]]
            if node.name in graph.constants:
                constant = graph.constants[node.name]
                return constant.to(batch.dtype) if constant.is_floating_point() else constant
            return batch
        arguments = torch.fx.map_arg((node.args, node.kwargs), lambda source: values[source])
        args, kwargs = arguments  # pyright: ignore[reportGeneralTypeIssues]
        target: Any = node.target
        return target(*args, **kwargs)  # pyright: ignore[reportCallIssue]


def on_cpu(network: nn.Module) -> nn.Module:
    """`network`, or where it lies on the meta device a copy with memory that nothing was written to: what a trace
    needs, which reads no value. The memory is not touched, so it costs nothing."""
    if not any(tensor.is_meta for tensor in network.state_dict(keep_vars=True).values()):
        return network
    return copy.deepcopy(network).to_empty(device="cpu")
