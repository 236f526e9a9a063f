"""Rules of the operations that contract dimensions: products, attention, convolutions, and the windows of pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch.fx import Node

from tasks.science.symmetry.tracing.graph import operation_name
from tasks.science.symmetry.tracing.layouts import Field, Layout, Nodes, alone, combine, freeze, insert_dim
from tasks.science.symmetry.tracing.operations import (
    WINDOW,
    NotCovered,
    Value,
    Visitor,
    against,
    argument,
    channel_nodes,
    contract,
    result_shape,
    rule,
    spatial_from,
)
from tasks.science.symmetry.tracing.reshaping import reshape

KERNEL = "a position in a kernel"

_LETTERS = "abcdefghijklmnopqrstuvw"


@rule("linear")
def _linear(visitor: Visitor, node: Node) -> Value:
    x, weight = visitor.layout(node.args[0]), visitor.layout(node.args[1])
    if len(weight.shape) != 2:
        raise NotCovered
    batch = _LETTERS[: len(x.shape) - 1]
    out = contract(visitor.demands, [(x, batch + "x"), (weight, "yx")], batch + "y")
    bias = argument(node, 2, "bias", None)
    return out if bias is None else combine(visitor.demands, [out, visitor.layout(bias)], out.shape)


@rule("matmul", "mm", "bmm", "mv", "dot")
def _matmul(visitor: Visitor, node: Node) -> Value:
    return _matmul_layout(visitor, visitor.layout(node.args[0]), visitor.layout(node.args[1]))


def _matmul_layout(visitor: Visitor, x: Layout, y: Layout) -> Layout:
    n_batch = max(len(x.shape), len(y.shape), 2) - 2
    batch = _LETTERS[:n_batch]
    left = "y" if len(x.shape) == 1 else batch[n_batch - len(x.shape) + 2 :] + "xy"
    right = "y" if len(y.shape) == 1 else batch[n_batch - len(y.shape) + 2 :] + "yz"
    out = batch + ("x" if len(x.shape) > 1 else "") + ("z" if len(y.shape) > 1 else "")
    return contract(visitor.demands, [(x, left), (y, right)], out)


@rule("addmm", "baddbmm", "addmv")
def _addmm(visitor: Visitor, node: Node) -> Value:
    added, x, y = (visitor.layout(a) for a in node.args[:3])
    product = _matmul_layout(visitor, x, y)
    return combine(visitor.demands, [product, added], product.shape)


@rule("scaled_dot_product_attention")
def _attention(visitor: Visitor, node: Node) -> Value:
    q, k, v = (visitor.layout(a) for a in node.args[:3])
    demands = visitor.demands
    if argument(node, 5, "is_causal", False):
        q, k, v = (visitor.freeze_dims(t, [len(t.shape) - 2], "is masked by position in") for t in (q, k, v))
    if not len(q.shape) == len(k.shape) == len(v.shape):
        raise NotCovered
    if argument(node, 7, "enable_gqa", False):
        k, v = (_shared_heads(visitor, t, q.shape[-3]) for t in (k, v))
    batch = _LETTERS[: len(q.shape) - 2]
    scores = contract(demands, [(q, batch + "xz"), (k, batch + "yz")], batch + "xy")
    mask = argument(node, 3, "attn_mask", None)
    if mask is not None:
        scores = combine(demands, [scores, visitor.solid(mask)], scores.shape)
    weights = against(visitor.demands, scores, [-1])
    return contract(demands, [(weights, batch + "xy"), (v, batch + "yz")], batch + "xz")


def _shared_heads(visitor: Visitor, x: Layout, n: int) -> Layout:
    """Return keys or values with each head repeated for the query heads that share it."""
    dim = len(x.shape) - 3
    cut = (*x.shape[: dim + 1], n // x.shape[dim], *x.shape[dim + 1 :])
    repeated = combine(visitor.demands, [insert_dim(x, dim + 1)], cut)
    return reshape(visitor.demands, repeated, (*x.shape[:dim], n, *x.shape[dim + 1 :]))


@rule("_cdist_forward")
def _cdist(visitor: Visitor, node: Node) -> Value:
    x, y = visitor.layout(node.args[0]), visitor.layout(node.args[1])
    n_batch = max(len(x.shape), len(y.shape)) - 2
    batch = _LETTERS[:n_batch]
    rows = [(x, batch[n_batch - len(x.shape) + 2 :] + "xz"), (y, batch[n_batch - len(y.shape) + 2 :] + "yz")]
    return contract(visitor.demands, rows, batch + "xy")


@rule("_trilinear")
def _trilinear(visitor: Visitor, node: Node) -> Value:
    """Multiply three tensors, each stretched over its own dimensions, and sum over some."""
    parts: list[Layout] = []
    for tensor, stretched in zip(node.args[:3], node.args[3:6], strict=True):
        x = visitor.layout(tensor)
        for d in sorted(cast(Sequence[int], stretched)):
            x = insert_dim(x, d)
        parts.append(x)
    letters = _LETTERS[: len(parts[0].shape)]
    summed = cast(Sequence[int], node.args[6])
    kept = "".join(c for d, c in enumerate(letters) if d not in summed)
    return contract(visitor.demands, [(x, letters) for x in parts], kept)


# Convolutions.


@rule("convolution")
def _convolution(visitor: Visitor, node: Node) -> Value:
    demands = visitor.demands
    x, weight = visitor.solid(node.args[0]), visitor.solid(node.args[1])
    transposed, groups = cast(bool, node.args[6]), cast(int, node.args[8])
    channel = len(x.shape) - len(weight.shape) + 1  # 0 without a batch dimension
    windows = _windows(node, weight.shape, channel)
    x = visitor.freeze_dims(x, windows, WINDOW)
    weight = _frozen_kernel(visitor, weight)
    x = alone(visitor.demands, x, channel)
    inner, x = channel_nodes(visitor, x, channel)
    if groups == 1:
        first, second = _columns(visitor, weight, 0), _columns(visitor, weight, 1)
        rows, columns = (second, first) if transposed else (first, second)
        demands.tie(inner, columns)
    else:
        rows = _grouped_rows(visitor, weight, inner, groups, transposed)
    shape = result_shape(node)
    rest = [f for f in x.fields if not {channel, *windows} & set(f.dims)]
    space = [Field((d,), None) for d in windows if shape[d] > 1]
    out = Layout(shape, (*rest, *([Field((channel,), rows)] if len(rows) > 1 else []), *space))
    demands.place(rows)
    bias = node.args[2]
    if bias is None:
        return out
    column = visitor.solid(bias)
    for _ in range(len(shape) - channel - 1):
        column = insert_dim(column, len(column.shape))
    return combine(demands, [out, column], shape)


def _windows(node: Node, weight: tuple[int, ...], channel: int) -> list[int]:
    """Return the dimensions along which positions meet, are skipped or are added; others are read one by one."""
    plain = [(weight[2:], 1), (node.args[3], 1), (node.args[4], 0), (node.args[7], 0)]
    sizes = [(cast(Sequence[int], values), alone) for values, alone in plain]
    return [channel + 1 + i for i in range(len(weight) - 2) if any(v[i % len(v)] != alone for v, alone in sizes)]


def _frozen_kernel(visitor: Visitor, weight: Layout) -> Layout:
    kernel = [f for f in weight.fields if f.nodes is not None and max(f.dims) >= 2]
    if all(min(f.dims) >= 2 for f in kernel):
        for f in kernel:
            assert f.nodes is not None
            visitor.demands.fix(f.nodes, KERNEL)
        rest = tuple(f for f in weight.fields if max(f.dims) < 2)
        return Layout(weight.shape, (*rest, *(Field((d,), None) for d in range(2, len(weight.shape)))))
    return freeze(visitor.demands, weight, range(2, len(weight.shape)), KERNEL)


def _columns(visitor: Visitor, weight: Layout, dim: int) -> Nodes:
    return channel_nodes(visitor, alone(visitor.demands, weight, dim), dim)[0]


def _grouped_rows(visitor: Visitor, weight: Layout, inner: Nodes, groups: int, transposed: bool) -> Nodes:
    """Return the output channels of a grouped convolution; whole groups move, and channels within a group.

    Weight: (n_out, n_in / groups, ...), transposed (n_in, n_out / groups, ...); its rows are those of dimension 0.
    """
    demands = visitor.demands
    own = [f for f in weight.fields if f.dims == (0, 1)]
    if own:
        assert own[0].nodes is not None
        by_group = own[0].nodes.reshape(groups, -1, weight.shape[1])
        if (by_group != by_group[:, :1]).any():
            # Not one order of columns for each group, as `grouped_layout` has it: a weight that is computed.
            weight = alone(demands, weight, 0)
            own = []
    rows = channel_nodes(visitor, Layout(weight.shape, tuple(f for f in weight.fields if f not in own)), 0)[0]
    n_columns = weight.shape[1]
    if own:
        assert own[0].nodes is not None
        columns = own[0].nodes[:: len(rows) // groups]
    elif n_columns == 1:
        columns = None
    else:
        columns = demands.fresh((groups, n_columns))
        demands.map(columns, _columns(visitor, weight, 1))
    rows = rows.reshape(groups, -1)
    if transposed:
        demands.tie(inner, rows)
        if columns is None:
            if rows.shape[1] == 1:
                return inner
            columns = demands.fresh((groups, 1))
    elif columns is None:
        # Depthwise: the input channel itself is the group.
        if rows.shape[1] == 1:
            demands.tie(inner, rows)
        else:
            demands.map(rows, inner.reshape(groups, 1))
        return rows.ravel()
    else:
        demands.tie(inner, columns)
    parents = demands.fresh((groups, 1))
    demands.map(rows, parents)
    demands.map(columns, parents)
    return columns.ravel() if transposed else rows.ravel()


# Windows, pooling and resampling: positions under a window stay, channels pass.


@rule(
    *(f"{kind}{n}d" for kind in ("avg_pool", "_adaptive_avg_pool", "adaptive_avg_pool") for n in (1, 2, 3)),
    *(f"{kind}{n}d" for kind in ("adaptive_max_pool", "upsample_nearest") for n in (1, 2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa",
    "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
)  # fmt: skip
def _window(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    n_spatial = next(int(c) for c in operation_name(node) if c in "123")
    first = len(x.shape) - n_spatial
    x = spatial_from(visitor, x, first)
    shape = result_shape(node)
    space = [Field((d,), None) for d in range(first, len(shape)) if shape[d] > 1]
    out = Layout(shape, (*(f for f in x.fields if max(f.dims) < first), *space))
    return (out,) * len(cast(Sequence[Any], node.meta["val"])) if isinstance(node.meta["val"], tuple | list) else out


@rule("grid_sampler_2d", "grid_sampler_3d")
def _grid_sample(visitor: Visitor, node: Node) -> Value:
    """Read values at the places that a grid names, one grid for each example; channels pass."""
    x, grid = visitor.solid(node.args[0]), visitor.solid(node.args[1])
    x = spatial_from(visitor, x, 2)
    # Places may be in any order; their coordinates may not. One place stands in for all channels.
    n_places = len(grid.shape) - 2
    grid = visitor.freeze_dims(grid, [len(grid.shape) - 1], "is a coordinate of")
    places = Layout(grid.shape[:-1], tuple(f for f in grid.fields if max(f.dims) < len(grid.shape) - 1))
    out = Layout((*x.shape[:2], *(1,) * n_places), tuple(f for f in x.fields if max(f.dims) < 2))
    return combine(visitor.demands, [out, insert_dim(places, 1)], result_shape(node))


@rule("im2col")
def _im2col(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    if len(x.shape) != 4:
        raise NotCovered
    x = spatial_from(visitor, x, 2)
    shape = result_shape(node)
    cut = (shape[0], x.shape[1], shape[1] // x.shape[1], shape[2])
    space = [Field((d,), None) for d in (2, 3) if cut[d] > 1]
    kept = [f for f in x.fields if max(f.dims) < 2]
    return reshape(visitor.demands, Layout(cut, (*kept, *space)), shape)
