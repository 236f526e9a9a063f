"""Layouts after a reshape: a dimension that is cut yields a joint field, dimensions that merge join theirs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from tasks.science.symmetry.tracing.layouts import (
    MAX_JOINT_NODES,
    Demands,
    Field,
    Layout,
    Nodes,
    broadcast_nodes,
    freeze,
    joint,
    moving_nodes,
    select_dims,
)


def reshape(demands: Demands, layout: Layout, shape: Sequence[int]) -> Layout:
    """Return the layout after a row-major reshape."""
    shape = tuple(shape)
    if layout.shape == shape:
        return layout
    # Dimensions of size 1 carry nothing: drop them, reshape the rest, put the new ones back.
    squeezed = select_dims(layout, [d for d, n in enumerate(layout.shape) if n > 1])
    target = [n for n in shape if n > 1]
    current = squeezed
    for start, stop, first, last in reversed(_blocks(squeezed.shape, target)):
        current = _regroup(demands, current, start, stop, tuple(target[first:last]))
    places = [d for d, n in enumerate(shape) if n > 1]
    out = tuple(Field(tuple(places[d] for d in f.dims), f.held, f.product) for f in current.fields)
    return demands.register(Layout(shape, out))


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Return the smallest runs (old start, old stop, new start, new stop) of dimensions with equal products."""
    blocks: list[tuple[int, int, int, int]] = []
    i = j = 0
    while i < len(old):
        start, first, a, b = i, j, old[i], new[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
            else:
                b, j = b * new[j], j + 1
        blocks.append((start, i, first, j))
    return blocks


def _regroup(demands: Demands, layout: Layout, start: int, stop: int, sizes: tuple[int, ...]) -> Layout:
    """Replace the dimensions start..stop by `sizes` of equal product."""
    shape = (*layout.shape[:start], *sizes, *layout.shape[stop:])
    shift = len(sizes) - (stop - start)
    block = range(start, stop)
    touched = layout.touching(block)
    if (stop - start == 1 and len(sizes) == 1) or not touched:
        return Layout(shape, _shifted(layout.fields, stop, shift))
    rest = [f for f in layout.fields if not any(f is t for t in touched)]
    new_dims = tuple(range(start, start + len(sizes)))
    uniform = tuple(d for d in block if not any(d in f.dims for f in touched))
    if uniform and all(f.rigid for f in touched) and math.prod(layout.shape[d] for d in block) <= MAX_JOINT_NODES:
        # What is the same for all heads stays so where heads are merged with examples.
        free = Field(uniform, demands.fresh([layout.shape[d] for d in uniform]))
        touched = demands.register(Layout(layout.shape, (*touched, free))).touching(block)
    if all(f.rigid for f in touched):
        return Layout(shape, (*_shifted(rest, stop, shift), *(Field((d,), None) for d in new_dims)))
    dims = tuple(sorted({d for f in touched for d in f.dims} | set(block)))
    if math.prod(layout.shape[d] for d in dims) > MAX_JOINT_NODES:
        frozen = freeze(demands, layout, block, f"merged with too many positions in {demands.here}")
        others = [f for f in frozen.fields if not set(f.dims) & set(block)]
        return Layout(shape, (*_shifted(others, stop, shift), *(Field((d,), None) for d in new_dims)))
    before = [d for d in dims if d < start]
    after = [d for d in dims if d >= stop]
    grid = [*(layout.shape[d] for d in before), *sizes, *(layout.shape[d] for d in after)]
    out_dims = (*before, *new_dims, *(d + shift for d in after))
    product = _product(touched, dims, layout.shape)
    if product is not None:
        merged = _factors(out_dims, product[0].reshape(grid), product[1].reshape(grid))
    else:
        whole = joint(demands, touched, dims, layout.shape)
        assert whole.nodes is not None
        merged = [Field(out_dims, whole.nodes.reshape(grid))]
    return Layout(shape, (*_shifted(rest, stop, shift), *merged))


def _product(fields: Sequence[Field], dims: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Nodes, Nodes] | None:
    """Return units and tags over the grid of `dims` where one field moves and all others are rigid; else None."""
    moving = [f for f in fields if not f.rigid]
    if len(moving) != 1 or (len(fields) == 1 and not moving[0].product):
        return None
    if {d for f in fields for d in f.dims} != set(dims):
        return None
    grid = [shape[d] for d in dims]
    core, tag = moving[0].product or (moving_nodes(moving[0]), np.zeros_like(moving_nodes(moving[0])))
    core = np.broadcast_to(broadcast_nodes(core, moving[0].dims, dims), grid)
    tag = np.broadcast_to(broadcast_nodes(tag, moving[0].dims, dims), grid)
    for f in fields:
        if f.rigid:
            size = shape[f.dims[0]]
            tag = tag * size + broadcast_nodes(np.arange(size, dtype=np.int64), f.dims, dims)
    _, dense = np.unique(tag, return_inverse=True)
    return core, dense.reshape(grid).astype(np.int64)


def _factors(dims: tuple[int, ...], core: Nodes, tag: Nodes) -> list[Field]:
    """Take a product apart again where some dimensions hold the tag alone and the others the units alone."""
    axes = range(core.ndim)
    plain = [a for a in axes if bool((core == core.take([0], a)).all())]
    if plain and all(a in plain or bool((tag == tag.take([0], a)).all()) for a in axes):
        inner = tuple(0 if a in plain else slice(None) for a in axes)
        outer = tuple(slice(None) if a in plain else 0 for a in axes)
        units = core[inner]
        if len(np.unique(tag[outer])) == tag[outer].size and units.ndim and len(np.unique(units)) == units.size:
            rigid = [Field((dims[a],), None) for a in plain]
            return [*rigid, Field(tuple(dims[a] for a in axes if a not in plain), units)]
    return [Field(dims, None, (core, tag))]


def _shifted(fields: Iterable[Field], stop: int, shift: int) -> tuple[Field, ...]:
    return tuple(Field(tuple(d + shift if d >= stop else d for d in f.dims), f.held, f.product) for f in fields)
