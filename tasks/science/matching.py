"""Finds the permutation of B's units that aligns them with A's, and proves that it leaves B's function unchanged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.func import functional_call

from tasks.science.moments import AxisCorrelations, axis_correlations
from tasks.science.permutation import Permutation, PermutationSpec
from tasks.science.specs import State

FUNCTION_TOLERANCE = 1e-9
"""Largest `function_error` of a permutation that is used: float64 rounding stays orders of magnitude below."""

FUNCTION_EXAMPLES = 128


@dataclass(frozen=True)
class AxisMatch:
    """How well one axis was matched.

    `matched_correlation`: mean correlation of A's units with their partners, `identity_correlation`: with B's unit at
    the same position; both over the positions where both units live (NaN where there is none). `n_dead`: matched
    positions where at least one of the two is dead.
    """

    axis: str
    size: int
    n_dead: int
    matched_correlation: float
    identity_correlation: float


@dataclass(frozen=True)
class Match:
    """A permutation of B into alignment with A; `objective` is the sum of matched correlations over all axes.

    `seconds` is this pair's share of the time that its group took.
    """

    permutation: Permutation
    objective: float
    axes: tuple[AxisMatch, ...]
    seconds: float


def match_activations(
    network: nn.Module,
    spec: PermutationSpec,
    states: Sequence[State],
    pairs: Sequence[tuple[int, int]],
    images: Tensor,
) -> list[Match]:
    """Aligns the second of each pair with the first by the correlation of their activations on `images`.

    `pairs` are indices into `states`; the result has their order. All layers and pairs come from one pass (see
    moments.py). Source: Li et al. 2015, arXiv 1511.07543; REPAIR, section 2.
    Deviates: exact correlations over the whole pass, where the authors average per-batch deviations and add 1e-4.
    """
    begun = time.perf_counter()
    indices: list[dict[str, Tensor]] = [{} for _ in pairs]
    matches: list[list[AxisMatch]] = [[] for _ in pairs]
    objectives = [0.0] * len(pairs)
    for measured in axis_correlations(network, states, pairs, spec.axes, images):
        for position, pair in enumerate(pairs):
            partners = assign(measured.correlations[pair])
            indices[position][measured.axis.name] = torch.from_numpy(partners)
            matches[position].append(_describe(measured, pair, partners))
            matched = measured.correlations[pair][np.arange(measured.axis.size), partners]
            objectives[position] += float(matched.sum())
    seconds = (time.perf_counter() - begun) / max(len(pairs), 1)
    return [
        Match(Permutation(found), objective, tuple(axes), seconds)
        for found, objective, axes in zip(indices, objectives, matches, strict=True)
    ]


def assign(correlation: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each of A's units (rows) its partner among B's (columns): the assignment of largest total correlation.

    Raises ValueError where an entry is not finite: the solver would accept no such matrix, or worse, use it.
    """
    if not np.isfinite(correlation).all():
        raise ValueError("correlations must be finite before units are assigned; an activation overflowed")
    _, partners = linear_sum_assignment(correlation, maximize=True)
    return np.asarray(partners, dtype=np.int64)


@torch.no_grad()
def function_error(network: nn.Module, state: State, permuted: State, images: Tensor) -> float:
    """Largest difference between the logits of `state` and `permuted`, over the largest absolute logit of `state`.

    In float64, on the first 128 of `images`. A permutation that is no symmetry of the network shows here.
    """
    seen = images[:FUNCTION_EXAMPLES].double()
    logits, moved = (
        functional_call(network, {name: tensor.double() for name, tensor in weights.items()}, (seen,))
        for weights in (state, permuted)
    )
    return float((logits - moved).abs().max() / logits.abs().max())


def _describe(measured: AxisCorrelations, pair: tuple[int, int], partners: NDArray[np.int64]) -> AxisMatch:
    a, b = pair
    size = measured.axis.size
    positions = np.arange(size)
    correlation = measured.correlations[pair]
    live_partners = ~measured.dead[a] & ~measured.dead[b][partners]
    live_positions = ~measured.dead[a] & ~measured.dead[b]
    return AxisMatch(
        axis=measured.axis.name,
        size=size,
        n_dead=int(size - live_partners.sum()),
        matched_correlation=_mean(correlation[positions, partners][live_partners]),
        identity_correlation=_mean(correlation[positions, positions][live_positions]),
    )


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")
