"""REPAIR: an interpolated network is given back the spread of activations that interpolation took from it.

At alpha, every hidden unit's pre-activation is rescaled and shifted so that over the statistics samples it has the
mean (1 - alpha) mu_A + alpha mu_B and the standard deviation (1 - alpha) sd_A + alpha sd_B: the *goal*. Layers are
corrected front to back, each measured on what the corrected layers before it put out, so that in the end all goals
hold at once. The rescaling folds into the weights; the architecture stays.

For an MLP this is exact: the whole statistics set goes through one layer at a time, which costs the same as one pass.
Source: REPAIR (arXiv 2211.08403), section 4 and appendix B; the logits are not corrected.
Deviates: means and deviations are exact, where the authors average per-batch ones and add 1e-5 to the variance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tasks.science.moments import DEAD_SHARE
from tasks.science.networks.mlp import MLP
from tasks.science.permutation import Permutation
from tasks.science.specs import State


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (n_units,) of a layer's pre-activations over the statistics samples."""

    mean: Tensor
    sd: Tensor

    def reorder(self, vector: NDArray[np.int64]) -> Moments:
        """The moments of the permuted network, without measuring it: position i takes unit vector[i]."""
        indices = torch.from_numpy(vector)
        return Moments(self.mean[indices], self.sd[indices])


LayerMoments = dict[str, Moments]
"""Moments by the name of the layer whose output they describe, front to back."""


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer of an interpolated network.

    `variance_ratio`: mean over units of the pre-activation variance, over the mean of the two endpoints' such means;
    `variance_ratio_target`: the same for the goal. `mean_error` and `sd_error`: root mean square over units of the
    distance to the goal's mean and deviation, in units of the root mean square of the goal's deviation. `n_dead`:
    units without spread, in the goal or in the interpolated network, which are shifted but not rescaled.
    """

    layer: str
    position: int
    n_units: int
    n_dead: int
    variance_ratio: float
    variance_ratio_target: float
    mean_error: float
    sd_error: float


@torch.no_grad()
def preactivation_moments(network: MLP, state: State, images: Tensor) -> LayerMoments:
    """Moments of every hidden layer of `network` over all of `images`."""
    return {name: _moments(values) for name, values in _walk(network, dict(state), images, None)}


@torch.no_grad()
def repair(network: MLP, state: State, goal: LayerMoments, images: Tensor) -> tuple[State, LayerMoments]:
    """`state` rescaled so that every hidden layer reaches `goal` on `images`, and the moments it then has.

    A unit without spread, here or in the goal, keeps its scale and has only its mean set.
    """
    repaired = dict(state)
    achieved = {name: _moments(values) for name, values in _walk(network, repaired, images, goal)}
    return repaired, achieved


def goal_moments(a: LayerMoments, b: LayerMoments, alpha: float) -> LayerMoments:
    """What every unit should have at `alpha`: means and *deviations* (not variances) of the endpoints, interpolated."""
    return {
        name: Moments((1 - alpha) * a[name].mean + alpha * b[name].mean, (1 - alpha) * a[name].sd + alpha * b[name].sd)
        for name in a
    }


def reorder_layers(moments: LayerMoments, permutation: Permutation, layer_axes: Mapping[str, str]) -> LayerMoments:
    """An endpoint's moments as its permuted self has them; `layer_axes` names the axis of each layer's units."""
    return {name: layer.reorder(permutation[layer_axes[name]]) for name, layer in moments.items()}


def report_layers(achieved: LayerMoments, goal: LayerMoments, a: LayerMoments, b: LayerMoments) -> list[LayerReport]:
    """One report per layer, of a network at some alpha beside its goal and its endpoints."""
    reports: list[LayerReport] = []
    for position, name in enumerate(achieved):
        spread = (a[name].sd.square().mean() + b[name].sd.square().mean()) / 2
        goal_spread = goal[name].sd.square().mean()
        reports.append(
            LayerReport(
                layer=name,
                position=position,
                n_units=len(goal[name].sd),
                n_dead=int((_dead(achieved[name]) | _dead(goal[name])).sum()),
                variance_ratio=float(achieved[name].sd.square().mean() / spread),
                variance_ratio_target=float(goal_spread / spread),
                mean_error=float(((achieved[name].mean - goal[name].mean).square().mean() / goal_spread).sqrt()),
                sd_error=float(((achieved[name].sd - goal[name].sd).square().mean() / goal_spread).sqrt()),
            )
        )
    return reports


def _walk(network: MLP, state: State, images: Tensor, goal: LayerMoments | None) -> Iterator[tuple[str, Tensor]]:
    """Yields each hidden layer's pre-activations (n_units, n_examples), front to back; corrects `state` on the way.

    Units are rows: a reduction along contiguous memory is what makes this as cheap as a plain pass.
    """
    inputs = images.flatten(1).T
    for name in network.hidden_linears:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        values = torch.addmm(bias[:, None], weight, inputs)
        if goal is not None:
            before, after = _moments(values), goal[name]
            dead = _dead(before) | _dead(after)
            scale = torch.where(dead, 1.0, after.sd / torch.where(dead, 1.0, before.sd))
            values.sub_(before.mean[:, None]).mul_(scale[:, None]).add_(after.mean[:, None])
            state[f"{name}.weight"] = scale[:, None] * weight
            state[f"{name}.bias"] = scale * (bias - before.mean) + after.mean
        yield name, values
        inputs = F.relu(values)


def _moments(values: Tensor) -> Moments:
    """Moments of (n_units, n_examples), in two passes: the deviation of what is left after the mean is taken off."""
    mean = values.mean(1)
    sd = (values - mean[:, None]).square_().mean(1).sqrt_()
    return Moments(mean, sd)


def _dead(moments: Moments) -> Tensor:
    """Units (n_units,) bool whose spread float32 cannot tell from none, beside the scale of their layer."""
    scale = (moments.mean.square() + moments.sd.square()).mean().sqrt()
    return moments.sd <= DEAD_SHARE * scale
