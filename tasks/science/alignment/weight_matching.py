"""Weight matching: the permutation of B whose weights have the largest inner product with A's. No data take part.

The objective is the sum over all parameters of <A, P(B)>. With all axes but one fixed it is linear in that one, so a
linear assignment gives the best order of its units; axes are visited in random order until none changes anything.
Where axes are nested, each is visited by itself, and their whole tree at once besides (see nested_assignment.py), since
heads cannot be told apart while the channels within them are out of order.
The descent ends in a local optimum that depends on the order of visits: it is restarted with other orders, and the
best one stands.
Source: Ainsworth, Hayase and Srinivasa 2023, Git Re-Basin (arXiv 2209.04836), algorithm 1.
Deviates: an update is kept only where it raises the objective, which matters where one tensor carries an axis twice;
running statistics of BatchNorm are no parameters and take no part.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.science.alignment.assignment import Solver, assign
from tasks.science.alignment.nested_assignment import assign_tree
from tasks.science.specs.identity import stream
from tasks.science.specs.state import State
from tasks.science.symmetry.families import Families
from tasks.science.symmetry.permutation import Axis, Ints, Permutation, PermutationSpec, Slot

MAX_SWEEPS = 200

SMALLEST_GAIN = 1e-7
"""Smallest gain that counts as a change, in units of the norms of A and B: float32 products are no finer."""

Vectors = dict[str, Ints]


@dataclass(frozen=True)
class Descent:
    """The best permutation of several descents; `objectives` holds the objective of each."""

    permutation: Permutation
    objective: float
    objectives: tuple[float, ...]


@torch.no_grad()
def match_weights(
    spec: PermutationSpec,
    a: State,
    b: State,
    parameters: Collection[str],
    n_restarts: int = 1,
    solver: Solver = assign,
    start: Permutation | None = None,
    families: Sequence[str] | None = None,
) -> Descent:
    """Run coordinate descent over the axes of `spec`, `n_restarts` times.

    `parameters` are the keys that count. `start`: where every descent begins, the identity if None. `families`: those
    that may move, all if None. Orders are drawn from a stream named by the restart alone, so a pair's result does not
    depend on what is matched beside it.
    """
    problem = _Problem(spec, a, b, parameters, solver)
    begin = {**(spec.identity() if start is None else start)}
    found = [problem.descend(dict(begin), restart, families) for restart in range(n_restarts)]
    objectives = tuple(problem.objective(vectors, spec.axes) for vectors in found)
    best = int(np.argmax(objectives))
    return Descent(Permutation(found[best]), objectives[best], objectives)


@torch.no_grad()
def unit_cosines(
    spec: PermutationSpec, axis: Axis, a: State, b: State, parameters: Collection[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the cosine (size,) of all weights of A's unit i and B's unit i, 0 where either has none.

    Two masks follow: the units of A and of B whose weights are all 0.
    """
    counted = _counted(spec, parameters)
    shape = (3, axis.size)
    products = np.zeros(shape)
    for slot in axis.slots:
        if slot.key in counted:
            left, right = (_unit_rows(state[slot.key], slot).double() for state in (a, b))
            for i, (one, other) in enumerate(((left, right), (left, left), (right, right))):
                products[i] += (one * other).sum(1).numpy()
    norms = np.sqrt(products[1] * products[2])
    cosines = np.divide(products[0], norms, out=np.zeros(axis.size), where=norms > 0)
    return cosines, products[1] == 0, products[2] == 0


def _counted(spec: PermutationSpec, parameters: Collection[str]) -> set[str]:
    """Return the parameters, each tensor once under whatever names it has."""
    again = {key for keys in spec.tied for key in keys[1:]}
    return set(parameters) - again


def _unit_rows(tensor: Tensor, slot: Slot) -> Tensor:
    """Return the entries of a tensor that belong to each unit of a slot: (size, n_entries)."""
    if slot.rows is not None:
        tensor = tensor.index_select(0, torch.from_numpy(slot.rows))
    units = tensor.movedim(slot.dim, 0)
    if not np.array_equal(slot.positions.ravel(), np.arange(len(units))):
        units = units.index_select(0, torch.from_numpy(slot.positions.ravel()))
    return units.reshape(len(slot.positions), -1)


class _Problem:
    """A, B and the spec between them."""

    def __init__(self, spec: PermutationSpec, a: State, b: State, parameters: Collection[str], solver: Solver) -> None:
        self.spec, self.a, self.b, self.solver = spec, a, b, solver
        # Applies a permutation to a few tensors rather than to a whole state.
        self.mover = PermutationSpec(spec.axes)
        self.families = Families(spec)
        self.counted = _counted(spec, parameters)
        keys = {slot.key for axis in spec.axes for slot in axis.slots} & self.counted
        scale_a, scale_b = (sum(float(s[k].double().square().sum()) for k in keys) ** 0.5 for s in (a, b))
        self.tolerance = SMALLEST_GAIN * scale_a * scale_b

    def descend(self, vectors: Vectors, restart: int, families: Sequence[str] | None) -> Vectors:
        free = set(self.families.axes if families is None else families)
        trees = [f for f in self.families.roots if self.families.children[f] and free.issuperset(self.families.tree(f))]
        coordinates = [*trees, *(axis for axis in self.spec.axes if axis.family in free)]
        orders = stream("weight matching", restart)
        for _ in range(MAX_SWEEPS):
            changed = False
            for i in orders.permutation(len(coordinates)).tolist():
                coordinate = coordinates[i]
                step = self._match_tree if isinstance(coordinate, str) else self._match_axis
                changed |= step(coordinate, vectors)  # pyright: ignore[reportArgumentType]
            if not changed:
                break
        return vectors

    def objective(self, vectors: Vectors, axes: Sequence[Axis]) -> float:
        """Return the part of the objective that permuting `axes` can change."""
        keys = sorted({slot.key for axis in axes for slot in axis.slots} & self.counted)
        moved = self._moved(keys, vectors)
        return sum(float(torch.dot(self.a[k].double().flatten(), moved[k].double().flatten())) for k in keys)

    def _moved(self, keys: Collection[str], vectors: Vectors) -> dict[str, Tensor]:
        return self.mover.apply({key: self.b[key] for key in keys}, Permutation(vectors))

    def _keys(self, slots: Sequence[Slot]) -> set[str]:
        return {slot.key for slot in slots} & self.counted

    def _match_axis(self, axis: Axis, vectors: Vectors) -> bool:
        """Reorder the units at this axis, all else as it is; return whether that gained anything."""
        source = self.spec.origin(vectors, axis.name)
        before = vectors[source]
        moved = self._moved(self._keys(axis.slots), {**vectors, source: np.arange(axis.size)})
        scores = np.zeros((axis.size, axis.size))
        for slot in axis.slots:
            if slot.key in moved:
                left, right = _unit_rows(self.a[slot.key], slot), _unit_rows(moved[slot.key], slot)
                scores += (left @ right.T).numpy()
        partners = self.solver(scores)
        rows = np.arange(axis.size)
        if scores[rows, partners].sum() - scores[rows, before].sum() <= self.tolerance:
            return False
        keys = [slot.key for slot in axis.slots]
        twice = len(set(keys)) < len(keys)
        return self._keep(vectors, {**vectors, source: partners}, [axis], check=twice)

    def _match_tree(self, root: str, vectors: Vectors) -> bool:
        """Reorder a tree of nested axes at once; return whether that gained anything."""
        tree = self.families.tree(root)
        scores: dict[str, NDArray[np.float64]] = {}
        for family in tree:
            own = self._own_scores(family, vectors)
            if own is not None:
                scores[family] = own
        _, pairs = assign_tree(self.families, root, scores, self.solver)
        wanted = dict(vectors)
        for pair in pairs:
            wanted[self.spec.named[pair.family, pair.b]] = pair.partners
        axes = [axis for family in tree for axis in self.families.axes[family]]
        return self._keep(vectors, wanted, axes, check=True)

    def _own_scores(self, family: str, vectors: Vectors) -> NDArray[np.float64] | None:
        """Return the gain of every pair of units of a family, its own and enclosing axes undone; None without a tensor.

        What the families nested in it place as well is left to them.
        """
        axes = self.families.axes[family]
        below = {
            (slot.key, slot.dim)
            for child in self.families.tree(family)[1:]
            for axis in self.families.axes[child]
            for slot in axis.slots
        }
        chosen = [[s for s in axis.slots if s.key in self.counted and (s.key, s.dim) not in below] for axis in axes]
        if not chosen[0] or len({len(slots) for slots in chosen}) > 1:
            return None
        undone = dict(vectors)
        above: str | None = family
        while above is not None:
            undone |= {axis.name: np.arange(axis.size) for axis in self.families.axes[above]}
            above = self.families.parent[above]
        moved = self._moved({slot.key for slots in chosen for slot in slots}, undone)
        n_units = sum(axis.size for axis in axes)
        scores = np.zeros((n_units, n_units))
        for slots in zip(*chosen, strict=True):
            left, right = (torch.cat([_unit_rows(t[slot.key], slot) for slot in slots]) for t in (self.a, moved))
            scores += (left @ right.T).numpy()
        return scores

    def _keep(self, vectors: Vectors, wanted: Vectors, axes: Sequence[Axis], *, check: bool) -> bool:
        """Take over `wanted`, with `check` only if the objective rises; return whether it did."""
        if check and self.objective(wanted, axes) - self.objective(vectors, axes) <= self.tolerance:
            return False
        vectors.update(wanted)
        return True
