"""A data set in memory: images already normalised, labels, and the value that black has become."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tasks.science.specs import DataSpec


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
    """Both splits of a data set. `black` is what a raw 0 is after normalisation: the fill of a translated image."""

    spec: DataSpec
    train: Examples
    test: Examples
    black: float
