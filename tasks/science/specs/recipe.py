"""What a training recipe is; those there are stand in recipes.py."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tasks.science.specs.bounds import MAX_EPOCHS, MAX_PIXELS, BoundError
from tasks.science.specs.checks import check_choice, check_positive, check_switches, check_words, is_whole, shown
from tasks.science.specs.identity import LABEL

Optimizer = Literal["sgd", "adam"]
Schedule = Literal["linear", "cosine"]
Initialization = Literal["published", "he-normal"]
Precision = Literal["float32", "bfloat16", "float16"]
DecayedNorms = Literal["all", "shortcuts", "none"]


@dataclass(frozen=True)
class Recipe:
    """How an endpoint is trained: `learning_rate` is the peak, reached after the first `warmup` of all steps (a
    fraction, so that a shortened recipe keeps its shape), from where it falls to zero."""

    name: str = field(metadata=LABEL)
    batch_size: int
    epochs: int
    learning_rate: float
    warmup: float
    momentum: float = 0.9
    """Of Adam this is beta 1, the decay of the mean gradient; beta 2 is .999."""
    weight_decay: float = 0.0
    """Added to the gradient, weight_decay times the weight, by Adam as well."""
    flip: bool = False
    translate: int = 0
    """Largest random shift, in pixels, along each axis; what moves in is black."""
    optimizer: Optimizer = "sgd"
    schedule: Schedule = "linear"
    """How the learning rate falls from its peak to 0: along a straight line, or half a period of a cosine."""
    initialization: Initialization = "published"
    """`published`: as the network's authors have it; `he-normal`: every weight normal with variance 2 / fan-in, every
    bias 0, which lets deep networks without a norm learn at once."""
    precision: Precision = "float32"
    """What the forward and backward passes of training compute in; weights, losses and updates stay float32. float16
    needs a GPU, a scaled loss, and steps that may be skipped."""
    warmup_from: float = 0.0
    """The learning rate that the warm-up begins at."""
    cutout: int = 0
    """Side, in pixels, of the square that is cut out of every image at random, and filled with the mean."""
    label_smoothing: float = 0.0
    """The share of every label that is spread evenly over all classes."""
    decayed_norms: DecayedNorms = "all"
    """The norms whose parameters are decayed like all others; `shortcuts`: those on a shortcut alone."""
    skip_nonfinite: bool = False
    """Whether a step is skipped where some gradient is not finite, as a gradient scaler does; else it is made, and the
    training diverges."""
    clip_norm: float = 0.0
    """Length that the gradient of all parameters is shortened to where it is longer; 0 leaves every gradient as it is.
    """
    resized_crop: int = 0
    """Side, in pixels, that a part of the image, of random area, shape and place, is resized to: what is seen of it;
    0 for all of it. Shifts and cutouts are of what is then seen."""

    def __post_init__(self) -> None:
        check_words("a recipe's ", name=self.name)
        owner = f"recipe {self.name}: "
        check_positive(owner, batch_size=self.batch_size)
        check_positive(owner, at_most=MAX_EPOCHS, epochs=self.epochs)
        for name in (
            "learning_rate",
            "warmup",
            "momentum",
            "weight_decay",
            "warmup_from",
            "label_smoothing",
            "clip_norm",
        ):
            given = getattr(self, name)
            try:
                value = float(given)
            except (TypeError, ValueError, OverflowError):
                value = np.nan
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{owner}{name} must be a finite number of at least 0, got {shown(given)}")
            object.__setattr__(self, name, value)
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
        for name in ("translate", "cutout", "resized_crop"):
            value = getattr(self, name)
            if not is_whole(value, 0):
                raise ValueError(f"{owner}{name} must be a whole number of pixels, got {shown(value)}")
            if value > MAX_PIXELS:
                raise BoundError(f"{owner}{name} must be at most {MAX_PIXELS} pixels, got {shown(value)}")
        check_switches(owner, flip=self.flip, skip_nonfinite=self.skip_nonfinite)
        if self.resized_crop and self.cutout > self.resized_crop:
            raise ValueError(
                f"{owner}cutout must be at most resized_crop, {self.resized_crop} pixels, got {self.cutout}"
            )
        check_choice(owner, "optimizer", self.optimizer, Optimizer)
        check_choice(owner, "schedule", self.schedule, Schedule)
        check_choice(owner, "initialization", self.initialization, Initialization)
        check_choice(owner, "precision", self.precision, Precision)
        check_choice(owner, "decayed_norms", self.decayed_norms, DecayedNorms)
        if self.precision == "float16" and not self.skip_nonfinite:
            raise ValueError(
                f"{owner}precision=float16 needs skip_nonfinite=True, since the scale of its loss is found by skipping "
                "steps; precision=bfloat16 does not"
            )

    @property
    def augments(self) -> bool:
        """Whether an image is seen otherwise than it is."""
        return self.flip or self.translate > 0 or self.cutout > 0 or self.resized_crop > 0

    @property
    def still(self) -> Recipe:
        """This recipe without augmentation."""
        return dataclasses.replace(self, flip=False, translate=0, cutout=0, resized_crop=0)
