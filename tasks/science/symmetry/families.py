"""The tree of a spec's nested axes, and the best permutation of a whole tree.

An attention layer's heads are an axis, the channels within each head another one, nested in it. Which head of B suits
a head of A depends on how well their channels can be put in order, and that order on which heads are paired. Both are
found at once, from the inside out: the score of two heads is the score of the best assignment of their channels; heads
are assigned by these scores, and of the assignments of channels those of the paired heads stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.science.alignment.assignment import Solver
from tasks.science.symmetry.permutation import Axis, PermutationSpec

Path = tuple[int, ...]
Scores = Mapping[str, NDArray[np.float64]]
"""By family, (n_units, n_units): entry i, j is the gain of pairing A's unit i with B's unit j; the units of the axes of
a family count one after the other."""


@dataclass(frozen=True)
class Paired:
    """One axis of A paired with one of its family in B: position i takes unit `partners[i]`, at a gain of
    `gains[i]`; `a` and `b` are the paths of the two axes."""

    family: str
    a: Path
    b: Path
    partners: NDArray[np.int64]
    gains: NDArray[np.float64]


class Families:
    """How the axes of a spec are nested. A path lists the units of the enclosing axes, from the outside in."""

    def __init__(self, spec: PermutationSpec) -> None:
        self.spec = spec
        self.axes: dict[str, list[Axis]] = {}
        self.paths: dict[str, Path] = {}
        self.names: dict[tuple[str, Path], str] = {}
        self.children: dict[str, list[str]] = {}
        self.parent: dict[str, str | None] = {}
        self._first: dict[str, int] = {}
        n_units: dict[str, int] = {}
        for axis in spec.axes:  # parents stand before their children
            path = () if axis.parent is None else (*self.paths[axis.parent], axis.block)
            self.paths[axis.name] = path
            self.names[axis.family, path] = axis.name
            self._first[axis.name] = n_units.get(axis.family, 0)
            n_units[axis.family] = self._first[axis.name] + axis.size
            if axis.family not in self.axes:
                above = None if axis.parent is None else spec.by_name[axis.parent].family
                self.parent[axis.family] = above
                self.children[axis.family] = []
                if above is not None:
                    self.children[above].append(axis.family)
            self.axes.setdefault(axis.family, []).append(axis)

    @property
    def roots(self) -> list[str]:
        """Families that are nested in no other, in the order of the spec."""
        return [family for family, parent in self.parent.items() if parent is None]

    def tree(self, root: str) -> list[str]:
        """`root` and all families below it, parents before children."""
        found = [root]
        for family in found:
            found += self.children[family]
        return found

    def origin(self, permutation: Mapping[str, NDArray[np.int64]], name: str) -> str:
        """The axis of the original that comes to stand where this one stands, once its enclosing axes have moved."""
        lineage = [self.spec.by_name[name]]
        while (parent := lineage[0].parent) is not None:
            lineage.insert(0, self.spec.by_name[parent])
        path: Path = ()
        for axis, below in itertools.pairwise(lineage):
            path = (*path, int(permutation[self.names[axis.family, path]][below.block]))
        return self.names[lineage[-1].family, path]

    def units(self, family: str, path: Path) -> slice:
        """The units of one axis among those of its family."""
        name = self.names[family, path]
        return slice(self._first[name], self._first[name] + self.spec.by_name[name].size)

    def best(self, root: str, scores: Scores, solver: Solver) -> tuple[float, list[Paired]]:
        """The largest total of `scores` that permuting the tree under `root` can reach, and its pairs of axes.

        The total of a family counts where it has scores; families without scores follow those that have.
        """
        return self._best(root, (), (), scores, solver)

    def _best(self, family: str, a: Path, b: Path, scores: Scores, solver: Solver) -> tuple[float, list[Paired]]:
        size = self.spec.by_name[self.names[family, a]].size
        gains = np.zeros((size, size))
        if family in scores:
            # A view: of a wide axis there is no second copy.
            gains = scores[family][self.units(family, a), self.units(family, b)]
        inner: dict[tuple[int, int], list[Paired]] = {}
        if self.children[family]:
            gains = gains.copy()
            for i, j in itertools.product(range(size), repeat=2):
                inner[i, j] = []
                for child in self.children[family]:
                    gain, pairs = self._best(child, (*a, i), (*b, j), scores, solver)
                    gains[i, j] += gain
                    inner[i, j] += pairs
        partners = solver(gains)
        matched = gains[np.arange(size), partners]
        found = [Paired(family, a, b, partners, matched)]
        for i, j in enumerate(partners.tolist()):
            found += inner.get((i, j), [])
        return float(matched.sum()), found
