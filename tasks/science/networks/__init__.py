"""The networks that a cell can name. A network here is a shape without weights: weights are a `State` beside it.

`build_network` makes the module on torch's meta device, so it costs nothing and draws no random numbers;
`torch.func.functional_call(network, state, images)` evaluates it, and `initial_state` draws where training starts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tasks.science.networks.mlp import MLP
from tasks.science.specs import Cell, State

ARCHITECTURES = {"mlp": ("none",)}
"""Each architecture with the normalizations it has."""


def build_network(cell: Cell) -> MLP:
    """The network of `cell`, on the meta device. ValueError for an architecture or normalization that is not there."""
    if cell.architecture not in ARCHITECTURES:
        raise ValueError(f"there is no architecture {cell.architecture!r}; known: {', '.join(ARCHITECTURES)}")
    normalizations = ARCHITECTURES[cell.architecture]
    if cell.normalization not in normalizations:
        raise ValueError(
            f"{cell.architecture} has no normalization {cell.normalization!r}; known: {', '.join(normalizations)}"
        )
    n_channels, height, width = cell.data.shape
    with torch.device("meta"):
        return MLP(n_channels * height * width, cell.width, cell.depth, cell.data.n_classes)


def initial_state(network: nn.Module, rng: np.random.Generator) -> State:
    """He-normal weights (fan-in, gain sqrt 2), zero biases, float32, drawn in the order of the parameters.

    Source: He et al. 2015, arXiv 1502.01852.
    """
    state: State = {}
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            state[name] = torch.zeros(parameter.shape)
        else:
            fan_in = parameter[0].numel()
            weights = rng.standard_normal(tuple(parameter.shape), dtype=np.float32)
            state[name] = torch.from_numpy(weights).mul_((2 / fan_in) ** 0.5)
    return state
