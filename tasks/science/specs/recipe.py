"""The fields of a training recipe. The recipes that ship stand in recipes.py."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from tasks.science.specs.bounds import MAX_EPOCHS, MAX_PIXELS
from tasks.science.specs.checks import (
    check_positive,
    check_types,
    check_whole,
    check_words,
    names_of_type,
    read_finite,
)
from tasks.science.specs.identity import KEPT, LABEL, part_of

Optimizer = Literal["sgd", "adam"]
Schedule = Literal["linear", "cosine"]
Initialization = Literal["published", "he-normal"]
Precision = Literal["float32", "bfloat16", "float16"]
DecayedNorms = Literal["all", "shortcuts", "none"]


@dataclass(frozen=True)
class Augmentation:
    """The random changes of the images that a network sees; the fields are those of `Recipe`."""

    flip: bool = field(default=False, metadata=KEPT)
    translate: int = field(default=0, metadata=KEPT)
    cutout: int = 0
    resized_crop: int = 0

    @cached_property
    def at_full_size(self) -> Augmentation:
        """Augmentation with crops seen at the size of the data set's own images, as statistics see them."""
        return dataclasses.replace(self, resized_crop=self.resized_crop > 0)


NO_AUGMENTATION = Augmentation()
"""Every image as it is."""


@dataclass(frozen=True)
class Recipe:
    """The training of an endpoint.

    `learning_rate` is the peak, reached after the first `warmup` of all steps, from where it falls to 0. `warmup` is a
    fraction, so that a shortened recipe keeps its shape.
    """

    name: str = field(metadata=LABEL)
    batch_size: int
    epochs: int
    learning_rate: float
    warmup: float
    momentum: float = 0.9
    """For Adam beta 1, the decay of the mean gradient; beta 2 is .999."""
    weight_decay: float = 0.0
    """The factor of the weights that is added to the gradient, by Adam as well."""
    flip: bool = False
    translate: int = 0
    """Largest random shift in pixels along each axis; pixels that move in are black."""
    optimizer: Optimizer = "sgd"
    schedule: Schedule = "linear"
    """The fall of the learning rate from its peak to 0: along a straight line, or half a period of a cosine."""
    initialization: Initialization = "published"
    """`published`: as the network's authors have it; `he-normal`: every weight normal with variance 2 / fan-in and
    every bias 0, with which deep networks without a norm learn at once."""
    precision: Precision = "float32"
    """The type of the forward and backward passes of training; weights, losses and updates stay float32. float16 needs
    a GPU, a scaled loss, and steps that may be skipped."""
    warmup_from: float = 0.0
    """The learning rate that the warm-up begins at."""
    cutout: int = 0
    """Side in pixels of the square that is cut out of every image at random and filled with the mean."""
    label_smoothing: float = 0.0
    """Share of every label that is spread evenly over all classes."""
    decayed_norms: DecayedNorms = "all"
    """The norms whose parameters are decayed; `shortcuts`: those on a shortcut alone."""
    skip_nonfinite: bool = False
    """Whether a step with a gradient that is not finite is skipped, as a gradient scaler does; else it is made, and the
    training diverges."""
    clip_norm: float = 0.0
    """Largest length of the gradient of all parameters; a longer one is shortened to it. 0 leaves gradients as they
    are."""
    resized_crop: int = 0
    """Side in pixels that a part of the image, of random area, shape and place, is resized to; 0 shows all of the
    image. Shifts and cutouts are of the resized part."""

    def __post_init__(self) -> None:
        check_words("a recipe's ", name=self.name)
        owner = f"recipe {self.name}: "
        check_types(owner, self)
        check_positive(owner, batch_size=self.batch_size)
        check_positive(owner, at_most=MAX_EPOCHS, epochs=self.epochs)
        self._check_rates(owner)
        self._check_pixels(owner)
        if self.precision == "float16" and not self.skip_nonfinite:
            raise ValueError(
                f"{owner}precision=float16 needs skip_nonfinite=True, since the scale of its loss is found by skipping "
                "steps; precision=bfloat16 does not"
            )

    def _check_rates(self, owner: str) -> None:
        for name in names_of_type(Recipe, float):
            object.__setattr__(self, name, read_finite(owner, name, getattr(self, name)))
        if self.learning_rate == 0:
            raise ValueError(f"{owner}learning_rate must be above 0")
        if self.warmup >= 1:
            raise ValueError(f"{owner}warmup is a fraction of all steps, below 1, got {self.warmup:g}")
        if self.warmup_from and not (self.warmup and self.warmup_from < self.learning_rate):
            raise ValueError(
                f"{owner}warmup_from is where a warm-up begins, below the learning rate of {self.learning_rate:g}, "
                f"got {self.warmup_from:g} with a warmup of {self.warmup:g}"
            )
        for name in ("momentum", "label_smoothing"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{owner}{name} must be below 1, got {getattr(self, name):g}")

    def _check_pixels(self, owner: str) -> None:
        for name in names_of_type(Augmentation, int):
            check_whole(owner, 0, MAX_PIXELS, **{name: getattr(self, name)})
        if self.resized_crop and self.cutout > self.resized_crop:
            raise ValueError(
                f"{owner}cutout must be at most resized_crop, {self.resized_crop} pixels, got {self.cutout}"
            )

    @cached_property
    def augmentation(self) -> Augmentation:
        return part_of(self, Augmentation)

    @property
    def augments(self) -> bool:
        """Whether images are changed before a network sees them."""
        return self.augmentation != NO_AUGMENTATION
