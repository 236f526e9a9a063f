"""Data sets, and the pairs of seeds that are trained on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

from tasks.science.specs.bounds import MAX_EXAMPLE_VALUES, MAX_LENGTH, BoundError
from tasks.science.specs.checks import check_positive, check_types, is_whole, shown

TrainSubset = Literal["all", "first", "second"]
"""The part of a train split that an endpoint is trained on: all of it, or one of two halves."""


@dataclass(frozen=True)
class DataSpec:
    """A data set as it enters ids; `fingerprint` is the sha256 of its tensors."""

    name: str
    fingerprint: str
    n_train: int
    n_test: int
    n_classes: int
    shape: tuple[int, ...]
    """(channels, height, width) of one image; (length,) of token ids."""
    halves: bool = False
    """Whether endpoints are trained on one of two disjoint halves of the train split, and pairs lie across them. Even
    seeds have the first half and odd seeds the second, so that more seeds leave the trainings of others as they are."""

    def __post_init__(self) -> None:
        check_types("a data set's ", self)
        owner = f"{self.name}: "
        check_positive(owner, n_train=self.n_train, n_test=self.n_test, n_classes=self.n_classes)
        object.__setattr__(self, "shape", shape := tuple(self.shape))
        if len(shape) not in (1, 3) or not all(is_whole(length, 1) for length in shape):
            raise ValueError(
                f"{owner}an example's shape must be one length or three, each a positive whole number, "
                f"got {shown(shape)}"
            )
        if max(shape) > MAX_LENGTH or math.prod(shape) > MAX_EXAMPLE_VALUES:
            raise BoundError(
                f"{owner}an example has at most {MAX_EXAMPLE_VALUES:,} values, and {MAX_LENGTH:,} along an axis, "
                f"got the shape {shown(shape)}"
            )

    @property
    def holds_ids(self) -> bool:
        """Whether an example is a row of token ids instead of an image."""
        return len(self.shape) == 1

    def train_subset(self, seed: int) -> TrainSubset:
        """Return the part of the train split that endpoints of this seed are trained on."""
        if not self.halves:
            return "all"
        return "second" if seed % 2 else "first"

    @property
    def n_train_each(self) -> int:
        """The number of images that one endpoint is trained on; approximate if halves differ in size."""
        return self.n_train // 2 if self.halves else self.n_train

    def n_pairs(self, seeds: Sequence[int]) -> int:
        """Return the number of `pairs` without listing them."""
        if not self.halves:
            return len(seeds) * (len(seeds) - 1) // 2
        n_second = sum(self.train_subset(seed) == "second" for seed in seeds)
        return n_second * (len(seeds) - n_second)

    def pairs(self, seeds: Sequence[int]) -> list[tuple[int, int]]:
        """Return every pair (A, B) of `seeds`, the smaller first; in halves every pair across, A in the first."""
        ordered = sorted(seeds)
        if not self.halves:
            return list(combinations(ordered, 2))
        first, second = ([seed for seed in ordered if self.train_subset(seed) == side] for side in ("first", "second"))
        return list(product(first, second))


def check_halves(data: DataSpec, subject: str) -> None:
    """Raise ValueError, naming the `subject` that needs them, unless the data are in halves."""
    if not data.halves:
        raise ValueError(f"{subject} needs data in halves, and {data.name} is not")
