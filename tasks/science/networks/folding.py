"""Folding of BatchNorm into the linear layer before it, which keeps the function in evaluation mode."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tasks.science.networks.mlp import MLP
from tasks.science.specs.state import State


def fold_batch_norm(network: nn.Module, state: Mapping[str, Tensor]) -> State:
    """Return the weights of the plain MLP that computes what `network`, an MLP with BatchNorm, computes with `state`.

    Each row of a hidden layer's weight is scaled by gamma / sqrt(running_var + eps), and its bias is
    beta - gamma running_mean / sqrt(running_var + eps). Computed in float64, returned in the type of `state`, in the
    order of the plain network; tensors that do not change are shared.
    Raises ValueError where `network` has no BatchNorm or `state` lacks one of its tensors.
    """
    if not isinstance(network, MLP) or network.normalization != "batch":
        got = network.normalization if isinstance(network, MLP) else type(network).__name__
        raise ValueError(f"only an MLP with normalization batch can be folded, got {got}")
    missing = sorted(network.state_dict().keys() - state.keys())
    if missing:
        raise ValueError(f"the weights lack {', '.join(missing)}, which folding needs")
    folded: State = {}
    for index, linear in enumerate(network.hidden_linears):
        path = f"hidden.{index}.norm"
        norm = network.get_submodule(path)
        if not isinstance(norm, nn.BatchNorm1d):
            raise ValueError(f"{path} is a {type(norm).__name__}, not a BatchNorm1d")
        gamma, beta, mean, variance = (
            state[f"{path}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
        )
        weight = state[f"{linear}.weight"]
        scale = gamma / (variance + norm.eps).sqrt()
        folded[f"{linear}.weight"] = (scale[:, None] * weight.double()).to(weight.dtype)
        folded[f"{linear}.bias"] = (beta - scale * mean).to(weight.dtype)
    for name in ("output.weight", "output.bias"):
        folded[name] = state[name]
    return folded
