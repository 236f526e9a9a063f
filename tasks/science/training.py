"""Trains a group of seeds of one cell.

Every seed has its own initial weights, order of examples and augmentation, each from a stream named by the seed; the
seeds of a group share nothing but the data. On a CPU they are trained one after another, so that a seed's weights are
the same to the bit alone and in any group. On a GPU, where one small network leaves the device idle, a group is one
network with stacked weights: the same loop over tensors with a leading dimension of seeds. Buffers are stacked beside
the parameters, so each seed's BatchNorm sees that seed's batches alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from tasks.science.augmentation import Views, draw_views, pad, take
from tasks.science.evaluation import Evaluation, evaluate, lay_out, mode
from tasks.science.examples import Dataset
from tasks.science.networks import build_network, build_training_network, initial_state
from tasks.science.networks.folding import fold_batch_norm
from tasks.science.networks.mlp import MLP
from tasks.science.specs import Cell, Recipe, State, TrainSubset, stream

UNTRAINED_SHARE = 0.95
"""An endpoint whose train loss is above this share of ln(n_classes) has learned next to nothing."""

Status = Literal["trained", "diverged", "untrained"]
Forward = Callable[[State, Tensor], Tensor]


@dataclass(frozen=True)
class Training:
    """One trained seed. Loss and accuracy are of the final weights, without augmentation; NaN where it diverged.
    `train` is of the images it was trained on."""

    seed: int
    state: State
    status: Status
    message: str
    train: Evaluation
    test: Evaluation
    seconds: float


def train_group(
    cell: Cell,
    seeds: Sequence[int],
    dataset: Dataset,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    group_size: int | None = None,
) -> Iterator[Training]:
    """Trains `seeds` of `cell` and yields each as it is done, in their order (of a data set in halves, those of the
    first half before those of the second); weights come back on the CPU.

    `group_size` seeds are stacked into one network at a time: by default 1 on a CPU, all that share their train images
    elsewhere.
    """
    device = torch.device(device)
    network, trained_network = build_network(cell), build_training_network(cell)
    size = group_size or (1 if device.type == "cpu" else len(seeds))
    by_subset: dict[TrainSubset, list[int]] = {}
    for seed in seeds:
        by_subset.setdefault(cell.data.train_subset(seed), []).append(seed)
    for train_subset, members in sorted(by_subset.items()):
        own = dataset.trained_on(train_subset)
        for start in range(0, len(members), size):
            group = members[start : start + size]
            begun = time.perf_counter()
            states, last_finite_epochs = _train_stack(trained_network, cell.recipe, group, own, device, dtype)
            seconds = (time.perf_counter() - begun) / len(group)
            for seed, state, last_finite in zip(group, states, last_finite_epochs, strict=True):
                if cell.normalization == "batch-fused":
                    state = _fold(trained_network, state)
                yield _judge(network, cell, seed, state, last_finite, own, seconds)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Linear from 0 to the peak over the warm-up, then linear to 0 at the end of training; `step` counts from 0."""
    total = recipe.epochs * steps_per_epoch
    warmup = recipe.warmup * total
    if step < warmup:
        return recipe.learning_rate * step / warmup
    return recipe.learning_rate * (total - step) / (total - warmup)


def stacked_forward(network: nn.Module) -> Forward:
    """Logits (n_seeds, n_examples, n_out) of weights and images that both have a leading dimension of seeds.

    In training mode the running statistics in the weights are updated in place, each seed's by its own images.
    """
    return vmap(lambda state, images: functional_call(network, state, (images,)))


def single_forward(network: nn.Module) -> Forward:
    """The same for one seed, without the cost of vectorising over a dimension of 1."""

    def forward(state: State, images: Tensor) -> Tensor:
        alone = {name: tensor.squeeze(0) for name, tensor in state.items()}
        return functional_call(network, alone, (lay_out(network, images[0]),))[None]

    return forward


def _train_stack(
    network: nn.Module,
    recipe: Recipe,
    seeds: Sequence[int],
    dataset: Dataset,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[list[State], list[int]]:
    """The weights and buffers after training, and for each seed the last epoch (from 1; 0 before any) that ended
    finite."""
    n_examples = len(dataset.train)
    batch_size = min(recipe.batch_size, n_examples)
    steps_per_epoch = n_examples // batch_size
    images = pad(dataset.train.images.to(device, dtype), recipe.translate, dataset.black)
    labels = dataset.train.labels.to(device)
    initial = [initial_state(network, stream("initialization", seed), recipe.initialization) for seed in seeds]
    weights: State = {name: torch.stack([state[name] for state in initial]).to(device) for name in initial[0]}
    weights = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    parameters = [weights[name].requires_grad_() for name, _ in network.named_parameters()]
    forward = single_forward(network) if len(seeds) == 1 else stacked_forward(network)
    optimizer = torch.optim.SGD(
        parameters, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    last_finite = [0] * len(seeds)
    for epoch in range(recipe.epochs):
        orders, views = _draw_epoch(recipe, seeds, epoch, n_examples, device)
        for batch in range(steps_per_epoch):
            optimizer.param_groups[0]["lr"] = learning_rate(recipe, epoch * steps_per_epoch + batch, steps_per_epoch)
            rows = slice(batch * batch_size, (batch + 1) * batch_size)
            chosen = orders[:, rows]
            if views is None:
                seen = images[chosen]
            else:
                flat = Views(views.offsets[:, rows].flatten(0, 1), views.mirrored[:, rows].flatten())
                seen = take(images, chosen, flat, recipe.translate)
            with mode(network, training=True), _autocast(recipe, device):
                logits = forward(weights, seen)
            # Summed over seeds, so each seed's gradient is that of its own mean loss.
            loss = (
                F.cross_entropy(logits.flatten(0, 1).to(dtype), labels[chosen].flatten(), reduction="sum") / batch_size
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        finite = _finite_seeds(weights)
        for index in range(len(seeds)):
            if finite[index] and last_finite[index] == epoch:
                last_finite[index] = epoch + 1
        if not any(finite):
            break  # Weights that are not finite stay so.
    trained = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    return [
        {name: tensor[index].clone() for name, tensor in trained.items()} for index in range(len(seeds))
    ], last_finite


def _autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


def _draw_epoch(
    recipe: Recipe, seeds: Sequence[int], epoch: int, n_examples: int, device: torch.device
) -> tuple[Tensor, Views | None]:
    """Each seed's order of examples (n_seeds, n_examples), and its views (n_seeds, n_examples, ...) where augmented."""
    orders = np.stack([stream("order", seed, epoch).permutation(n_examples) for seed in seeds])
    views = None
    if recipe.flip or recipe.translate:
        drawn = [
            draw_views(stream("augmentation", seed, epoch), n_examples, flip=recipe.flip, translate=recipe.translate)
            for seed in seeds
        ]
        views = Views(
            torch.stack([each.offsets for each in drawn]).to(device),
            torch.stack([each.mirrored for each in drawn]).to(device),
        )
    return torch.from_numpy(orders).to(device), views


@torch.no_grad()
def _finite_seeds(weights: State) -> list[bool]:
    finite = [tensor.isfinite().reshape(len(tensor), -1).all(1) for tensor in weights.values()]
    return torch.stack(finite).all(0).tolist()


def _fold(network: nn.Module, state: State) -> State:
    if not isinstance(network, MLP):
        raise ValueError(f"only an MLP is trained to be folded, got a {type(network).__name__}")
    return fold_batch_norm(network, state)


def _judge(
    network: nn.Module, cell: Cell, seed: int, state: State, last_finite: int, dataset: Dataset, seconds: float
) -> Training:
    """Measures a trained seed and says whether it may take part in pairs."""
    as_trained = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    train, test = evaluate(network, as_trained, dataset.train), evaluate(network, as_trained, dataset.test)
    status: Status = "trained"
    message = ""
    epochs = cell.recipe.epochs
    if last_finite < epochs or not (math.isfinite(train.loss) and math.isfinite(test.loss)):
        status = "diverged"
        when = f"in epoch {last_finite + 1} of {epochs}" if last_finite < epochs else "at the end of training"
        message = f"weights or loss became non-finite {when}"
        train, test = replace(train, loss=math.nan, accuracy=math.nan), replace(test, loss=math.nan, accuracy=math.nan)
    elif train.loss > UNTRAINED_SHARE * math.log(dataset.spec.n_classes):
        status = "untrained"
        message = f"train loss {train.loss:.3f} is that of guessing among {dataset.spec.n_classes} classes"
    return Training(seed, state, status, message, train, test, seconds)
