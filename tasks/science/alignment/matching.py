"""Matchers: the permutation of B's units that aligns them with A's.

One interface for every matcher of the table `MATCHERS`: `match`. Activation matching pairs units whose activations
correlate, weight matching units whose weights have a large inner product (weight_matching.py). Nested axes are matched
together, heads by how well their channels can be paired (nested_assignment.py). Axes that the tracer could not observe
are ordered by their weights in the end, with all else in place.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.science.alignment.assignment import SOLVERS, Solver
from tasks.science.alignment.moments import (
    ObservedFamily,
    States,
    UnitCorrelations,
    read_activations,
    readable_families,
    unit_correlations,
)
from tasks.science.alignment.nested_assignment import Paired, assign_tree
from tasks.science.alignment.weight_matching import match_weights, unit_cosines
from tasks.science.specs.matchers import MatcherChoice, parse_matcher
from tasks.science.specs.state import State
from tasks.science.symmetry.controls import shuffle
from tasks.science.symmetry.families import Families
from tasks.science.symmetry.permutation import Permutation, PermutationSpec

MAX_ROUNDS = 5
"""Most rounds in which axes whose samples are units of other axes are matched anew."""

STEADY_TOLERANCE = 1e-2
"""Largest difference between activations of a permuted network and reordered ones that float32 rounding is held to
explain, beside the largest activation."""


@dataclass(frozen=True)
class AxisMatch:
    """The quality of the match of one axis.

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
    move. `restarts`: the objective that each descent of weight matching reached. `seconds` is this pair's share of the
    time that its group took.
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
    """Align the second of each pair with the first; `pairs` are indices into `states`, the result has their order.

    `matcher`: a name from `MATCHERS`, with options where they differ from the defaults (`weight/restarts=5`).
    `images` (n_examples, channels, height, width): the samples of a matcher that needs data.
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
    return [dataclasses.replace(one, seconds=seconds) for one in found]


def _match_activations(
    network: nn.Module,
    spec: PermutationSpec,
    states: States,
    pairs: Sequence[tuple[int, int]],
    choice: MatcherChoice,
    images: Tensor,
) -> list[Match]:
    """Align pairs by the correlation of their activations, all axes and pairs from one pass (see moments.py).

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
    steady = [family for family in observed if families.root_of[family.name] not in unsteady]
    found = _match_once(network, families, states, pairs, steady, images, batch, solver)
    if unsteady:
        later = [family for family in observed if families.root_of[family.name] in unsteady]
        found = [
            _match_again(network, families, states[a], states[b], one, later, images, batch, solver)
            for (a, b), one in zip(pairs, found, strict=True)
        ]
    seen = {families.root_of[family.name] for family in observed}
    unseen = [family for family in families.axes if families.root_of[family] not in seen]
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
    """Match every tree of axes that has observed ones, each by itself; the others stay as they are."""
    spec = families.spec
    positions: dict[tuple[int, int], list[int]] = {}
    for position, pair in enumerate(pairs):
        positions.setdefault(pair, []).append(position)
    vectors = [{**spec.identity()} for _ in pairs]
    axes: list[dict[str, AxisMatch]] = [{} for _ in pairs]
    objectives = [0.0] * len(pairs)
    for pair, root, measured in _whole_trees(
        families, observed, unit_correlations(network, states, list(positions), observed, images, batch)
    ):
        scores = {name: one.correlations for name, one in measured.items()}
        objective, paired = assign_tree(families, root, scores, solver)
        described = [axis for one in paired if (axis := _describe(families, one, measured))]
        for position in positions[pair]:
            objectives[position] += objective
            axes[position] |= {axis.axis: axis for axis in described}
            vectors[position] |= {spec.named[one.family, one.b]: one.partners for one in paired}
        # The next pass needs the memory that these correlations hold.
        del measured, scores
    return [
        Match(Permutation(vector), objective, tuple(found[axis.name] for axis in spec.axes if axis.name in found), 0.0)
        for vector, objective, found in zip(vectors, objectives, axes, strict=True)
    ]


def _whole_trees(
    families: Families, observed: Sequence[ObservedFamily], correlations: Iterable[UnitCorrelations]
) -> Iterator[tuple[tuple[int, int], str, dict[str, UnitCorrelations]]]:
    """Yield a pair, the root of a tree and its correlations, once all observed families of the tree are measured."""
    n_observed = Counter(families.root_of[family.name] for family in observed)
    measured: dict[tuple[tuple[int, int], str], dict[str, UnitCorrelations]] = {}
    for found in correlations:
        pair, root = found.pair, families.root_of[found.family.name]
        measured.setdefault((pair, root), {})[found.family.name] = found
        del found
        if len(measured[pair, root]) == n_observed[root]:
            yield pair, root, measured.pop((pair, root))


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
    """Match axes whose samples are units of other axes, B being permuted by what was found until then.

    Repeated while anything changes, since such axes may depend on one another.
    """
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
    """Return the trees whose activations are out of order where other axes are.

    The samples of a hidden axis over tokens, say, are the channels of a stream. Found by comparing what was `seen` of a
    network on one image, (1, ...), with the activations of a permuted copy.
    """
    if all(len(seen[family.name]) == 1 and seen[family.name].ndim == 2 for family in observed):
        return set()
    spec = families.spec
    shuffle = spec.random(torch.Generator().manual_seed(0))
    moved = read_activations(network, spec.apply(state, shuffle), image, observed)
    unsteady: set[str] = set()
    for family in observed:
        columns = [
            families.units(family.name, spec.paths[source]).start + shuffle[source]
            for source in (spec.origin(shuffle, axis.name) for axis in family.axes)
        ]
        expected = seen[family.name][:, torch.from_numpy(np.concatenate(columns))]
        gap = (moved[family.name] - expected).abs().max()
        if not bool(gap <= STEADY_TOLERANCE * expected.abs().max()):
            unsteady.add(families.root_of[family.name])
    return unsteady


def _independent(families: Families, observed: Sequence[ObservedFamily]) -> list[ObservedFamily]:
    """Return the families to be scored: those of which no nested family is observed.

    The channels of an enclosing family are out of order until the nested ones are matched.
    """
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


def _describe(families: Families, paired: Paired, measured: Mapping[str, UnitCorrelations]) -> AxisMatch | None:
    """Return the match of one pair of axes, under its name in A; heads are described by the channels within them."""
    below = [family for family in families.tree(paired.family) if family in measured]
    if not below:
        return None
    size = len(paired.partners)
    same, n_each = np.zeros(size), 0
    dead, dead_at_identity = np.ones(size, dtype=bool), np.ones(size, dtype=bool)
    for family in below:
        found = measured[family]
        diagonal = np.diagonal(found.correlations)
        if family == paired.family:
            rows, columns = families.units(family, paired.a), families.units(family, paired.b)
            dead &= found.dead_a[rows] | found.dead_b[columns][paired.partners]
            # At the same position stands, before anything moves, the axis of the same path.
            same += diagonal[rows]
            dead_at_identity &= found.dead_a[rows] | found.dead_b[rows]
            n_each += 1
            continue
        depth, paths = len(paired.a), families.spec.paths
        inside = [axis for axis in families.axes[family] if paths[axis.name][:depth] == paired.a]
        n_each += sum(axis.size for axis in inside) // size
        for axis in inside:
            unit, rows = paths[axis.name][depth], families.units(family, paths[axis.name])
            same[unit] += diagonal[rows].sum()
            dead_at_identity[unit] &= bool((found.dead_a[rows] | found.dead_b[rows]).all())
            dead[unit] &= bool(found.dead_a[rows].all())
    return AxisMatch(
        axis=families.spec.named[paired.family, paired.a],
        size=size,
        n_dead=int(dead.sum()),
        matched_correlation=_mean((paired.gains / n_each)[~dead]),
        identity_correlation=_mean((same / n_each)[~dead_at_identity]),
    )


def _is_finite(tensor: Tensor) -> bool:
    # A sum that is finite has no other terms, and takes a third of the time; a finite tensor's may overflow.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")
