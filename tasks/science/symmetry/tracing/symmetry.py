"""The solution of a network's demands: families of free permutations, and the clusters of units that they move."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.science.symmetry.permutation import Ints


@dataclass(frozen=True, eq=False)
class Family:
    """Free axes of one size, one per combination of units of the families in `path` (the nearest parent last)."""

    number: int
    path: tuple[int, ...]
    size: int
    copies: Ints  # (n_copies, len(path)): the units of `path` that each copy belongs to


@dataclass(eq=False)
class Cluster:
    """Units that move alike, `coordinates` (n_units, n_columns) over the families in `columns`.

    A negative column tells apart units that no family moves separately. A family comes twice where each unit belongs
    to two units of it (a channel by channel matrix of each head).
    """

    columns: tuple[int, ...]
    coordinates: Ints

    @property
    def doubled(self) -> bool:
        """True where a family comes twice: no one axis then moves these units."""
        return len(set(self.columns)) < len(self.columns)


@dataclass(eq=False)
class Symmetry:
    """Families, and for every node its unit, the cluster and row of that unit, and a number for its colour."""

    families: dict[int, Family]
    clusters: dict[int, Cluster]
    unit: Ints
    cluster: Ints  # per unit; -1 where it does not move
    row: Ints  # per unit, its row in the cluster
    color: Ints  # per unit
    reasons: dict[int, str]  # per unit that is rigid


def match_rows(wanted: Ints, table: Ints) -> Ints:
    """Return the index of each row of `wanted` among the rows of `table`; -1 where it is missing."""
    if table.shape[1] == 0:
        return np.zeros(len(wanted), np.int64)
    width = np.maximum(table.max(axis=0), wanted.max(axis=0)) + 1
    scale = np.cumprod(np.concatenate([np.ones(1, np.int64), width[:-1]]))
    keys, goal = table @ scale, wanted @ scale
    order = np.argsort(keys, kind="stable")
    found = order[np.searchsorted(keys[order], goal).clip(max=len(keys) - 1)]
    return np.where(keys[found] == goal, found, -1)
