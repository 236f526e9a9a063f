"""Rules of reductions, and of the operations that put the values along a dimension in order or add them up in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch.fx import Node

from tasks.science.symmetry.tracing.graph import operation_name
from tasks.science.symmetry.tracing.layouts import Field, Layout, reduce
from tasks.science.symmetry.tracing.operations import (
    ORDER,
    NotCovered,
    Value,
    Visitor,
    argument,
    dimension,
    result_shape,
    rule,
)


@rule("sum", "mean", "amax", "amin", "prod", "any", "all", "var", "var_mean", "std", "nansum", "logsumexp")
def _reduction(visitor: Visitor, node: Node) -> Value:
    x = visitor.layout(node.args[0])
    out = reduce(visitor.demands, x, _dims(node, 1, len(x.shape)), _keepdim(node, 2))
    return (out, out) if isinstance(node.meta["val"], tuple | list) else out


@rule("linalg_vector_norm", "norm")
def _norm(visitor: Visitor, node: Node) -> Value:
    x = visitor.layout(node.args[0])
    return reduce(visitor.demands, x, _dims(node, 2, len(x.shape)), _keepdim(node, 3))


@rule("argmax", "argmin")
def _position(visitor: Visitor, node: Node) -> Value:
    x = visitor.layout(node.args[0])
    dims = _dims(node, 1, len(x.shape))
    return reduce(visitor.demands, visitor.freeze_dims(x, dims, ORDER), dims, _keepdim(node, 2))


@rule("max", "min", "median", "nanmedian", "mode", "kthvalue")
def _chosen(visitor: Visitor, node: Node) -> Value:
    """Take one value of each row, the same in any order of the row, and its index, which depends on the order."""
    x = visitor.layout(node.args[0])
    if not isinstance(node.meta["val"], tuple | list):
        if len(node.args) > 1:
            raise NotCovered  # Two tensors.
        return reduce(visitor.demands, x, range(len(x.shape)), keepdim=False)
    first = 2 if operation_name(node) == "kthvalue" else 1
    default = -1 if operation_name(node) in ("mode", "kthvalue") else 0
    dims = [dimension(node, first, default, max(len(x.shape), 1))]
    if _indices_used(node) and x.shape:
        x = visitor.freeze_dims(x, dims, ORDER)
    out = reduce(visitor.demands, x, dims, _keepdim(node, first + 1))
    return out, out


@rule("sort", "topk")
def _ordered(visitor: Visitor, node: Node) -> Value:
    """Put values in their own order, which hides that of the row; their indices show it."""
    x = visitor.solid(node.args[0])
    if not x.shape:
        raise NotCovered
    is_topk = operation_name(node) == "topk"
    dim = dimension(node, 2 if is_topk else 1, -1, len(x.shape))
    if _indices_used(node) or (is_topk and not argument(node, 4, "sorted", True)):
        x = visitor.freeze_dims(x, [dim], ORDER)
    shape = result_shape(node)
    rest = reduce(visitor.demands, x, [dim], keepdim=True)
    own = [Field((dim,), None)] if shape[dim] > 1 else []
    out = Layout(shape, (*rest.fields, *own))
    return out, out


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
def _scan(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    if not x.shape:
        raise NotCovered
    x = visitor.freeze_dims(x, [dimension(node, 1, -1, len(x.shape))], ORDER)
    return (x, x) if isinstance(node.meta["val"], tuple | list) else x


def _indices_used(node: Node) -> bool:
    """Return whether anything reads the second result."""
    return any(user.users for user in node.users if operation_name(user) != "getitem" or user.args[1] == 1)


def _dims(node: Node, position: int, n_dims: int) -> list[int]:
    dims: Any = argument(node, position, "dim", None)
    if dims is None or dims == []:
        return list(range(n_dims))
    return [d % max(n_dims, 1) for d in ([dims] if isinstance(dims, int) else cast(Sequence[int], dims))]


def _keepdim(node: Node, position: int) -> bool:
    if operation_name(node) in ("var", "var_mean", "std"):
        return bool(node.kwargs.get("keepdim", False))
    return bool(argument(node, position, "keepdim", False))
