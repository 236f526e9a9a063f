"""Which axes of a network's weights may be reordered together without changing its function, and how.

The convention, everywhere: position i of the permuted network takes unit perm[i] of the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.science.specs import State


@dataclass(frozen=True)
class Slot:
    """A dimension of a tensor that moves with its axis."""

    tensor: str
    dim: int


@dataclass(frozen=True)
class Axis:
    """A hidden axis of `size` units; `read` names the module whose output carries the units' activations."""

    name: str
    size: int
    slots: tuple[Slot, ...]
    read: str


@dataclass(frozen=True)
class Permutation:
    """One index vector (size,) int64 per axis name."""

    indices: Mapping[str, Tensor]


@dataclass(frozen=True)
class PermutationSpec:
    """Every hidden axis of a network that may be permuted."""

    axes: tuple[Axis, ...]

    def identity(self) -> Permutation:
        return Permutation({axis.name: torch.arange(axis.size) for axis in self.axes})

    def random(self, generator: torch.Generator) -> Permutation:
        return Permutation({axis.name: torch.randperm(axis.size, generator=generator) for axis in self.axes})

    def inverse(self, permutation: Permutation) -> Permutation:
        """What undoes `permutation`."""
        self._check(permutation)
        return Permutation({axis.name: torch.argsort(permutation.indices[axis.name]) for axis in self.axes})

    def compose(self, first: Permutation, then: Permutation) -> Permutation:
        """The one permutation that does what applying `first`, and `then` to its result, does."""
        self._check(first)
        self._check(then)
        return Permutation({axis.name: first.indices[axis.name][then.indices[axis.name]] for axis in self.axes})

    def apply(self, state: Mapping[str, Tensor], permutation: Permutation) -> State:
        """`state` with every axis reordered: a new dict with all keys; untouched tensors are shared, not copied.

        Raises ValueError where a tensor is missing or has another size along the axis, or where `permutation` is not
        one of this spec's axes.
        """
        self._check(permutation)
        permuted = dict(state)
        for axis in self.axes:
            indices = permutation.indices[axis.name]
            for slot in axis.slots:
                tensor = permuted.get(slot.tensor)
                if tensor is None:
                    raise ValueError(f"the weights have no tensor {slot.tensor!r}, which axis {axis.name} moves")
                if tensor.ndim <= slot.dim or tensor.shape[slot.dim] != axis.size:
                    raise ValueError(
                        f"{slot.tensor} has shape {tuple(tensor.shape)}; axis {axis.name} needs {axis.size} units "
                        f"along dimension {slot.dim}"
                    )
                permuted[slot.tensor] = tensor.index_select(slot.dim, indices.to(tensor.device))
        return permuted

    def _check(self, permutation: Permutation) -> None:
        names = {axis.name for axis in self.axes}
        if set(permutation.indices) != names:
            odd = ", ".join(sorted(set(permutation.indices) ^ names))
            raise ValueError(f"a permutation needs one vector for each axis of its spec; missing or unknown: {odd}")
        for axis in self.axes:
            indices = permutation.indices[axis.name]
            if indices.shape != (axis.size,) or not torch.equal(indices.sort().values, torch.arange(axis.size)):
                raise ValueError(f"axis {axis.name}: not a permutation of 0..{axis.size - 1}")
