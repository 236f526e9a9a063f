"""The solver: from the demands of all operations to families of free permutations.

1. Ties make *units* of nodes that move as one. Nodes of one dimension are kept apart even then (the query and key
   rows of a packed weight); their tie becomes a one-to-one map.
2. Colour refinement tells units apart by the places they stand in and by their parents and children, until nothing
   new is told apart. Units of different colours cannot be exchanged.
3. Two colours joined by a one-to-one map move as one *cluster*. Where one parent of a unit tells another (the heads
   seen by the query's norm, and by the product of query and key), that is a map too and is added.
4. From the smallest cluster up: a cluster without parents is a *family*, a free axis. A cluster whose members are told
   by their parents follows them. One with several members below the same parent is a nested family, one free axis per
   parent (the channels of each head). Every unit so gets *coordinates*, one per family that moves it.
5. The result is checked against every demand with random permutations of all families at once. A family that breaks
   one is held still and the whole is solved again: steps 1 to 4 propose, step 5 decides.
"""

from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array  # pyright: ignore[reportMissingTypeStubs]
from scipy.sparse.csgraph import connected_components  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from tasks.science.symmetry.permutation import Ints
from tasks.science.symmetry.tracing.layouts import Demands, Nodes
from tasks.science.symmetry.tracing.symmetry import Cluster, Family, Symmetry, match_rows

Hashes = NDArray[np.uint64]


class _Broken(Exception):
    """Units whose movement cannot be described; they are held still and the rest is solved again."""

    def __init__(self, units: Ints, reason: str) -> None:
        super().__init__(reason)
        self.units = units
        self.reason = reason


def solve(demands: Demands) -> Symmetry:
    """Return all families of free permutations that respect the demands."""
    problem = _Problem(demands)
    while True:
        try:
            symmetry = problem.attempt()
            problem.check(symmetry)
        except _Broken as broken:
            problem.hold(broken.units, broken.reason)
        else:
            return symmetry


class _Problem:
    """The demands in terms of units."""

    def __init__(self, demands: Demands) -> None:
        n = demands.n_nodes
        apart = np.zeros(n, bool)
        while True:
            ties = [(a, b, ~(apart[a] | apart[b])) for a, b in demands.ties]
            first = np.concatenate([np.empty(0, np.int64), *(a[one] for a, _, one in ties)])
            second = np.concatenate([np.empty(0, np.int64), *(b[one] for _, b, one in ties)])
            self.unit = _components(n, first, second)
            repeated = [r for p in demands.places if len(r := _repeated(p.ravel(), self.unit))]
            if not repeated:
                break
            apart[np.concatenate(repeated)] = True
        self.maps = [*demands.maps, *((a[~one], b[~one]) for a, b, one in ties if not one.all())]
        self.n_units = int(self.unit.max()) + 1 if n else 0
        self.first_node = np.full(self.n_units, n, np.int64)
        np.minimum.at(self.first_node, self.unit, np.arange(n))
        self.reasons: dict[int, str] = {}
        for nodes, reason in demands.rigid:
            for u in np.unique(self.unit[nodes]).tolist():
                self.reasons.setdefault(u, reason)
        self._collect_maps()
        self._collect_places(demands)

    def _collect_maps(self) -> None:
        sizes = [len(c) for c, _ in self.maps]
        event = np.repeat(np.arange(len(sizes)), sizes)
        child = self.unit[np.concatenate([np.empty(0, np.int64), *(c for c, _ in self.maps)])]
        parent = self.unit[np.concatenate([np.empty(0, np.int64), *(p for _, p in self.maps)])]
        edges = np.unique(np.stack([event, child, parent]), axis=1)
        self.event, self.child, self.parent = edges
        if edges.shape[1]:
            again = (np.diff(self.event) == 0) & (np.diff(self.child) == 0)
            ambiguous = np.append(again, False) | np.append(False, again)
            self.hold(np.concatenate([self.child[ambiguous], self.parent[ambiguous]]), "has two parents")
            # Both ends are held, so nothing is left to demand of these.
            self.event, self.child, self.parent = edges[:, ~ambiguous]

    def _collect_places(self, demands: Demands) -> None:
        sizes = [p.size for p in demands.places]
        number = np.repeat(np.arange(len(sizes)), sizes)
        unit = self.unit[np.concatenate([np.empty(0, np.int64), *(p.ravel() for p in demands.places)])]
        order = np.lexsort((unit, number))
        self.place, self.placed = number[order], unit[order]
        twice = np.flatnonzero((np.diff(self.place) == 0) & (np.diff(self.placed) == 0))
        self.hold(self.placed[twice], "stands at two positions of one dimension")

    def hold(self, units: Ints, reason: str) -> None:
        """Record that these units do not move."""
        for u in np.unique(units).tolist():
            self.reasons.setdefault(u, reason)

    def attempt(self) -> Symmetry:
        """Take steps 2 to 4."""
        color = self._refine()
        n_of = np.bincount(color)
        # One-to-one maps between colours: both ends move as one.
        single = n_of[color[self.child]] == n_of[color[self.parent]]
        single &= n_of[color[self.child]] > 1
        cluster_of_color = _components(len(n_of), color[self.child[single]], color[self.parent[single]])
        bundle = _components(self.n_units, self.child[single], self.parent[single])
        self._check_bundles(bundle, color)
        return self._build(color, n_of, cluster_of_color, bundle)

    def _check_bundles(self, bundle: Ints, color: Ints) -> None:
        order = np.lexsort((color, bundle))
        b, c = bundle[order], color[order]
        twice = np.flatnonzero((np.diff(b) == 0) & (np.diff(c) == 0))
        if len(twice):
            raise _Broken(order[np.isin(b, b[twice])], "follows two units of one axis")

    def _refine(self) -> Ints:
        """Return a stable colouring of the units, as numbers 0..n_colors-1."""
        rng = np.random.default_rng(0)
        n_events = int(self.event.max()) + 1 if len(self.event) else 0
        up, down = _hashes(rng, n_events), _hashes(rng, n_events)
        start = np.zeros(self.n_units, np.uint64)
        np.add.at(start, self.placed, _hashes(rng, int(self.place.max()) + 1 if len(self.place) else 0)[self.place])
        rigid = np.fromiter(self.reasons, np.int64, len(self.reasons))
        start[rigid] += _hashes(rng, len(rigid))
        color, n_before = _mix(start), -1
        while True:
            uniques, numbers = np.unique(color, return_inverse=True)
            if len(uniques) == n_before:
                return numbers.astype(np.int64)
            n_before = len(uniques)
            seen = _mix(color + np.uint64(1))
            np.add.at(seen, self.child, _mix(color[self.parent] ^ up[self.event]))
            np.add.at(seen, self.parent, _mix(color[self.child] ^ down[self.event]))
            color = _mix(seen)

    def _build(self, color: Ints, n_of: Ints, cluster_of_color: Ints, bundle: Ints) -> Symmetry:
        cluster = cluster_of_color[color]
        involved = np.zeros(self.n_units, bool)
        involved[self.placed] = involved[self.child] = involved[self.parent] = True
        moving = (n_of[color] > 1) & involved
        # Rows of a cluster: its bundles, in the order of their first nodes.
        first = np.full(int(bundle.max()) + 1 if self.n_units else 0, np.iinfo(np.int64).max)
        np.minimum.at(first, bundle, self.first_node)
        row = np.full(self.n_units, -1, np.int64)
        members = np.flatnonzero(moving)
        order = members[np.lexsort((first[bundle[members]], cluster[members]))]
        starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
        sizes: dict[int, int] = {}
        for begin, end in itertools.pairwise([*starts.tolist(), len(order)]):
            part = order[begin:end]
            new = np.diff(first[bundle[part]], prepend=-1) != 0
            row[part] = np.cumsum(new) - 1
            sizes[int(cluster[part[0]])] = int(row[part[-1]]) + 1
        symmetry = Symmetry({}, {}, self.unit, np.where(moving, cluster, -1), row, color, dict(self.reasons))
        parents = self._parents(symmetry, sizes)
        if self._add_implied(symmetry, parents):
            return self.attempt()
        for number in sorted(sizes, key=lambda c: (sizes[c], c)):
            self._place_cluster(symmetry, number, sizes[number], parents.get(number, []))
        return symmetry

    def _parents(self, symmetry: Symmetry, sizes: dict[int, int]) -> dict[int, list[tuple[int, Ints]]]:
        """Return, per cluster, the clusters that it maps into, each with the parent row of every row."""
        out: dict[int, list[tuple[int, Ints]]] = {}
        source, target = symmetry.cluster[self.child], symmetry.cluster[self.parent]
        keep = np.flatnonzero((source >= 0) & (target >= 0) & (source != target))
        keys = np.stack([self.event[keep], symmetry.color[self.child[keep]], target[keep]])
        if not len(keep):
            return out
        order = np.lexsort(keys)
        starts = np.flatnonzero((np.diff(keys[:, order], prepend=-1) != 0).any(axis=0))
        seen: set[tuple[int, int, bytes]] = set()
        for begin, end in itertools.pairwise([*starts.tolist(), len(order)]):
            edges = keep[order[begin:end]]
            number, goal = int(source[edges[0]]), int(target[edges[0]])
            vector = np.full(sizes[number], -1, np.int64)
            vector[symmetry.row[self.child[edges]]] = symmetry.row[self.parent[edges]]
            if (vector < 0).any():
                raise _Broken(self.child[edges], "has parents in part only")
            key = (number, goal, vector.tobytes())
            if key not in seen:
                seen.add(key)
                out.setdefault(number, []).append((goal, vector))
        return out

    def _add_implied(self, symmetry: Symmetry, parents: dict[int, list[tuple[int, Ints]]]) -> bool:
        """Add the maps between parents that their common children imply; whether there were new ones."""
        known = {(a, b, v.tobytes()) for a, pairs in parents.items() for b, v in pairs}
        one_of: dict[int, Ints] = {}
        for number in {goal for pairs in parents.values() for goal, _ in pairs}:
            # One unit per row, all of one colour: a map from units of several colours would tell rows apart.
            units = np.flatnonzero(symmetry.cluster == number)
            units = units[symmetry.color[units] == symmetry.color[units].min()]
            one_of[number] = units[np.argsort(symmetry.row[units])]
        found: list[tuple[Ints, Ints]] = []
        for pairs in parents.values():
            for (a, up), (b, across) in itertools.combinations(pairs, 2):
                if a == b:
                    continue
                n_a, n_b = len(one_of[a]), len(one_of[b])
                groups = _components(n_a + n_b, up, across + n_a)
                n_groups = int(groups.max()) + 1
                if n_groups == 1:
                    continue
                if n_groups in (n_a, n_b):
                    # One parent tells the other.
                    low, high, via = (a, b, groups[:n_a]) if n_groups == n_b else (b, a, groups[n_a:])
                    top = groups[n_a:] if high == b else groups[:n_a]
                    vector = np.argsort(top)[via]
                    if (low, high, vector.tobytes()) not in known:
                        known.add((low, high, vector.tobytes()))
                        found.append((one_of[low], one_of[high][vector]))
                elif not _share(parents, a, b, up, across, n_groups):
                    # Neither tells the other, but they come in common groups: those are units of their own.
                    new = np.arange(self.n_units, self.n_units + n_groups)
                    self.n_units += n_groups
                    self.first_node = np.concatenate([self.first_node, self.first_node.max() + 1 + np.arange(n_groups)])
                    found += [(one_of[a], new[groups[:n_a]]), (one_of[b], new[groups[n_a:]])]
                    # The next round sees these units; other pairs that need the same ones find them then.
                    return self._add_maps(found)
        return self._add_maps(found)

    def _add_maps(self, found: list[tuple[Ints, Ints]]) -> bool:
        for child, parent in found:
            event = np.full(len(child), int(self.event.max()) + 1, np.int64)
            self.event = np.concatenate([self.event, event])
            self.child = np.concatenate([self.child, child])
            self.parent = np.concatenate([self.parent, parent])
        return bool(found)

    def _place_cluster(self, symmetry: Symmetry, number: int, n: int, parents: list[tuple[int, Ints]]) -> None:
        """Take coordinates of a cluster from its parents, and add a family of its own where it has freedom left."""
        columns: list[tuple[int, Ints]] = []
        units = np.flatnonzero(symmetry.cluster == number)
        for goal, vector in parents:
            above = symmetry.clusters.get(goal)
            if above is None:
                raise _Broken(units, "has a parent that is not above it")
            for family, values in zip(above.columns, above.coordinates[vector].T, strict=True):
                if not any(f == family and (v == values).all() for f, v in columns):
                    columns.append((family, values))
        if not columns:
            family = Family(len(symmetry.families), (), n, np.zeros((1, 0), np.int64))
            symmetry.families[family.number] = family
            symmetry.clusters[number] = Cluster((family.number,), np.arange(n)[:, None])
            return
        columns.sort(key=lambda c: (len(symmetry.families[c[0]].path) if c[0] >= 0 else 99, c[0]))
        names = [f for f, _ in columns]
        outer = {p for f in names if f >= 0 for p in symmetry.families[f].path}
        for family in names:
            # Which of the two a nested family belongs to could not be told.
            if names.count(family) > 1 and (family < 0 or family in outer):
                raise _Broken(self._units_of(symmetry, family), "meets itself in one dimension")
        coordinates = np.stack([values for _, values in columns], axis=1)
        blocks, block = np.unique(coordinates, axis=0, return_inverse=True)
        block = block.ravel()
        if n % len(blocks) or (np.bincount(block) != n // len(blocks)).any():
            raise _Broken(units, "is spread unevenly over its parents")
        size = n // len(blocks)
        if size > 1:
            rank = np.empty(n, np.int64)
            order = np.argsort(block, kind="stable")
            rank[order] = np.tile(np.arange(size), len(blocks))
            chain = all(f >= 0 and symmetry.families[f].path == tuple(names[:i]) for i, f in enumerate(names))
            last = symmetry.families.get(names[-1])
            if chain and last is not None and len(blocks) == len(last.copies) * last.size:
                own = len(symmetry.families)
                symmetry.families[own] = Family(own, tuple(names), size, blocks)
            else:
                own = -1 - number
            names, coordinates = [*names, own], np.column_stack([coordinates, rank])
        symmetry.clusters[number] = Cluster(tuple(names), coordinates)

    def _units_of(self, symmetry: Symmetry, family: int) -> Ints:
        found = [c for c, cluster in symmetry.clusters.items() if family in cluster.columns]
        return np.flatnonzero(np.isin(symmetry.cluster, found))

    def check(self, symmetry: Symmetry) -> None:
        """Take step 5. Raises _Broken with the units of a family at fault."""
        rng = np.random.default_rng(1)
        moving = np.flatnonzero(symmetry.cluster >= 0)
        order = moving[np.lexsort((symmetry.row[moving], symmetry.color[moving]))]
        # A random order of two units is no order at all half the time: the first round moves every unit.
        for shift in (True, False, False):
            image = self._image(symmetry, None if shift else rng, order)
            bad = self._violations(image)
            if len(bad):
                clusters = np.unique(symmetry.cluster[bad])
                worst = [f for c in clusters.tolist() if c >= 0 for f in symmetry.clusters[c].columns if f >= 0]
                if not worst:
                    raise RuntimeError("a demand fails on units that do not move")
                deepest = max(worst, key=lambda f: len(symmetry.families[f].path))
                raise _Broken(self._units_of(symmetry, deepest), "failed the check against the demands")

    def _image(self, symmetry: Symmetry, rng: np.random.Generator | None, order: Ints) -> Ints:
        """Return the unit whose content each unit takes under a permutation of all families, random or by one step."""
        vectors: dict[int, Ints] = {}
        for f in symmetry.families.values():
            plain = np.tile(np.arange(f.size), (len(f.copies), 1))
            vectors[f.number] = np.roll(plain, 1, axis=1) if rng is None else rng.permuted(plain, axis=1)
        image = np.arange(self.n_units)
        color, row = symmetry.color[order], symmetry.row[order]
        starts = np.flatnonzero(np.diff(color, prepend=-1))
        moved: dict[int, Ints] = {}
        for begin, end in itertools.pairwise([*starts.tolist(), len(order)]):
            members = order[begin:end]
            number = int(symmetry.cluster[members[0]])
            if number not in moved:
                moved[number] = _moved_rows(symmetry, symmetry.clusters[number], vectors)
            # Within a colour every row occurs once, in ascending order.
            image[members] = members[moved[number][row[begin:end]]]
        return image

    def _violations(self, image: Ints) -> Ints:
        n = self.n_units
        bad: list[Ints] = []
        if len(self.place):
            if n * (int(self.place.max()) + 1) >= 2**62:
                raise RuntimeError("too many places to check")
            there = self.place * n + self.placed
            gone = ~np.isin(self.place * n + image[self.placed], there)
            bad.append(self.placed[gone])
        if len(self.event):
            key = self.event * n + self.child
            order = np.argsort(key)
            wanted = self.event * n + image[self.child]
            found = np.searchsorted(key[order], wanted).clip(max=len(key) - 1)
            fine = (key[order][found] == wanted) & (self.parent[order][found] == image[self.parent])
            bad.append(self.child[~fine])
        rigid = np.fromiter(self.reasons, np.int64, len(self.reasons))
        bad.append(rigid[image[rigid] != rigid])
        return np.unique(np.concatenate(bad))


def _share(parents: dict[int, list[tuple[int, Ints]]], a: int, b: int, up: Ints, across: Ints, n_groups: int) -> bool:
    """Return whether both clusters already map into one that groups them like this."""
    for c, v in parents.get(a, []):
        for d, w in parents.get(b, []):
            if c == d and (v[up] == w[across]).all() and len(np.unique(v)) == n_groups:
                return True
    return False


def _moved_rows(symmetry: Symmetry, cluster: Cluster, vectors: dict[int, Ints]) -> Ints:
    """Return, for each row of a cluster, the row that its content comes from."""
    old = cluster.coordinates
    new = old.copy()
    where = {f: i for i, f in enumerate(cluster.columns)}
    for i, f in enumerate(cluster.columns):
        if f < 0:
            continue
        family = symmetry.families[f]
        path = new[:, [where[p] for p in family.path]]
        copy = match_rows(path, family.copies)
        new[:, i] = vectors[f][copy, old[:, i]]
    return match_rows(new, old)


def _repeated(nodes: Nodes, unit: Ints) -> Nodes:
    """Return the nodes of a place that share their unit with another node of it."""
    nodes = np.unique(nodes)
    _, which, count = np.unique(unit[nodes], return_inverse=True, return_counts=True)
    return nodes[count[which] > 1]


def _components(n: int, first: Ints, second: Ints) -> Ints:
    graph = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(n, n))
    _, labels = cast(tuple[Any, Any], connected_components(graph, directed=False))
    return np.asarray(labels, np.int64)


def _hashes(rng: np.random.Generator, n: int) -> Hashes:
    return rng.integers(1, 2**63, n, dtype=np.uint64)


def _mix(values: Hashes) -> Hashes:
    """Return SplitMix64's finaliser of `values`: close values become far ones."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
