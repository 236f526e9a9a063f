"""Readings that hold for any batch.

A network is traced at one size of batch. Where a forward pass folds the batch into another dimension (instance norm
makes one map per image and channel), what is a unit's position there depends on that size; where it leaves images
behind (a bias that is computed from positions), nothing is observed of an image. Neither can be read from another
batch. Both show in the shapes of a second trace, at one example more; most networks keep the batch in front
throughout and need none.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from tasks.science.symmetry.permutation import Axis, Reading
from tasks.science.symmetry.tracing.graph import Graph, TraceError, reached, trace_graph

Shapes = dict[str, tuple[int, ...]]


def readable_axes(
    axes: tuple[Axis, ...], graph: Graph, network: nn.Module, example_inputs: tuple[Tensor, ...]
) -> tuple[Axis, ...]:
    """Return the axes without readings whose positions, or samples per example, change with the batch.

    `graph` is the eval graph of `network` at `example_inputs`, whose first dimension counts examples. A network that
    cannot be traced at one example more, though its batch is folded, keeps no reading.
    """
    shapes = _shapes(graph)
    n_examples = next((x.shape[0] for x in example_inputs if x.dim()), 0)
    wider: Shapes | None = None
    # A batch of one is everywhere in front and nowhere to be seen.
    if n_examples < 2 or any(shape[:1] != (n_examples,) for shape in shapes.values()):
        more = tuple(torch.cat([x, x[:1]]) if x.shape[:1] == (n_examples,) else x for x in example_inputs)
        try:
            wider = _shapes(trace_graph(network, more, training=False))
        except TraceError:
            wider = {}

    def holds(reading: Reading) -> bool:
        shape = shapes.get(reading.node)
        if shape is None:
            return False
        if wider is None:
            return reading.dim > 0
        other = wider.get(reading.node, ())
        if len(other) != len(shape) or other[reading.dim] != shape[reading.dim]:
            return False
        return math.prod(other) * n_examples == math.prod(shape) * (n_examples + 1)

    return tuple(dataclasses.replace(a, readings=tuple(r for r in a.readings if holds(r))) for a in axes)


def _shapes(graph: Graph) -> Shapes:
    """Return the shapes of the tensors that depend on the network's inputs, by the names of their operations."""
    values = {n.name: n.meta.get("val") for n in reached(graph, frozenset()) if n.op == "call_function"}
    return {name: tuple(value.shape) for name, value in values.items() if isinstance(value, Tensor)}
