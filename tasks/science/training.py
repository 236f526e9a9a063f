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
from tasks.science.identity import stream
from tasks.science.networks import build_network, build_training_network, initial_state
from tasks.science.networks.folding import fold_batch_norm
from tasks.science.networks.mlp import MLP
from tasks.science.optimization import Updates, finite_seeds, learning_rate
from tasks.science.specs import Cell, Recipe, State, TrainSubset

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
    n_skipped_steps: int
    """Steps that were skipped because some gradient was not finite."""


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
    elsewhere. Raises ValueError where the recipe cannot be trained on `device`.
    """
    device = torch.device(device)
    check_trainable(cell.recipe, device)
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
            stack = _train_stack(trained_network, cell.recipe, group, own, device, dtype)
            seconds = (time.perf_counter() - begun) / len(group)
            for seed, trained in zip(group, stack, strict=True):
                if cell.normalization == "batch-fused":
                    trained = replace(trained, state=_fold(trained_network, trained.state))
                yield _judge(network, cell, seed, trained, own, seconds)


def check_trainable(recipe: Recipe, device: torch.device | str) -> None:
    """ValueError, with the way out, where `recipe` cannot be trained on `device`."""
    if recipe.precision == "float16" and torch.device(device).type == "cpu":
        raise ValueError(
            f"recipe {recipe.name} trains in float16, which needs a GPU: on a CPU ask for precision=bfloat16 or "
            "precision=float32"
        )
    if recipe.resized_crop:
        raise ValueError(
            f"recipe {recipe.name} is here to be read only: it sees images by random resized crops, which training "
            "does not make"
        )


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


@dataclass(frozen=True)
class _Trained:
    """One seed of a stack after training: its weights and buffers, and the last epoch (from 1; 0 before any) that ended
    finite."""

    state: State
    last_finite: int
    n_skipped: int


def _train_stack(
    network: nn.Module,
    recipe: Recipe,
    seeds: Sequence[int],
    dataset: Dataset,
    device: torch.device,
    dtype: torch.dtype,
) -> list[_Trained]:
    n_examples = len(dataset.train)
    batch_size = min(recipe.batch_size, n_examples)
    steps_per_epoch = n_examples // batch_size
    images = pad(dataset.train.images.to(device, dtype), recipe.translate, dataset.black)
    labels = dataset.train.labels.to(device)
    initial = [initial_state(network, stream("initialization", seed), recipe.initialization) for seed in seeds]
    weights: State = {name: torch.stack([state[name] for state in initial]).to(device) for name in initial[0]}
    weights = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    for name, _ in network.named_parameters():
        weights[name].requires_grad_()
    forward = single_forward(network) if len(seeds) == 1 else stacked_forward(network)
    updates = Updates(recipe, network, weights)
    last_finite = [0] * len(seeds)
    for epoch in range(recipe.epochs):
        orders, views = _draw_epoch(recipe, seeds, epoch, dataset, device)
        for batch in range(steps_per_epoch):
            rows = slice(batch * batch_size, (batch + 1) * batch_size)
            chosen = orders[:, rows]
            if views is None:
                seen = images[chosen]
            else:
                seen = take(images, chosen, _flatten(views, rows), recipe.translate, recipe.cutout)
            with mode(network, training=True), _autocast(recipe, device):
                logits = forward(weights, seen)
            # Summed over seeds, so each seed's gradient is that of its own mean loss.
            losses = F.cross_entropy(
                logits.flatten(0, 1).to(dtype),
                labels[chosen].flatten(),
                reduction="none",
                label_smoothing=recipe.label_smoothing,
            )
            updates.backward(losses.reshape(len(seeds), -1).sum(1) / batch_size)
            updates.step(learning_rate(recipe, epoch * steps_per_epoch + batch, steps_per_epoch))
        finite = finite_seeds(weights.values())
        for index in range(len(seeds)):
            if finite[index] and last_finite[index] == epoch:
                last_finite[index] = epoch + 1
        if not any(finite):
            break  # Weights that are not finite stay so.
    trained = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    return [
        _Trained({name: tensor[index].clone() for name, tensor in trained.items()}, last, n_skipped)
        for index, (last, n_skipped) in enumerate(zip(last_finite, updates.n_skipped, strict=True))
    ]


def _autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    half = torch.float16 if recipe.precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=recipe.precision != "float32")


def _draw_epoch(
    recipe: Recipe, seeds: Sequence[int], epoch: int, dataset: Dataset, device: torch.device
) -> tuple[Tensor, Views | None]:
    """Each seed's order of examples (n_seeds, n_examples), and its views (n_seeds, n_examples, ...) where augmented."""
    n_examples, _, height, width = dataset.train.images.shape
    orders = np.stack([stream("order", seed, epoch).permutation(n_examples) for seed in seeds])
    views = None
    if recipe.augments:
        drawn = [draw_views(stream("augmentation", seed, epoch), n_examples, (height, width), recipe) for seed in seeds]
        views = Views(
            torch.stack([each.offsets for each in drawn]).to(device),
            torch.stack([each.mirrored for each in drawn]).to(device),
            torch.stack([each.corners for each in drawn]).to(device),
        )
    return torch.from_numpy(orders).to(device), views


def _flatten(views: Views, rows: slice) -> Views:
    """Of views (n_seeds, n_examples, ...) those of `rows`, one seed's after another's."""
    of = (tensor[:, rows].flatten(0, 1) for tensor in (views.offsets, views.mirrored, views.corners))
    return Views(*of)


def _fold(network: nn.Module, state: State) -> State:
    if not isinstance(network, MLP):
        raise ValueError(f"only an MLP is trained to be folded, got a {type(network).__name__}")
    return fold_batch_norm(network, state)


def _judge(network: nn.Module, cell: Cell, seed: int, trained: _Trained, dataset: Dataset, seconds: float) -> Training:
    """Measures a trained seed and says whether it may take part in pairs."""
    state, last_finite = trained.state, trained.last_finite
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
    return Training(seed, state, status, message, train, test, seconds, trained.n_skipped)
