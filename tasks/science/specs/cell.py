"""One point of a study's grid, and its endpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.science.specs.bounds import (
    MAX_DEPTH,
    MAX_NUMBER,
    MAX_WIDTH,
)
from tasks.science.specs.checks import (
    check_positive,
    check_words,
    is_whole,
    shown,
)
from tasks.science.specs.data import DataSpec, TrainSubset
from tasks.science.specs.identity import REVISIONS, USER_DEFINED_REVISIONS, spec_id
from tasks.science.specs.recipe import Recipe


@dataclass(frozen=True)
class Origin:
    """Where endpoints come from that were not trained here: the `name` they were brought in under, and which fields of
    their cell's recipe are `known`. The others hold nothing of theirs, and are null in tables."""

    name: str
    known: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_words("an origin's ", name=self.name)
        # A list, where it was read from JSON.
        object.__setattr__(self, "known", tuple(sorted(self.known)))
        fields = [f.name for f in dataclasses.fields(Recipe)]
        if lacking := [name for name in self.known if name not in fields]:
            raise ValueError(f"recipes have no field {shown(lacking[0])}; known: {', '.join(fields)}")


@dataclass(frozen=True)
class Cell:
    """One point of a study's grid; its endpoints differ in their seed alone, and in the half that goes with it."""

    data: DataSpec
    architecture: str
    """The word of one that ships, or `package.module:function` for a user-defined one."""
    normalization: str
    width: int
    """Neurons of a hidden layer, for an MLP; elsewhere what multiplies every layer's channels."""
    depth: int
    """Hidden layers, for an MLP; elsewhere the number in the architecture's name."""
    recipe: Recipe
    epoch: int | None = None
    """After how many epochs of the recipe's schedule the weights are taken: 0 is before any step. None: at its end."""
    spawn: tuple[int, int] | None = None
    """(seed, epoch): the endpoints are children of one training, that of this seed, whose weights and optimizer memory
    they start from after so many of its epochs; its schedule goes on, each child with examples in an order of its own
    and augmented on its own. Source: Frankle et al. 2020 (arXiv 1912.05671), instability analysis. None: each seed
    starts from initial weights of its own."""
    graph: str = ""
    """The sha256 of what a user-defined network computes, so that another one at its place is another cell; empty for
    an architecture that ships."""
    origin: Origin | None = None
    """Where its endpoints were brought in from; None where they are trained here."""

    def __post_init__(self) -> None:
        check_words("a cell's ", architecture=self.architecture, normalization=self.normalization, graph=self.graph)
        check_positive("", at_most=MAX_NUMBER if self.user_defined else MAX_WIDTH, width=self.width)
        check_positive("", at_most=MAX_NUMBER if self.user_defined else MAX_DEPTH, depth=self.depth)
        self._check_time()
        # The last epoch is the end: one identity for one thing.
        if self.epoch == self.recipe.epochs:
            object.__setattr__(self, "epoch", None)
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

    @property
    def id(self) -> str:
        return spec_id(("train",), self)

    @property
    def user_defined(self) -> bool:
        """Whether its network is user-defined: then, and only then, it has the digest of a graph."""
        return bool(self.graph)

    @property
    def shipped_architecture(self) -> str | None:
        """Its architecture; None where it is user-defined, and nothing is known of it before it runs."""
        return None if self.user_defined else self.architecture

    @property
    def revisions(self) -> Mapping[str, int]:
        """The revisions of the verbs for its network."""
        return USER_DEFINED_REVISIONS if self.user_defined else REVISIONS

    def _check_time(self) -> None:
        n_epochs = self.recipe.epochs
        if self.epoch is not None and not is_whole(self.epoch, 0, n_epochs):
            raise ValueError(
                f"epoch must be a whole number from 0 to {n_epochs}, the epochs of recipe {self.recipe.name}, or last, "
                f"got {shown(self.epoch)}"
            )
        if self.spawn is None:
            return
        # A list, where it was read from JSON.
        object.__setattr__(self, "spawn", spawn := tuple(self.spawn))
        if len(spawn) != 2 or not is_whole(spawn[0], 0, MAX_NUMBER):
            raise ValueError(f"spawn must be a parent's seed and an epoch of its training, got {shown(spawn)}")
        if not is_whole(spawn[1], 0, n_epochs - 1):
            raise ValueError(
                f"the epoch to spawn at must be a whole number from 0 to {n_epochs - 1}, so that recipe "
                f"{self.recipe.name} goes on from there, got {shown(spawn[1])}"
            )
        if self.epoch is not None and self.epoch <= spawn[1]:
            raise ValueError(
                f"endpoints that are spawned at epoch {spawn[1]} have checkpoints after it alone, "
                f"got epoch {self.epoch}"
            )
        if self.data.halves:
            raise ValueError(
                f"{self.data.name} is in halves, and a child is trained on the images of its parent: nothing is "
                "spawned there"
            )

    @property
    def joint(self) -> Cell:
        """The same training on both halves at once, of a cell whose data are in halves: the same images, whole."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, halves=False))

    @property
    def label(self) -> str:
        label = f"{self.architecture} w{self.width} d{self.depth} {self.data.name}"
        if self.spawn is not None:
            label += f" from seed {self.spawn[0]} at epoch {self.spawn[1]}"
        return label if self.epoch is None else f"{label} after epoch {self.epoch}"

    def at(self, epoch: int | None) -> Cell:
        """This cell at another checkpoint: at None the same for all that one training per seed passes through."""
        return dataclasses.replace(self, epoch=epoch)

    @property
    def last_epoch(self) -> int:
        """After how many epochs of the recipe's schedule its weights are taken."""
        return self.recipe.epochs if self.epoch is None else self.epoch

    @property
    def parent(self) -> Endpoint | None:
        """The training that its endpoints are spawned from, at the epoch where they part; None where they are not."""
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

    @property
    def network(self) -> dict[str, Any]:
        """The fields that, with the shape of the data, say which function the weights parameterise."""
        fields = {
            "architecture": self.architecture,
            "normalization": self.normalization,
            "width": self.width,
            "depth": self.depth,
        }
        return {**fields, "graph": self.graph} if self.graph else fields


@dataclass(frozen=True)
class Endpoint:
    """One seed of a cell: one trained network."""

    cell: Cell
    seed: int

    @property
    def id(self) -> str:
        return spec_id(("train",), {"cell": self.cell, "seed": self.seed})

    @property
    def train_subset(self) -> TrainSubset:
        """Follows from the cell and the seed, so it takes no part of its own in the id."""
        return self.cell.data.train_subset(self.seed)
