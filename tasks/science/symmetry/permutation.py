"""Permutations of hidden units, and the spec of those that a network allows.

An *axis* is a set of hidden units that may be put in any order without changing the network's function. Its *slots*
say where its units sit in the parameters and buffers, its *readings* where their activations can be observed. A
`Permutation` gives every axis an index vector: position i of the permuted network takes unit `perm[i]` of the original.

Axes can be nested: an attention layer has an axis of heads and, within each head, an axis of channels; a grouped
convolution an axis of groups and one of channels within each group. A nested axis names its `parent` and the unit of
the parent that it lies in (`block`). It is permuted first, inside the block where it stands in the original; then the
parent moves the blocks. Hence channel c of the head at position h comes from channel `inner[heads[h]][c]` of head
`heads[h]`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]

UnitPath = tuple[int, ...]
"""Units of the enclosing axes that lead to a nested axis, from the outside in."""


@dataclass(frozen=True, eq=False)
class Slot:
    """The positions of an axis' units in one entry of the state dict.

    `positions` (size, n_each): row i lists the indices along `dim` that belong to unit i, in matching order: one for
    a plain channel, height * width of them after a flatten. `rows` restricts the slot to these indices of dimension 0
    (a grouped convolution, where each group orders its own inputs); None for all.
    """

    key: str
    dim: int
    positions: Ints
    rows: Ints | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """A tensor of the forward pass that carries an axis: `positions` (size, n_each) along `dim`, as in a slot.

    `node` names the operation in the traced graph. Where its result is the output of a module, `module` is that
    module's path and `call` tells which of its calls (0 the first); else `module` is None. All other dimensions are
    samples. `kind`: nonlinearity, sum (a residual sum of streams), norm, linear (the pre-activation) or other.
    `n_samples` counts the positions of the other dimensions at the example inputs. An axis of groups or heads is
    carried by several channels per unit.
    """

    node: str
    module: str | None
    call: int
    dim: int
    positions: Ints
    kind: str
    n_samples: int


@dataclass(frozen=True, eq=False)
class Axis:
    """Units that may be put in any order: `size` of them, found at `slots`, observed at `readings`.

    The first reading is the one to match units by: the last nonlinearity (or residual sum) that carries the axis.
    Nested axes of one `family` stand at the same place of different blocks; an axis on its own is its own family.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    readings: tuple[Reading, ...]
    family: str
    parent: str | None = None
    block: int = 0

    @property
    def reading(self) -> Reading | None:
        """The default reading; None where no activation carries the units (a product of two weights)."""
        return self.readings[0] if self.readings else None


@dataclass(frozen=True)
class FixedAxis:
    """Positions of the network that cannot be permuted, with the reason; `slots` pairs state dict keys and dims."""

    size: int
    reason: str
    slots: tuple[tuple[str, int], ...]


class Permutation(Mapping[str, Ints]):
    """One int64 index vector per axis: position i of the permuted network takes unit `perm[i]` of the original."""

    def __init__(self, vectors: Mapping[str, Ints]) -> None:
        self._vectors = {name: np.asarray(v, np.int64) for name, v in vectors.items()}

    def __getitem__(self, axis: str) -> Ints:
        return self._vectors[axis]

    def __iter__(self) -> Iterator[str]:
        return iter(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permutation):
            return NotImplemented
        return self.keys() == other.keys() and all(np.array_equal(self[k], other[k]) for k in self)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        moved = sum(int((v != np.arange(len(v))).sum()) for v in self.values())
        return f"Permutation({len(self)} axes, {moved} of {sum(map(len, self.values()))} units moved)"


@dataclass(frozen=True, eq=False)
class PermutationSpec:
    """Every hidden axis of a network that may be permuted, and everything that cannot, with its reason.

    `shapes`: shape of every entry of the state dict. `tied`: groups of keys that are one tensor. `unreached`:
    parameters that no traced forward pass reads; `training` says whether the training mode, where auxiliary heads
    live, was traced as well: "same" (nothing more to trace), "traced", or "unverified: reason". `casts`:
    modules that cast to fewer digits than float64, which the numerical check left out: by their paths.
    """

    axes: tuple[Axis, ...]
    fixed: tuple[FixedAxis, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    tied: tuple[tuple[str, ...], ...] = ()
    unreached: tuple[str, ...] = ()
    training: str = "same"
    casts: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Axis]:
        """Axes by name."""
        return {axis.name: axis for axis in self.axes}

    def identity(self) -> Permutation:
        """Return the permutation that moves nothing."""
        return Permutation({a.name: np.arange(a.size) for a in self.axes})

    def random(self, generator: torch.Generator) -> Permutation:
        """Draw a uniformly random order for every axis from a CPU generator, in the order of the axes."""
        return Permutation({a.name: torch.randperm(a.size, generator=generator).numpy() for a in self.axes})

    def compose(self, first: Permutation, then: Permutation) -> Permutation:
        """Return the permutation that acts as `first` and then `then`."""
        self.check(first)
        self.check(then)
        # A nested axis stays with its block: what `then` does at the block's new place is done at its old one.
        moved = {self.origin(first, a.name): a.name for a in self.axes}
        return Permutation({a.name: first[a.name][then[moved[a.name]]] for a in self.axes})

    @cached_property
    def paths(self) -> dict[str, UnitPath]:
        """The path of every axis, by its name."""
        paths: dict[str, UnitPath] = {}
        for axis in self.axes:  # parents stand before their children
            paths[axis.name] = () if axis.parent is None else (*paths[axis.parent], axis.block)
        return paths

    @cached_property
    def named(self) -> dict[tuple[str, UnitPath], str]:
        """The name of every axis, by its family and path."""
        return {(a.family, self.paths[a.name]): a.name for a in self.axes}

    def origin(self, permutation: Mapping[str, Ints], name: str) -> str:
        """Return the axis of the original that comes to stand where this one stands, once enclosing axes have moved."""
        lineage = [self.by_name[name]]
        while (parent := lineage[0].parent) is not None:
            lineage.insert(0, self.by_name[parent])
        path: UnitPath = ()
        for axis, below in itertools.pairwise(lineage):
            source = self.named[axis.family, path]
            path = (*path, int(permutation[source][below.block]))
        return self.named[lineage[-1].family, path]

    def check(self, permutation: Mapping[str, Ints]) -> None:
        """Raise ValueError where `permutation` has other axes than the spec, or a vector that is no permutation."""
        if missing := [a.name for a in self.axes if a.name not in permutation]:
            raise ValueError(f"the permutation lacks {len(missing)} axes of the spec, the first is {missing[0]!r}")
        if extra := [name for name in permutation if name not in self.by_name]:
            raise ValueError(f"the permutation has an axis that the spec lacks: {extra[0]!r}")
        for axis in self.axes:
            vector = permutation[axis.name]
            if vector.shape != (axis.size,) or not np.array_equal(np.sort(vector), np.arange(axis.size)):
                raise ValueError(f"the vector of axis {axis.name!r} is not a permutation of 0..{axis.size - 1}")

    def apply(self, state: Mapping[str, Tensor], permutation: Permutation) -> dict[str, Tensor]:
        """Return the state dict of the permuted network: a new dict of all keys; `state` is left as it is.

        Entries that do not move are the given tensors themselves; keys that were one tensor are one tensor again.
        Raises ValueError for a key that the spec names and the state lacks, a shape that differs from the traced
        network's, tied keys that hold different values, or a vector that is not a permutation.
        """
        self.check(permutation)
        for key, shape in self.shapes.items():
            if key not in state:
                raise ValueError(f"the state dict lacks {key!r}, which the traced network has")
            if tuple(state[key].shape) != shape:
                raise ValueError(f"{key!r} has shape {tuple(state[key].shape)}, the traced network has {shape}")
        for first, *others in self.tied:
            for other in others:
                if state[first] is not state[other] and not torch.equal(state[first], state[other]):
                    raise ValueError(f"{first!r} and {other!r} are one tensor in the traced network, here they differ")
        done: dict[int, Tensor] = {}
        out: dict[str, Tensor] = {}
        for key, tensor in state.items():
            if id(tensor) not in done:
                done[id(tensor)] = self._permuted(key, tensor, permutation)
            out[key] = done[id(tensor)]
        return out

    @cached_property
    def _moves(self) -> dict[str, list[tuple[Slot, str]]]:
        """The slots of every key with the names of their axes, nested axes before those that enclose them."""
        moves: dict[str, list[tuple[Slot, str]]] = {}
        for axis in sorted(self.axes, key=lambda a: -len(self.paths[a.name])):
            for slot in axis.slots:
                moves.setdefault(slot.key, []).append((slot, axis.name))
        return moves

    def _permuted(self, key: str, tensor: Tensor, permutation: Permutation) -> Tensor:
        plain = {d: np.arange(n) for d, n in enumerate(tensor.shape)}
        out = tensor
        for slot, name in self._moves.get(key, []):
            taken = slot.positions[permutation[name]].ravel()
            if slot.rows is None:
                index = plain[slot.dim].copy()
                index[slot.positions.ravel()] = plain[slot.dim][taken]
                plain[slot.dim] = index
            else:
                # Nested slots come first, so that the rows named here are still the original ones.
                rows = _on(slot.rows, tensor)
                index = np.arange(tensor.shape[slot.dim])
                index[slot.positions.ravel()] = taken
                block = out.index_select(0, rows).index_select(slot.dim, _on(index, tensor))
                out = out.index_copy(0, rows, block)
        for d, index in plain.items():
            if not np.array_equal(index, np.arange(len(index))):
                out = out.index_select(d, _on(index, tensor))
        return out

    def __repr__(self) -> str:
        return _table(self)


def _on(index: Ints, tensor: Tensor) -> Tensor:
    """Return an index vector on the device of a tensor."""
    return torch.as_tensor(index, device=tensor.device)


def _table(spec: PermutationSpec) -> str:
    """Return a line per axis or family of nested axes, then the fixed positions."""
    children: dict[str, list[Axis]] = {}
    for axis in spec.axes:
        children.setdefault(axis.family, []).append(axis)
    rows = [("axis", "size", "moves", "read at")]
    for family, members in children.items():
        first = members[0]
        size = str(first.size) if first.parent is None else f"{len(members)} x {first.size}"
        slots = [f"{s.key}:{s.dim}" for s in first.slots]
        slots = list(dict.fromkeys(slots))
        more = f" +{len(slots) - 4}" if len(slots) > 4 else ""
        read = first.readings[0].module or first.readings[0].node if first.readings else "-"
        inside = "" if first.parent is None else f" in {first.parent.partition('[')[0]}"
        rows.append((family + inside, size, ", ".join(slots[:4]) + more, read))
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    widths[2] = min(widths[2], 100)
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    lines.insert(1, "-" * len(lines[0]))
    n_units, log10 = sum(a.size for a in spec.axes), sum(math.lgamma(a.size + 1) for a in spec.axes) / math.log(10)
    lines.append(f"{len(spec.axes)} axes, {n_units} units, 10^{log10:.0f} orders")
    for f in spec.fixed:
        places = ", ".join(f"{k}:{d}" for k, d in f.slots[:3]) + (f" +{len(f.slots) - 3}" if len(f.slots) > 3 else "")
        lines.append(f"fixed  {f.size}  {places}: {f.reason}")
    if spec.unreached:
        lines.append(f"not read by a forward pass: {', '.join(spec.unreached)}")
    if spec.training != "same":
        lines.append(f"training mode: {spec.training}")
    if spec.casts:
        lines.append(f"checked in float64, without the casts in: {', '.join(spec.casts)}")
    return "\n".join(lines)
