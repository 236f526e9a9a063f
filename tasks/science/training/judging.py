"""Judging endpoints: loss and accuracy of a seed's weights at a checkpoint, and whether it may take part in pairs.

An endpoint is judged in the same way whether it was trained here or elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from tasks.science.data.examples import Dataset, Examples, FileExamples, subset
from tasks.science.evaluation.metrics import Evaluation, evaluate
from tasks.science.networks import find_architecture
from tasks.science.specs.cell import Cell
from tasks.science.specs.state import State
from tasks.science.training.progress import TrainingState

UNTRAINED_SHARE = 0.95
"""Share of ln(n_classes) above which a train loss at the end of training is that of a network that learned nothing."""

JUDGED_IMAGES = 5_000
"""The most train images in files that an endpoint is judged by: all of ImageNet's would take half as long as an epoch
of training, at every checkpoint."""

Status = Literal["trained", "diverged", "untrained"]


@dataclass(frozen=True)
class Training:
    """One seed at one checkpoint of its training, judged.

    `train` is of the images it was trained on, without augmentation, or of `JUDGED_IMAGES` of them where they lie in
    files; `test` is of the whole test split. Loss and accuracy are NaN where it diverged. `seconds` and skipped steps
    count from the beginning, of a child from where it was spawned.
    """

    seed: int
    epoch: int | None
    """As in `Cell`: None at the end of the recipe's schedule."""
    state: State
    status: Status
    message: str
    train: Evaluation
    test: Evaluation
    seconds: float
    n_skipped_steps: int
    """Steps that were skipped because some gradient was not finite."""


def judge_endpoint(network: nn.Module, cell: Cell, seed: int, reached: TrainingState, dataset: Dataset) -> Training:
    """Return the loss, accuracy and status of a seed at a checkpoint, evaluated on the device of `dataset`.

    `network` is that of `build_network`, whose weights are kept. Only the end of training can be `untrained`: an early
    checkpoint is expected to have learned little.
    """
    state = find_architecture(cell.architecture).fold(cell, reached.weights)
    train, test = _evaluate_splits(network, state, dataset)
    at_end = reached.epoch == cell.recipe.epochs
    status, message = _find_status(cell, reached, train, test)
    if status == "diverged":
        train, test = (replace(seen, loss=math.nan, accuracy=math.nan) for seen in (train, test))
    epoch = None if at_end else reached.epoch
    return Training(seed, epoch, state, status, message, train, test, reached.seconds, reached.n_skipped)


def _evaluate_splits(network: nn.Module, state: State, dataset: Dataset) -> tuple[Evaluation, Evaluation]:
    """Return the evaluations of `state`, in float32, on the train and test images that an endpoint is judged by."""
    device = dataset.test.labels.device
    single = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    placed = {name: tensor.to(device) for name, tensor in single.items()}
    return evaluate(network, placed, _judged_train(dataset)), evaluate(network, placed, dataset.test)


def _find_status(cell: Cell, reached: TrainingState, train: Evaluation, test: Evaluation) -> tuple[Status, str]:
    """Return the status of a checkpoint, and why it may not take part in pairs."""
    n_epochs, n_classes = cell.recipe.epochs, cell.data.n_classes
    if reached.last_finite < reached.epoch:
        return "diverged", f"weights or loss became non-finite in epoch {reached.last_finite + 1} of {n_epochs}"
    at_end = reached.epoch == n_epochs
    if not (math.isfinite(train.loss) and math.isfinite(test.loss)):
        when = "at the end of training" if at_end else f"after epoch {reached.epoch} of {n_epochs}"
        return "diverged", f"weights or loss became non-finite {when}"
    if at_end and train.loss > UNTRAINED_SHARE * math.log(n_classes):
        return "untrained", f"train loss {train.loss:.3f} is that of guessing among {n_classes} classes"
    return "trained", ""


def _judged_train(dataset: Dataset) -> Examples:
    train = dataset.train
    if not isinstance(train, FileExamples):
        return train
    chosen = subset(dataset.spec.fingerprint, "train", len(train), JUDGED_IMAGES)
    return train if chosen is None else train.chosen(chosen)


def on_device(dataset: Dataset, device: torch.device) -> Dataset:
    """Return `dataset` on a GPU where it is in memory: there judging takes as long as a few steps of training."""
    if device.type == "cpu" or isinstance(dataset.train, FileExamples) or isinstance(dataset.test, FileExamples):
        return dataset
    train, test = (
        replace(split, images=split.images.to(device), labels=split.labels.to(device))
        for split in (dataset.train, dataset.test)
    )
    return replace(dataset, train=train, test=test)
