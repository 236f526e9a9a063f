"""The images and settings that statistics and curves come from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tasks.science.specs.bounds import MAX_ALPHAS, MAX_DRAW
from tasks.science.specs.cell import Cell
from tasks.science.specs.checks import check_positive, check_types, check_whole, is_whole, shown
from tasks.science.specs.identity import LABEL, canonical, part_of
from tasks.science.specs.recipe import NO_AUGMENTATION


@dataclass(frozen=True)
class Samples:
    """The images of the train split that matchers and corrections see; the fields are those of `Measurement`."""

    statistics: int | None = field(default=None, metadata={"key": "n_images"})
    draw: int = 0
    augmented: bool = True

    def __str__(self) -> str:
        return f"{self.statistics or 'all'} of draw {self.draw}{'' if self.augmented else ', not augmented'}"


ALL_SAMPLES = Samples()
"""The whole train split under the recipe's own augmentation."""

EvaluationPrecision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Viewing:
    """Evaluation of a network on an image; the fields are those of `Measurement`."""

    flip_averaged: bool = False
    evaluated_in: EvaluationPrecision = "float32"


PLAINLY = Viewing()
"""Every image as it is, once, in float32."""


@dataclass(frozen=True)
class Measurement:
    """The samples that feed statistics and curves, and the alphas at which a path is evaluated.

    Statistics come from one pass over the train split; curves from the train and the test split, not augmented.
    """

    name: str = field(metadata=LABEL)
    alphas: int = 11
    statistics: int | None = None
    """Largest number of images of the train split that matchers and corrections see: the first of a random order that
    the data set fixes, so that a smaller number is a subset of a larger one. None: all."""
    evaluation: int | None = None
    """Largest number of images of each split that a point of a path is evaluated on, chosen likewise. None: all."""
    draw: int = 0
    """The number of the random order and augmentation that statistics come from: another draw measures again."""
    augmented: bool = True
    """Whether statistics come from images under the recipe's augmentation, else from the images as they are."""
    flip_averaged: bool = False
    """Whether logits are averaged over each image and its mirror image, left for right, as the authors of REPAIR
    evaluate on ImageNet alone."""
    evaluated_in: EvaluationPrecision = "float32"
    """The type that curves are computed in. Statistics and corrections are always in float32."""

    def __post_init__(self) -> None:
        check_types("a measurement's ", self)
        for name in ("statistics", "evaluation"):
            if getattr(self, name) is not None:
                check_positive("the number of images for ", **{name: getattr(self, name)})
        if self.statistics == 1:
            raise ValueError("the number of images for statistics must be at least 2, so that they have a spread")
        check_whole("the draw of ", 0, MAX_DRAW, statistics=self.draw)
        if not is_whole(self.alphas, 3) or self.alphas % 2 == 0:
            raise ValueError(
                "the number of alphas must be odd and at least 3, so that the midpoint is there, "
                f"got {shown(self.alphas)}"
            )
        check_positive("the number of ", at_most=MAX_ALPHAS, alphas=self.alphas)

    @cached_property
    def samples(self) -> Samples:
        return part_of(self, Samples)

    @cached_property
    def viewing(self) -> Viewing:
        return part_of(self, Viewing)

    @property
    def grid(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The alphas, of shape (n_alphas,), ascending from 0 (endpoint A) to 1 (endpoint B)."""
        # Not np.linspace, whose midpoint is not exactly 1/2 for every length.
        return np.arange(self.alphas) / (self.alphas - 1)


def statistics_set(cell: Cell, samples: Samples) -> dict[str, Any]:
    """Return the part of an id that decides the images of statistics, which all endpoints of a cell share."""
    augmentation = cell.recipe.augmentation if samples.augmented else NO_AUGMENTATION
    # As many images as there are, or more, are all of them: the same set, hence the same id.
    is_subset = samples.statistics is not None and samples.statistics < cell.data.n_train
    chosen = dataclasses.replace(samples, statistics=samples.statistics if is_subset else None, augmented=True)
    return {"data": cell.data.fingerprint, **canonical(augmentation.at_full_size), **canonical(chosen)}


def evaluation_set(cell: Cell, measurement: Measurement) -> dict[str, Any]:
    """Return the part of an id that decides how a network of `cell` is evaluated, and on which images."""
    data = {"data": cell.data.fingerprint, "evaluation": measurement.evaluation}
    return data | canonical(measurement.viewing)
