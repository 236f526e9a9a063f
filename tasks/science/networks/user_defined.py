"""Networks of a person's own, in cells whose architecture is a place: `package.module:function`.

The function is called with the cell's width, depth and normalization, as far as it takes arguments of those names, and
always from the same state of torch's random numbers, so that whatever it draws beside its parameters is the same in
every process. The parameters that it draws are where training starts, from a state of random numbers for each seed.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.science.evaluation.random_state import kept_random_state
from tasks.science.networks.user_code import build_own_network, find_function, parameters_of
from tasks.science.specs.cell import Cell
from tasks.science.specs.state import State
from tasks.science.symmetry.tracing.graph import TRACING

FACTORS = ("width", "depth", "normalization")
"""What a function may take of a cell."""


@contextmanager
def drawing(seed: int) -> Generator[None]:
    """While open, what a person's code draws from torch's random numbers is that of `seed`; they are as before
    afterwards. Threads share them: one at a time, and none that traces, which keeps them too."""
    with TRACING, kept_random_state():
        torch.manual_seed(seed)
        yield


def factors_of(place: str) -> dict[str, Any]:
    """What of `FACTORS` the function at `place` takes, each with its default: None where it has none.

    Raises ValueError where there is no such place, OwnCodeError where importing it raises.
    """
    taken = parameters_of(find_function(place, "--network"))
    empty = inspect.Parameter.empty
    return {name: None if taken[name] is empty else taken[name] for name in FACTORS if name in taken}


def build_own(cell: Cell, seed: int = 0) -> nn.Module:
    """The network of a cell whose architecture is a place, on the CPU, in evaluation mode; what it draws is that of
    `seed`. Raises as `factors_of`, and OwnCodeError where the function makes no network."""
    taken = factors_of(cell.architecture)
    arguments = {name: getattr(cell, name) for name in FACTORS if name in taken}
    return build_at(cell.architecture, arguments, seed)


def draw_own_state(cell: Cell, rng: np.random.Generator) -> State:
    """Every parameter and buffer as the person's function draws them, from a state of torch's random numbers that `rng`
    names."""
    network = build_own(cell, int(rng.integers(2**63)))
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def build_at(place: str, arguments: dict[str, Any], seed: int = 0) -> nn.Module:
    """The network that the function at `place` makes of `arguments`, as `build_own`."""
    with drawing(seed):
        return build_own_network(find_function(place, "--network"), place, **arguments).eval()
