"""What may be permuted in the network of a cell, traced once per process."""

from __future__ import annotations

import dataclasses
import threading

import torch

from tasks.science.networks import build_network
from tasks.science.networks.mlp import MLP
from tasks.science.specs.cell import Cell, NetworkSpec
from tasks.science.symmetry.permutation import PermutationSpec
from tasks.science.symmetry.tracing import trace_permutation_spec
from tasks.science.symmetry.tracing.execution import on_cpu

_TRACED: dict[tuple[NetworkSpec, tuple[int, ...], int], PermutationSpec] = {}
_ONCE = threading.Lock()  # of threads that ask for one network, the first traces it


def cell_permutation_spec(cell: Cell) -> PermutationSpec:
    """The permutation spec of the network that `build_network` makes for `cell`.

    The tracer's own numerical check is left out: it would hold several float64 copies of the weights. `function_error`
    takes its place on every pair that is matched, with the pair's own weights.
    """
    key = cell.network, cell.data.shape, cell.data.n_classes
    with _ONCE:
        if key not in _TRACED:
            network = build_network(cell)
            spec = trace_permutation_spec(on_cpu(network), (torch.zeros(2, *cell.data.shape),), check=False)
            _TRACED[key] = _renamed(spec, network.layer_axes) if isinstance(network, MLP) else spec
        return _TRACED[key]


def _renamed(spec: PermutationSpec, names: dict[str, str]) -> PermutationSpec:
    """An MLP's axes under the names that stored permutations and tables have for them."""
    axes = tuple(
        dataclasses.replace(axis, name=names.get(axis.name, axis.name), family=names.get(axis.family, axis.family))
        for axis in spec.axes
    )
    return dataclasses.replace(spec, axes=axes)
