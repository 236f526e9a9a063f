"""Data sets: images and labels, in memory or in files, and the parts of them that endpoints are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tasks.science.specs.data import DataSpec, TrainSubset
from tasks.science.specs.identity import stream

MAJORITY = 0.8
"""The share of a class that lies in the half that favours it."""

HELD_IMAGES = 20_000
"""The most images of a split in files that are held in memory to be evaluated repeatedly: 4 GB."""

_HELD_BATCH = 100

EVALUATION_SIDE = 256
"""Pixels a side at which an image in a file is evaluated: its largest centred square, as in REPAIR on ImageNet."""


@dataclass(frozen=True)
class Scaling:
    """Normalisation of bytes by the mean and standard deviation of each channel, on the scale of 0 to 255."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return `pixels` (n, channels, height, width) uint8, normalised, as float32."""
        mean, deviation = (pixels.new_tensor(of, dtype=torch.float32) for of in (self.mean, self.deviation))
        return pixels.float().sub_(mean[:, None, None]).div_(deviation[:, None, None])


def are_ids(images: Tensor) -> bool:
    """Return whether `images` are token ids (n, length), whole numbers, and no images."""
    return images.dtype in (torch.int32, torch.int64) and images.ndim == 2 and images.numel() > 0


@dataclass(frozen=True)
class Examples:
    """Examples of a split, in memory.

    `images` are (n_examples, channels, height, width) float32, normalised, or token ids (n_examples, length) int64;
    `labels` are (n_examples,) int64. With a `scaling`, images are bytes (uint8), which it normalises batch by batch.
    """

    images: Tensor
    labels: Tensor
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        if (
            self.images.ndim != (2 if self.images.dtype == torch.int64 else 4)
            or self.labels.shape != self.images.shape[:1]
        ):
            raise ValueError(
                "images must have shape (n, channels, height, width) and labels (n,), "
                f"got {tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """The height and width at which an image is evaluated."""
        return self.images.shape[2], self.images.shape[3]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, normalised, and labels, in order."""
        for start in range(0, len(self), batch_size):
            images = self.images[start : start + batch_size]
            yield images if self.scaling is None else self.scaling(images), self.labels[start : start + batch_size]

    def chosen(self, rows: Tensor) -> Examples:
        """Return the examples at the indices `rows` (n,), in that order."""
        return Examples(self.images[rows], self.labels[rows], self.scaling)

    def held(self) -> Examples:
        """Return the same examples, ready to be evaluated repeatedly."""
        return self


class ImageFiles(Protocol):
    """The images of a split, in files that are decoded when they are read."""

    def read(self, rows: Tensor, side: int, batch_size: int, crops: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the images at the indices `rows` (n,), in order, in batches (batch_size, 3, side, side) uint8.

        The last batch may be shorter. Each image is its largest centred square, or with `crops` (n, N_CROP_DRAWS) the
        box of `tasks.science.data.crops.crop_boxes`, resized.
        """
        ...


class FileExamples(Examples):
    """Examples of a split whose images lie in files, and are decoded batch by batch each time they are read."""

    files: ImageFiles
    rows: Tensor
    scaling: Scaling

    def __init__(self, files: ImageFiles, rows: Tensor, labels: Tensor, scaling: Scaling) -> None:
        """Take the images at the indices `rows` (n_examples,) of `files`, with their `labels` (n_examples,)."""
        vars(self).update(files=files, rows=rows, labels=labels, scaling=scaling)

    @property
    def images(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All images at the size at which they are evaluated. ValueError for more than `HELD_IMAGES`."""
        if len(self) > HELD_IMAGES:
            raise ValueError(
                f"{len(self)} images lie in files, of which {HELD_IMAGES} at most are read into memory: take fewer"
            )
        return torch.cat([images for images, _ in self.batches(_HELD_BATCH)])

    @property
    def size(self) -> tuple[int, int]:
        return EVALUATION_SIDE, EVALUATION_SIDE

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        read = self.files.read(self.rows, EVALUATION_SIDE, batch_size)
        for pixels, labels in zip(read, self.labels.split(batch_size), strict=True):
            yield self.scaling(pixels), labels

    def chosen(self, rows: Tensor) -> FileExamples:
        return FileExamples(self.files, self.rows[rows], self.labels[rows], self.scaling)

    def held(self) -> Examples:
        """Return the examples decoded once, as bytes in memory; more than `HELD_IMAGES` are left in their files."""
        if len(self) > HELD_IMAGES:
            return self
        pixels = torch.empty((len(self), 3, *self.size), dtype=torch.uint8)
        read = self.files.read(self.rows, EVALUATION_SIDE, _HELD_BATCH)
        for held, decoded in zip(pixels.split(_HELD_BATCH), read, strict=True):
            held.copy_(decoded)
        return Examples(pixels, self.labels, self.scaling)


@dataclass(frozen=True)
class Dataset:
    """Both splits of a data set.

    `black` is a raw 0 after normalisation, which fills the border of a translated image: one value for all channels or
    one for each.
    """

    spec: DataSpec
    train: Examples
    test: Examples
    black: float | tuple[float, ...]

    def trained_on(self, train_subset: TrainSubset) -> Dataset:
        """Return this data set with that part of its train split alone; the test split stays whole.

        ValueError for a half of a data set that has none.
        """
        if train_subset == "all":
            return self
        if not self.spec.halves:
            raise ValueError(f"{self.spec.name} has no halves to train on")
        rows = half(self.train.labels, self.spec, train_subset)
        return replace(self, train=self.train.chosen(rows))

    def reduced(self, n_images: int | None) -> Dataset:
        """Return this data set with at most `n_images` images of each split, as `subset` chooses them; None for all.

        It is evaluated repeatedly, so images in files are held in memory as `FileExamples.held` says.
        """

        def reduce(examples: Examples, split: str) -> Examples:
            chosen = subset(self.spec.fingerprint, split, len(examples), n_images)
            return (examples if chosen is None else examples.chosen(chosen)).held()

        return replace(self, train=reduce(self.train, "train"), test=reduce(self.test, "test"))


def subset(fingerprint: str, split: str, n_examples: int, n_images: int | None, draw: int = 0) -> Tensor | None:
    """Return the indices of `n_images` of the `n_examples` of a split, (n_images,) int64; None where all are taken.

    They are the first of a random order, which depends on the data set (by its fingerprint), the split and the draw
    alone, so a smaller choice lies within a larger one.
    """
    if n_images is None or n_images >= n_examples:
        return None
    return torch.from_numpy(stream("subset", fingerprint, split, draw).permutation(n_examples)[:n_images])


def n_lower_classes(n_classes: int) -> int:
    """Return how many of `n_classes`, from the first on, are the lower half of the classes; the rest are the upper."""
    return (n_classes + 1) // 2


def half(labels: Tensor, spec: DataSpec, train_subset: TrainSubset) -> Tensor:
    """Return the indices of the first or second half of a train split with `labels` (n_examples,), ascending, int64.

    The first half has 80 % of each class in the lower half of the classes and 20 % of each in the upper, the second
    half the rest. The images are drawn by a stream of the data set's own.
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
