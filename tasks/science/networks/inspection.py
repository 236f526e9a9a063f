"""Inspection of networks: normalization, the digest of the graph, and reasons why training is refused."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]

from tasks.science.networks.fitting import shared_tensors
from tasks.science.specs.identity import weights_digest
from tasks.science.symmetry.tracing.graph import trace_graph

FOUND_NORMALIZATIONS = ("none", "batch", "layer")
"""The words of `find_normalization`; `layer` is every norm without running statistics: of layers, groups, instances."""


def find_normalization(network: nn.Module) -> str:
    """Return which of `FOUND_NORMALIZATIONS` a network has: `batch` where any norm has running statistics."""
    modules = list(network.modules())
    if any(isinstance(module, _BatchNorm) and module.running_mean is not None for module in modules):
        return "batch"
    others = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, _BatchNorm, _InstanceNorm)
    return "layer" if any(isinstance(module, others) for module in modules) else "none"


def graph_digest(network: nn.Module, shape: tuple[int, ...]) -> str:
    """Return the sha256 (64 hex digits) of the function that a network computes, whatever its weights.

    It covers the operations of a pass of two images of `shape` in evaluation mode, the shapes of all tensors, the
    constants, and what modules say of themselves, such as the rate of a dropout. Another version of torch may take a
    pass apart into other operations, and then gives another digest.
    """
    graph = trace_graph(network, (torch.zeros(2, *shape),), training=False)
    lines = [f"{node.op} {node.target} {node.args} {dict(node.kwargs)}" for node in graph.nodes]
    lines += [f"{name} {key}" for name, key in graph.state.items()]
    lines += [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in network.state_dict().items()]
    lines += [f"{name} {type(module).__name__} {module.extra_repr()}" for name, module in network.named_modules()]
    lines.append(weights_digest(graph.constants))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_trainable_network(network: nn.Module, again: nn.Module, place: str) -> None:
    """Raise ValueError where training a user-defined network would not do what its author expects.

    It must have no tensor under two names and no frozen parameter, and draw its weights from torch's random numbers
    alone: `again` was made as `network` was.
    """
    elsewhere = "train it elsewhere, and bring it in by `repairlab import`"
    if shared := shared_tensors(network):
        first, second = shared[0][:2]
        raise ValueError(
            f"{place} makes a network whose {first} and {second} are one tensor, which is not trained here: {elsewhere}"
        )
    if frozen := [name for name, parameter in network.named_parameters() if not parameter.requires_grad]:
        raise ValueError(
            f"{place} makes a network whose {frozen[0]} is frozen, and here every parameter is trained: {elsewhere}"
        )
    if weights_digest(network.state_dict()) != weights_digest(again.state_dict()):
        raise ValueError(
            f"{place} makes other weights each time from the same random numbers of torch: let it draw from these alone"
        )
