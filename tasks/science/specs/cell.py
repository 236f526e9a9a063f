"""Cells of a study's grid, and their endpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from tasks.science.specs.bounds import MAX_DEPTH, MAX_NUMBER, MAX_WIDTH
from tasks.science.specs.checks import (
    check_positive,
    check_types,
    check_words,
    is_own,
    is_whole,
    shown,
)
from tasks.science.specs.data import DataSpec, TrainSubset
from tasks.science.specs.identity import REVISIONS, USER_DEFINED_REVISIONS, part_of, spec_id
from tasks.science.specs.recipe import Recipe


@dataclass(frozen=True)
class NetworkSpec:
    """The fields of `Cell` that, with the shape of its data, say which function the weights parameterize."""

    architecture: str
    normalization: str
    width: int
    depth: int
    graph: str = ""


@dataclass(frozen=True)
class Origin:
    """The `name` that endpoints were imported under, and the fields of their cell's recipe that are `known`.

    The other fields of the recipe do not describe the endpoints, and are null in tables.
    """

    name: str
    known: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_words("an origin's ", name=self.name)
        # JSON has lists for tuples.
        object.__setattr__(self, "known", tuple(sorted(self.known)))
        fields = [f.name for f in dataclasses.fields(Recipe)]
        if lacking := [name for name in self.known if name not in fields]:
            raise ValueError(f"recipes have no field {shown(lacking[0])}; known: {', '.join(fields)}")


@dataclass(frozen=True)
class Cell:
    """A point of a study's grid, whose endpoints differ only in their seed, and in the half that goes with it."""

    data: DataSpec
    architecture: str
    """One of our words, or `package.module:function`, which makes a network of a person's own."""
    normalization: str
    width: int
    """Neurons of a hidden layer of an MLP; for other architectures the factor of every layer's channels."""
    depth: int
    """Hidden layers of an MLP; for other architectures the number in the name."""
    recipe: Recipe
    epoch: int | None = None
    """Epochs of the recipe's schedule after which the weights are taken; 0 is before any step. None: at its end."""
    spawn: tuple[int, int] | None = None
    """(seed, epoch): the endpoints are children of the training of this seed, and start from its weights and optimizer
    state after so many epochs. The schedule goes on, with an order of examples and an augmentation for each child.
    Source: Frankle et al. 2020 (arXiv 1912.05671), instability analysis. None: each seed starts from initial weights of
    its own."""
    graph: str = ""
    """Of a person's own network the sha256 of what it computes, so that another one under its name is another cell;
    empty where the architecture is one of ours."""
    origin: Origin | None = None
    """The import that its endpoints come from; None if they are trained."""

    def __post_init__(self) -> None:
        check_types("a cell's ", self)
        own = is_own(self.architecture)
        check_positive("", at_most=MAX_NUMBER if own else MAX_WIDTH, width=self.width)
        check_positive("", at_most=MAX_NUMBER if own else MAX_DEPTH, depth=self.depth)
        if own != bool(self.graph):
            raise ValueError(f"{self.architecture} {'needs' if not self.graph else 'has no'} digest of its graph")
        self._check_epoch()
        if self.spawn is not None:
            # JSON has lists for tuples.
            object.__setattr__(self, "spawn", spawn := tuple(self.spawn))
            self._check_spawn(spawn)
        self._check_images()

    def _check_epoch(self) -> None:
        n_epochs = self.recipe.epochs
        if self.epoch is not None and not is_whole(self.epoch, 0, n_epochs):
            raise ValueError(
                f"epoch must be a whole number from 0 to {n_epochs}, the epochs of recipe {self.recipe.name}, or last, "
                f"got {shown(self.epoch)}"
            )
        # The last epoch is the end: one id for one training.
        if self.epoch == n_epochs:
            object.__setattr__(self, "epoch", None)

    def _check_spawn(self, spawn: tuple[int, ...]) -> None:
        if len(spawn) != 2 or not is_whole(spawn[0], 0, MAX_NUMBER):
            raise ValueError(f"spawn must be a parent's seed and an epoch of its training, got {shown(spawn)}")
        largest = self.recipe.epochs - 1
        if not is_whole(spawn[1], 0, largest):
            raise ValueError(
                f"the epoch to spawn at must be a whole number from 0 to {largest}, so that recipe {self.recipe.name} "
                f"goes on from there, got {shown(spawn[1])}"
            )
        if self.epoch is not None and self.epoch <= spawn[1]:
            raise ValueError(
                f"endpoints spawned at epoch {spawn[1]} have checkpoints after it alone, got epoch {self.epoch}"
            )
        if self.data.halves:
            raise ValueError(
                f"{self.data.name} is in halves, and a child is trained on the images of its parent: take whole data, "
                "or spawn nothing"
            )

    def _check_images(self) -> None:
        if self.data.holds_ids and self.recipe.augments:
            raise ValueError(
                f"recipe {self.recipe.name} flips, shifts, cuts or crops images, and {self.data.name} holds token ids: "
                "take a recipe with flip=False and translate, cutout and resized_crop of 0"
            )
        side = min(self.data.shape[1:], default=0)
        if self.recipe.cutout > side:
            raise ValueError(
                f"recipe {self.recipe.name}: cutout must be at most {side} pixels for the images of {self.data.name}, "
                f"got {self.recipe.cutout}"
            )

    @cached_property
    def id(self) -> str:
        return spec_id(("train",), self)

    @property
    def revisions(self) -> Mapping[str, int]:
        """The revisions of the verbs for its network."""
        return USER_DEFINED_REVISIONS if self.graph else REVISIONS

    @property
    def joint(self) -> Cell:
        """The same training on both halves of the data at once."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, halves=False))

    @property
    def label(self) -> str:
        label = f"{self.architecture} w{self.width} d{self.depth} {self.data.name}"
        if self.spawn is not None:
            label += f" from seed {self.spawn[0]} at epoch {self.spawn[1]}"
        return label if self.epoch is None else f"{label} after epoch {self.epoch}"

    def at(self, epoch: int | None) -> Cell:
        """Return this cell at another checkpoint; at None the cell that all checkpoints of a training share."""
        return dataclasses.replace(self, epoch=epoch)

    @property
    def last_epoch(self) -> int:
        """Epochs of the recipe's schedule after which its weights are taken."""
        return self.recipe.epochs if self.epoch is None else self.epoch

    @property
    def parent(self) -> Endpoint | None:
        """The endpoint that its own are spawned from, at the epoch where they part; None if they are not spawned."""
        if self.spawn is None:
            return None
        seed, epoch = self.spawn
        return Endpoint(dataclasses.replace(self, epoch=epoch, spawn=None), seed)

    @property
    def spawn_seed(self) -> int | None:
        return None if self.spawn is None else self.spawn[0]

    @property
    def spawn_epoch(self) -> int | None:
        return None if self.spawn is None else self.spawn[1]

    @cached_property
    def network(self) -> NetworkSpec:
        return part_of(self, NetworkSpec)


@dataclass(frozen=True)
class Endpoint:
    """A seed of a cell: one trained network."""

    cell: Cell
    seed: int

    @cached_property
    def id(self) -> str:
        return spec_id(("train",), {"cell": self.cell, "seed": self.seed})

    @property
    def train_subset(self) -> TrainSubset:
        """The part of the train split that it is trained on, which follows from the cell and the seed."""
        return self.cell.data.train_subset(self.seed)
