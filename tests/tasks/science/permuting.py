"""Permutations that tests compare with."""

from __future__ import annotations

import numpy as np

from tasks.science.symmetry.permutation import Permutation, PermutationSpec


def inverse(spec: PermutationSpec, permutation: Permutation) -> Permutation:
    """Return the permutation that undoes this one, after it or before it."""
    origin = {axis.name: spec.origin(permutation, axis.name) for axis in spec.axes}
    return Permutation({name: np.argsort(permutation[source]) for name, source in origin.items()})
