"""The best permutation of a whole tree of nested axes.

Which head of B suits a head of A depends on how well their channels can be put in order, and that order on which heads
are paired. Both are found at once, from the inside out: the score of two heads is the score of the best assignment of
their channels; heads are assigned by these scores, and of the assignments of channels those of the paired heads stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.science.alignment.assignment import Solver
from tasks.science.symmetry.families import Families
from tasks.science.symmetry.permutation import Ints, UnitPath

Scores = Mapping[str, NDArray[np.float64]]
"""By family, (n_units, n_units): entry i, j is the gain of pairing A's unit i with B's unit j."""


@dataclass(frozen=True)
class Paired:
    """An axis of A paired with one of its family in B; `a` and `b` are their paths.

    Position i takes unit `partners[i]` at a gain of `gains[i]`.
    """

    family: str
    a: UnitPath
    b: UnitPath
    partners: Ints
    gains: NDArray[np.float64]


def assign_tree(families: Families, root: str, scores: Scores, solver: Solver) -> tuple[float, list[Paired]]:
    """Return the largest total of `scores` that permuting the tree under `root` can reach, and its pairs of axes.

    The total of a family counts where it has scores; families without scores follow those that have.
    """
    return _Trees(families, scores, solver).best(root, (), ())


@dataclass(frozen=True)
class _Trees:
    families: Families
    scores: Scores
    solver: Solver

    def best(self, family: str, a: UnitPath, b: UnitPath) -> tuple[float, list[Paired]]:
        """Return the best total of one axis of A and one of B with all below them, and its pairs."""
        families = self.families
        size = families.spec.by_name[families.spec.named[family, a]].size
        gains = np.zeros((size, size))
        if family in self.scores:
            # A view: of a wide axis there is no second copy.
            gains = self.scores[family][families.units(family, a), families.units(family, b)]
        inner: dict[tuple[int, int], list[Paired]] = {}
        if families.children[family]:
            gains = gains.copy()
            for i, j in itertools.product(range(size), repeat=2):
                inner[i, j] = []
                for child in families.children[family]:
                    gain, pairs = self.best(child, (*a, i), (*b, j))
                    gains[i, j] += gain
                    inner[i, j] += pairs
        partners = self.solver(gains)
        matched = gains[np.arange(size), partners]
        found = [Paired(family, a, b, partners, matched)]
        for i, j in enumerate(partners.tolist()):
            found += inner.get((i, j), [])
        return float(matched.sum()), found
