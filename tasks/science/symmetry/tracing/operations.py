"""Rules of ATen operations: their demands on a permutation of their inputs, and the movement of their output.

Every rule answers one question: for which joint movements of the inputs does the operation commute with a movement of
the output, and with which? An operation that is not in the tables below, or a case that its rule does not cover, holds
still everything that flows into it: its input is then the same, hence its output is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from tasks.science.symmetry.tracing.graph import Graph, operation_name, place_of
from tasks.science.symmetry.tracing.layouts import (
    Demands,
    Field,
    Layout,
    Nodes,
    combine,
    dim_nodes,
    free_layout,
    freeze,
    freeze_all,
    insert_dim,
    reduce,
    rigid_layout,
    select_dims,
    solid,
)

Value = Layout | tuple[Layout, ...]

# Constants beyond this size are not evaluated, only held still.
MAX_CONSTANT_NUMEL = 1 << 24

ELEMENTWISE = frozenset(
    ["add", "sub", "mul", "div", "rsub", "pow", "neg", "abs", "exp", "exp2", "expm1", "log", "log2", "log10",
     "log1p", "sqrt", "rsqrt", "reciprocal", "square", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh",
     "cosh", "tanh", "asinh", "acosh", "atanh", "sigmoid", "relu", "relu6", "gelu", "silu", "hardswish",
     "hardsigmoid", "hardtanh", "leaky_relu", "elu", "celu", "selu", "mish", "softplus", "clamp", "clamp_min",
     "clamp_max", "maximum", "minimum", "where", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or",
     "logical_not", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_not", "bitwise_xor", "sign", "floor",
     "ceil", "round", "trunc", "fmod", "remainder", "erf", "erfc", "isnan", "isinf", "isfinite", "lerp", "addcmul",
     "addcdiv", "copysign", "_to_copy", "clone", "alias", "detach", "lift_fresh_copy", "hypot", "sgn",
     "_prelu_kernel", "log_sigmoid", "xlogy", "logaddexp", "logaddexp2", "erfinv", "lgamma", "digamma", "complex",
     "polar", "angle", "_conj", "_conj_physical"]
)  # fmt: skip
NONLINEARITIES = frozenset(
    ["relu", "relu6", "gelu", "silu", "hardswish", "hardtanh", "leaky_relu", "elu", "celu", "selu", "mish",
     "softplus", "tanh", "prelu", "_prelu_kernel"]
)  # fmt: skip
LINEAR = frozenset(["linear", "convolution", "addmm", "mm", "matmul", "bmm"])
NORMS = frozenset(
    ["native_layer_norm", "native_group_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
     "_native_batch_norm_legit_functional"]
)  # fmt: skip
DROPOUTS = frozenset(["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"])


class NotCovered(Exception):
    """A rule exists, but not for this case."""


def state_layouts(demands: Demands, graphs: Sequence[Graph], tensors: dict[str, Tensor]) -> dict[str, Layout]:
    """Return the layout of every entry of the state dict before anything reads it; keys of one tensor share one.

    The weight of a grouped convolution gets, instead of one node per column, one per group and column: each group
    may order its own inputs. Integer buffers never move.
    """
    readers: dict[int, list[tuple[Node, Node]]] = {}
    for graph in graphs:
        for node in graph.nodes:
            if node.op == "placeholder" and node.name in graph.state:
                entry = tensors[graph.state[node.name]]
                readers.setdefault(id(entry), []).extend((user, node) for user in node.users)
    layouts: dict[int, Layout] = {}
    for tensor in tensors.values():
        if id(tensor) in layouts:
            continue
        shape = tuple(tensor.shape)
        groups = {_groups_of(user, node) for user, node in readers.get(id(tensor), [])}
        if not tensor.is_floating_point():
            layouts[id(tensor)] = rigid_layout(shape)
        elif len(groups) == 1 and (n := next(iter(groups))) > 1 and shape[1] > 1:
            layouts[id(tensor)] = grouped_layout(demands, shape, n)
        else:
            layouts[id(tensor)] = free_layout(demands, shape)
    return {key: layouts[id(tensor)] for key, tensor in tensors.items()}


def grouped_layout(demands: Demands, shape: tuple[int, ...], groups: int) -> Layout:
    """Return the layout of a weight whose rows come in groups, each group with its own columns."""
    rows = demands.fresh((shape[0],))
    columns = demands.fresh((groups, shape[1]))
    demands.place(rows)
    demands.place(columns)
    spread = np.repeat(columns, shape[0] // groups, axis=0)
    kernel = free_layout(demands, (1, 1, *shape[2:])).fields
    return Layout(shape, (Field((0,), rows), Field((0, 1), spread), *kernel))


def _groups_of(user: Node, weight: Node) -> int:
    if operation_name(user) == "convolution" and user.args[1] is weight and weight not in user.args[:1]:
        return cast(int, user.args[8])
    return 0


NAMESPACES = ("aten", "prims")
"""Namespaces of the operations with rules: an operation of another may have the same name and do something else."""


class Visitor:
    """Walks a graph once, collecting demands; `values` then holds the layout of every result."""

    def __init__(self, demands: Demands, graph: Graph, state: dict[str, Layout]) -> None:
        self.demands = demands
        self.graph = graph
        self.state = state
        self.values: dict[Node, Value] = {}
        self.known: dict[Node, Any] = {}  # results that depend on constants alone

    def run(self) -> None:
        """Visit every operation in order, then hold the outputs still."""
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node)
            elif node.op == "call_function":
                self._visit(node)
        for node, key in self.graph.mutations:
            combine(self.demands, [self.layout(node), self.state[key]], self.state[key].shape)
        for node in self.graph.results:
            freeze_all(self.demands, self.layout(node), "output")

    def _placeholder(self, node: Node) -> Layout:
        if node.name in self.graph.state:
            return self.state[self.graph.state[node.name]]
        if node.name in self.graph.constants:
            self.known[node] = self.graph.constants[node.name]
            return constant_layout(self.known[node])
        value = node.meta.get("val")
        return rigid_layout(value.shape) if isinstance(value, Tensor) else Layout((), ())

    def _visit(self, node: Node) -> None:
        name = operation_name(node)
        self.demands.here = place_of(node)
        if name.startswith("_assert"):
            return
        if name == "getitem":
            source, index = cast(tuple[Node, int], node.args)
            if source in self.known:
                self.known[node] = self.known[source][index]
            self.values[node] = cast(tuple[Layout, ...], self.values[source])[index]
            return
        if self._evaluate(node):
            return
        expected = _shapes(node.meta["val"])
        try:
            value = self._apply(name, node)
            found = [v.shape for v in (value if isinstance(value, tuple) else (value,))]
            if found != expected:
                raise NotCovered
        except NotCovered:
            value = self._give_up(node, expected)
        for layout in value if isinstance(value, tuple) else (value,):
            self.demands.register(layout)
        self.values[node] = value

    def _evaluate(self, node: Node) -> bool:
        """Compute what depends on constants alone; its value says where it is uniform."""
        target = cast(Any, node.target)
        if any(n not in self.known for n in node.all_input_nodes) or "empty" in operation_name(node):
            return False
        if torch.Tag.nondeterministic_seeded in target.tags:
            return False
        if sum(int(np.prod(s)) for s in _shapes(node.meta["val"])) > MAX_CONSTANT_NUMEL:
            return False
        result = target(*self._values_of(node.args), **self._values_of(node.kwargs))
        self.known[node] = result
        self.values[node] = (
            tuple(constant_layout(t) for t in cast(Sequence[Any], result))
            if isinstance(result, tuple | list)
            else constant_layout(result)
        )
        return True

    def _values_of(self, arguments: Any) -> Any:
        """Return the arguments of an operation with known results in place of nodes."""
        if isinstance(arguments, Node):
            return self.known[arguments]
        if isinstance(arguments, tuple | list):
            return [self._values_of(a) for a in cast(Sequence[Any], arguments)]
        if isinstance(arguments, dict):
            return {k: self._values_of(v) for k, v in cast(dict[str, Any], arguments).items()}
        return arguments

    def _give_up(self, node: Node, shapes: list[tuple[int, ...]]) -> Value:
        """Hold everything still that flows into an operation without a rule."""
        for source in node.all_input_nodes:
            value = self.values[source]
            for layout in value if isinstance(value, tuple) else (value,):
                freeze_all(self.demands, layout, f"flows into {place_of(node)}, which has no rule")
        results = tuple(rigid_layout(shape) for shape in shapes)
        return results if isinstance(node.meta["val"], tuple | list) else results[0]

    def layout(self, node: Any) -> Layout:
        value = self.values[node]
        if isinstance(value, tuple):
            raise NotCovered
        return value

    def solid(self, node: Any) -> Layout:
        """Return the layout of a single tensor with every product made into nodes."""
        value = self.layout(node)
        self.values[node] = value = solid(self.demands, value)
        return value

    def _tensors(self, args: Any) -> list[Layout]:
        return [self.layout(a) for a in args if isinstance(a, Node)]

    def _apply(self, name: str, node: Node) -> Value:
        if getattr(node.target, "namespace", "aten") not in NAMESPACES:
            raise NotCovered
        shape = _shapes(node.meta["val"])[0]
        empty = any(0 in self.layout(n).shape for n in node.all_input_nodes)
        # What is concatenated to nothing, as the first entry of a cache is, stays what it is.
        if 0 in shape or (empty and name != "cat"):
            raise NotCovered
        if name in ELEMENTWISE:
            return combine(self.demands, self._tensors([*node.args, *node.kwargs.values()]), shape)
        if name in DROPOUTS:
            return self._dropout(node, shape)
        rule = _RULES.get(name)
        if rule is None:
            raise NotCovered
        return rule(self, node)

    def _dropout(self, node: Node, shape: tuple[int, ...]) -> Value:
        x = self.layout(node.args[0])
        covered = {d for f in x.fields for d in f.dims}
        # Noise is not uniform where its input is.
        noise = [Field((d,), None) for d, n in enumerate(shape) if n > 1 and d not in covered]
        out = Layout(shape, (*x.fields, *noise))
        return (out, out) if isinstance(node.meta["val"], tuple) else out

    def freeze_dims(self, x: Layout, dims: Sequence[int], reason: str) -> Layout:
        """Return `freeze` with the place of the current operation in the reason."""
        return freeze(self.demands, x, dims, f"{reason} {self.demands.here}")


def constant_layout(value: Any) -> Layout:
    """Return the layout of a constant: rigid, and uniform along dimensions in which its value does not change."""
    if not isinstance(value, Tensor):
        return Layout((), ())
    varies = [d for d, n in enumerate(value.shape) if n > 1 and not bool((value == value.narrow(d, 0, 1)).all())]
    return Layout(tuple(value.shape), tuple(Field((d,), None) for d in varies))


def _shapes(value: Any) -> list[tuple[int, ...]]:
    if isinstance(value, tuple | list):
        return [s for v in cast(Sequence[Any], value) for s in _shapes(v)]
    return [tuple(value.shape)] if isinstance(value, Tensor) else [()]


def contract(demands: Demands, operands: Sequence[tuple[Layout, str]], out: str) -> Layout:
    """Return the layout of an einsum: a product over all letters, summed over those not in `out`. Sizes 1 broadcast."""
    letters = out + "".join(sorted({c for _, s in operands for c in s} - set(out)))
    size = {c: max(x.shape[s.index(c)] for x, s in operands if c in s) for c in letters}
    full: list[Layout] = []
    for x, s in operands:
        missing = [c for c in letters if c not in s]
        for c in missing:
            x, s = insert_dim(x, 0), c + s
        full.append(select_dims(x, [s.index(c) for c in letters]))
    product = combine(demands, full, [size[c] for c in letters])
    return reduce(demands, product, range(len(out), len(letters)), keepdim=False)


def against(demands: Demands, layout: Layout, dims: Sequence[int]) -> Layout:
    """Return the layout of each value set against a symmetric function of all values along `dims`."""
    total = reduce(demands, layout, dims, keepdim=True)
    return combine(demands, [layout, total], layout.shape)


ORDER = "its order matters to"
WINDOW = "a position under the window of"

Rule = Callable[[Visitor, Node], Value]
_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operations."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return register


def dimension(node: Node, position: int, default: int, n_dims: int) -> int:
    """Return the argument `dim` of an operation, counted from the front."""
    return cast(int, argument(node, position, "dim", default)) % n_dims


def argument(node: Node, position: int, name: str, default: Any) -> Any:
    """Return a positional or keyword argument of an operation."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def result_shape(node: Node) -> tuple[int, ...]:
    """Return the shape of the first result."""
    return _shapes(node.meta["val"])[0]


def spatial_from(visitor: Visitor, x: Layout, first: int) -> Layout:
    """Return the layout with dimensions `first` and on held still, as windows over them demand."""
    return visitor.freeze_dims(x, range(first, len(x.shape)), WINDOW)


def channel_nodes(visitor: Visitor, x: Layout, dim: int) -> tuple[Nodes, Layout]:
    """Return `dim_nodes` with the place of the current operation as the reason."""
    reason = "meets something that does not move in"
    return dim_nodes(visitor.demands, x, dim, f"{reason} {visitor.demands.here}")
