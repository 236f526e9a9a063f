"""How a group of seeds of one network is computed: the logits of each seed's own weights for its own images.

Weights are stacked: every tensor has a leading dimension of seeds. A scheme says what a forward pass does with them.

`apart`: one network per seed, whose weights are its part of the stacks; on a GPU each on a stream of its own.
`batched`: one product per layer for all seeds, of stacked weights; an MLP alone.
`vectorised`: one network over a dimension of seeds, by `torch.func.vmap`: convolutions become grouped ones.

What a group gains is launches, which a GPU waits for where networks are small and a CPU does not have. An MLP is
batched. Convolutions are computed apart: one of 16 channels for each of n_seeds groups is a form that cuDNN serves
poorly. On a GPU a step is recorded as one CUDA graph once it has run a few times: then its launches cost next to
nothing, and those of several seeds apart run side by side. These choices were made by reasoning, not measured;
`benchmarks/gpu.py` measures them.
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
from tasks.science.specs.cell import Cell
from tasks.science.specs.checks import is_own
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State

Scheme = Literal["apart", "batched", "vectorised"]
Forward = Callable[[Tensor], Tensor]
"""Logits (n_seeds, n_examples, n_out) of images (n_seeds, n_examples, channels, height, width). In training mode the
running statistics among the weights are updated in place, each seed's by its own images."""

VIEW_BYTES = 41
"""What one example of an epoch takes: its place in the order, and five whole numbers and a truth value of its view."""

WARM_UP_STEPS = 3
"""So many steps run as they are before one is recorded: what is set up by the first must not be part of a graph."""


def choose_scheme(network: nn.Module, n_seeds: int) -> Scheme:
    """The scheme that `n_seeds` of `network` are trained by where nobody asks for another."""
    return "batched" if isinstance(network, MLP) and n_seeds > 1 else "apart"


def check_scheme(scheme: Scheme, network: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """ValueError, with the way out, where `network` cannot be trained so."""
    if scheme == "batched" and not isinstance(network, MLP):
        raise ValueError(f"only an MLP is batched, got a {type(network).__name__}: compute its seeds apart")
    if scheme == "vectorised" and device.type == "cpu" and recipe.precision != "float32":
        raise ValueError(
            f"recipe {recipe.name} trains in {recipe.precision}, which torch does not compute over a dimension of "
            "seeds on a CPU: compute them apart"
        )


def is_recorded(cell: Cell, device: torch.device) -> bool:
    """Whether a training step is recorded as a CUDA graph: on a GPU, but for a person's own network, which may look at
    values as it goes, and for float16, the scale of whose loss is set by values as well."""
    return device.type == "cuda" and not is_own(cell.architecture) and cell.recipe.precision != "float16"


def bind(network: nn.Module, weights: State, scheme: Scheme, *, own: bool = False) -> tuple[list[State], Forward]:
    """What gradients are taken of, and the forward pass in training mode: parts of the stacks `weights`, which share
    their memory, one for each seed apart or one for all.

    A person's `own` network is given its weights anew at each pass, for it may share them between layers, and has to be
    in training mode by itself. Only an MLP is batched: see `check_scheme`.
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
    if own:
        return parts, _apart([_exchanging(network, part) for part in parts])
    networks = [_holding(network, part) for part in parts]
    parts = [{**part, **dict(alone.named_parameters())} for part, alone in zip(parts, networks, strict=True)]
    return parts, _apart([_laying_out(alone) for alone in networks])


def _exchanging(network: nn.Module, part: State) -> Forward:
    return lambda images: logits_in(functional_call(network, part, (lay_out(network, images),)))


def _holding(network: nn.Module, part: State) -> nn.Module:
    """A copy of `network` whose weights are those of `part`, in the same memory: an exchange of all weights at every
    pass would cost as much as a layer."""
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
    """The forward pass of an MLP as one product per layer for all seeds: x W' + b of stacks (n_seeds, ...)."""

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
    """BatchNorm in training mode of `values` (n_seeds, n_examples, n_units): units of several seeds are so many units
    side by side. Running statistics are updated in place."""
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


Step = Callable[..., None]
"""A training step: it takes tensors alone, always of the same shapes, and what it changes stays in place."""


def record_graph(step: Step, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """Records `step` with `inputs` as a CUDA graph, without running it; what is returned runs it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*inputs)
    return graph.replay


class RecordedStep:
    """`step`, run as it is a few times, then recorded, and from then on replayed with the values that it is given. The
    first runs are steps like any other."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._n_run = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._replay: Callable[[], object] | None = None

    def __call__(self, *inputs: Tensor) -> None:
        if self._n_run < WARM_UP_STEPS:
            self._n_run += 1
            self._warm_up(inputs)
            return
        if self._replay is None:
            self._inputs = tuple(value.clone() for value in inputs)
            self._replay = record_graph(self._step, self._inputs)
        for held, value in zip(self._inputs, inputs, strict=True):
            held.copy_(value)
        self._replay()

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].is_cuda:
            self._step(*inputs)
            return
        # Not on the default stream: what the first steps set up there could not be recorded.
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            self._step(*inputs)
        main.wait_stream(side)


def seed_bytes(network: nn.Module, recipe: Recipe, image_shape: tuple[int, ...], n_examples: int) -> int:
    """About how much memory one more seed of a group takes while it is trained: its weights, gradients and optimizer
    memory, what a forward pass of a batch keeps for the backward pass, in float32, its gradients, and the order and
    views of an epoch of `n_examples`.

    `network` is on the meta device, where the pass is made: it computes nothing.
    """
    copies = 2 + (2 if recipe.optimizer == "adam" else 1)
    alone = copy.deepcopy(network).train()
    of_weights = [parameter.untyped_storage() for parameter in alone.parameters()]
    kept: list[torch.UntypedStorage] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage())
        return tensor

    images = torch.empty((recipe.batch_size, *image_shape), device="meta")
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alone(images)
    apart = {id(storage): storage.nbytes() for storage in kept}  # Each once: two layers may keep the same.
    for storage in of_weights:
        apart.pop(id(storage), None)
    weights = sum(storage.nbytes() for storage in of_weights)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    # Three times: as kept, its gradients, and what a step holds for a moment.
    passing = 3 * (sum(apart.values()) + images.numel() * 4)
    return copies * weights + buffers + passing + n_examples * VIEW_BYTES


def fitting_seeds(n_free_bytes: int, n_seed_bytes: int, n_shared_bytes: int) -> int:
    """How many seeds fit, at least one: a tenth of what is free is left alone."""
    return max(1, int((0.9 * n_free_bytes - n_shared_bytes) // n_seed_bytes))
