"""Which cell a network of a person's own is: what it has, and whether it fits the data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]

from tasks.science.correction.layout import find_layout
from tasks.science.networks.fitting import shared_tensors
from tasks.science.networks.output_checks import check_classes
from tasks.science.networks.user_defined import build_at, factors_of
from tasks.science.specs.checks import is_whole
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import weights_digest
from tasks.science.symmetry.tracing.graph import trace_graph

NORMALIZATIONS = ("none", "batch", "layer")
"""`layer` is every norm that keeps no running statistics: of layers, groups or instances."""


def describe_own(
    place: str,
    data: DataSpec,
    width: int | None = None,
    depth: int | None = None,
    normalization: str | None = None,
    *,
    trained: bool = False,
) -> dict[str, Any]:
    """The fields of a cell that say which network the function at `place` makes for `data`; it has been run on two
    black images and traced.

    What is None is the function's own default; where it does not take it, width is 1, depth counts the hidden layers
    and normalization is what the network has. Raises ValueError for what it must be given, for a network that does not
    fit the data, and, where it is to be `trained`, for one that has a tensor under two names, frozen parameters, or
    weights that come from elsewhere than torch's random numbers; OwnCodeError and TraceError where it cannot be made or
    traced.
    """
    given = {"width": width, "depth": depth, "normalization": normalization}
    if data.holds_ids:
        raise ValueError(
            f"{data.name} holds token ids, and studies flip, shift and train on images: merge networks of ids by "
            "`repairlab merge`"
        )
    taken = factors_of(place)
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        if name not in taken:
            continue
        arguments[name] = taken[name] if value is None else value
        usable = isinstance(arguments[name], str) if name == "normalization" else is_whole(arguments[name], 1)
        if not usable:
            kind = "word" if name == "normalization" else "positive whole number"
            raise ValueError(f"{place} takes a {name}, and has no {kind} for its default: give one")
    network = build_at(place, arguments)
    images = torch.zeros(2, *data.shape)
    state = network.state_dict()
    check_classes(network, state, images, data, place)
    if trained:
        _check_trainable(network, build_at(place, arguments), place)
    has = normalization_of(network)
    word = arguments.get("normalization", normalization) or has
    if word not in NORMALIZATIONS or (word == "batch") != (has == "batch"):
        raise ValueError(
            f"{place} makes a network whose normalization is {has}, not {word}; known: {', '.join(NORMALIZATIONS)}"
        )
    n_hidden = len(find_layout(network, state, images).layers)
    return {
        "architecture": place,
        "normalization": word,
        "width": arguments.get("width", width or 1),
        "depth": arguments.get("depth", depth or max(1, n_hidden)),
        "graph": graph_digest(network, data.shape),
    }


def _check_trainable(network: nn.Module, again: nn.Module, place: str) -> None:
    """ValueError where training here would not do what a person expects: `again` was made as `network` was."""
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


def describe_own_grid(
    place: str, data: DataSpec, widths: Sequence[int], depths: Sequence[int], normalization: str
) -> list[dict[str, Any]]:
    """As `describe_own`, for networks that are to be trained, at every width and depth there is; an empty word or list
    leaves the function its default. ValueError also for what it does not take."""
    taken = factors_of(place)
    for name, given in (("width", widths), ("depth", depths), ("normalization", normalization)):
        if given and name not in taken:
            raise ValueError(f"{place} takes no {name}: let it have an argument of that name, or leave out --{name}")
    found: list[dict[str, Any]] = []
    for width in dict.fromkeys(widths) or [None]:
        for depth in dict.fromkeys(depths) or [None]:
            fields = describe_own(place, data, width, depth, normalization or None, trained=True)
            if fields not in found:
                found.append(fields)
    return found


def normalization_of(network: nn.Module) -> str:
    """What a network is normalized by, of `NORMALIZATIONS`: BatchNorm with running statistics before all others."""
    modules = list(network.modules())
    if any(isinstance(module, _BatchNorm) and module.running_mean is not None for module in modules):
        return "batch"
    others = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, _BatchNorm, _InstanceNorm)
    return "layer" if any(isinstance(module, others) for module in modules) else "none"


def graph_digest(network: nn.Module, shape: tuple[int, ...]) -> str:
    """sha256 (64 hex digits) over what a network computes, whatever its weights: the operations of a pass of two images
    of `shape` in evaluation mode, the shapes of its tensors, the constants among them, and what its modules say of
    themselves, such as how much is dropped out in training.

    Another version of torch may take a pass apart into other operations: then it is another digest.
    """
    graph = trace_graph(network, (torch.zeros(2, *shape),), training=False)
    lines = [f"{node.op} {node.target} {node.args} {dict(node.kwargs)}" for node in graph.nodes]
    lines += [f"{name} {key}" for name, key in graph.state.items()]
    lines += [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in network.state_dict().items()]
    lines += [f"{name} {type(module).__name__} {module.extra_repr()}" for name, module in network.named_modules()]
    lines.append(weights_digest(graph.constants))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
