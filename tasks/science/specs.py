"""What a study is made of, as frozen dataclasses: data, cells, endpoints, measurements, merges and paths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any, Literal, get_args

import numpy as np
import torch

from tasks.science.bounds import (
    MAX_ALPHAS,
    MAX_DEPTH,
    MAX_DRAW,
    MAX_EXAMPLE_VALUES,
    MAX_LENGTH,
    MAX_NUMBER,
    MAX_WIDTH,
    BoundError,
)
from tasks.science.checks import check_choice, check_positive, check_switches, check_words, is_own, is_whole, shown
from tasks.science.correction_table import check_correction
from tasks.science.identity import LABEL, REVISIONS, USER_DEFINED_REVISIONS, spec_id
from tasks.science.matchers import MatcherChoice, parse_matcher
from tasks.science.recipe import Recipe

State = dict[str, torch.Tensor]
"""A network's parameters and buffers by name, as `nn.Module.state_dict` names them."""

TrainSubset = Literal["all", "first", "second"]
"""The part of a train split that an endpoint is trained on: all of it, or one of two halves."""


@dataclass(frozen=True)
class DataSpec:
    """A data set as it enters an id: `fingerprint` is the sha256 of its tensors, so other data are other endpoints."""

    name: str
    fingerprint: str
    n_train: int
    n_test: int
    n_classes: int
    shape: tuple[int, ...]
    """(channels, height, width) of one image; (length,) of token ids."""
    halves: bool = False
    """Whether an endpoint is trained on one of two disjoint halves of the train split, and pairs lie across them. Its
    seed says which: even seeds have the first, odd seeds the second. So every seed stands for one training, with its
    own initial weights, and more seeds leave those before them as they are."""

    def __post_init__(self) -> None:
        check_words("a data set's ", name=self.name, fingerprint=self.fingerprint)
        owner = f"{self.name}: "
        check_positive(owner, n_train=self.n_train, n_test=self.n_test, n_classes=self.n_classes)
        check_switches(owner, halves=self.halves)
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
        """Whether an example is a row of token ids and no image."""
        return len(self.shape) == 1

    def train_subset(self, seed: int) -> TrainSubset:
        """What an endpoint of this seed is trained on."""
        if not self.halves:
            return "all"
        return "second" if seed % 2 else "first"

    @property
    def n_train_each(self) -> int:
        """How many images one endpoint is trained on; about, where halves are not equal."""
        return self.n_train // 2 if self.halves else self.n_train

    def n_pairs(self, seeds: Sequence[int]) -> int:
        """How many `pairs` there are, without a list of them."""
        if not self.halves:
            return len(seeds) * (len(seeds) - 1) // 2
        n_second = sum(self.train_subset(seed) == "second" for seed in seeds)
        return n_second * (len(seeds) - n_second)

    def pairs(self, seeds: Sequence[int]) -> list[tuple[int, int]]:
        """Every pair (A, B) of `seeds`, the smaller first; of halves, every one across, A of the first."""
        ordered = sorted(seeds)
        if not self.halves:
            return list(combinations(ordered, 2))
        first, second = ([seed for seed in ordered if self.train_subset(seed) == side] for side in ("first", "second"))
        return list(product(first, second))


ShiftMethod = Literal["logit-shift", "logit-shift/chosen=test"]
"""Of which images the constant on half of an endpoint's logits is the best: of train images that the endpoint was not
trained on, or of the test images that it is judged by."""

Method = Literal["weights", "ensemble", "joint", ShiftMethod]
"""What a path averages; or that it averages nothing and has its two ends alone: the endpoints with their logits
shifted, or networks trained on both halves of the data in place of one."""


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
    """One of our words, or `package.module:function`, which makes a network of a person's own."""
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
    """Of a person's own network the sha256 of what it computes, so that another one under its name is another cell;
    empty where the architecture is one of ours."""
    origin: Origin | None = None
    """Where its endpoints were brought in from; None where they are trained here."""

    def __post_init__(self) -> None:
        check_words("a cell's ", architecture=self.architecture, normalization=self.normalization, graph=self.graph)
        own = is_own(self.architecture)
        check_positive("", at_most=MAX_NUMBER if own else MAX_WIDTH, width=self.width)
        check_positive("", at_most=MAX_NUMBER if own else MAX_DEPTH, depth=self.depth)
        if own != bool(self.graph):
            raise ValueError(f"{self.architecture} {'needs' if not self.graph else 'has no'} digest of its graph")
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
    def revisions(self) -> Mapping[str, int]:
        """The revisions of the verbs for its network."""
        return USER_DEFINED_REVISIONS if self.graph else REVISIONS

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


@dataclass(frozen=True)
class Samples:
    """Which images of the train split matchers and corrections see; the fields are those of `Measurement`."""

    statistics: int | None = None
    draw: int = 0
    augmented: bool = True

    def __str__(self) -> str:
        return f"{self.statistics or 'all'} of draw {self.draw}{'' if self.augmented else ', not augmented'}"


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


@dataclass(frozen=True)
class Member:
    """An endpoint that takes part in a pair, by the weights it really has."""

    seed: int
    endpoint_id: str
    weights_sha256: str

    def moments_id(self, cell: Cell, samples: Samples, *, blocks: bool) -> str:
        """Of its moments as an endpoint of `cell`; with `blocks` those of residual blocks' outputs too."""
        spec: dict[str, Any] = {"network": cell.network, "weights": self.weights_sha256, "moments": True}
        if blocks:
            spec["blocks"] = True
        return spec_id(("correct",), {**spec, "statistics": statistics_set(cell, samples)}, cell.revisions)

    def evaluation_id(self, cell: Cell, measurement: Measurement) -> str:
        """Of its evaluation, as it was trained, as an endpoint of `cell`."""
        spec: dict[str, Any] = {"network": cell.network, "weights": self.weights_sha256}
        spec |= measurement.viewing.changes
        return spec_id(("evaluate",), {**spec, "data": cell.data.fingerprint, "evaluation": measurement.evaluation})


@dataclass(frozen=True)
class Merge:
    """Two endpoints of a cell, A and B as `DataSpec.pairs` has them, and the matcher that permutes B into alignment
    with A. `samples` are what the matcher sees. Under the control `permuted-self` B is A with its units shuffled.
    """

    cell: Cell
    a: Member
    b: Member
    matcher: str
    samples: Samples = Samples()
    permuted_self: bool = False

    def __post_init__(self) -> None:
        # One text for one choice: an option at its default is left out.
        object.__setattr__(self, "matcher", parse_matcher(self.matcher).text)

    @property
    def control(self) -> str:
        """What it is a control for, by its word; empty for a pair of the study."""
        if self.permuted_self:
            return "permuted-self"
        return "random-permutation" if self.choice.name == "random" else ""

    @property
    def choice(self) -> MatcherChoice:
        """The matcher and all of its options."""
        return parse_matcher(self.matcher)

    @property
    def n_statistics(self) -> int | None:
        """How many images the matcher sees; None for one that needs no data."""
        n_train = self.cell.data.n_train
        return min(self.samples.statistics or n_train, n_train) if self.choice.needs_data else None

    @property
    def id(self) -> str:
        """Keyed by the weights, not by the seeds: never the permutation of other weights than it was found for."""
        spec: dict[str, Any] = {
            "network": self.cell.network,
            "a": self.a.weights_sha256,
            "b": self.b.weights_sha256,
            "matcher": self.matcher,
        }
        if self.permuted_self:
            spec["control"] = self.control
        if self.cell.epoch is not None or self.cell.origin is not None:
            # Early weights may be those of another cell as well, as the initial ones are at any learning rate, and the
            # same file may be imported as two cells; each cell has pairs of its own all the same.
            spec["cell"] = self.cell.id
        if self.matcher == "none":
            return spec_id((), spec)
        if self.choice.needs_data:
            spec["statistics"] = statistics_set(self.cell, self.samples)
        return spec_id(("match",), spec)


@dataclass(frozen=True)
class Path:
    """The curve of one merge under one correction, over one measurement. With the method `ensemble` outputs are
    averaged instead of weights, and with a logit shift each end is an endpoint with a constant on half of its logits:
    so there is no matcher and no correction. With the method `joint` the ends are `joint`, what the pair is set beside:
    the endpoints of `Cell.joint` with the seeds of A and B."""

    merge: Merge
    correction: str
    measurement: Measurement
    method: Method = "weights"
    joint: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        cell = self.merge.cell
        check_choice("", "method", self.method, Method)
        if self.method == "ensemble" and (self.merge.matcher, self.correction) != ("none", "none"):
            raise ValueError(
                "an ensemble averages outputs, which no matcher or correction changes, got "
                f"{self.merge.matcher} and {self.correction}"
            )
        if self.method == "joint" or self.method in get_args(ShiftMethod):
            if (self.merge.matcher, self.correction) != ("none", "none"):
                raise ValueError(
                    f"the method {self.method} merges nothing, so there is nothing to match or correct, got "
                    f"{self.merge.matcher} and {self.correction}"
                )
            if not cell.data.halves:
                raise ValueError(f"the method {self.method} needs data in halves, and {cell.data.name} is not")
        joint_seeds = (self.merge.a.seed, self.merge.b.seed) if self.method == "joint" else ()
        if tuple(member.seed for member in self.joint) != joint_seeds:
            raise ValueError(
                f"the method {self.method} needs endpoints trained on both halves with seeds {joint_seeds}, "
                f"got {tuple(member.seed for member in self.joint)}"
            )
        check_correction(self.correction, cell.normalization, cell.architecture)
        if self.merge.samples != self.measurement.samples:
            raise ValueError(
                f"a path of measurement {self.measurement.name} needs a merge made from the same images: "
                f"{self.measurement.samples}, got {self.merge.samples}"
            )

    @property
    def id(self) -> str:
        if self.method != "weights":  # It needs no statistics, so all choices of them share it.
            spec: dict[str, Any] = {
                "merge": self.merge.id,
                "method": self.method,
                "evaluation": self.measurement.evaluation,
                "data": self.merge.cell.data.fingerprint,
            }
            spec |= self.measurement.viewing.changes
            if self.method == "ensemble":
                spec["alphas"] = self.measurement.alphas
            if self.joint:
                spec["joint"] = [member.weights_sha256 for member in self.joint]
            return spec_id(("evaluate",), spec)
        spec = {
            "merge": self.merge.id,
            "correction": self.correction,
            "measurement": self.measurement,
            "data": self.merge.cell.data.fingerprint,
            # An uncorrected path has its variance ratios from the same samples.
            "statistics": statistics_set(self.merge.cell, self.measurement.samples),
        }
        return spec_id(("correct", "evaluate"), spec, self.merge.cell.revisions)


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


def override(spec: Any, **changes: Any) -> Any:
    """`spec` with `changes`, its name telling what really changed: `mlp` becomes `mlp/epochs=5`.

    Works on recipes and measurements. A change to the value that is already there changes nothing, the name included.
    """
    known = {f.name for f in dataclasses.fields(spec)} - {"name"}
    for name in changes:
        if name not in known:
            raise ValueError(f"{type(spec).__name__.lower()} has no field {name!r}; known: {', '.join(sorted(known))}")
    changed = {name: value for name, value in changes.items() if value != getattr(spec, name)}
    if not changed:
        return spec
    suffix = ",".join(f"{name}={_worded(value)}" for name, value in changed.items())
    return dataclasses.replace(spec, name=f"{spec.name}/{suffix}", **changed)


def _worded(value: object) -> str:
    """A changed value in a name: as it is, unless it is none that a field takes."""
    is_plain = isinstance(value, float) or (isinstance(value, str) and len(value) < 80)
    return str(value) if is_plain else shown(value)
