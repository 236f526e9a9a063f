"""Correlations between the units of endpoints, for every hidden axis and every pair, from passes over the same samples.

Permuting a layer only reorders the activations of the others, so no correlation depends on another layer's
permutation: one pass over the data gives all of them. Each batch is multiplied in float32, after a shift by the
units' means over the first batch (which keeps the cancellation in cov = E[ab] - E[a]E[b] harmless), and added up in
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from tasks.science.permutation import Axis
from tasks.science.specs import State

BATCH_SIZE = 1000

DEAD_SHARE = 1e-6
"""A unit is dead where its deviation is below this share of the root mean square of its axis' activations: float32
cannot tell it from a constant."""


@dataclass(frozen=True)
class AxisCorrelations:
    """What one axis' units of every endpoint have in common.

    `correlations[pair]` (size, size) float64: entry i, j is the correlation of A's unit i with B's unit j, 0 where
    either is dead. `dead[k]` (size,) bool for the k-th endpoint.
    """

    axis: Axis
    correlations: dict[tuple[int, int], NDArray[np.float64]]
    dead: list[NDArray[np.bool_]]


def axis_correlations(
    network: nn.Module,
    states: Sequence[State],
    pairs: Sequence[tuple[int, int]],
    axes: Sequence[Axis],
    images: Tensor,
    accumulator_bytes: int = 2**30,
) -> Iterator[AxisCorrelations]:
    """Yields the correlations of each axis in turn, over all of `images`, for `pairs` of indices into `states`.

    One pass over the images serves as many axes as fit their accumulators (n_pairs x size x size float64 per axis)
    into `accumulator_bytes`, and at least one. How axes and pairs are grouped changes no bit of the result.
    """
    group: list[Axis] = []
    n_bytes = 0
    for axis in axes:
        needed = len(pairs) * axis.size**2 * 8
        if group and n_bytes + needed > accumulator_bytes:
            yield from _one_pass(network, states, pairs, group, images)
            group, n_bytes = [], 0
        group.append(axis)
        n_bytes += needed
    yield from _one_pass(network, states, pairs, group, images)


@torch.no_grad()
def _one_pass(
    network: nn.Module, states: Sequence[State], pairs: Sequence[tuple[int, int]], axes: list[Axis], images: Tensor
) -> Iterator[AxisCorrelations]:
    members = sorted({index for pair in pairs for index in pair})
    sums = {(axis.name, k): torch.zeros(axis.size, dtype=torch.float64) for axis in axes for k in members}
    squares = {key: torch.zeros_like(value) for key, value in sums.items()}
    products = {
        (axis.name, pair): torch.zeros(axis.size, axis.size, dtype=torch.float64) for axis in axes for pair in pairs
    }
    shifts: dict[tuple[str, int], Tensor] = {}
    n_samples = dict.fromkeys((axis.name for axis in axes), 0)
    for start in range(0, len(images), BATCH_SIZE):
        batch = images[start : start + BATCH_SIZE]
        activations = {k: read_activations(network, states[k], batch, axes) for k in members}
        for axis in axes:
            shifted: dict[int, Tensor] = {}
            for k in members:
                values = activations[k].pop(axis.name)
                shift = shifts.setdefault((axis.name, k), values.mean(0))
                shifted[k] = values - shift
                sums[axis.name, k] += shifted[k].sum(0)
                squares[axis.name, k] += shifted[k].square().sum(0)
            for a, b in pairs:
                products[axis.name, (a, b)] += shifted[a].T @ shifted[b]
            n_samples[axis.name] += len(shifted[members[0]])
    for axis in axes:
        n = n_samples[axis.name]
        means = {k: sums[axis.name, k] / n for k in members}
        deviations = {k: (squares[axis.name, k] / n - means[k].square()).clamp_min(0).sqrt() for k in members}
        dead: dict[int, Tensor] = {}
        for k in members:
            scale = (deviations[k].square() + (means[k] + shifts[axis.name, k]).square()).mean().sqrt()
            dead[k] = deviations[k] <= DEAD_SHARE * scale
        correlations: dict[tuple[int, int], NDArray[np.float64]] = {}
        for a, b in pairs:
            covariance = products.pop((axis.name, (a, b))).div_(n).sub_(torch.outer(means[a], means[b]))
            # Dividing a dead unit's row by 1 leaves it finite; it is then set to 0.
            covariance /= torch.where(dead[a], 1.0, deviations[a])[:, None]
            covariance /= torch.where(dead[b], 1.0, deviations[b])[None, :]
            covariance[dead[a], :] = 0
            covariance[:, dead[b]] = 0
            correlations[a, b] = covariance.numpy()
        none = np.zeros(axis.size, dtype=bool)
        yield AxisCorrelations(axis, correlations, [dead[k].numpy() if k in dead else none for k in range(len(states))])


def read_activations(network: nn.Module, state: State, images: Tensor, axes: Sequence[Axis]) -> dict[str, Tensor]:
    """The activations (n_samples, size) of each axis where it is read; `network` is left as it was."""
    read: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            read[name] = output

        return hook

    handles = [network.get_submodule(axis.read).register_forward_hook(keep(axis.name)) for axis in axes]
    try:
        functional_call(network, state, (images,))
    finally:
        for handle in handles:
            handle.remove()
    return read
