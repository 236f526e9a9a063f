"""Linear maps of a traced graph: products and convolutions with weights that do not depend on the input.

A map's result is its pre-activation, bias included, whether the bias is an argument of the operation or is added
behind it. Maps whose result becomes the output without another linear map on the way make the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from tasks.science.symmetry.tracing.graph import Graph, last_of_calls, module_of, operation_name, reached
from tasks.science.symmetry.tracing.operations import DROPOUTS, ELEMENTWISE

VIEWS = frozenset(
    ["view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "permute", "transpose", "t", "expand", "clone",
     "contiguous", "alias", "detach", "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "getitem"]
)  # fmt: skip
"""Operations that move values, and change none."""

PASSED = (
    VIEWS
    | ELEMENTWISE
    | DROPOUTS
    | {"sum", "mean", "amax", "amin", "max", "min", "median", "logsumexp"}
    | {"_softmax", "_log_softmax", "cat", "stack"}
)
"""Operations that logits may pass on their way to the output, beside pooling."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """One linear map.

    `result` holds the pre-activation, of `n_units` units along `dim`. `weight` and `bias` are the operations that make
    the two tensors; `units`, int64 and broadcastable to the weight's shape, is the unit of each of its entries.
    `keys`: the entries of the state dict that the weight is made of. `module`: the torch module whose call ends with
    the result. `fault`: why no rescaling of the weight can correct it, "" otherwise.
    """

    name: str
    op: Node
    result: Node
    dim: int
    n_units: int
    weight: Node
    units: Tensor
    bias: Node | None
    keys: tuple[str, ...]
    module: str | None
    fault: str = ""


def find_linear_maps(graph: Graph, network: nn.Module) -> list[LinearMap]:
    """Return every linear map of `graph`, that of `network`, in the order in which they run.

    Maps that make the logits are left out.
    A map that runs more than once is returned once, with a fault.
    """
    inner = reached(graph, frozenset())
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    roots = roots_of(graph)
    last = last_of_calls(graph)
    found: list[LinearMap] = []
    for node in graph.nodes:
        if node.op != "call_function" or node not in inner:
            continue
        one = _linear_map(node, inner)
        if one is None:
            continue
        keys = tuple(key for key in roots.get(one.weight, ()) if key in parameters)
        if not keys and one.weight not in inner:
            continue  # A fixed filter, which nobody trained.
        path, call = module_of(one.result)
        module = path if path and last[path, call] is one.result else None
        if not isinstance(network.get_submodule(module) if module else None, nn.Linear | _ConvNd):
            module = None
        name = module or _name_of(keys, path, node)
        found.append(replace(one, name=name, keys=keys, module=module))
    return _without_repeats(_without_logits(graph, found))


def roots_of(graph: Graph) -> dict[Node, tuple[str, ...]]:
    """Return the entries of the state dict that every operation without an input is made of."""
    inner = reached(graph, frozenset())
    roots: dict[Node, tuple[str, ...]] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in graph.state:
            roots[node] = (graph.state[node.name],)
        elif node.op == "call_function" and node not in inner:
            roots[node] = tuple(dict.fromkeys(key for n in node.all_input_nodes for key in roots.get(n, ())))
    return roots


def shape_of(node: Node) -> torch.Size:
    """Return the shape that an operation's result had in the trace, that of its first tensor where it has several."""
    value: Any = node.meta["val"]
    return (cast(tuple[Tensor, ...], value)[0] if isinstance(value, tuple | list) else value).shape


def _name_of(keys: tuple[str, ...], path: str, node: Node) -> str:
    """Return a weight's own name; the place of the operation where the weight is computed from the input."""
    if not keys:
        return f"{path}.{node.name}" if path else node.name
    return keys[0].removesuffix(".weight").removesuffix("_weight")


def _linear_map(node: Node, inner: set[Node]) -> LinearMap | None:
    """Return the linear map that an operation is, as yet without name and module; None where it is none."""
    name = operation_name(node)
    args: list[Any] = list(node.args)
    bias: Any = None
    fault = ""
    if name in ("linear", "convolution"):
        bias = args[2] if len(args) > 2 else node.kwargs.get("bias")
        weight = cast(Node, args[1])
        if weight in inner:
            if args[0] not in inner and name == "linear":
                return None
            fault = "its weight is computed from the input"
        elif args[0] not in inner:
            return None
        units, n_units = _units_of_convolution(node) if name == "convolution" else _units_along(weight, 0)
        dim = len(shape_of(args[0])) - len(shape_of(weight)) + 1 if name == "convolution" else -1
        if dim == 0:
            fault = "it reads a single image"
    elif name in ("matmul", "mm", "bmm", "mv", "addmm", "baddbmm"):
        if name in ("addmm", "baddbmm"):
            bias, *args = args
            if any(value != 1 for value in node.kwargs.values()):
                fault = "its bias or product is scaled"
        left, right = cast(tuple[Node, Node], args[:2])
        if (left in inner) == (right in inner):
            return None
        weight = left if right in inner else right
        other = right if right in inner else left
        shape = shape_of(weight)
        if len(shape) < 2 or len(shape_of(other)) < 2:
            units, n_units = torch.zeros([1] * len(shape), dtype=torch.int64), 1
            return LinearMap("", node, node, -1, n_units, weight, units, None, (), None, "its product is with a vector")
        if any(n > 1 for n in shape[:-2]):
            fault = "its weight is a batch of matrices"
        dim = -1 if weight is right else -2
        units, n_units = _units_along(weight, len(shape) + dim)
    else:
        return _written_out(node, inner)
    if isinstance(bias, Node) and bias in inner:
        bias, fault = None, fault or "it is added to another value in one operation"
    result, bias = (node, bias) if isinstance(bias, Node) else _with_added_bias(node, dim, n_units, inner)
    return LinearMap("", node, result, dim, n_units, weight, units, bias, (), None, fault)


def _written_out(node: Node, inner: set[Node]) -> LinearMap | None:
    """Return a product that is summed value by value, or of two inputs at once; None for anything else."""
    name = operation_name(node)
    product = node if name in ("bilinear", "_trilinear") else None
    if name == "sum" and operation_name(source := cast(Node, node.args[0])) == "mul":
        product = source
    if product is None or product not in inner:
        return None
    weight = next((a for a in product.args if isinstance(a, Node) and a not in inner), None)
    if weight is None or shape_of(weight).numel() < 2:
        return None
    n_units = shape_of(node)[-1] if shape_of(node) else 1
    units = torch.zeros([1] * len(shape_of(weight)), dtype=torch.int64)
    return LinearMap("", node, node, -1, n_units, weight, units, None, (), None, "its product is written out")


def _units_along(weight: Node, dim: int) -> tuple[Tensor, int]:
    shape = shape_of(weight)
    view = [1] * len(shape)
    view[dim] = -1
    return torch.arange(shape[dim]).view(view), shape[dim]


def _units_of_convolution(node: Node) -> tuple[Tensor, int]:
    """Return the units of the entries of a convolution's weight, and their number.

    A transposed convolution has its units, group by group, in dimension 1.
    """
    weight = cast(Node, node.args[1])
    if not node.args[6]:
        return _units_along(weight, 0)
    groups = cast(int, node.args[8])
    n_in, n_each, *kernel = shape_of(weight)
    group = torch.arange(n_in) // (n_in // groups)
    units = group[:, None] * n_each + torch.arange(n_each)
    return units.view(n_in, n_each, *[1] * len(kernel)), groups * n_each


def _with_added_bias(node: Node, dim: int, n_units: int, inner: set[Node]) -> tuple[Node, Node | None]:
    """Return the result with a bias that is added right behind, past views that keep the units last.

    Where none is added, return the result itself and None.
    """
    here = node
    while len(here.users) == 1:
        (user,) = here.users
        name = operation_name(user)
        if name == "add":
            others = [a for a in user.args if isinstance(a, Node) and a is not here]
            if len(others) == 1 and others[0] not in inner and not user.kwargs:
                offset = dim - len(shape_of(user)) if dim >= 0 else dim
                shape = shape_of(others[0])
                per_unit = len(shape) >= -offset and shape[offset] == n_units == shape.numel()
                if per_unit and shape_of(user) == shape_of(here):
                    return user, others[0]
            break
        if name not in ("view", "_unsafe_view", "reshape") or dim != -1 or shape_of(user)[-1] != n_units:
            break
        here = user
    return node, None


def _without_repeats(found: list[LinearMap]) -> list[LinearMap]:
    """Return one map with a fault for maps of one name; number those that read different parts of the weight."""
    out: list[LinearMap] = []
    for name, same in _grouped(found, lambda one: one.name).items():
        parts = {one.weight for one in same}
        if len(same) == 1:
            out += same
        elif len(parts) < len(same):
            out.append(replace(same[0], fault="it runs more than once"))
        else:
            out += [replace(one, name=name if i == 1 else f"{name}:{i}") for i, one in enumerate(same, 1)]
    return out


def _grouped(found: Iterable[LinearMap], key: Callable[[LinearMap], str]) -> dict[str, list[LinearMap]]:
    groups: dict[str, list[LinearMap]] = {}
    for one in found:
        groups.setdefault(key(one), []).append(one)
    return groups


def _without_logits(graph: Graph, found: list[LinearMap]) -> list[LinearMap]:
    """Return the maps less those that make the logits: the last ones on the way to the output."""
    by_op = {one.op: one for one in found}
    before = {one.op: _ancestors(one.op) for one in found}
    seen: set[Node] = set()
    waiting = list(graph.results)
    makers: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in by_op:
            makers.add(node)
        elif operation_name(node) in PASSED or "pool" in operation_name(node):
            waiting += node.all_input_nodes
    if not makers:
        behind = set[Node]().union(*(_ancestors(node) for node in graph.results))
        makers = {one.op for one in found if one.op in behind}
    makers = {op for op in makers if not any(op in before[other] for other in makers)}
    return [one for one in found if one.op not in makers]


def _ancestors(node: Node) -> set[Node]:
    found: set[Node] = set()
    waiting = [node]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found
