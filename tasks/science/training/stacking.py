"""Forward passes of a group of seeds of one network: each seed's images through its own weights.

Weights are stacked: every tensor has a leading dimension of seeds. A scheme says how a forward pass computes with them.

`apart`: one network per seed, whose weights are its part of the stacks; on a GPU each on a stream of its own.
`batched`: one product per layer for all seeds, of stacked weights; for MLPs alone.
`vectorised`: one network over a dimension of seeds, by `torch.func.vmap`: convolutions become grouped ones.

A group saves launches, which a GPU waits for where networks are small and a CPU does not have. An MLP is batched.
Convolutions are computed apart: cuDNN is slow at one of 16 channels for each of n_seeds groups. On a GPU a step is
recorded as one CUDA graph (`recording`), and the seeds that are computed apart then run side by side. These choices
were made by reasoning, not measured; `benchmarks/gpu.py` measures them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from tasks.science.evaluation.functional import lay_out
from tasks.science.evaluation.outputs import logits_in
from tasks.science.networks.mlp import MLP
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State

Scheme = Literal["apart", "batched", "vectorised"]
Forward = Callable[[Tensor], Tensor]
"""Logits (n_seeds, n_examples, n_out) of images (n_seeds, n_examples, channels, height, width). In training mode the
running statistics among the weights are updated in place, each seed's by its own images."""


def choose_scheme(network: nn.Module, n_seeds: int) -> Scheme:
    """Return the scheme that `n_seeds` of `network` are trained by unless another is asked for."""
    return "batched" if isinstance(network, MLP) and n_seeds > 1 else "apart"


def check_scheme(scheme: Scheme, network: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Raise ValueError, with the way out, where `network` cannot be trained by `scheme`."""
    if scheme == "batched" and not isinstance(network, MLP):
        raise ValueError(f"only an MLP is batched, got a {type(network).__name__}: compute its seeds apart")
    if scheme == "vectorised" and device.type == "cpu" and recipe.precision != "float32":
        raise ValueError(
            f"recipe {recipe.name} trains in {recipe.precision}, which torch does not compute over a dimension of "
            "seeds on a CPU: compute them apart"
        )


def bind(network: nn.Module, weights: State, scheme: Scheme, *, held: bool = True) -> tuple[list[State], Forward]:
    """Return the tensors that gradients are taken of, and the forward pass in training mode.

    The tensors are parts of the stacks `weights`, which share their memory: one for each seed apart, or one for all.
    Weights are `held` by copies of the network; else they are put in its place at each pass, as a network needs whose
    layers share them, and `network` itself has to be in training mode. Only an MLP is batched: see `check_scheme`.
    """
    whole = {name: tensor.detach() for name, tensor in weights.items()}
    if scheme == "apart":
        n_seeds = len(next(iter(weights.values())))
        parts = [{name: tensor[index] for name, tensor in whole.items()} for index in range(n_seeds)]
    else:
        parts = [whole]
    for part in parts:
        for name, _ in network.named_parameters():
            part[name].requires_grad_()
    if isinstance(network, MLP) and scheme == "batched":
        return parts, _batched(network, whole)
    if scheme == "vectorised":
        compute = vmap(lambda state, images: functional_call(network, state, (images,)))
        return parts, lambda images: compute(whole, images)
    if not held:
        return parts, _apart([_exchanging(network, part) for part in parts])
    networks = [_holding(network, part) for part in parts]
    parts = [{**part, **dict(alone.named_parameters())} for part, alone in zip(parts, networks, strict=True)]
    return parts, _apart([_laying_out(alone) for alone in networks])


def _exchanging(network: nn.Module, part: State) -> Forward:
    return lambda images: logits_in(functional_call(network, part, (lay_out(network, images),)))


def _holding(network: nn.Module, part: State) -> nn.Module:
    """Return a copy of `network` whose weights are those of `part`, in the same memory.

    An exchange of all weights at every pass would cost as much as a layer.
    """
    alone = copy.deepcopy(network).train()
    alone.load_state_dict(part, assign=True)
    return alone


def _laying_out(alone: nn.Module) -> Forward:
    return alone if isinstance(alone, MLP) else lambda images: alone(lay_out(alone, images))


def _apart(singles: list[Forward]) -> Forward:
    if len(singles) == 1:
        (single,) = singles
        return lambda images: single(images[0])[None]

    def forward(images: Tensor) -> Tensor:
        if not images.is_cuda:
            return torch.stack([single(seen) for single, seen in zip(singles, images, strict=True)])
        main = torch.cuda.current_stream()
        logits: list[Tensor] = []
        for single, seen, stream in zip(singles, images, streams, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                logits.append(single(seen))
        for stream in streams:
            main.wait_stream(stream)
        return torch.stack(logits)

    streams = [torch.cuda.Stream() for _ in singles] if torch.cuda.is_available() else []
    return forward


def _batched(network: MLP, weights: State) -> Forward:
    """Return the forward pass of an MLP with one product per layer for all seeds: x W' + b of stacks (n_seeds, ...)."""

    def forward(images: Tensor) -> Tensor:
        values = images.flatten(2)
        for index in range(network.depth):
            values = _linear(values, weights, f"hidden.{index}.linear")
            if network.normalization == "batch":
                norm = network.get_submodule(f"hidden.{index}.norm")
                values = _batch_norm(norm, values, weights, f"hidden.{index}.norm")
            values = values.relu()
        return _linear(values, weights, "output")

    return forward


def _linear(values: Tensor, weights: State, path: str) -> Tensor:
    weight, bias = weights[f"{path}.weight"].mT, weights.get(f"{path}.bias")
    return values.bmm(weight) if bias is None else torch.baddbmm(bias[:, None], values, weight)


def _batch_norm(norm: nn.Module, values: Tensor, weights: State, path: str) -> Tensor:
    """Normalize `values` (n_seeds, n_examples, n_units) by BatchNorm in training mode, and update running statistics.

    The units of all seeds are units side by side of one BatchNorm.
    """
    if not isinstance(norm, nn.BatchNorm1d) or norm.momentum is None:
        raise ValueError(f"{path} is no BatchNorm1d whose running statistics have a momentum")
    n_seeds, n_examples, n_units = values.shape
    side_by_side = values.transpose(0, 1).reshape(n_examples, n_seeds * n_units)
    mean, variance, weight, bias = (
        weights[f"{path}.{name}"].view(-1) for name in ("running_mean", "running_var", "weight", "bias")
    )
    weights[f"{path}.num_batches_tracked"].add_(1)
    normal = F.batch_norm(side_by_side, mean, variance, weight, bias, True, norm.momentum, norm.eps)
    return normal.reshape(n_examples, n_seeds, n_units).transpose(0, 1)
