"""Entries of a network's parameters that belong to the units of a linear map.

A weight is often a parameter itself, or a view of one: then every entry belongs to the unit whose row it is in. Other
weights are computed (weight norm, pruning, low-rank updates): then the entries are sought that scale the computed
weight unit by unit when they are scaled so, and those that are in the order of the units. Candidates are tried out in
float64, where they hold exactly or not at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from tasks.science.specs.state import State
from tasks.science.symmetry.tracing.execution import evaluate_nodes
from tasks.science.symmetry.tracing.graph import Graph, operation_name
from tasks.science.symmetry.tracing.linear_maps import VIEWS, LinearMap

_TOLERANCE = 1e-9
"""Relative error below which two weights computed in float64 count as the same."""

_NOISE = (0.1, 1.0, 10.0)
"""Standard deviations of the noise that a computed weight is tried with, beside its own parameters.

A scaling may hold for some values alone, as with an update of low rank that is still 0, or a norm below its bound.
"""

_MAX_TRIALS = 64
"""Most ways to scale a computed weight that are tried; it has few parameters, and seldom more than four ways."""


def along(units: Tensor, like: Tensor, dim: int) -> Tensor:
    """Return a view of `units` (n_units,) that broadcasts with `like`, whose units lie along `dim`."""
    shape = [1] * like.ndim
    shape[dim] = -1
    return units.view(shape)


@dataclass(frozen=True, eq=False)
class UnitEntries:
    """The entries of one tensor of a state dict that belong to units.

    `owner`, int64 and broadcastable to the tensor's shape, is the unit of each entry, -1 for those of none.
    """

    key: str
    owner: Tensor

    def spread(self, units: Tensor, others: float) -> Tensor:
        """Return `units` (n_units,) as a tensor that broadcasts with the entries, `others` where they have no unit."""
        owner = self.owner.to(units.device)
        if not bool((owner < 0).any()):
            return units[owner]
        return torch.where(owner < 0, others, units[owner.clamp_min(0)])

    def order_in(self, marked: Tensor) -> Tensor:
        """Return the unit (n_units,) int64 at each position, from entries that hold the numbers of their units."""
        owner = self.owner.expand(marked.shape).flatten()
        first = torch.full((int(owner.max()) + 1,), len(owner)).scatter_reduce(
            0, owner.clamp_min(0), torch.where(owner < 0, len(owner), torch.arange(len(owner))), "amin"
        )
        return marked.flatten()[first.to(marked.device)].long()


@dataclass(frozen=True, eq=False)
class Entries:
    """The entries of one linear map.

    `scaled`: those that are multiplied together to scale its units, empty where no entries do that. `order`: those that
    are in the order of its units; `shift`: those of its bias; None where there are none.
    """

    scaled: tuple[UnitEntries, ...]
    order: UnitEntries | None
    shift: UnitEntries | None


def find_entries(graph: Graph, one: LinearMap, parameters: set[str], state: State) -> Entries:
    """Return the entries of `one`, a map of `graph`; only `parameters` are scaled and shifted.

    `state` has the values that computed weights are tried out with.
    """
    shift = None if one.bias is None else _viewed(graph, one.bias, torch.arange(one.n_units), parameters)
    weight = _viewed(graph, one.weight, one.units, parameters)
    if weight is not None:
        return Entries((weight,), weight, shift)
    trial = _Trial(graph, one, parameters, state)
    scaled = next(trial.scalings(), ())
    order = scaled[0] if scaled else next(trial.orders(), None)
    return Entries(scaled, order, shift)


def _viewed(graph: Graph, node: Node, units: Tensor, parameters: set[str]) -> UnitEntries | None:
    """Return the entries of the parameter that `node` is a view of; None for no such view, or shared entries."""
    chain = [node]
    while chain[-1].op == "call_function":
        if operation_name(chain[-1]) not in VIEWS or len(chain[-1].all_input_nodes) != 1:
            return None
        chain.append(chain[-1].all_input_nodes[0])
    source = chain[-1]
    key = graph.state.get(source.name)
    if key is None or key not in parameters:
        return None
    shape = source.meta["val"].shape
    index = torch.arange(shape.numel()).view(shape)
    seen = evaluate_nodes(graph, [node], {source: index})[node]
    if units.ndim == 1 and seen.ndim != 1:
        units = units.view([n if n == len(units) else 1 for n in seen.shape])
    owner = torch.full((shape.numel(),), -1)
    places, unit = seen.reshape(-1), units.expand(seen.shape).reshape(-1)
    owner[places] = unit
    if bool((owner[places] != unit).any()):
        return None  # Expanded: one entry belongs to several units.
    return UnitEntries(key, _narrowed(owner.view(shape)))


def _narrowed(owner: Tensor) -> Tensor:
    """Return `owner` with size 1 in every dimension along which it does not change."""
    for dim, n in enumerate(owner.shape):
        first = owner.narrow(dim, 0, 1)
        if n > 1 and bool((owner == first).all()):
            owner = first
    return owner.clone()


class _Trial:
    """A computed weight that is computed anew from changed parameters."""

    def __init__(self, graph: Graph, one: LinearMap, parameters: set[str], state: State) -> None:
        self.graph, self.one, self.parameters = graph, one, parameters
        needed = _placeholders(one.weight)
        self.keys = {node: graph.state[node.name] for node in needed if node.name in graph.state}
        self.generator = torch.Generator().manual_seed(0)
        own: dict[Node, Tensor] = {}
        for node in needed:
            value = (state[self.keys[node]] if node in self.keys else graph.constants[node.name]).detach().cpu()
            own[node] = value.double() if value.is_floating_point() else value
        self.inputs = [own, *({node: self._noise(node, value, size) for node, value in own.items()} for size in _NOISE)]
        self.weights = [self._weight(inputs) for inputs in self.inputs]

    def _noise(self, node: Node, value: Tensor, size: float) -> Tensor:
        if self.keys.get(node) not in self.parameters or not value.is_floating_point():
            return value
        return size * torch.randn(value.shape, dtype=torch.float64, generator=self.generator)

    def _weight(self, inputs: Mapping[Node, Tensor]) -> Tensor | None:
        try:
            return evaluate_nodes(self.graph, [self.one.weight], inputs)[self.one.weight].double()
        except RuntimeError:  # An operation that does not take float64, or not these values.
            return None

    def _holds(self, change: Callable[[Node, Tensor], Tensor], on_weight: Callable[[Tensor], Tensor]) -> bool:
        """Return whether changing the inputs changes the weight as `on_weight` does, for all values tried."""
        for inputs, weight in zip(self.inputs, self.weights, strict=True):
            found = self._weight({node: change(node, value) for node, value in inputs.items()})
            if weight is None or found is None or found.shape != weight.shape:
                return False
            expected = on_weight(weight)
            if not bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max()):
                return False
        return True

    def _choices(self, keys: set[str] | None) -> Iterator[dict[Node, int]]:
        """Yield choices of dimensions as large as the number of units, of one tensor or more, few tensors first."""
        options: list[Sequence[tuple[Node, int] | None]] = []
        for node, key in self.keys.items():
            value = self.inputs[0][node]
            if value.is_floating_point() and (keys is None or key in keys):
                options.append([None, *((node, d) for d, n in enumerate(value.shape) if n == self.one.n_units)])
        every = [[c for c in combination if c] for combination in itertools.product(*options)]
        for chosen in itertools.islice(sorted(filter(None, every), key=len), _MAX_TRIALS):
            yield dict(chosen)

    def scalings(self) -> Iterator[tuple[UnitEntries, ...]]:
        """Yield the parameters that scale the weight unit by unit when they are scaled so."""
        # From a twentieth to twenty times.
        factors = 20 ** (2 * torch.rand(self.one.n_units, dtype=torch.float64, generator=self.generator) - 1)
        for chosen in self._choices(self.parameters):

            def scale(node: Node, value: Tensor, chosen: dict[Node, int] = chosen) -> Tensor:
                return value * along(factors, value, chosen[node]) if node in chosen else value

            if self._holds(scale, lambda weight: weight * factors[self.one.units]):
                yield tuple(self._entries(node, d) for node, d in chosen.items())

    def orders(self) -> Iterator[UnitEntries]:
        """Yield the parameters that are in the order of the weight's units."""
        sizes = [d for d, n in enumerate(self.one.units.shape) if n == self.one.n_units]
        if len(sizes) != 1 or self.one.units.numel() != self.one.n_units:
            return
        order = torch.randperm(self.one.n_units, generator=self.generator).roll(1)
        for chosen in self._choices(None):
            named = [node for node in chosen if self.keys[node] in self.parameters]

            def move(node: Node, value: Tensor, chosen: dict[Node, int] = chosen) -> Tensor:
                return value.index_select(chosen[node], order) if node in chosen else value

            if named and self._holds(move, lambda weight: weight.index_select(sizes[0], order)):
                yield self._entries(named[0], chosen[named[0]])

    def _entries(self, node: Node, dim: int) -> UnitEntries:
        like = self.inputs[0][node]
        return UnitEntries(self.keys[node], along(torch.arange(self.one.n_units), like, dim))


def _placeholders(node: Node) -> list[Node]:
    found: dict[Node, None] = {}
    waiting, seen = [node], set[Node]()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        if one.op == "placeholder":
            found[one] = None
        waiting += one.all_input_nodes
    return list(found)
