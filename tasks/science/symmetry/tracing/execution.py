"""The execution of traced graphs operation by operation, and a cache of the graphs of networks."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import Node

from tasks.science.symmetry.tracing.graph import TRACING, Graph, trace_graph
from tasks.science.symmetry.tracing.structure import describe_structure

Observer = Callable[[Node, Any], Any]
"""Receives an operation and its result; what it returns takes the result's place."""

_GRAPHS: WeakKeyDictionary[nn.Module, dict[Any, Graph]] = WeakKeyDictionary()

_ALIKE: OrderedDict[Hashable, Graph] = OrderedDict()
"""The graphs that were asked for last, by the structure of their networks."""

_N_ALIKE = 32


def graph_for(network: nn.Module, batch: Tensor) -> Graph:
    """Return the graph of `network` in evaluation mode on batches of the shape of `batch`.

    It is traced once per shape, and once for networks of torch's and the project's own classes that are built alike.
    It is traced in the network's own type, whatever the type of `batch`, so that operations keep their names.
    Raises TraceError for a network that cannot be traced.
    """
    key = tuple(batch.shape), batch.is_floating_point(), batch.device, tuple(map(_described, network.modules()))
    with TRACING:
        graphs = _GRAPHS.setdefault(network, {})
        if key not in graphs:
            traced = on_cpu(network)
            tensors = [*traced.parameters(), *traced.buffers()]
            floats = [t for t in tensors if t.is_floating_point()]
            example = batch.detach()
            if batch.is_floating_point() and floats:
                example = example.to(floats[0].dtype)
            if tensors:
                example = example.to(tensors[0].device)
            graphs[key] = _trace_once(traced, example, describe_structure(network, example))
        return graphs[key]


def _trace_once(network: nn.Module, example: Tensor, structure: Hashable | None) -> Graph:
    if structure is None:
        return trace_graph(network, (example,), training=False)
    if structure not in _ALIKE:
        _ALIKE[structure] = trace_graph(network, (example,), training=False)
    _ALIKE.move_to_end(structure)
    while len(_ALIKE) > _N_ALIKE:
        _ALIKE.popitem(last=False)
    return _ALIKE[structure]


def _described(module: nn.Module) -> tuple[Any, ...]:
    """Return what a forward pass of a module may depend on: its hooks and attributes, plain values by value."""
    attributes = vars(module)
    hooks = len(attributes["_forward_hooks"]), len(attributes["_forward_pre_hooks"])
    own = (item for item in attributes.items() if item[0] != "training" and item[0] not in _HELD)
    return id(module), *hooks, *((name, _plain(value)) for name, value in own)


_HELD = frozenset(vars(nn.Module()))
"""Attributes of every module: its tensors, modules and hooks."""

_PLAIN = (bool, int, float, str, type(None))


def _plain(value: Any) -> Any:
    """Return a value that tells whether an attribute has changed."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple | set | frozenset) and all(isinstance(item, _PLAIN) for item in value):
        return repr(value)
    return id(value)


def run_graph(graph: Graph, state: Mapping[str, Tensor], batch: Tensor, see: Observer) -> None:
    """Run `graph` on `batch` with the weights `state` and show every result, inputs included, to `see`.

    Results are dropped after their last use. An exception that `see` raises ends the run.
    """
    dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    last_use: dict[Node, Node] = {source: node for node in graph.nodes for source in node.all_input_nodes}
    values: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.op == "output":
            return
        if node.op != "placeholder":
            value = _apply(node, values)
        elif node.name in graph.state:
            value = state[graph.state[node.name]]
        elif node.name in graph.constants:
            constant = graph.constants[node.name].to(batch.device)
            value = constant.to(dtype) if constant.is_floating_point() else constant
        else:
            value = batch
        values[node] = see(node, value)
        for source in {*node.all_input_nodes, node}:
            if last_use.get(source, source) is node:
                del values[source]


def evaluate_nodes(graph: Graph, wanted: Iterable[Node], inputs: Mapping[Node, Any]) -> dict[Node, Any]:
    """Return the results of the operations `wanted`, and of all that they need, from the placeholders `inputs`."""
    needed: set[Node] = set()
    waiting = list(wanted)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    values: dict[Node, Any] = {}
    for node in graph.nodes:
        if node in needed:
            values[node] = inputs[node] if node.op == "placeholder" else _apply(node, values)
    return values


def _apply(node: Node, values: Mapping[Node, Any]) -> Any:
    arguments = torch.fx.map_arg((node.args, node.kwargs), lambda source: values[source])
    args, kwargs = arguments  # pyright: ignore[reportGeneralTypeIssues]
    target: Any = node.target
    return target(*args, **kwargs)  # pyright: ignore[reportCallIssue]


def on_cpu(network: nn.Module) -> nn.Module:
    """Return `network`, or a copy in uninitialized CPU memory where it lies on the meta device.

    A trace reads no values.
    """
    if not any(tensor.is_meta for tensor in network.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)):
        return network
    return copy.deepcopy(network).to_empty(device="cpu")
