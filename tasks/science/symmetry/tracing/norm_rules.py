"""Rules of the operations that set each value against others of its tensor, and of learned slopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch.fx import Node

from tasks.science.symmetry.tracing.graph import operation_name
from tasks.science.symmetry.tracing.layouts import Layout, combine, insert_dim, reduce
from tasks.science.symmetry.tracing.operations import NotCovered, Value, Visitor, against, rule
from tasks.science.symmetry.tracing.reshaping import reshape


@rule("_softmax", "_log_softmax", "_safe_softmax")
def _softmax(visitor: Visitor, node: Node) -> Value:
    x = visitor.layout(node.args[0])
    return against(visitor.demands, x, [cast(int, node.args[1])])


@rule("native_layer_norm")
def _layer_norm(visitor: Visitor, node: Node) -> Value:
    x = visitor.layout(node.args[0])
    dims = range(len(x.shape) - len(cast(Sequence[int], node.args[1])), len(x.shape))
    total = reduce(visitor.demands, x, dims, keepdim=True)
    affine = [visitor.layout(a) for a in node.args[2:4] if a is not None]
    out = combine(visitor.demands, [x, total, *affine], x.shape)
    return out, total, total


@rule("native_group_norm")
def _group_norm(visitor: Visitor, node: Node) -> Value:
    x = visitor.layout(node.args[0])
    groups = cast(int, node.args[6])
    cut = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    grouped = reshape(visitor.demands, x, cut)
    normal = reshape(visitor.demands, against(visitor.demands, grouped, range(2, len(cut))), x.shape)
    affine = [_as_channel(visitor.layout(a), len(x.shape)) for a in node.args[1:3] if a is not None]
    total = reduce(visitor.demands, grouped, range(2, len(cut)), keepdim=False)
    return combine(visitor.demands, [normal, *affine], x.shape), total, total


def _as_channel(vector: Layout, n_dims: int) -> Layout:
    for _ in range(n_dims - 2):
        vector = insert_dim(vector, 1)
    return vector


@rule("_native_batch_norm_legit_no_training")
def _batch_norm_eval(visitor: Visitor, node: Node) -> Value:
    x = visitor.layout(node.args[0])
    state = [_as_channel(visitor.layout(a), len(x.shape)) for a in node.args[1:5] if a is not None]
    none = Layout((0,), ())
    return combine(visitor.demands, [x, *state], x.shape), none, none


@rule("_native_batch_norm_legit_functional", "_native_batch_norm_legit")
def _batch_norm_training(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    functional = operation_name(node).endswith("functional")
    if not functional and isinstance(node.args[3], Node):
        raise NotCovered
    if functional and node.args[5] is not True:
        raise NotCovered
    dims = [d for d in range(len(x.shape)) if d != 1]
    total = reduce(visitor.demands, x, dims, keepdim=True)
    affine = [_as_channel(visitor.solid(a), len(x.shape)) for a in node.args[1:3] if a is not None]
    out = combine(visitor.demands, [x, total, *affine], x.shape)
    flat = reduce(visitor.demands, total, dims, keepdim=False)
    if not functional:
        return out, flat, flat
    running = [combine(visitor.demands, [flat, visitor.solid(a)], flat.shape) for a in node.args[3:5]]
    return out, flat, flat, *running


@rule("prelu")
def _prelu(visitor: Visitor, node: Node) -> Value:
    x, slope = visitor.layout(node.args[0]), visitor.layout(node.args[1])
    if slope.shape in ((), (1,)):
        return x
    return combine(visitor.demands, [x, _as_channel(slope, len(x.shape))], x.shape)
