"""Layouts: the movement of a tensor's entries when hidden units are permuted, and the demands of operations on it.

A *node* is a number that stands for one movable thing: a unit, or a position whose movement follows from units. A
*layout* says, for one tensor, which node sits at each position. It is a set of *fields*: a field covers some
dimensions and holds one node per position of their grid. A dimension in no field is *uniform* (all its positions hold
equal values, so that nothing can move it visibly); a field without nodes is *rigid* (its positions never move). A
permutation of the nodes acts on a tensor by sending the position of a node to the position of its image.

An operation is described by what makes it commute with that action. There are three kinds of demand, all collected in
`Demands` and solved later (`solver.py`):

* a *tie*: two nodes move as one (the channels of a sum);
* a *map*: an assignment child -> parent that every permutation respects (the channels of a head stay in one head);
* a *place*: a set of nodes that goes to itself (the positions of a dimension, each holding one node).

Rigid nodes are nodes that stay where they are. Ops that keep a dimension apart from others (a reduction, a batched
product) split a joint field by giving the kept dimensions nodes of their own, with a map from the old nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Nodes = NDArray[np.int64]

# A joint field of more nodes than this is not built: the dimensions at stake are held still instead.
MAX_JOINT_NODES = 1 << 20


@dataclass(frozen=True, eq=False)
class Field:
    """Nodes over the grid of `dims` (ascending), shape (size of each dim,); rigid single dimensions hold None.

    A *product* says the same without nodes of its own: the position is a unit (`product[0]`) times a rigid tag
    (`product[1]`), as where a batch dimension is merged with heads. It is turned into nodes only where it must be.
    """

    dims: tuple[int, ...]
    held: Nodes | None
    product: tuple[Nodes, Nodes] | None = None

    @property
    def nodes(self) -> Nodes | None:
        """The nodes, None where rigid; a product has to be made `solid` first."""
        if self.product is not None:
            raise RuntimeError("this field is a product and has no nodes yet")
        return self.held

    @property
    def rigid(self) -> bool:
        """True where no position of the field moves."""
        return self.held is None and self.product is None


@dataclass(frozen=True, eq=False)
class Layout:
    """The fields of a tensor of this shape; a dimension in no field is uniform. Dimensions of size 1 have no field."""

    shape: tuple[int, ...]
    fields: tuple[Field, ...]

    def touching(self, dims: Iterable[int]) -> list[Field]:
        """Return the fields that cover at least one of these dimensions."""
        wanted = set(dims)
        return [f for f in self.fields if wanted & set(f.dims)]


@dataclass(eq=False)
class Demands:
    """Everything that a permutation of the nodes must respect; grows while operations are visited."""

    n_nodes: int = 0
    ties: list[tuple[Nodes, Nodes]] = field(default_factory=list[tuple[Nodes, Nodes]])
    maps: list[tuple[Nodes, Nodes]] = field(default_factory=list[tuple[Nodes, Nodes]])
    places: list[Nodes] = field(default_factory=list[Nodes])
    rigid: list[tuple[Nodes, str]] = field(default_factory=list[tuple[Nodes, str]])
    here: str = ""  # the operation being visited, for reasons
    _tags: Nodes = field(default_factory=lambda: np.empty(0, np.int64))
    _seen: set[int] = field(default_factory=set[int])

    def fresh(self, shape: Sequence[int]) -> Nodes:
        """Return new nodes without any demand on them."""
        size = math.prod(shape)
        nodes = np.arange(self.n_nodes, self.n_nodes + size, dtype=np.int64).reshape(tuple(shape))
        self.n_nodes += size
        return nodes

    def tags(self, size: int) -> Nodes:
        """Return rigid nodes 0..size-1, the same at every call: a map into them tells positions apart."""
        if size > len(self._tags):
            more = self.fresh((max(size, 64) - len(self._tags),))
            self.rigid.append((more, "tag"))
            self._tags = np.concatenate([self._tags, more])
        return self._tags[:size]

    def tie(self, first: Nodes, second: Nodes) -> None:
        """Demand that two arrays of nodes move as one, position by position."""
        if first is not second:
            self.ties.append((first.ravel(), second.ravel()))

    def map(self, children: Nodes, parents: Nodes) -> None:
        """Demand that children of one parent go to children of one parent; shapes broadcast."""
        self.maps.append((children.ravel(), np.broadcast_to(parents, children.shape).ravel()))

    def fix(self, nodes: Nodes, reason: str) -> None:
        """Demand that these nodes do not move."""
        self.rigid.append((nodes.ravel(), reason))

    def place(self, nodes: Nodes) -> None:
        """Demand that the set of these nodes goes to itself, each standing at one position."""
        if id(nodes) not in self._seen:
            self._seen.add(id(nodes))
            self.places.append(nodes)

    def register(self, layout: Layout) -> Layout:
        """Record every field of a tensor as a place."""
        for f in layout.fields:
            if f.held is not None:
                self.place(f.held)
        return layout


def solid(demands: Demands, layout: Layout) -> Layout:
    """Return the same layout with nodes of their own for products."""
    if not any(f.product for f in layout.fields):
        return layout
    return demands.register(Layout(layout.shape, tuple(_solid(demands, f) for f in layout.fields)))


def _solid(demands: Demands, f: Field) -> Field:
    if f.product is None:
        return f
    core, tag = f.product
    nodes = demands.fresh(core.shape)
    demands.map(nodes, core)
    demands.map(nodes, demands.tags(int(tag.max()) + 1)[tag])
    return Field(f.dims, nodes)


def rigid_layout(shape: Sequence[int]) -> Layout:
    """Return the layout of a tensor that does not move."""
    return Layout(tuple(shape), tuple(Field((d,), None) for d, n in enumerate(shape) if n > 1))


def free_layout(demands: Demands, shape: Sequence[int]) -> Layout:
    """Return a layout in which every dimension may move on its own, as in a parameter that nothing has read yet."""
    fields = tuple(Field((d,), demands.fresh((n,))) for d, n in enumerate(shape) if n > 1)
    return demands.register(Layout(tuple(shape), fields))


def broadcast_nodes(nodes: Nodes, dims: tuple[int, ...], onto: tuple[int, ...]) -> Nodes:
    """Return nodes over `dims` as a view that broadcasts over the grid of `onto`."""
    shape = [1] * len(onto)
    for axis, d in enumerate(dims):
        shape[onto.index(d)] = nodes.shape[axis]
    return nodes.reshape(shape)


def _nodes_of(demands: Demands, f: Field, shape: tuple[int, ...]) -> Nodes:
    return demands.tags(shape[f.dims[0]]) if f.nodes is None else f.nodes


def joint(demands: Demands, fields: Sequence[Field], dims: tuple[int, ...], shape: tuple[int, ...]) -> Field:
    """Return one field over `dims` (ascending, covering those of `fields`) that moves as all of `fields` demand."""
    whole = _joint_products(demands, fields, dims)
    if whole is not None:
        return whole
    fields = [_solid(demands, f) for f in fields]
    full = [f for f in fields if f.dims == dims]
    moving = [f for f in full if f.nodes is not None]
    if full and not moving:
        return full[0]
    if moving:
        base = moving[0].nodes
        assert base is not None
        for f in moving[1:]:
            assert f.nodes is not None
            demands.tie(base, f.nodes)
        if len(moving) < len(full):
            demands.fix(base, f"meets something that does not move in {demands.here}")
            if len(dims) == 1:
                return Field(dims, None)
    else:
        base = demands.fresh([shape[d] for d in dims])
    for f in fields:
        if f.dims != dims:
            demands.map(base, broadcast_nodes(_nodes_of(demands, f, shape), f.dims, dims))
    return Field(dims, base)


def _joint_products(demands: Demands, fields: Sequence[Field], dims: tuple[int, ...]) -> Field | None:
    """Join products of the same tags by joining their units; return None for others."""
    base = next((f for f in fields if f.dims == dims and f.product), None)
    if base is None or base.product is None:
        return None
    core, tag = base.product
    others = [(f.dims, f.product) for f in fields if f is not base and f.product]
    if len(others) < len(fields) - 1:
        return None
    if any((np.broadcast_to(broadcast_nodes(p[1], d, dims), tag.shape) != tag).any() for d, p in others):
        return None
    for d, p in others:
        other = np.broadcast_to(broadcast_nodes(p[0], d, dims), core.shape)
        pairs = np.unique(np.stack([core.ravel(), other.ravel()]), axis=1)
        (demands.tie if d == dims else demands.map)(pairs[0], pairs[1])
    return base


def moving_nodes(f: Field) -> Nodes:
    """Return the nodes that move a field: its own, or the units of a product."""
    nodes = f.held if f.product is None else f.product[0]
    assert nodes is not None
    return nodes


def combine(demands: Demands, layouts: Sequence[Layout], shape: Sequence[int]) -> Layout:
    """Return the layout of an elementwise function of several tensors, broadcast to `shape`."""
    out: list[Field] = []
    shape = tuple(shape)
    for layout in layouts:
        shift = len(shape) - len(layout.shape)
        for f in layout.fields:
            group = [Field(tuple(d + shift for d in f.dims), f.held, f.product)]
            # Overlaps can chain: joining two fields may reach a third.
            while True:
                dims = {d for g in group for d in g.dims}
                more = [g for g in out if dims & set(g.dims)]
                if not more:
                    break
                out = [g for g in out if not any(g is m for m in more)]
                group = more + group
            dims_sorted = tuple(sorted({d for g in group for d in g.dims}))
            if len(group) > 1 and math.prod(shape[d] for d in dims_sorted) > MAX_JOINT_NODES:
                for g in group:
                    if not g.rigid:
                        demands.fix(moving_nodes(g), f"too many positions to follow in {demands.here}")
                out.extend(Field((d,), None) for d in dims_sorted)
            else:
                out.append(group[0] if len(group) == 1 else joint(demands, group, dims_sorted, shape))
    return Layout(shape, tuple(out))


def freeze(demands: Demands, layout: Layout, dims: Iterable[int], reason: str) -> Layout:
    """Return the layout with these dimensions rigid, each on its own; joint partners keep the rest of the movement."""
    todo = sorted(set(dims))
    out: list[Field] = [f for f in layout.fields if not set(f.dims) & set(todo)]
    for f in layout.touching(todo):
        if f.rigid:
            continue
        kept = tuple(d for d in f.dims if d not in todo)
        if not kept:
            demands.fix(moving_nodes(f), reason)
            continue
        f = _solid(demands, f)
        assert f.nodes is not None
        for d in f.dims:
            if d in todo:
                demands.map(f.nodes, broadcast_nodes(demands.tags(layout.shape[d]), (d,), f.dims))
        parents = demands.fresh([layout.shape[d] for d in kept])
        demands.map(f.nodes, broadcast_nodes(parents, kept, f.dims))
        out.append(Field(kept, parents))
    out.extend(Field((d,), None) for d in todo if layout.shape[d] > 1)
    return demands.register(Layout(layout.shape, tuple(out)))


def freeze_all(demands: Demands, layout: Layout, reason: str) -> Layout:
    """Hold all of a tensor still and return its rigid layout."""
    for f in layout.fields:
        if not f.rigid:
            demands.fix(moving_nodes(f), reason)
    return rigid_layout(layout.shape)


def reduce(demands: Demands, layout: Layout, dims: Iterable[int], keepdim: bool) -> Layout:
    """Return the layout after a function along `dims` that ignores the order of values (sum, maximum, norm)."""
    gone = {d % max(len(layout.shape), 1) for d in dims}
    out: list[Field] = []
    for f in layout.fields:
        kept = tuple(d for d in f.dims if d not in gone)
        if len(kept) == len(f.dims):
            out.append(f)
        elif kept:
            out.append(_reduced_product(demands, f, kept) or _reduced(demands, f, kept))
    if keepdim:
        return Layout(tuple(1 if d in gone else n for d, n in enumerate(layout.shape)), tuple(out))
    order = [d for d in range(len(layout.shape)) if d not in gone]
    return select_dims(Layout(layout.shape, tuple(out)), order)


def _reduced(demands: Demands, f: Field, kept: tuple[int, ...]) -> Field:
    f = _solid(demands, f)
    assert f.nodes is not None
    parents = demands.fresh([n for n, d in zip(f.nodes.shape, f.dims, strict=True) if d in kept])
    demands.map(f.nodes, broadcast_nodes(parents, kept, f.dims))
    return Field(kept, parents)


def _reduced_product(demands: Demands, f: Field, kept: tuple[int, ...]) -> Field | None:
    """Return the product left of a product where every row of units comes once per tag; else None."""
    if f.product is None:
        return None
    first = [i for i, d in enumerate(f.dims) if d in kept]
    order = [*first, *(i for i in range(len(f.dims)) if i not in first)]
    grid = [f.product[0].shape[i] for i in first]
    core, tag = (a.transpose(order).reshape(math.prod(grid), -1) for a in f.product)
    _, where, row = np.unique(core[:, 0], return_index=True, return_inverse=True)
    if (tag != tag[:, :1]).any() or (core != core[where][row]).any():
        return None
    if len(np.unique(core[where])) < core[where].size:
        return None
    parents = demands.fresh((len(where),))
    demands.map(core[where], parents[:, None])
    demands.place(parents)
    return Field(kept, None, (parents[row].reshape(grid), tag[:, 0].reshape(grid)))


def select_dims(layout: Layout, order: Sequence[int]) -> Layout:
    """Return the layout with dimensions `order` of the old one; dimensions left out must be in no field."""
    where = {d: i for i, d in enumerate(order)}
    out: list[Field] = []
    for f in layout.fields:
        dims = tuple(where[d] for d in f.dims)
        rank = sorted(range(len(dims)), key=lambda i: dims[i])
        nodes, product = f.held, f.product
        if rank != list(range(len(rank))):
            nodes = nodes if nodes is None else nodes.transpose(rank)
            product = product and (product[0].transpose(rank), product[1].transpose(rank))
        out.append(Field(tuple(dims[i] for i in rank), nodes, product))
    return Layout(tuple(layout.shape[d] for d in order), tuple(out))


def insert_dim(layout: Layout, dim: int) -> Layout:
    """Return the layout with a new dimension of size 1 before `dim`."""
    shape = (*layout.shape[:dim], 1, *layout.shape[dim:])
    fields = (Field(tuple(d + (d >= dim) for d in f.dims), f.held, f.product) for f in layout.fields)
    return Layout(shape, tuple(fields))


def shifted(layout: Layout, by: int) -> tuple[Field, ...]:
    """Return the fields of the layout behind `by` new dimensions."""
    return tuple(Field(tuple(d + by for d in f.dims), f.nodes) for f in layout.fields)


def alone(demands: Demands, layout: Layout, dim: int) -> Layout:
    """Return the layout with `dim` in a field of its own; joint movement is a product from here on."""
    joint = [f for f in layout.touching([dim]) if len(f.dims) > 1]
    for f in joint:
        assert f.nodes is not None
        rest = tuple(d for d in f.dims if d != dim)
        own = demands.fresh((layout.shape[dim],))
        others = demands.fresh([layout.shape[d] for d in rest])
        axis = f.dims.index(dim)
        demands.map(f.nodes, own.reshape([-1 if a == axis else 1 for a in range(f.nodes.ndim)]))
        demands.map(f.nodes, np.expand_dims(others, axis))
        kept = tuple(g for g in layout.fields if g is not f)
        layout = Layout(layout.shape, (*kept, Field((dim,), own), Field(rest, others)))
    return demands.register(layout)


def dim_nodes(demands: Demands, layout: Layout, dim: int, reason: str) -> tuple[Nodes, Layout]:
    """Return the nodes of one dimension on its own, and the layout in which it stands on its own.

    A rigid dimension yields rigid nodes, a uniform one free nodes. A dimension in a joint field is held still.
    """
    touched = layout.touching([dim])
    if touched and touched[0].dims == (dim,):
        if touched[0].nodes is not None:
            return touched[0].nodes, layout
        nodes = demands.fresh((layout.shape[dim],))
        demands.fix(nodes, reason)
        return nodes, layout
    if not touched:
        nodes = demands.fresh((layout.shape[dim],))
        demands.place(nodes)
        return nodes, layout
    return dim_nodes(demands, freeze(demands, layout, [dim], reason), dim, reason)
