"""Initialization: drawing the weights at which training starts, by the rule that each network names.

All numbers come from the generator that is passed in, never from torch's global one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tasks.science.specs.state import State

InitialDraw = Literal["he-normal", "he-normal, torch biases", "torch", "torchvision"]

Draw = Callable[[np.random.Generator, tuple[int, ...], tuple[int, ...]], Tensor]
"""Draws numbers for a tensor of the first shape, in a layer whose weight has the second: (n_out, n_in, *kernel)."""


def _zeros(_rng: np.random.Generator, shape: tuple[int, ...], _weight: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape)


def _he_normal(rng: np.random.Generator, shape: tuple[int, ...], weight: tuple[int, ...]) -> Tensor:
    """Draw from a normal distribution of variance 2 / fan-in. Source: He et al. 2015, arXiv 1502.01852."""
    return _normal(rng, shape, (2 / int(np.prod(weight[1:]))) ** 0.5)


def _he_normal_fan_out(rng: np.random.Generator, shape: tuple[int, ...], weight: tuple[int, ...]) -> Tensor:
    return _normal(rng, shape, (2 / (weight[0] * int(np.prod(weight[2:])))) ** 0.5)


def _torch_default(rng: np.random.Generator, shape: tuple[int, ...], weight: tuple[int, ...]) -> Tensor:
    """Draw uniformly within 1 / sqrt(fan-in), as nn.Linear and nn.Conv2d do for weights and biases alike."""
    bound = int(np.prod(weight[1:])) ** -0.5
    return torch.from_numpy(rng.random(shape, dtype=np.float32)).mul_(2).sub_(1).mul_(bound)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], standard_deviation: float) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).mul_(standard_deviation)


@dataclass(frozen=True)
class _Rule:
    conv: Draw
    linear: Draw
    bias: Draw


_RULES: Mapping[str, _Rule] = {
    "he-normal": _Rule(conv=_he_normal, linear=_he_normal, bias=_zeros),
    "he-normal, torch biases": _Rule(conv=_he_normal, linear=_he_normal, bias=_torch_default),
    "torch": _Rule(conv=_torch_default, linear=_torch_default, bias=_torch_default),
    "torchvision": _Rule(conv=_he_normal_fan_out, linear=_torch_default, bias=_torch_default),
}

_CONSTANTS = {"weight": 1.0, "scale": 1.0, "running_var": 1.0, "running_mean": 0.0, "num_batches_tracked": 0.0}
"""Initial values of tensors outside of Linear and Conv2d; those whose name begins with `bias` start at 0."""


def initial_state(network: nn.Module, rng: np.random.Generator, initialization: str = "published") -> State:
    """Return every parameter and buffer of `network` at the start of training, in the network's order.

    They are float32, counters int64. Weights and biases of Linear and Conv2d follow `network.initialization`, or
    `initialization` where that is not `published`; a weight named in `network.weight_scales` is multiplied by its
    factor there, and not drawn where that is 0. Norms start as the identity, with running mean 0 and variance 1, scalar
    biases at 0 and multipliers at 1.
    Raises ValueError for a network without `initialization`, and for a tensor without a rule.
    """
    own = str(getattr(network, "initialization", None))
    rule = _RULES.get(own if initialization == "published" else initialization)
    if rule is None:
        known = "; ".join(_RULES)
        raise ValueError(f"{type(network).__name__} does not name its `initialization`; known: {known}")
    scales: Mapping[str, float] = getattr(network, "weight_scales", {})
    state: State = {}
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in module.named_parameters(recurse=False):
            shape = tuple(parameter.shape)
            if not isinstance(module, nn.Linear | nn.Conv2d):
                state[prefix + name] = _constant(prefix + name, name, parameter)
            elif name == "bias":
                state[prefix + name] = rule.bias(rng, shape, tuple(module.weight.shape))
            else:
                scale = scales.get(prefix + name, 1.0)
                draw = rule.conv if isinstance(module, nn.Conv2d) else rule.linear
                state[prefix + name] = draw(rng, shape, shape).mul_(scale) if scale else torch.zeros(shape)
        for name, buffer in module.named_buffers(recurse=False):
            state[prefix + name] = _constant(prefix + name, name, buffer)
    return state


def _constant(path: str, name: str, like: Tensor) -> Tensor:
    value = 0.0 if name.startswith("bias") else _CONSTANTS.get(name)
    if value is None:
        raise ValueError(f"no rule initializes {path}; known outside of layers: bias*, {', '.join(_CONSTANTS)}")
    return torch.full(like.shape, value, dtype=torch.float32 if like.is_floating_point() else like.dtype)
