"""The permutation spec of any network, traced from one forward pass.

`trace_permutation_spec` turns the forward pass into ATen operations (`graph.py`), describes for every operation what
must move together (`layouts.py`, `operations.py`, `*_rules.py`), solves for all permutations that respect this
(`solver.py`) and writes them down as axes with names, slots and readings (`assembly.py`), less the readings that hold
for the traced batch alone (`batches.py`). Nothing is guessed: what an operation without a rule touches stays where it
is. In the end a randomised copy is permuted and compared (`check.py`).
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from tasks.science.evaluation.modes import NetworkError
from tasks.science.symmetry.permutation import Axis, FixedAxis, PermutationSpec

# Each enters its rules into the one table of operations.py.
from tasks.science.symmetry.tracing import fourier_rules as fourier_rules
from tasks.science.symmetry.tracing import index_rules as index_rules
from tasks.science.symmetry.tracing import norm_rules as norm_rules
from tasks.science.symmetry.tracing import order_rules as order_rules
from tasks.science.symmetry.tracing import product_rules as product_rules
from tasks.science.symmetry.tracing import view_rules as view_rules
from tasks.science.symmetry.tracing.assembly import Misaligned, build_axes, fixed_axes
from tasks.science.symmetry.tracing.batches import readable_axes
from tasks.science.symmetry.tracing.check import Check
from tasks.science.symmetry.tracing.execution import graph_for
from tasks.science.symmetry.tracing.graph import TRACING, Graph, TraceError, trace_graph
from tasks.science.symmetry.tracing.layouts import Demands
from tasks.science.symmetry.tracing.operations import Visitor, state_layouts
from tasks.science.symmetry.tracing.solver import solve

__all__ = ["FAILED_CHECK", "TraceError", "trace_permutation_spec"]

FAILED_CHECK = "failed the numerical check"
UNREACHED = "not read by any traced forward pass"


def trace_permutation_spec(
    network: nn.Module, example_inputs: tuple[Tensor, ...], *, check: bool = True
) -> PermutationSpec:
    """Return every hidden axis of the network that may be permuted, found from one forward pass in eval mode.

    `example_inputs` are the positional arguments of the forward pass; their sizes (the batch among them) hold for the
    trace, the spec holds for any batch. The network keeps its mode, parameters, buffers and attributes, and the
    random state is as before. Parameters that the eval pass does not read (auxiliary heads) are followed in training
    mode. `check` permutes a randomised copy in float64 (float32 where the network insists) and holds still what
    changes its output; that has to find nothing. One thread at a time traces, the others wait.
    Raises TraceError, a ValueError that names the operation and its place, for a network that cannot be traced.
    """
    if not isinstance(example_inputs, tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"example_inputs must be a tuple of tensors, got {type(example_inputs).__name__}")
    # Held throughout: the modes of the network, which threads may share, change until the check is done.
    with TRACING:
        try:
            spec = _traced(network, example_inputs)
            return _checked(spec, network, example_inputs) if check else spec
        except NetworkError as error:
            raise TraceError(str(error)) from error


def _traced(network: nn.Module, example_inputs: tuple[Tensor, ...]) -> PermutationSpec:
    # The one that readings and corrections are found in too.
    kept = len(example_inputs) == 1 and isinstance(example_inputs[0], Tensor)
    graphs = [graph_for(network, *example_inputs) if kept else trace_graph(network, example_inputs, training=False)]
    tensors = {k: v for k, v in network.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    if strange := [key for key in graphs[0].state.values() if key not in tensors]:
        raise TraceError(f"{type(network).__name__} cannot be traced: its state dict has no entry {strange[0]!r}")
    unreached = _unreached(graphs, tensors)
    training = "same"
    if unreached:
        try:
            graphs.append(trace_graph(network, example_inputs, training=True))
            training = "traced"
        except TraceError as error:
            training = f"unverified: {error}"
        unreached = _unreached(graphs, tensors)
    spec = _spec_of(graphs, tensors, unreached, training)
    return dataclasses.replace(spec, axes=readable_axes(spec.axes, graphs[0], network, example_inputs))


def _unreached(graphs: list[Graph], tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """Return the float entries of the state dict that no operation of these graphs reads under any name."""
    read = {
        id(tensors[graph.state[node.name]])
        for graph in graphs
        for node in graph.nodes
        if node.op == "placeholder" and node.name in graph.state and node.users
    }
    return tuple(k for k, t in tensors.items() if id(t) not in read and t.is_floating_point())


def _spec_of(
    graphs: list[Graph], tensors: dict[str, Tensor], unreached: tuple[str, ...], training: str
) -> PermutationSpec:
    demands = Demands()
    state = state_layouts(demands, graphs, tensors)
    for key in (*unreached, *_overlapping(tensors)):
        reason = UNREACHED if key in unreached else "shares memory with another entry"
        for f in state[key].fields:
            if f.nodes is not None:
                demands.fix(f.nodes, reason)
    parameters = frozenset(k for k, t in tensors.items() if isinstance(t, nn.Parameter))
    visitors = [Visitor(demands, graph, state) for graph in graphs]
    for visitor in visitors:
        visitor.run()
    while True:
        symmetry = solve(demands)
        try:
            axes, dropped = build_axes(symmetry, visitors, state, parameters)
            break
        except Misaligned as error:
            demands.fix(error.nodes, str(error))
    groups: dict[int, list[str]] = {}
    for key, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(key)
    tied = tuple(tuple(keys) for keys in groups.values() if len(keys) > 1)
    shapes = {key: tuple(t.shape) for key, t in tensors.items()}
    fixed = (*dropped, *fixed_axes(symmetry, state, set(unreached)))
    return PermutationSpec(axes, fixed, shapes, tied, unreached, training)


def _overlapping(tensors: dict[str, Tensor]) -> list[str]:
    """Return the keys whose tensors share memory without being one tensor: to permute one is to permute the other."""
    owners: dict[int, dict[int, list[str]]] = {}
    for key, tensor in tensors.items():
        if tensor.numel():
            owners.setdefault(tensor.untyped_storage().data_ptr(), {}).setdefault(id(tensor), []).append(key)
    return [key for group in owners.values() if len(group) > 1 for keys in group.values() for key in keys]


def _checked(spec: PermutationSpec, network: nn.Module, example_inputs: tuple[Tensor, ...]) -> PermutationSpec:
    """Return the spec without axes that change the output, and without readings that their module does not yield."""
    check = Check(network, example_inputs, spec.axes)
    while bad := set(check.bad_axes(spec)):
        # What is nested in a bad axis cannot be named without it.
        while more := {a.name for a in spec.axes if a.parent in bad} - bad:
            bad |= more
        failed = tuple(_as_fixed(a) for a in spec.axes if a.name in bad)
        kept = tuple(a for a in spec.axes if a.name not in bad)
        spec = dataclasses.replace(spec, axes=kept, fixed=spec.fixed + failed)
    wrong = check.unread(spec)
    axes = tuple(
        dataclasses.replace(
            a,
            readings=tuple(
                dataclasses.replace(r, module=None, call=0) if (a.name, r.module, r.call) in wrong else r
                for r in a.readings
            ),
        )
        for a in spec.axes
    )
    return dataclasses.replace(spec, axes=axes, casts=check.proof.casts)


def _as_fixed(axis: Axis) -> FixedAxis:
    return FixedAxis(axis.size, FAILED_CHECK, tuple(dict.fromkeys((s.key, s.dim) for s in axis.slots)))
