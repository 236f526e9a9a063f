"""A data set in memory: images already normalised, labels, and the value that black has become; and which part of it
an endpoint is trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tasks.science.identity import stream
from tasks.science.specs import DataSpec, TrainSubset

MAJORITY = 0.8
"""Which share of a class lies in the half that favours it."""


@dataclass(frozen=True)
class Examples:
    """`images` (n_examples, channels, height, width) float32, normalised; `labels` (n_examples,) int64."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                "images must have shape (n, channels, height, width) and labels (n,), "
                f"got {tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Both splits of a data set. `black` is what a raw 0 is after normalisation: the fill of a translated image, one
    value for all channels or one for each."""

    spec: DataSpec
    train: Examples
    test: Examples
    black: float | tuple[float, ...]

    def trained_on(self, train_subset: TrainSubset) -> Dataset:
        """This data set with that part of its train split alone; the test split stays whole.

        ValueError for a half of a data set that has none.
        """
        if train_subset == "all":
            return self
        if not self.spec.halves:
            raise ValueError(f"{self.spec.name} has no halves to train on")
        rows = half(self.train.labels, self.spec, train_subset)
        return replace(self, train=Examples(self.train.images[rows], self.train.labels[rows]))

    def reduced(self, n_images: int | None) -> Dataset:
        """This data set with at most `n_images` images of each split, as `subset` chooses them; None for all."""

        def reduce(examples: Examples, split: str) -> Examples:
            chosen = subset(self.spec.fingerprint, split, len(examples), n_images)
            return examples if chosen is None else Examples(examples.images[chosen], examples.labels[chosen])

        return replace(self, train=reduce(self.train, "train"), test=reduce(self.test, "test"))


def subset(fingerprint: str, split: str, n_examples: int, n_images: int | None, draw: int = 0) -> Tensor | None:
    """Which `n_images` of a split's `n_examples` to take: the first of a random order, (n_images,) int64.

    The order is that of the data set (by its fingerprint), the split and the draw, so a smaller choice lies within a
    larger one. None: all of them.
    """
    if n_images is None or n_images >= n_examples:
        return None
    return torch.from_numpy(stream("subset", fingerprint, split, draw).permutation(n_examples)[:n_images])


def n_lower_classes(n_classes: int) -> int:
    """How many of `n_classes`, from the first on, are the lower half of the classes; the others are the upper."""
    return (n_classes + 1) // 2


def half(labels: Tensor, spec: DataSpec, train_subset: TrainSubset) -> Tensor:
    """Which examples lie in the first or second half of a train split with these `labels` (n_examples,): their indices,
    ascending, int64.

    The first half has 80 % of each class in the lower half of the classes and 20 % of each in the upper, the second
    what is left: the reverse. Which images these are is drawn by a stream of the data set's own.
    Source: REPAIR, the CIFAR-100 split (25,000 + 25,000 images).
    """
    shuffled = stream("halves", spec.fingerprint).permutation(len(labels))
    by_label = labels.numpy()[shuffled]
    chosen: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    for label in range(spec.n_classes):
        of_class = shuffled[by_label == label]
        share = MAJORITY if label < n_lower_classes(spec.n_classes) else 1 - MAJORITY
        n_first = round(share * len(of_class))
        chosen.append(of_class[:n_first] if train_subset == "first" else of_class[n_first:])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))
