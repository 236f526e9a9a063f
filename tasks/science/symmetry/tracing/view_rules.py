"""Rules of the operations that move positions: views, selections and joins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
from torch.fx import Node

from tasks.science.symmetry.tracing.graph import operation_name
from tasks.science.symmetry.tracing.layouts import (
    Demands,
    Field,
    Layout,
    Nodes,
    alone,
    combine,
    insert_dim,
    select_dims,
    shifted,
)
from tasks.science.symmetry.tracing.operations import (
    NotCovered,
    Value,
    Visitor,
    argument,
    channel_nodes,
    dimension,
    result_shape,
    rule,
)
from tasks.science.symmetry.tracing.reshaping import reshape

# Views: positions change place, values do not.


@rule("view", "_unsafe_view", "reshape")
def _view(visitor: Visitor, node: Node) -> Value:
    x = visitor.layout(node.args[0])
    if math.prod(x.shape) != math.prod(result_shape(node)):
        raise NotCovered  # The bytes seen as another type.
    return reshape(visitor.demands, x, result_shape(node))


@rule("permute")
def _permute(visitor: Visitor, node: Node) -> Value:
    x = visitor.layout(node.args[0])
    return select_dims(x, [d % len(x.shape) for d in cast(Sequence[int], node.args[1])])


@rule("transpose")
def _transpose(visitor: Visitor, node: Node) -> Value:
    x = visitor.layout(node.args[0])
    order = list(range(len(x.shape)))
    a, b = cast(int, node.args[1]), cast(int, node.args[2])
    order[a], order[b] = order[b], order[a]
    return select_dims(x, order)


@rule("t")
def _t(visitor: Visitor, node: Node) -> Value:
    x = visitor.layout(node.args[0])
    return select_dims(x, list(range(len(x.shape)))[::-1])


@rule("expand")
def _expand(visitor: Visitor, node: Node) -> Value:
    return combine(visitor.demands, [visitor.layout(node.args[0])], result_shape(node))


@rule("unsqueeze")
def _unsqueeze(visitor: Visitor, node: Node) -> Value:
    x = visitor.layout(node.args[0])
    return insert_dim(x, cast(int, node.args[1]) % (len(x.shape) + 1))


@rule("squeeze")
def _squeeze(visitor: Visitor, node: Node) -> Value:
    return reshape(visitor.demands, visitor.layout(node.args[0]), result_shape(node))


@rule("repeat")
def _repeat(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    times = cast(Sequence[int], node.args[1])
    x = Layout((*(1,) * (len(times) - len(x.shape)), *x.shape), shifted(x, len(times) - len(x.shape)))
    wide = reshape(visitor.demands, x, [n for size in x.shape for n in (1, size)])
    copies = [n for pair in zip(times, x.shape, strict=True) for n in pair]
    return reshape(visitor.demands, combine(visitor.demands, [wide], copies), result_shape(node))


@rule("full_like", "zeros_like", "ones_like", "new_full", "new_zeros", "new_ones")
def _filled(visitor: Visitor, node: Node) -> Value:
    if any(isinstance(a, Node) for a in node.args[1:]):
        raise NotCovered
    return Layout(result_shape(node), ())


@rule("copy")
def _copy(visitor: Visitor, node: Node) -> Value:
    return combine(visitor.demands, [visitor.layout(node.args[1])], result_shape(node))


# Selections: which nodes arrive where.


def pick(demands: Demands, x: Layout, dim: int, index: Nodes) -> Layout:
    """Return the layout at positions `index` of one dimension, in that order, repeats allowed."""
    shape = (*x.shape[:dim], len(index), *x.shape[dim + 1 :])
    out: list[Field] = []
    for f in x.fields:
        if dim not in f.dims:
            out.append(f)
        elif len(index) == 1:
            # One position is left: it can no longer move. The place of size 1 says so.
            rest = tuple(d for d in f.dims if d != dim)
            if f.nodes is None:
                continue
            nodes = np.asarray(f.nodes.take(int(index[0]), axis=f.dims.index(dim)), np.int64)
            demands.place(nodes)
            if rest:
                out.append(Field(rest, nodes))
        elif f.nodes is None:
            out.append(f)
        else:
            axis = f.dims.index(dim)
            nodes = f.nodes.take(index, axis=axis)
            if len(np.unique(index)) < len(index):
                nodes = _told_apart(demands, nodes, axis, index)
            out.append(Field(f.dims, nodes))
    return Layout(shape, tuple(out))


def _told_apart(demands: Demands, nodes: Nodes, axis: int, index: Nodes) -> Nodes:
    """Return fresh nodes for positions that repeat a unit: which unit, and which of its copies."""
    copy = np.array([np.count_nonzero(index[:i] == v) for i, v in enumerate(index)], np.int64)
    fresh = demands.fresh(nodes.shape)
    demands.map(fresh, nodes)
    shape = [1] * nodes.ndim
    shape[axis] = len(index)
    demands.map(fresh, demands.tags(int(copy.max()) + 1)[copy].reshape(shape))
    return fresh


@rule("select")
def _select(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    dim = cast(int, node.args[1]) % len(x.shape)
    index = np.array([cast(int, node.args[2]) % x.shape[dim]])
    picked = pick(visitor.demands, x, dim, index)
    return select_dims(picked, [d for d in range(len(x.shape)) if d != dim])


@rule("slice")
def _slice(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    dim = dimension(node, 1, 0, len(x.shape))
    index = _numbers(x.shape[dim])[_slice_of(node, 2)]
    return x if len(index) == x.shape[dim] else pick(visitor.demands, x, dim, index)


def _numbers(n: int) -> Nodes:
    return np.arange(n, dtype=np.int64)


def _slice_of(node: Node, position: int) -> slice:
    return slice(
        argument(node, position, "start", None),
        argument(node, position + 1, "end", None),
        argument(node, position + 2, "step", 1),
    )


@rule("split_with_sizes", "split", "chunk", "unbind")
def _split(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    name = operation_name(node)
    dim = dimension(node, 1 if name == "unbind" else 2, 0, len(x.shape))
    shapes = [tuple(v.shape) for v in node.meta["val"]]
    parts: list[Layout] = []
    start = 0
    for shape in shapes:
        stop = start + (1 if name == "unbind" else shape[dim])
        part = pick(visitor.demands, x, dim, np.arange(start, stop))
        if name == "unbind":
            part = select_dims(part, [d for d in range(len(x.shape)) if d != dim])
        parts.append(part)
        start = stop
    return tuple(parts)


@rule("flip")
def _flip(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    for d in cast(Sequence[int], node.args[1]):
        x = pick(visitor.demands, x, d % len(x.shape), np.arange(x.shape[d])[::-1].copy())
    return x


@rule("roll")
def _roll(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    shifts = cast(Sequence[int], argument(node, 1, "shifts", []))
    dims = cast(Sequence[int], argument(node, 2, "dims", []))
    if not dims:
        raise NotCovered
    for shift, d in zip(shifts, dims, strict=True):
        x = pick(visitor.demands, x, d % len(x.shape), np.roll(np.arange(x.shape[d]), shift))
    return x


# Joins.


@rule("cat")
def _cat(visitor: Visitor, node: Node) -> Value:
    demands = visitor.demands
    parts = [p for a in cast(Sequence[Node], node.args[0]) if 0 not in (p := visitor.solid(a)).shape]
    dim = dimension(node, 1, 0, len(parts[0].shape))
    shape = result_shape(node)
    if len(parts) == 1:
        return parts[0]
    over = {f.dims for p in parts for f in p.touching([dim])}
    if len(over) == 1 and len(next(iter(over))) > 1:
        return _cat_joint(visitor, parts, dim, shape)
    # Where only some parts move jointly with other dimensions, all move on their own from here on.
    parts = [alone(visitor.demands, p, dim) for p in parts]
    rest = [Layout(_with(p.shape, dim, 1), tuple(f for f in p.fields if dim not in f.dims)) for p in parts]
    across = combine(demands, rest, _with(shape, dim, 1))
    own = [p.touching([dim]) for p in parts]
    if all(f and f[0].nodes is None for f in own) or (len({p.shape[dim] for p in parts}) == 1 == parts[0].shape[dim]):
        # Parts of size 1 follow each other in a fixed order.
        return Layout(shape, (*across.fields, Field((dim,), None)))
    nodes = _distinct(demands, [_part_nodes(demands, p, dim) for p in parts])
    return Layout(shape, (*across.fields, Field((dim,), np.concatenate(nodes))))


def _distinct(demands: Demands, parts: list[Nodes]) -> list[Nodes]:
    """Return the parts of a concatenation; where a node arrives in two of them, each part gets nodes of its own."""
    if len(np.unique(np.concatenate([p.ravel() for p in parts]))) < sum(p.size for p in parts):
        copies = [demands.fresh(p.shape) for p in parts]
        for k, (copy, part) in enumerate(zip(copies, parts, strict=True)):
            demands.map(copy, part)
            demands.map(copy, demands.tags(k + 1)[k].reshape((1,) * copy.ndim))
        parts = copies
    for part in parts:
        demands.place(part)
    return parts


def _part_nodes(demands: Demands, part: Layout, dim: int) -> Nodes:
    touched = part.touching([dim])
    if touched and touched[0].nodes is not None:
        return touched[0].nodes
    nodes = demands.fresh((part.shape[dim],))
    if touched:
        demands.fix(nodes, f"meets something that does not move in {demands.here}")
    return nodes


def _cat_joint(visitor: Visitor, parts: list[Layout], dim: int, shape: tuple[int, ...]) -> Value:
    """Join parts whose joined dimension moves together with others: all parts must agree on those others."""
    demands = visitor.demands
    over = tuple(sorted({d for p in parts for f in p.touching([dim]) for d in f.dims}))
    others = tuple(d for d in over if d != dim)
    if any(f.nodes is None or f.dims != over for p in parts for f in p.touching(over)):
        raise NotCovered
    rest = [Layout(_with(p.shape, dim, 1), tuple(f for f in p.fields if dim not in f.dims)) for p in parts]
    across = combine(demands, rest, _with(shape, dim, 1))
    parents = demands.fresh([shape[d] for d in others])
    axis = over.index(dim)
    pieces: list[Nodes] = []
    for part in parts:
        touched = part.touching(over)
        nodes = touched[0].nodes if touched else demands.fresh([part.shape[d] for d in over])
        assert nodes is not None
        demands.map(nodes, np.expand_dims(parents, axis))
        pieces.append(nodes)
    return Layout(shape, (*across.fields, Field(over, np.concatenate(_distinct(demands, pieces), axis))))


def _with(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])


@rule("constant_pad_nd")
def _pad(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    pads = cast(Sequence[int], node.args[1])
    for i in range(0, len(pads), 2):
        dim, low, high = len(x.shape) - 1 - i // 2, pads[i], pads[i + 1]
        if low == high == 0:
            continue
        size = x.shape[dim] + low + high
        touched = x.touching([dim])
        if min(low, high) < 0 or not touched or touched[0].dims != (dim,) or touched[0].nodes is None:
            x = visitor.freeze_dims(x, [dim], "is padded in")
            kept = [f for f in x.fields if dim not in f.dims]
            x = Layout(_with(x.shape, dim, size), (*kept, *([Field((dim,), None)] if size > 1 else [])))
            continue
        ends = [visitor.demands.fresh((n,)) for n in (low, high)]
        # All padding holds one value: those positions may mix among themselves.
        visitor.demands.place(np.concatenate(ends))
        nodes = np.concatenate([ends[0], touched[0].nodes, ends[1]])
        kept = [f for f in x.fields if dim not in f.dims]
        x = Layout(_with(x.shape, dim, size), (*kept, Field((dim,), nodes)))
    return x


@rule("slice_scatter", "select_scatter")
def _scatter(visitor: Visitor, node: Node) -> Value:
    demands = visitor.demands
    x, source = visitor.solid(node.args[0]), visitor.solid(node.args[1])
    dim = dimension(node, 2, 0, len(x.shape))
    if operation_name(node) == "select_scatter":
        index = _numbers(x.shape[dim])[[cast(int, node.args[3])]]
        source = insert_dim(source, dim)
    else:
        index = _numbers(x.shape[dim])[_slice_of(node, 3)]
    if len(index) == x.shape[dim]:
        return source
    for part in (x, source):
        if any(len(f.dims) > 1 for f in part.touching([dim])):
            raise NotCovered
    rest = [Layout(_with(p.shape, dim, 1), tuple(f for f in p.fields if dim not in f.dims)) for p in (x, source)]
    across = combine(demands, rest, _with(x.shape, dim, 1))
    target = x.touching([dim])
    own = source.touching([dim])
    if not any(f.nodes is not None for f in (*target, *own)):
        return Layout(x.shape, (*across.fields, Field((dim,), None)))
    nodes, _ = channel_nodes(visitor, x, dim)
    nodes = nodes.copy()
    outside = np.setdiff1d(_numbers(x.shape[dim]), index)
    demands.place(nodes[outside])
    if own:
        # A uniform source keeps the nodes of what it overwrites, so that overwritten entries move with their unit.
        nodes[index], _ = channel_nodes(visitor, source, dim)
    demands.place(nodes[index])
    return Layout(x.shape, (*across.fields, Field((dim,), nodes)))
