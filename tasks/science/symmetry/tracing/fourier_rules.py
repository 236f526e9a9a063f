"""Rules of Fourier transforms, and of complex numbers as pairs of real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch.fx import Node

from tasks.science.symmetry.tracing.layouts import Field, Layout
from tasks.science.symmetry.tracing.operations import ORDER, Value, Visitor, result_shape, rule


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def _fft(visitor: Visitor, node: Node) -> Value:
    """Hold the transformed dimensions still, whose positions differ; the others pass."""
    x, shape = visitor.solid(node.args[0]), result_shape(node)
    dims = {d % len(shape) for d in cast(Sequence[int], node.args[1])}
    x = visitor.freeze_dims(x, sorted(dims), ORDER)
    kept = [f for f in x.fields if not dims & set(f.dims)]
    return Layout(shape, (*kept, *(Field((d,), None) for d in sorted(dims) if shape[d] > 1)))


@rule("view_as_real")
def _as_real(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    return Layout((*x.shape, 2), (*x.fields, Field((len(x.shape),), None)))


@rule("view_as_complex")
def _as_complex(visitor: Visitor, node: Node) -> Value:
    x = visitor.solid(node.args[0])
    last = len(x.shape) - 1
    x = visitor.freeze_dims(x, [last], ORDER)
    return Layout(x.shape[:-1], tuple(f for f in x.fields if last not in f.dims))
