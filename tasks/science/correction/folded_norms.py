"""BatchNorm folded into the convolution before it, so that networks that are evaluated often run faster."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from tasks.science.correction.sites import CorrectionSites
from tasks.science.specs.state import State


def fold_norms(network: nn.Module, state: State, sites: CorrectionSites) -> tuple[nn.Module, State]:
    """Return a network and weights without the BatchNorms that alone read the output of a convolution.

    In evaluation mode it computes the same as `network` with `state`. Filters are scaled by gamma / sqrt(running_var +
    eps) and biases take the rest, computed in float64 and stored in the type of `state`. `network` is left alone, and
    is returned itself where it has no such BatchNorm.
    """
    followed = [
        (site.name, site.norm)
        for site in sites.layers
        if site.norm is not None and f"{site.name}.weight" in state
        if type(network.get_submodule(site.module or "")) is nn.Conv2d
        if isinstance(network.get_submodule(site.norm), _BatchNorm)
    ]
    if not followed:
        return network, state
    network, folded = copy.deepcopy(network), dict(state)
    for conv, norm in followed:
        scale, shift = _affine(network.get_submodule(norm), norm, state)
        weight = state[f"{conv}.weight"]
        filters = (scale[:, None, None, None] * weight.double()).to(weight.dtype)
        folded[f"{conv}.weight"] = filters.contiguous(memory_format=torch.channels_last)
        bias = state[f"{conv}.bias"].double() if f"{conv}.bias" in state else 0.0
        folded[f"{conv}.bias"] = (scale * bias + shift).to(weight.dtype)
        network.get_submodule(conv).register_parameter("bias", nn.Parameter(torch.empty_like(scale, device="meta")))
        network.set_submodule(norm, nn.Identity())
    norms = {norm for _, norm in followed}
    return network, {name: tensor for name, tensor in folded.items() if name.rpartition(".")[0] not in norms}


def _affine(module: nn.Module, norm: str, state: State) -> tuple[Tensor, Tensor]:
    """Return the scale and shift (n_units,) float64 that a BatchNorm applies in evaluation mode."""
    assert isinstance(module, _BatchNorm)
    mean, variance = (state[f"{norm}.{name}"].double() for name in ("running_mean", "running_var"))
    scale = (variance + module.eps).rsqrt()
    if module.affine:
        scale = scale * state[f"{norm}.weight"].double()
        return scale, state[f"{norm}.bias"].double() - scale * mean
    return scale, -scale * mean
