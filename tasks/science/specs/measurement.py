"""The images and settings that statistics and curves come from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tasks.science.specs.bounds import (
    MAX_ALPHAS,
    MAX_DRAW,
    BoundError,
)
from tasks.science.specs.cell import Cell
from tasks.science.specs.checks import (
    check_choice,
    check_positive,
    check_switches,
    check_words,
    is_whole,
    shown,
)
from tasks.science.specs.identity import LABEL


@dataclass(frozen=True)
class Samples:
    """Which images of the train split matchers and corrections see; the fields are those of `Measurement`."""

    statistics: int | None = None
    draw: int = 0
    augmented: bool = True

    def __str__(self) -> str:
        return f"{self.statistics or 'all'} of draw {self.draw}{'' if self.augmented else ', not augmented'}"


ALL_SAMPLES = Samples()
"""The whole train split under the recipe's own augmentation."""

EvaluationPrecision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Viewing:
    """How a network is evaluated on an image; the fields are those of `Measurement`."""

    flip_averaged: bool = False
    evaluated_in: EvaluationPrecision = "float32"

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from the default, for an id."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}


PLAINLY = Viewing()
"""Every image as it is, once, in float32."""


@dataclass(frozen=True)
class Measurement:
    """Which samples feed statistics and curves, and where a path is looked at.

    Statistics come from one pass over the train split; curves from the train and the test split, not augmented.
    """

    name: str = field(metadata=LABEL)
    alphas: int = 11
    statistics: int | None = None
    """How many images of the train split matchers and corrections see, at most: the first of a random order that is
    the data set's own, so that fewer are some of more. None: all."""
    evaluation: int | None = None
    """How many images of each split a point of a path is evaluated on, at most, chosen likewise. None: all."""
    draw: int = 0
    """Which of the data set's random orders and augmentations statistics come from: another draw measures again."""
    augmented: bool = True
    """Whether statistics come from images under the recipe's own augmentation, else from the images as they are."""
    flip_averaged: bool = False
    """Whether curves are of logits averaged over each image and its mirror image, left for right: as the authors of
    REPAIR evaluate on ImageNet, and nowhere else."""
    evaluated_in: EvaluationPrecision = "float32"
    """What curves are computed in. Statistics and corrections are in float32 whatever it is."""

    def __post_init__(self) -> None:
        check_words("a measurement's ", name=self.name)
        for name in ("statistics", "evaluation"):
            if getattr(self, name) is not None:
                check_positive("the number of images for ", **{name: getattr(self, name)})
        if not is_whole(self.draw, 0):
            raise ValueError(f"the draw of statistics must be a whole number of at least 0, got {shown(self.draw)}")
        if self.draw > MAX_DRAW:
            raise BoundError(f"the draw of statistics must be at most {MAX_DRAW}, got {shown(self.draw)}")
        check_choice("", "evaluated_in", self.evaluated_in, EvaluationPrecision)
        check_switches("", augmented=self.augmented, flip_averaged=self.flip_averaged)
        if self.statistics == 1:
            raise ValueError("the number of images for statistics must be at least 2, so that they have a spread")
        if not is_whole(self.alphas, 3) or self.alphas % 2 == 0:
            raise ValueError(
                "the number of alphas must be odd and at least 3, so that the midpoint is there, "
                f"got {shown(self.alphas)}"
            )
        check_positive("the number of ", at_most=MAX_ALPHAS, alphas=self.alphas)

    @property
    def samples(self) -> Samples:
        return Samples(self.statistics, self.draw, self.augmented)

    @property
    def viewing(self) -> Viewing:
        return Viewing(self.flip_averaged, self.evaluated_in)

    @property
    def grid(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Shape (n_alphas,), ascending from 0 (endpoint A) to 1 (endpoint B)."""
        # Not np.linspace, whose midpoint is not exactly 1/2 for every length.
        return np.arange(self.alphas) / (self.alphas - 1)


def statistics_set(cell: Cell, samples: Samples) -> dict[str, Any]:
    """What decides the images that statistics come from: shared by all endpoints of a cell."""
    recipe = cell.recipe if samples.augmented else cell.recipe.still
    chosen = {"data": cell.data.fingerprint, "flip": recipe.flip, "translate": recipe.translate}
    if recipe.cutout:
        chosen["cutout"] = recipe.cutout
    if recipe.resized_crop:  # Whatever its side: statistics are seen at the data set's own.
        chosen["resized_crop"] = True
    # As many as there are, or more, are all of them: the same set, hence the same identity.
    if samples.statistics is not None and samples.statistics < cell.data.n_train:
        chosen["n_images"] = samples.statistics
    return {**chosen, "draw": samples.draw} if samples.draw else chosen
