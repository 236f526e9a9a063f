"""What may be permuted in a network, and permuting it.

An *axis* is a set of hidden units that may be put in any order without changing what the network computes. Its *slots*
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
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Slot:
    """Where the units of an axis sit in one entry of the state dict.

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
        """Where to observe the units by default; None where no activation carries them (a product of two weights)."""
        return self.readings[0] if self.readings else None

    def pre_activation(self) -> Reading | None:
        """The last linear map or convolution before the default reading that carries the same axis."""
        return next((r for r in self.readings if r.kind == "linear"), None)


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
        """The permutation that moves nothing."""
        return Permutation({a.name: np.arange(a.size) for a in self.axes})

    def random(self, generator: torch.Generator) -> Permutation:
        """A uniformly random order for every axis, drawn from a CPU generator in the order of the axes."""
        return Permutation({a.name: torch.randperm(a.size, generator=generator).numpy() for a in self.axes})

    def compose(self, first: Permutation, then: Permutation) -> Permutation:
        """The permutation that does to a network what `first` and then `then` do one after the other."""
        self.check(first)
        self.check(then)
        # A nested axis stays with its block: what `then` does at the block's new place is done at its old one.
        moved = {self._origin(first, a.name): a.name for a in self.axes}
        return Permutation({a.name: first[a.name][then[moved[a.name]]] for a in self.axes})

    def inverse(self, permutation: Permutation) -> Permutation:
        """The permutation that undoes this one, after it or before it."""
        self.check(permutation)
        origin = {a.name: self._origin(permutation, a.name) for a in self.axes}
        return Permutation({a.name: np.argsort(permutation[origin[a.name]]) for a in self.axes})

    @cached_property
    def _paths(self) -> dict[str, tuple[int, ...]]:
        """Per axis, the units of its ancestors that lead to it, from the outside in."""
        paths: dict[str, tuple[int, ...]] = {}
        for axis in self.axes:  # parents stand before their children
            paths[axis.name] = () if axis.parent is None else (*paths[axis.parent], axis.block)
        return paths

    @cached_property
    def _names(self) -> dict[tuple[str, tuple[int, ...]], str]:
        return {(a.family, self._paths[a.name]): a.name for a in self.axes}

    def _origin(self, permutation: Permutation, name: str) -> str:
        """The axis of the original that comes to stand where this nested axis stands."""
        lineage = [self.by_name[name]]
        while (parent := lineage[0].parent) is not None:
            lineage.insert(0, self.by_name[parent])
        path: tuple[int, ...] = ()
        for axis, below in itertools.pairwise(lineage):
            source = self._names[axis.family, path]
            path = (*path, int(permutation[source][below.block]))
        return self._names[lineage[-1].family, path]

    def check(self, permutation: Mapping[str, Ints]) -> None:
        """Raise ValueError where `permutation` has other axes than the spec, or a vector that permutes no axis."""
        if missing := [a.name for a in self.axes if a.name not in permutation]:
            raise ValueError(f"the permutation lacks {len(missing)} axes of the spec, the first is {missing[0]!r}")
        if extra := [name for name in permutation if name not in self.by_name]:
            raise ValueError(f"the permutation has an axis that the spec lacks: {extra[0]!r}")
        for axis in self.axes:
            vector = permutation[axis.name]
            if vector.shape != (axis.size,) or not np.array_equal(np.sort(vector), np.arange(axis.size)):
                raise ValueError(f"the vector of axis {axis.name!r} is not a permutation of 0..{axis.size - 1}")

    def apply(self, state: Mapping[str, Tensor], permutation: Permutation) -> dict[str, Tensor]:
        """The state dict of the permuted network: a new dict with all keys; the given one is left as it is.

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
        """Per key, its slots with the names of their axes, nested axes before those that they are nested in."""
        moves: dict[str, list[tuple[Slot, str]]] = {}
        for axis in sorted(self.axes, key=lambda a: -len(self._paths[a.name])):
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

    def to_json(self) -> str:
        """The spec as compact JSON; `from_json` gives an equal spec back."""
        return json.dumps(_spec_to_json(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> PermutationSpec:
        """The spec that `to_json` wrote. Raises ValueError where the text is not one."""
        try:
            return _spec_from_json(json.loads(text))
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"this is not the JSON of a permutation spec: {error!r}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PermutationSpec) and self.to_json() == other.to_json()

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return _table(self)


def _on(index: Ints, tensor: Tensor) -> Tensor:
    """An index vector on the device of a tensor."""
    return torch.as_tensor(index, device=tensor.device)


def _runs(values: Ints) -> list[list[int]]:
    """A vector as runs [start, step, count]."""
    out: list[list[int]] = []
    i, n = 0, len(values)
    steps = np.diff(values)
    change = np.flatnonzero(np.diff(steps)) + 1
    while i < n:
        later = change[np.searchsorted(change, i, side="right") :]
        j = int(later[0]) if len(later) else n - 1
        if i == n - 1:
            j = i
        out.append([int(values[i]), int(steps[i]) if j > i else 1, j - i + 1])
        i = j + 1
    return out


def _from_runs(runs: list[list[int]]) -> Ints:
    parts = [start + step * np.arange(count, dtype=np.int64) for start, step, count in runs]
    return np.concatenate([np.empty(0, np.int64), *parts])


def _positions_to_json(positions: Ints) -> list[Any]:
    base, offset = positions[:, 0], positions[0] - positions[0, 0]
    if np.array_equal(positions, base[:, None] + offset):
        return [_runs(base), _runs(offset)]
    return [_runs(positions.ravel()), positions.shape[1]]


def _positions_from_json(value: list[Any]) -> Ints:
    if isinstance(value[1], int):
        return _from_runs(value[0]).reshape(-1, value[1])
    return _from_runs(value[0])[:, None] + _from_runs(value[1])


def _spec_to_json(spec: PermutationSpec) -> dict[str, Any]:
    axes = [
        {
            "name": a.name,
            "size": a.size,
            "family": a.family,
            "parent": a.parent,
            "block": a.block,
            "slots": [
                [s.key, s.dim, _positions_to_json(s.positions), None if s.rows is None else _runs(s.rows)]
                for s in a.slots
            ],
            "readings": [
                [r.node, r.module, r.call, r.dim, _positions_to_json(r.positions), r.kind, r.n_samples]
                for r in a.readings
            ],
        }
        for a in spec.axes
    ]
    fixed = [[f.size, f.reason, f.slots] for f in spec.fixed]
    written: dict[str, Any] = {
        "version": 1,
        "axes": axes,
        "fixed": fixed,
        "shapes": spec.shapes,
        "tied": spec.tied,
        "unreached": spec.unreached,
        "training": spec.training,
    }
    # Left out where there are none: a spec's text enters digests.
    return written | ({"casts": spec.casts} if spec.casts else {})


def _spec_from_json(data: dict[str, Any]) -> PermutationSpec:
    if data["version"] != 1:
        raise ValueError(f"permutation spec of version {data['version']}, this code reads version 1")
    axes = tuple(
        Axis(
            a["name"],
            a["size"],
            tuple(
                Slot(key, dim, _positions_from_json(p), None if rows is None else _from_runs(rows))
                for key, dim, p, rows in a["slots"]
            ),
            tuple(
                Reading(node, module, call, dim, _positions_from_json(p), kind, n)
                for node, module, call, dim, p, kind, n in a["readings"]
            ),
            a["family"],
            a["parent"],
            a["block"],
        )
        for a in cast(list[dict[str, Any]], data["axes"])
    )
    fixed = tuple(FixedAxis(n, reason, tuple((k, d) for k, d in slots)) for n, reason, slots in data["fixed"])
    shapes = {key: tuple(shape) for key, shape in data["shapes"].items()}
    tied = tuple(tuple(group) for group in data["tied"])
    unreached, casts = tuple(data["unreached"]), tuple(data.get("casts", ()))
    return PermutationSpec(axes, fixed, shapes, tied, unreached, data["training"], casts)


def _table(spec: PermutationSpec) -> str:
    """A line per axis or family of nested axes, then what does not move."""
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
    n_units = sum(a.size for a in spec.axes)
    lines.append(f"{len(spec.axes)} axes, {n_units} units, 10^{spec_log10(spec):.0f} orders")
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


def spec_log10(spec: PermutationSpec) -> float:
    """Decimal logarithm of the number of orders that the spec allows."""
    return sum(math.lgamma(a.size + 1) for a in spec.axes) / math.log(10)
