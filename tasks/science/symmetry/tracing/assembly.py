"""From families of free permutations to the axes of a spec: names, slots and readings."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import cast

import numpy as np
from torch.fx import Node

from tasks.science.symmetry.permutation import Axis, FixedAxis, Ints, Reading, Slot
from tasks.science.symmetry.tracing.graph import Graph, last_of_calls, module_stack, operation_name, reached
from tasks.science.symmetry.tracing.layouts import Field, Layout, Nodes
from tasks.science.symmetry.tracing.operations import LINEAR, NONLINEARITIES, NORMS, Visitor
from tasks.science.symmetry.tracing.product_rules import KERNEL
from tasks.science.symmetry.tracing.symmetry import Family, Symmetry, match_rows

Copy = tuple[int, int]  # a family and one of its copies

NO_PARTNER = "no other unit plays the same role"

# Operations whose results are worth observing beside those of the other kinds.
OTHERS = frozenset(
    ["mul", "div", "sub", "scaled_dot_product_attention", "sigmoid", "hardsigmoid", "cat", "view", "embedding", "index"]
)


class Misaligned(Exception):
    """These nodes of the state dict move in a way that no slots describe; they have to be held."""

    def __init__(self, nodes: Nodes, reason: str) -> None:
        super().__init__(reason)
        self.nodes = nodes


def positions_by_axis(symmetry: Symmetry, nodes: Nodes, skip: frozenset[int] = frozenset()) -> dict[Copy, Ints]:
    """Return the positions of one dimension that each axis moves: (size, n_each), matching positions in one column.

    Families in `skip` are left out, as if they did not move.
    """
    unit = symmetry.unit[nodes]
    number = symmetry.cluster[unit]
    out: dict[Copy, list[Ints]] = {}
    for c in np.unique(number[number >= 0]).tolist():
        where = np.flatnonzero(number == c)
        cluster = symmetry.clusters[c]
        coordinates = cluster.coordinates[symmetry.row[unit[where]]]
        color = symmetry.color[unit[where]]
        for j, f in enumerate(cluster.columns):
            if f < 0 or f in skip:
                continue
            family = symmetry.families[f]
            path = [cluster.columns.index(p) for p in family.path]
            copy = match_rows(coordinates[:, path], family.copies)
            others = [coordinates[:, k] for k in range(len(cluster.columns)) if k != j and k not in path]
            order = np.lexsort((*others[::-1], color, coordinates[:, j], copy))
            present = np.unique(copy)
            table = where[order].reshape(len(present), family.size, -1)
            for i, which in enumerate(present.tolist()):
                out.setdefault((f, which), []).append(table[i])
    return {key: np.concatenate(parts, axis=1) for key, parts in out.items()}


def doubled(symmetry: Symmetry, nodes: Nodes) -> bool:
    """Return whether some of these nodes belong to two units of one family."""
    numbers = np.unique(symmetry.cluster[symmetry.unit[nodes]])
    return any(symmetry.clusters[c].doubled for c in numbers.tolist() if c >= 0)


def slots_by_axis(symmetry: Symmetry, state: dict[str, Layout]) -> dict[Copy, list[Slot]]:
    """Return the slots of every axis, in the order of the state dict."""
    out: dict[Copy, list[Slot]] = {}
    for key, layout in state.items():
        for f in layout.fields:
            if f.nodes is None:
                continue
            if doubled(symmetry, f.nodes):
                raise Misaligned(f.nodes, "each position belongs to two units of one axis")
            if len(f.dims) == 1:
                for copy, positions in positions_by_axis(symmetry, f.nodes).items():
                    out.setdefault(copy, []).append(Slot(key, f.dims[0], positions))
            else:
                for copy, slot in _slots_in_rows(symmetry, key, f, layout):
                    out.setdefault(copy, []).append(slot)
    return out


def _slots_in_rows(symmetry: Symmetry, key: str, f: Field, layout: Layout) -> Iterable[tuple[Copy, Slot]]:
    """Yield the slots of a weight whose groups of rows order their own columns.

    What exchanges groups carries their columns along; what moves rows within a group may move its columns as well.
    """
    assert f.nodes is not None
    rows = next(g.nodes for g in layout.fields if g.dims == (0,))
    assert rows is not None
    _, first, group = np.unique(f.nodes[:, 0], return_index=True, return_inverse=True)
    exchanging = frozenset(
        family
        for (family, _), positions in positions_by_axis(symmetry, rows).items()
        if (group[positions] != group[positions[:1]]).any()
    )
    # Once the columns are held no groups can be exchanged: this is raised once for each weight.
    if exchanging and len({_order_of(symmetry, f.nodes[row], exchanging) for row in first.tolist()}) > 1:
        raise Misaligned(f.nodes, "groups order their columns differently")
    for g, row in enumerate(first.tolist()):
        for copy, positions in positions_by_axis(symmetry, f.nodes[row], exchanging).items():
            yield copy, Slot(key, 1, positions, np.flatnonzero(group == g))


def _order_of(symmetry: Symmetry, nodes: Nodes, skip: frozenset[int]) -> bytes:
    """Return the order of the columns of one row as bytes, apart from the families that are skipped."""
    out: list[list[int]] = []
    for u in symmetry.unit[nodes].tolist():
        cluster = symmetry.clusters.get(int(symmetry.cluster[u]))
        if cluster is None:
            out.append([-1, int(u)])
            continue
        coordinates = cluster.coordinates[symmetry.row[u]].tolist()
        own = [x for f, x in zip(cluster.columns, coordinates, strict=True) if f not in skip]
        out.append([int(symmetry.color[u]), *own])
    return repr(out).encode()


def fixed_axes(symmetry: Symmetry, state: dict[str, Layout], skip: set[str]) -> tuple[FixedAxis, ...]:
    """Return the positions that do not move, grouped by what would have to move together, kernel positions left out."""
    entries: list[tuple[str, int, Ints]] = []
    for key, layout in state.items():
        if key not in skip:
            for f in layout.fields:
                if f.nodes is not None and len(f.dims) == 1:
                    unit = np.unique(symmetry.unit[f.nodes])
                    still = unit[symmetry.cluster[unit] < 0]
                    if len(still) and symmetry.reasons.get(int(still[0])) != KERNEL:
                        entries.append((key, f.dims[0], still))
    groups: list[tuple[set[int], list[tuple[str, int]]]] = []
    for key, dim, unit in entries:
        members, slots = set(unit.tolist()), [(key, dim)]
        for group in [g for g in groups if g[0] & members]:
            members |= group[0]
            slots = group[1] + slots
            groups.remove(group)
        groups.append((members, slots))
    out: list[FixedAxis] = []
    for members, slots in groups:
        stated = [symmetry.reasons[u] for u in members if u in symmetry.reasons]
        reason = max(sorted(set(stated)), key=stated.count) if stated else NO_PARTNER
        out.append(FixedAxis(len(members), reason, tuple(dict.fromkeys(slots))))
    return tuple(out)


class Readings:
    """The operations of one graph at which the axes can be observed."""

    def __init__(
        self,
        symmetry: Symmetry,
        graph: Graph,
        values: dict[Node, Layout | tuple[Layout, ...]],
        parameters: frozenset[str],
    ) -> None:
        self.symmetry = symmetry
        self.layouts = {n: v for n, v in values.items() if isinstance(v, Layout) and n.op == "call_function"}
        self.from_input = reached(graph, frozenset())
        self.computed = reached(graph, parameters)
        self.outputs = _module_outputs(graph)
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.candidates: dict[int, list[tuple[Node, Field, str]]] = {}
        for node, layout in self.layouts.items():
            kind = self._kind(node)
            if kind:
                for f in layout.fields:
                    if f.held is not None and len(f.dims) == 1 and not doubled(symmetry, f.held):
                        for family in self._families(f.held):
                            self.candidates.setdefault(family, []).append((node, f, kind))

    def _families(self, nodes: Nodes) -> set[int]:
        numbers = np.unique(self.symmetry.cluster[self.symmetry.unit[nodes]])
        found = (self.symmetry.clusters[c].columns for c in numbers.tolist() if c >= 0)
        return {f for columns in found for f in columns if f >= 0}

    def _kind(self, node: Node) -> str:
        """Return the kind of reading that the operation is; "" where it is not worth observing."""
        name = operation_name(node)
        if name == "getitem":
            source, index = cast(tuple[Node, int], node.args)
            return "norm" if operation_name(source) in NORMS and index == 0 else ""
        # What depends on parameters alone (a learned position bias) is an activation once something acts on it.
        if node in self.computed and name in NONLINEARITIES:
            return "nonlinearity"
        if node in self.computed and name in LINEAR:
            return "linear"
        if node not in self.from_input:
            return ""
        if name == "add":
            return "sum" if len([a for a in node.args if a in self.from_input]) > 1 else "other"
        return "other" if name in OTHERS else ""

    def of(self, family: Family) -> dict[int, tuple[Reading, ...]]:
        """Return the readings of every copy of a family, the one to match by first."""
        found = self.candidates.get(family.number, [])
        table = [(n, f, k, positions_by_axis(self.symmetry, f.held)) for n, f, k in found if f.held is not None]
        out: dict[int, tuple[Reading, ...]] = {}
        for copy in range(len(family.copies)):
            own = [(n, f, k, p[family.number, copy]) for n, f, k, p in table if (family.number, copy) in p]
            if own:
                out[copy] = self._ranked(own)
        return out

    def _ranked(self, own: Sequence[tuple[Node, Field, str, Ints]]) -> tuple[Reading, ...]:
        def whole(item: tuple[Node, Field, str, Ints]) -> bool:
            return item[1].held is not None and item[3].size == item[1].held.size

        sums = [i for i in own if i[2] == "sum"]
        active = [i for i in own if i[2] == "nonlinearity"]
        if sums:
            last = sums[-1]
            after = [i for i in active if last[0] in i[0].all_input_nodes]
            best = after[-1] if after else last
        elif active:
            pure = [i for i in active if whole(i)] or active
            best = pure[-1]
        else:
            best = next((i for kind in ("norm", "linear", "other") for i in own[::-1] if i[2] == kind), own[-1])
        # The pre-activation: the last whole linear result before it.
        before = [i for i in own if self.order[i[0]] < self.order[best[0]] and i[2] == "linear"]
        rest = before[::-1] + [i for i in own if whole(i) and i[2] != "other"]
        unique = {item[0]: item for item in (best, *rest)}
        return tuple(self._reading(*item) for item in unique.values())

    def _reading(self, node: Node, f: Field, kind: str, positions: Ints) -> Reading:
        shape = self.layouts[node].shape
        module, call = self.outputs.get(node, (None, 0))
        n_samples = int(np.prod(shape)) // shape[f.dims[0]]
        return Reading(node.name, module, call, f.dims[0], positions, kind, n_samples)

    def inner_module(self, reading: Reading) -> str:
        """Return the innermost module around a reading's operation."""
        node = next(n for n in self.layouts if n.name == reading.node)
        return (module_stack(node) or [("", 0)])[-1][0]


def _module_outputs(graph: Graph) -> dict[Node, tuple[str, int]]:
    """Return the results that end a module's call: with the outermost such module below the root, and the call."""
    out: dict[Node, tuple[str, int]] = {}
    for frame, node in last_of_calls(graph).items():
        if frame[0] and (node not in out or len(frame[0]) < len(out[node][0])):
            out[node] = frame
    return out


def build_axes(
    symmetry: Symmetry, visitors: Sequence[Visitor], state: dict[str, Layout], parameters: frozenset[str]
) -> tuple[tuple[Axis, ...], tuple[FixedAxis, ...]]:
    """Return the axes that are more than an order of constants, parents before nested ones; and all others.

    An axis needs an activation that carries it, or parameters on both of its sides (the inner axis of a product of
    two weights). The first visitor walked the graph in eval mode: readings are taken from it alone, since networks are
    read in eval mode, where the name of an operation of another graph would mean a different one.
    """
    slots = slots_by_axis(symmetry, state)
    sources = [Readings(symmetry, v.graph, v.values, parameters) for v in visitors]
    nested_in = {f.path[-1] for f in symmetry.families.values() if f.path}
    attended = _attended(symmetry, visitors)
    names: dict[int, str] = {}
    axes: list[Axis] = []
    dropped: list[FixedAxis] = []
    for family in _in_order(symmetry, slots, state):
        source, readings = _first_readings(sources, family)
        own = slots[family.number, 0]
        if len(readings) < len(family.copies) and len({s.key for s in own} & parameters) < 2:
            places = tuple(dict.fromkeys((s.key, s.dim) for s in own))
            dropped.append(FixedAxis(family.size, "no activation carries it", places))
            continue
        name = _base_name(source, readings.get(0, ()), own)
        if family.number in nested_in:
            name += ".heads" if family.number in attended else ".groups"
        names[family.number] = _unique(name, names.values())
        if not family.path or family.path[-1] in names:
            axes += _axes_of(family, names, slots, readings if source is sources[0] else {})
    return tuple(axes), tuple(dropped)


def _in_order(symmetry: Symmetry, slots: dict[Copy, list[Slot]], state: dict[str, Layout]) -> list[Family]:
    """Return the families that have slots, parents first, by the first entry of the state dict that they move."""
    rank = {key: i for i, key in enumerate(state)}

    def place(family: Family) -> tuple[int, int, int]:
        return len(family.path), min(rank[s.key] for s in slots[family.number, 0]), family.number

    return sorted((f for f in symmetry.families.values() if (f.number, 0) in slots), key=place)


def _first_readings(sources: Sequence[Readings], family: Family) -> tuple[Readings, dict[int, tuple[Reading, ...]]]:
    """Return the readings of a family in the first graph that has any, and that graph's source."""
    for source in sources:
        if readings := source.of(family):
            return source, readings
    return sources[-1], {}


def _axes_of(
    family: Family,
    names: dict[int, str],
    slots: dict[Copy, list[Slot]],
    readings: dict[int, tuple[Reading, ...]],
) -> Iterator[Axis]:
    """Yield one axis for every copy of a family, each named by the units that enclose it."""
    name = names[family.number]
    for copy, units in enumerate(family.copies.tolist()):
        parent = _copy_name(names[family.path[-1]], units[:-1]) if family.path else None
        block = units[-1] if units else 0
        moved, seen = tuple(slots[family.number, copy]), readings.get(copy, ())
        yield Axis(_copy_name(name, units), family.size, moved, seen, name, parent, block)


def _copy_name(family: str, units: Sequence[int]) -> str:
    return f"{family}[{','.join(map(str, units))}]" if units else family


def _base_name(source: Readings, readings: tuple[Reading, ...], slots: Sequence[Slot]) -> str:
    """Return the name of the module that makes the axis, of a stream that of the last module that writes to it."""
    if any(r.kind == "sum" for r in readings):
        return readings[0].module or source.inner_module(readings[0]) or readings[0].node
    made = next((s for s in slots if s.dim == 0 and s.key.endswith("weight")), slots[0])
    return made.key.rpartition(".")[0] if made.key.endswith((".weight", ".bias")) else made.key


def _unique(name: str, taken: Collection[str]) -> str:
    numbered = (f"{name}:{number}" for number in itertools.count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def _attended(symmetry: Symmetry, visitors: Sequence[Visitor]) -> set[int]:
    """Return the families that an attention operation treats as heads."""
    out: set[int] = set()
    for visitor in visitors:
        for node, value in visitor.values.items():
            if operation_name(node) in ("_softmax", "scaled_dot_product_attention") and isinstance(value, Layout):
                for f in value.fields:
                    if f.held is not None:
                        numbers = np.unique(symmetry.cluster[symmetry.unit[f.held.ravel()]])
                        out.update(c for n in numbers.tolist() if n >= 0 for c in symmetry.clusters[n].columns)
    return out
