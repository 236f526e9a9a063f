"""Corrections written out plainly, in float64: the network with one more module behind every corrected layer, run over
whole batches, moments taken as they are defined. Slow, folded into nothing, and sharing no code with what it checks."""

from __future__ import annotations

import torch
from torch import nn


def plain_moments(values: torch.Tensor, units_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of every unit."""
    rows = values if units_last else values.transpose(0, 1).flatten(1).T
    mean = rows.sum(0) / len(rows)
    return mean, ((rows - mean) ** 2).sum(0) / len(rows)


def pool(parts: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of several equally or unequally large batches taken together."""
    n = sum(count for count, _, _ in parts)
    mean = sum(count * m for count, m, _ in parts) / n
    return mean, sum(count * (v + m**2) for count, m, v in parts) / n - mean**2


def spread(units: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return units if like.ndim == 2 else units[:, None, None]


class Affine(nn.Module):
    """A module whose output is brought to a goal (mean, sd), by the moments of each batch while it is calibrating, then
    by those of all batches; without a goal it only keeps what it saw."""

    def __init__(self, inner: nn.Module, goal, part: str = "both") -> None:
        super().__init__()
        self.inner, self.goal, self.part = inner, goal, part
        self.calibrating, self.parts = True, []

    def forward(self, *inputs):
        values = self.inner(*inputs)
        mean, variance = plain_moments(values, values.ndim == 2)
        if self.calibrating:
            self.parts.append((len(values), mean, variance))
        else:
            mean, variance = pool(self.parts)
        if self.goal is None:
            return values
        goal_mean, goal_sd = self.goal
        sd = variance.clamp_min(0).sqrt()
        dead = (sd <= 1e-6 * (mean**2 + variance).mean().sqrt()) | (
            goal_sd <= 1e-6 * (goal_mean**2 + goal_sd**2).mean().sqrt()
        )
        if self.part == "mean":
            goal_sd = sd
        if self.part == "deviation":
            goal_mean = mean
        scale = torch.where(dead, torch.ones_like(sd), goal_sd / sd)
        return (values - spread(mean, values)) * spread(scale, values) + spread(goal_mean, values)


class Norm(nn.Module):
    """A BatchNorm; while it is calibrating it normalises by each batch's moments, then by those of all batches."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.calibrating, self.parts = norm, True, []

    def forward(self, values):
        mean, variance = plain_moments(values, values.ndim == 2)
        if self.calibrating:
            self.parts.append((len(values), mean, variance))
        else:
            mean, variance = pool(self.parts)
        normal = (values - spread(mean, values)) / spread((variance + self.norm.eps).sqrt(), values)
        return normal * spread(self.norm.weight, values) + spread(self.norm.bias, values)


def load(network: nn.Module, state) -> nn.Module:
    """`network` with the weights of `state`, as float64, in evaluation mode."""
    network = network.to_empty(device="cpu").double().eval()
    network.load_state_dict(state)
    return network.requires_grad_(False)


def wrap(network: nn.Module, names, make) -> dict[str, nn.Module]:
    """Puts `make(name, module)` in the place of each of the named modules."""
    made = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        made[name] = make(name, network.get_submodule(name))
        setattr(network.get_submodule(parent), last, made[name])
    return made


def layer_names(network: nn.Module) -> list[str]:
    """Every convolution and linear layer but the classifier, which all our networks call `output`."""
    return [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and n != "output"]


def block_names(network: nn.Module) -> list[str]:
    return [n for n, m in network.named_modules() if type(m).__name__ in ("ResidualBlock", "FixupBlock")]


def norm_names(network: nn.Module) -> list[str]:
    return [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def endpoint_goal(network: nn.Module, state, images, *, blocks: bool = False) -> dict:
    """(mean, sd) of every layer over `images`, of residual blocks too where asked for."""
    network = load(network, state)
    names = layer_names(network) + (block_names(network) if blocks else [])
    wrapped = wrap(network, names, lambda _, module: Affine(module, None))
    network(images)
    return {n: (m.parts[0][1], m.parts[0][2].sqrt()) for n, m in wrapped.items()}


def corrected_plainly(
    network: nn.Module, state, goal, batches, *, layers=True, blocks=False, frozen=False, part="both"
):
    """The wrapped network after calibration on `batches`, with everything held fixed."""
    network = load(network, state)
    kept: list[nn.Module] = []
    names = (layer_names(network) if layers else []) + (block_names(network) if blocks else [])
    norms = [] if frozen else norm_names(network)
    kept += wrap(network, norms, lambda _, module: Norm(module)).values()
    # Blocks after the layers in them, whose paths they change.
    kept += wrap(network, names, lambda name, module: Affine(module, goal[name], part)).values()
    for batch in batches:
        network(batch)
    for module in kept:
        module.calibrating = False
    return network
