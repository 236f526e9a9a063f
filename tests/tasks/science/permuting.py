"""Permutations that tests compare with."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from tasks.science.symmetry.permutation import Permutation, PermutationSpec


def inverse(spec: PermutationSpec, permutation: Permutation) -> Permutation:
    """Return the permutation that undoes this one, after it or before it."""
    origin = {axis.name: spec.origin(permutation, axis.name) for axis in spec.axes}
    return Permutation({name: np.argsort(permutation[source]) for name, source in origin.items()})


def values_of(item: Any) -> Any:
    """Return a spec, or a part of one, as nested lists that compare by value."""
    if is_dataclass(item):
        return [values_of(getattr(item, field.name)) for field in fields(item)]
    if isinstance(item, tuple):
        return [values_of(part) for part in item]
    return item.tolist() if isinstance(item, np.ndarray) else item
