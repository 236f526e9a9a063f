"""A data set in memory: images already normalised, labels, and the value that black has become."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tasks.science.specs import DataSpec, stream


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
