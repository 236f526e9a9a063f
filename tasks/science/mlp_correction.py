"""REPAIR of a plain MLP, exact: the whole statistics set goes through one layer at a time, as matrices in memory.

What is folded into a layer's weights is also done to its values on the way, so the next layer is measured on corrected
input without a second pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.science.correction_table import Part
from tasks.science.networks.mlp import MLP
from tasks.science.preactivations import LayerMoments, Moments
from tasks.science.specs import State


def is_plain_mlp(network: nn.Module) -> TypeGuard[MLP]:
    """Whether this module handles `network`."""
    return isinstance(network, MLP) and network.normalization == "none"


@torch.no_grad()
def mlp_moments(network: MLP, state: State, images: Tensor) -> LayerMoments:
    """Moments of every hidden layer over all of `images`."""
    return {name: _moments(values) for name, values in _walk(network, dict(state), images, None)}


@torch.no_grad()
def repair(
    network: MLP, state: State, goal: LayerMoments, images: Tensor, part: Part = "both"
) -> tuple[State, LayerMoments]:
    """`state` rescaled so that every hidden layer reaches that `part` of `goal` on `images`, and its moments then.

    A unit without spread, here or in the goal, keeps its scale and has only its mean set.
    """
    repaired = dict(state)
    achieved = {name: _moments(values) for name, values in _walk(network, repaired, images, goal, part)}
    return repaired, achieved


def _walk(
    network: MLP, state: State, images: Tensor, goal: LayerMoments | None, part: Part = "both"
) -> Iterator[tuple[str, Tensor]]:
    """Yields each hidden layer's pre-activations (n_units, n_examples), front to back; corrects `state` on the way.

    Units are rows: a reduction along contiguous memory is what makes this as cheap as a plain pass.
    """
    inputs = images.flatten(1).T
    for name in network.hidden_linears:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        values = torch.addmm(bias[:, None], weight, inputs)
        if goal is not None:
            before, after = _moments(values), goal[name]
            dead = before.dead() | after.dead()
            if part == "deviation":
                after = replace(after, mean=before.mean)
            elif part == "mean":
                after = replace(after, sd=before.sd)
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
