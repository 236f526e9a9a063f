"""Finds the permutation of B's units that aligns them with A's, and proves that it leaves B's function unchanged.

One interface for every matcher of the table `MATCHERS`: `match`. Activation matching pairs units whose activations
correlate, weight matching units whose weights have a large inner product (weight_matching.py). Nested axes are matched
together, heads by how well their channels can be paired (families.py). What the tracer could not observe, activation
matching orders by its weights in the end, with all else in place.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from tasks.science.alignment.assignment import SOLVERS, Solver, assign
from tasks.science.alignment.correlations import States, UnitCorrelations
from tasks.science.alignment.moments import read_activations, readable_families, unit_correlations
from tasks.science.alignment.reading import ObservedFamily
from tasks.science.alignment.weight_matching import match_weights, unit_cosines
from tasks.science.evaluation.functional import compute, mode
from tasks.science.evaluation.outputs import logits_in
from tasks.science.evaluation.precision import CastsKept
from tasks.science.specs.matchers import MATCHERS, MatcherChoice, parse_matcher
from tasks.science.specs.state import State
from tasks.science.symmetry.controls import shuffle
from tasks.science.symmetry.families import Families, Paired
from tasks.science.symmetry.permutation import Permutation, PermutationSpec

__all__ = [
    "FUNCTION_TOLERANCE",
    "MATCHERS",
    "AxisMatch",
    "Match",
    "assign",
    "function_error",
    "match",
    "shared_partners",
]

FUNCTION_TOLERANCE = 1e-9
"""Largest `function_error` of a permutation that is used: float64 rounding stays orders of magnitude below."""

FUNCTION_EXAMPLES = 128

MAX_ROUNDS = 5
"""How often axes whose samples are units of other axes are matched anew."""

STEADY_TOLERANCE = 1e-2
"""Largest difference between activations of a permuted network and reordered ones that float32 rounding is held to
explain, beside the largest activation."""

FUNCTION_BATCH_SIZE = 16


@dataclass(frozen=True)
class AxisMatch:
    """How well one axis was matched.

    `matched_correlation`: mean correlation of A's units with their partners, `identity_correlation`: with B's unit at
    the same position; both over the positions where both units live (NaN where there is none). `n_dead`: matched
    positions where at least one of the two is dead. The correlation of two heads is the mean of their channels', in
    the order that these are given; under weight matching it is the cosine of all weights of the two units, at the end
    and before anything moved.
    """

    axis: str
    size: int
    n_dead: int
    matched_correlation: float
    identity_correlation: float


@dataclass(frozen=True)
class Match:
    """A permutation of B into alignment with A.

    `objective`: the sum of matched correlations over all axes, or of the products of weights over all parameters that
    move. `restarts`: what each descent of weight matching reached. `seconds` is this pair's share of the time that its
    group took.
    """

    permutation: Permutation
    objective: float
    axes: tuple[AxisMatch, ...]
    seconds: float
    restarts: tuple[float, ...] = field(default=())


def match(
    network: nn.Module,
    spec: PermutationSpec,
    states: States,
    pairs: Sequence[tuple[int, int]],
    matcher: str,
    images: Tensor | None = None,
) -> list[Match]:
    """Aligns the second of each pair with the first; `pairs` are indices into `states`, the result has their order.

    `matcher`: a name from `MATCHERS`, with options where they differ from the defaults (`weight/restarts=5`).
    `images` (n_examples, channels, height, width): what a matcher that needs data sees.
    Raises ValueError for an unknown matcher or option, for images that are missing, for weights that are not finite.
    """
    choice = parse_matcher(matcher)
    if choice.needs_data and images is not None and len(images) == 0:
        raise ValueError("there is no image to measure activations on")
    for index in sorted({k for pair in pairs for k in pair}):
        bad = [key for key, tensor in states[index].items() if not _is_finite(tensor)]
        if bad:
            raise ValueError(f"endpoint {index} cannot be matched: {bad[0]} has values that are not finite")
    begun = time.perf_counter()
    if choice.name == "none":
        found = [Match(spec.identity(), 0.0, (), 0.0) for _ in pairs]
    elif choice.name == "random":
        found = [Match(shuffle(spec, states[b], "random-permutation"), math.nan, (), 0.0) for _, b in pairs]
    elif choice.name == "weight":
        found = [_match_weights(network, spec, states[a], states[b], choice) for a, b in pairs]
    elif images is None:
        raise ValueError(f"matcher {matcher} needs images to measure activations on")
    else:
        found = _match_activations(network, spec, states, pairs, choice, images)
    seconds = (time.perf_counter() - begun) / max(len(pairs), 1)
    return [Match(m.permutation, m.objective, m.axes, seconds, m.restarts) for m in found]


def shared_partners(first: Match, second: Match, dead: Mapping[str, NDArray[np.bool_]]) -> dict[str, float]:
    """Per axis, the share of A's live units that two matches give the same partner; NaN where none is live.

    `dead[axis]` (size,) bool says which units of A, or positions, do not count. With matches from two disjoint halves
    of the data it tells how much of a permutation is in the networks and how much in the samples.
    """
    shares: dict[str, float] = {}
    for axis, partners in first.permutation.items():
        live = ~dead[axis] if axis in dead else np.ones(len(partners), dtype=bool)
        shares[axis] = _mean((partners == second.permutation[axis])[live].astype(np.float64))
    return shares


def _match_activations(
    network: nn.Module,
    spec: PermutationSpec,
    states: States,
    pairs: Sequence[tuple[int, int]],
    choice: MatcherChoice,
    images: Tensor,
) -> list[Match]:
    """Aligns pairs by the correlation of their activations. All axes and pairs come from one pass (see moments.py).

    Source: Li et al. 2015, arXiv 1511.07543; REPAIR, section 2.
    Deviates: exact correlations over the whole pass, where the authors average per-batch deviations and add 1e-4: that
    is `activation-published`.
    """
    families = Families(spec)
    if not pairs:
        return []
    state = states[pairs[0][0]]
    readable, seen = readable_families(network, spec, state, images, str(choice.options["reading"]))
    observed = _independent(families, readable)
    solver = SOLVERS[str(choice.options["solver"])]
    batch = int(choice.options["batch"]) if "batch" in choice.options else None
    unsteady = _unsteady_trees(network, families, observed, state, images[:1], seen)
    root_of = {family: root for root in families.roots for family in families.tree(root)}
    steady = [family for family in observed if root_of[family.name] not in unsteady]
    found = _match_once(network, families, states, pairs, steady, images, batch, solver)
    if unsteady:
        later = [family for family in observed if root_of[family.name] in unsteady]
        found = [
            _match_again(network, families, states[a], states[b], one, later, images, batch, solver)
            for (a, b), one in zip(pairs, found, strict=True)
        ]
    seen = {root_of[family.name] for family in observed}
    unseen = [family for family in families.axes if root_of[family] not in seen]
    if unseen:
        parameters = _parameters(network)
        for position, (a, b) in enumerate(pairs):
            one = found[position]
            descent = match_weights(spec, states[a], states[b], parameters, 1, solver, one.permutation, unseen)
            found[position] = dataclasses.replace(one, permutation=descent.permutation)
    return found


def _match_once(
    network: nn.Module,
    families: Families,
    states: States,
    pairs: Sequence[tuple[int, int]],
    observed: Sequence[ObservedFamily],
    images: Tensor,
    batch: int | None,
    solver: Solver,
) -> list[Match]:
    """Every tree of axes that has observed ones, each by itself; the others stay as they are."""
    spec = families.spec
    root_of = {family: root for root in families.roots for family in families.tree(root)}
    waiting: dict[str, set[str]] = {}
    for family in observed:
        waiting.setdefault(root_of[family.name], set()).add(family.name)
    positions: dict[tuple[int, int], list[int]] = {}
    for position, pair in enumerate(pairs):
        positions.setdefault(pair, []).append(position)
    vectors = [{**spec.identity()} for _ in pairs]
    axes: list[dict[str, AxisMatch]] = [{} for _ in pairs]
    objectives = [0.0] * len(pairs)
    # A tree is matched once all of its families are measured.
    measured: dict[tuple[tuple[int, int], str], dict[str, UnitCorrelations]] = {}
    for found in unit_correlations(network, states, list(positions), observed, images, batch):
        root = root_of[found.family.name]
        together = measured.setdefault((found.pair, root), {})
        together[found.family.name] = found
        if len(together) < len(waiting[root]):
            continue
        del measured[found.pair, root]
        scores = {name: one.correlations for name, one in together.items()}
        objective, paired = families.best(root, scores, solver)
        described = _describe(families, paired, together)
        for position in positions[found.pair]:
            objectives[position] += objective
            axes[position] |= described
            for one in paired:
                vectors[position][families.names[one.family, one.b]] = one.partners
        # The next pass needs the memory that these correlations hold.
        del found, together, scores
    matches: list[Match] = []
    for position in range(len(pairs)):
        ordered = tuple(axes[position][axis.name] for axis in spec.axes if axis.name in axes[position])
        matches.append(Match(Permutation(vectors[position]), objectives[position], ordered, 0.0))
    return matches


def _match_again(
    network: nn.Module,
    families: Families,
    a: State,
    b: State,
    found: Match,
    observed: Sequence[ObservedFamily],
    images: Tensor,
    batch: int | None,
    solver: Solver,
) -> Match:
    """Matches axes whose samples are units of other axes, B being permuted by what was found until then; repeated
    while anything changes, since they may depend on one another."""
    spec = families.spec
    permutation, first, last = found.permutation, None, found
    for _ in range(MAX_ROUNDS):
        states = [a, spec.apply(b, permutation)]
        (last,) = _match_once(network, families, states, [(0, 1)], observed, images, batch, solver)
        first = last if first is None else first
        permutation = spec.compose(permutation, last.permutation)
        if last.permutation == spec.identity():
            break
    before = {axis.axis: axis.identity_correlation for axis in (first or last).axes}
    added = {axis.axis: dataclasses.replace(axis, identity_correlation=before[axis.axis]) for axis in last.axes} | {
        axis.axis: axis for axis in found.axes
    }
    ordered = tuple(added[axis.name] for axis in spec.axes if axis.name in added)
    return Match(permutation, found.objective + last.objective, ordered, 0.0)


def _unsteady_trees(
    network: nn.Module,
    families: Families,
    observed: Sequence[ObservedFamily],
    state: State,
    image: Tensor,
    seen: Mapping[str, Tensor],
) -> set[str]:
    """Trees whose activations are out of order where other axes are: a hidden axis over tokens, say, whose samples
    are the channels of a stream. Found by comparing what was `seen` of a network on one image, (1, ...), with what a
    permuted copy of it makes of that."""
    if all(len(seen[family.name]) == 1 and seen[family.name].ndim == 2 for family in observed):
        return set()
    spec = families.spec
    shuffle = spec.random(torch.Generator().manual_seed(0))
    moved = read_activations(network, spec.apply(state, shuffle), image, observed)
    unsteady: set[str] = set()
    for family in observed:
        columns = [
            families.units(family.name, families.paths[source]).start + shuffle[source]
            for source in (families.origin(shuffle, axis.name) for axis in family.axes)
        ]
        expected = seen[family.name][:, torch.from_numpy(np.concatenate(columns))]
        gap = (moved[family.name] - expected).abs().max()
        if not bool(gap <= STEADY_TOLERANCE * expected.abs().max()):
            unsteady.add(next(root for root in families.roots if family.name in families.tree(root)))
    return unsteady


def _independent(families: Families, observed: Sequence[ObservedFamily]) -> list[ObservedFamily]:
    """Those to be scored: a family whose nested ones are observed is told by them, its own channels being out of order
    until they are matched."""
    names = {family.name for family in observed}
    return [family for family in observed if not names.intersection(families.tree(family.name)[1:])]


def _match_weights(network: nn.Module, spec: PermutationSpec, a: State, b: State, choice: MatcherChoice) -> Match:
    parameters = _parameters(network)
    solver = SOLVERS[str(choice.options["solver"])]
    descent = match_weights(spec, a, b, parameters, int(choice.options["restarts"]), solver)
    aligned = spec.apply(b, descent.permutation)
    axes: list[AxisMatch] = []
    for axis in spec.axes:
        matched, dead_a, dead_b = unit_cosines(spec, axis, a, aligned, parameters)
        before, _, was_dead = unit_cosines(spec, axis, a, b, parameters)
        live = ~(dead_a | dead_b)
        axes.append(
            AxisMatch(
                axis=axis.name,
                size=axis.size,
                n_dead=int(axis.size - live.sum()),
                matched_correlation=_mean(matched[live]),
                identity_correlation=_mean(before[~(dead_a | was_dead)]),
            )
        )
    return Match(descent.permutation, descent.objective, tuple(axes), 0.0, descent.objectives)


def _parameters(network: nn.Module) -> set[str]:
    return {name for name, _ in network.named_parameters(remove_duplicate=False)}


def _describe(
    families: Families, paired: Sequence[Paired], measured: Mapping[str, UnitCorrelations]
) -> dict[str, AxisMatch]:
    """One row per axis, under its name in A; heads are described by the channels within them."""
    described: dict[str, AxisMatch] = {}
    for one in paired:
        name = families.names[one.family, one.a]
        size = len(one.partners)
        below = [family for family in families.tree(one.family) if family in measured]
        if not below:
            continue
        gains, same = one.gains, np.zeros(size)
        dead, dead_at_identity = np.ones(size, dtype=bool), np.ones(size, dtype=bool)
        n_each = 0
        for family in below:
            found = measured[family]
            diagonal = np.diagonal(found.correlations)
            if family == one.family:
                rows, columns = families.units(family, one.a), families.units(family, one.b)
                dead &= found.dead_a[rows] | found.dead_b[columns][one.partners]
                # At the same position stands, before anything moves, the axis of the same path.
                same += diagonal[rows]
                dead_at_identity &= found.dead_a[rows] | found.dead_b[rows]
                n_each += 1
                continue
            inside = [axis for axis in families.axes[family] if families.paths[axis.name][: len(one.a)] == one.a]
            n_each += sum(axis.size for axis in inside) // size
            for axis in inside:
                path = families.paths[axis.name]
                unit = path[len(one.a)]
                rows = families.units(family, path)
                same[unit] += diagonal[rows].sum()
                dead_at_identity[unit] &= bool((found.dead_a[rows] | found.dead_b[rows]).all())
                dead[unit] &= bool(found.dead_a[rows].all())
        described[name] = AxisMatch(
            axis=name,
            size=size,
            n_dead=int(dead.sum()),
            matched_correlation=_mean((gains / n_each)[~dead]),
            identity_correlation=_mean((same / n_each)[~dead_at_identity]),
        )
    return described


@torch.no_grad()
def function_error(
    network: nn.Module, state: State, permuted: State, images: Tensor, kept: CastsKept | None = None
) -> float:
    """Largest difference between the outputs of `state` and `permuted`, over the largest absolute output of `state`.

    In float64 and evaluation mode, on the first 128 of `images`; casts to fewer digits are left out, and recorded in
    `kept`. A permutation that is no symmetry of the network shows here. Infinite where an output is not finite, or
    where all outputs are 0 and the others are not.
    """
    shown = images[:FUNCTION_EXAMPLES]
    batches = _batches(shown.double() if shown.is_floating_point() else shown)
    kept = kept or CastsKept(network)
    logits, moved = (_outputs_in_double(network, weights, batches, kept) for weights in (state, permuted))
    if not bool(torch.isfinite(logits).all() and torch.isfinite(moved).all()):
        return float("inf")
    difference, largest = float((logits - moved).abs().max()), float(logits.abs().max())
    if difference == 0:
        return 0.0
    return difference / largest if largest > 0 else float("inf")


def _batches(images: Tensor) -> list[Tensor]:
    """`images` in batches, none of a single one where there are more: a network that ends in a squeeze puts out no row
    for that."""
    ends = list(range(FUNCTION_BATCH_SIZE, len(images) - 1, FUNCTION_BATCH_SIZE))
    return list(images.tensor_split(ends))


def _outputs_in_double(network: nn.Module, state: State, batches: Sequence[Tensor], kept: CastsKept) -> Tensor:
    with mode(network, training=False), _InDouble(state), kept:
        outputs = [logits_in(compute(network, state, batch)) for batch in batches]
    return torch.cat(outputs)


class _InDouble(TorchFunctionMode):
    """Hands every operation the float64 copies of the weights that it reads, and drops them again: a whole state in
    float64 would take twice the memory of the weights."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.weights = {id(tensor) for tensor in state.values() if tensor.is_floating_point()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            # Of an attribute (`weight.T`, `weight.shape`) only a tensor is converted.
            value = func(*args, **(kwargs or {}))
            return value.double() if isinstance(value, Tensor) and id(args[0]) in self.weights else value
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(
            Tensor, lambda tensor: tensor.double() if id(tensor) in self.weights else tensor, (args, kwargs or {})
        )
        return func(*arguments[0], **arguments[1])


def _is_finite(tensor: Tensor) -> bool:
    # A sum that is finite has no other terms, and takes a third of the time; a finite tensor's may overflow.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")
