"""Rules of the operations that read or write at positions which a tensor names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch.fx import Node

from tasks.science.symmetry.tracing.graph import operation_name
from tasks.science.symmetry.tracing.layouts import (
    Field,
    Layout,
    combine,
    freeze_all,
    insert_dim,
    reduce,
    rigid_layout,
    shifted,
)
from tasks.science.symmetry.tracing.operations import (
    ORDER,
    WINDOW,
    NotCovered,
    Value,
    Visitor,
    argument,
    result_shape,
    rule,
)
from tasks.science.symmetry.tracing.view_rules import pick

INDEXED = "is indexed by position in"


@rule("index_select")
def _index_select(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    return _indexed(visitor, x, cast(int, node.args[1]) % len(x.shape), cast(Node, node.args[2]))


@rule("index")
def _index(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    used = _used(node)
    if len(used) == 1:
        return _indexed(visitor, x, *used[0])
    where, grid = _grid(visitor, node)
    dims = [d for d, _ in used]
    kept = [d for d in range(len(x.shape)) if d not in dims]
    x = visitor.freeze_dims(x, dims, INDEXED)
    fields = [f for f in x.fields if not set(dims) & set(f.dims)]
    out = [Field(tuple(_place(d, kept, where, len(grid)) for d in f.dims), f.nodes) for f in fields]
    out.extend(Field((where + i,), None) for i, n in enumerate(grid) if n > 1)
    return Layout(result_shape(node), tuple(out))


def _used(node: Node) -> list[tuple[int, Node]]:
    """Return the dimensions that are indexed, each with its index tensor."""
    return [(d, i) for d, i in enumerate(cast(Sequence[Any], node.args[1])) if i is not None]


def _grid(visitor: Visitor, node: Node) -> tuple[int, tuple[int, ...]]:
    """Return the place of jointly indexed dimensions in the result, and their sizes.

    They take the place of the dimensions that they index, or stand in front where those are not next to each other.
    """
    used = _used(node)
    for _, index in used:
        if "bool" in str(index.meta["val"].dtype):
            raise NotCovered
        # Their values are fixed numbers: they mean fixed positions.
        freeze_all(visitor.demands, visitor.solid(index), f"is an index of {visitor.demands.here}")
    dims = [d for d, _ in used]
    together = dims[-1] - dims[0] == len(dims) - 1
    return dims[0] if together else 0, np.broadcast_shapes(*(visitor.solid(i).shape for _, i in used))


def _place(dim: int, kept: list[int], where: int, n: int) -> int:
    """Return the place of a dimension that is not indexed, `n` dimensions of indices being at `where`."""
    rank = kept.index(dim)
    return rank if rank < where else rank + n


def _indexed(visitor: Visitor, x: Layout, dim: int, index: Node) -> Layout:
    """Return the layout of one dimension indexed by a tensor; a constant index moves units to known places."""
    value = visitor.known.get(index)
    shape = visitor.solid(index).shape
    if (
        value is not None
        and value.dtype.is_floating_point is False
        and value.ndim == 1
        and str(value.dtype) != "torch.bool"
    ):
        return pick(visitor.demands, x, dim, value.numpy().astype(np.int64) % x.shape[dim])
    # The values of the index are fixed numbers: they mean fixed positions.
    freeze_all(visitor.demands, visitor.solid(index), f"is an index of {visitor.demands.here}")
    if "bool" in str(index.meta["val"].dtype):
        raise NotCovered
    frozen = visitor.freeze_dims(x, [dim], INDEXED)
    kept = [f for f in frozen.fields if dim not in f.dims]
    grow = len(shape) - 1
    out = [Field(tuple(d + grow if d > dim else d for d in f.dims), f.nodes) for f in kept]
    out.extend(Field((dim + i,), None) for i, n in enumerate(shape) if n > 1)
    return Layout((*x.shape[:dim], *shape, *x.shape[dim + 1 :]), tuple(out))


@rule("embedding")
def _embedding(visitor: Visitor, node: Node) -> Value:
    table, index = visitor.solid(node.args[0]), visitor.solid(node.args[1])
    freeze_all(visitor.demands, index, f"is an index of {visitor.demands.here}")
    table = visitor.freeze_dims(table, [0], INDEXED)
    columns = [Field((len(index.shape),), f.nodes) for f in table.fields if 0 not in f.dims]
    return Layout(result_shape(node), (*rigid_layout(index.shape).fields, *columns))


@rule("gather")
def _gather(visitor: Visitor, node: Node) -> Value:
    """Take values row by row at the indexed positions: a row is read whole, an index moves as it does."""
    x, index = visitor.solid(node.args[0]), visitor.solid(node.args[2])
    if not x.shape or not index.shape:
        raise NotCovered
    dim = cast(int, node.args[1]) % len(x.shape)
    if _without(x.shape, dim) != _without(index.shape, dim):
        raise NotCovered
    return combine(visitor.demands, [_rows(visitor, x, dim, INDEXED), index], index.shape)


@rule("scatter", "scatter_add", "scatter_reduce")
def _scatter(visitor: Visitor, node: Node) -> Value:
    """Write values row by row at the indexed positions, or join them there in any order."""
    x, index = visitor.solid(node.args[0]), visitor.solid(node.args[2])
    if not x.shape or "reduce" in node.kwargs:
        raise NotCovered
    dim = cast(int, node.args[1]) % len(x.shape)
    written = [index] + ([visitor.solid(node.args[3])] if isinstance(node.args[3], Node) else [])
    shapes = {w.shape for w in written}
    if len(shapes) > 1 or _without(x.shape, dim) != _without(index.shape, dim):
        raise NotCovered
    pairs = combine(visitor.demands, written, index.shape)
    # Of several values at one position the last one is kept.
    if operation_name(node) == "scatter" and len(written) > 1:
        pairs = visitor.freeze_dims(pairs, [dim], ORDER)
    pairs = reduce(visitor.demands, pairs, [dim], keepdim=True)
    return combine(visitor.demands, [visitor.freeze_dims(x, [dim], INDEXED), pairs], x.shape)


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], *shape[dim + 1 :])


def _rows(visitor: Visitor, x: Layout, dim: int, reason: str) -> Layout:
    """Return the layout that a function of whole rows along `dim` reads: size 1 along it."""
    return reduce(visitor.demands, visitor.freeze_dims(x, [dim], reason), [dim], keepdim=True)


@rule("index_add", "index_copy")
def _index_add(visitor: Visitor, node: Node) -> Value:
    """Write slices at the indexed positions, or join them there in any order."""
    x, index = visitor.solid(node.args[0]), visitor.solid(node.args[2])
    source = visitor.solid(node.args[3])
    if not x.shape or len(index.shape) != 1 or len(source.shape) != len(x.shape):
        raise NotCovered
    dim = cast(int, node.args[1]) % len(x.shape)
    for _ in range(len(x.shape) - dim - 1):
        index = insert_dim(index, len(index.shape))
    pairs = combine(visitor.demands, [source, index], source.shape)
    if operation_name(node) == "index_copy":
        pairs = visitor.freeze_dims(pairs, [dim], ORDER)
    pairs = reduce(visitor.demands, pairs, [dim], keepdim=True)
    return combine(visitor.demands, [visitor.freeze_dims(x, [dim], INDEXED), pairs], x.shape)


@rule("index_put")
def _index_put(visitor: Visitor, node: Node) -> Value:
    """Write or add values at the positions that index tensors name together."""
    x, values = visitor.solid(node.args[0]), visitor.solid(node.args[2])
    used = _used(node)
    if len(used) == 1 and used[0][0] == 0 and "bool" in str(used[0][1].meta["val"].dtype):
        return _masked(visitor, x, visitor.solid(used[0][1]), values)
    where, grid = _grid(visitor, node)
    dims = [d for d, _ in used]
    kept = [d for d in range(len(x.shape)) if d not in dims]
    written = [x.shape[d] for d in kept]
    written[where:where] = grid
    shift = len(written) - len(values.shape)
    if shift < 0:
        raise NotCovered
    spread = Layout((*(1,) * shift, *values.shape), shifted(values, shift))
    over = range(where, where + len(grid))
    spread = visitor.freeze_dims(spread, [d for d in over if spread.shape[d] > 1], ORDER)
    back = {_place(d, kept, where, len(grid)): d for d in kept}
    rest = [f for f in spread.fields if not set(f.dims) & set(over)]
    slices = [Field(tuple(back[d] for d in f.dims), f.nodes) for f in rest]
    sizes = tuple(1 if d in dims else spread.shape[_place(d, kept, where, len(grid))] for d in range(len(x.shape)))
    return combine(visitor.demands, [visitor.freeze_dims(x, dims, INDEXED), Layout(sizes, tuple(slices))], x.shape)


def _masked(visitor: Visitor, x: Layout, mask: Layout, values: Layout) -> Layout:
    """Write one value, or one for each position behind the mask's, where a mask is true."""
    n_behind = len(x.shape) - len(mask.shape)
    # A list of values is written in the order of the true positions.
    if n_behind < 0 or len(values.shape) > n_behind:
        raise NotCovered
    for _ in range(n_behind):
        mask = insert_dim(mask, len(mask.shape))
    return combine(visitor.demands, [x, mask, values], x.shape)


@rule("unfold")
def _unfold(visitor: Visitor, node: Node) -> Value:
    """Lay out the windows of one dimension, their positions in a new last one."""
    x, shape = visitor.solid(node.args[0]), result_shape(node)
    if not x.shape:
        raise NotCovered
    dim = cast(int, node.args[1]) % len(x.shape)
    x = visitor.freeze_dims(x, [dim], WINDOW)
    kept = [f for f in x.fields if dim not in f.dims]
    return Layout(shape, (*kept, *(Field((d,), None) for d in (dim, len(shape) - 1) if shape[d] > 1)))


@rule("_embedding_bag")
def _embedding_bag(visitor: Visitor, node: Node) -> Value:
    """Join rows of a table at given indices bag by bag; the other results serve its gradient."""
    table = visitor.solid(node.args[0])
    given = [node.args[1], node.args[2], argument(node, 6, "per_sample_weights", None)]
    for tensor in (visitor.solid(a) for a in given if a is not None):
        freeze_all(visitor.demands, tensor, f"is an index of {visitor.demands.here}")
    if any(user.users for user in node.users if operation_name(user) != "getitem" or user.args[1] != 0):
        raise NotCovered
    table = visitor.freeze_dims(table, [0], INDEXED)
    results = [rigid_layout(tuple(v.shape)) for v in node.meta["val"]]
    shape = results[0].shape
    bags = [Field((0,), None)] if shape[0] > 1 else []
    return Layout(shape, (*bags, *(f for f in table.fields if 0 not in f.dims))), *results[1:]
