"""The endpoints of a cell's pairs, loaded and measured once for all of their paths, and permuted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as Folder
from typing import Any, TypeVar

from torch import nn

from infra.storage import Store
from tasks.data.datasets import check_data, load_dataset
from tasks.science.data.augmentation import statistics_images
from tasks.science.data.examples import Dataset
from tasks.science.networks import build_network
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.paths.curves import Point, Side, Splits, evaluate_splits, measure_path, measure_side
from tasks.science.specs.cell import Cell
from tasks.science.specs.corrections import CORRECTIONS
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.pairing import Member, Pairing
from tasks.science.specs.path import Path, UnmergedPath, WeightPath
from tasks.science.specs.state import State
from tasks.science.symmetry.controls import PERMUTED_SELF, shuffle
from tasks.stored.artifacts import (
    load_evaluation,
    load_moments,
    load_permutation,
    load_weights,
    save_evaluation,
    save_moments,
    save_rows,
)
from tasks.stored.expansion import MeasuredPath
from tasks.tables.schema import LAYER_ROWS, PATH_ROWS

Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Ends:
    """The weights at the ends of `paths`, of one cell and measurement, with what evaluating them takes."""

    store: Store
    paths: list[UnmergedPath]
    network: nn.Module
    dataset: Dataset
    weights: dict[Member, State]

    @property
    def cell(self) -> Cell:
        return self.paths[0].pairing.cell

    @property
    def measurement(self) -> Measurement:
        return self.paths[0].measurement

    @cached_property
    def evaluated(self) -> Dataset:
        """The images of both splits that the measurement evaluates on."""
        return self.dataset.reduced(self.measurement.evaluation)

    def evaluate(self, run: Callable[..., Seen]) -> dict[Member, Seen]:
        """Return what `run` returns of each endpoint's network on the evaluated images."""
        viewing = self.measurement.viewing
        return {
            member: run(self.network, state, self.evaluated, viewing=viewing) for member, state in self.weights.items()
        }


def load_ends(paths: Sequence[UnmergedPath], store: Store, data_dir: Folder) -> Ends | None:
    """Return the ends of the missing ones of `paths`, each once; None where none is missing."""
    missing = [path for path in paths if not MeasuredPath(path).is_in(store)]
    if not missing:
        return None
    cell = missing[0].pairing.cell
    weights = load_weights(store, [member for path in missing for member in path.ends])
    return Ends(
        store, missing, build_network(cell), check_data(load_dataset(cell.data.name, data_dir), cell.data), weights
    )


def save_ends(ends: Ends, seen: Mapping[Member, Splits]) -> None:
    """Store the evaluations in `seen` at both ends of every path."""
    for path in ends.paths:
        points = [Point(float(alpha), seen[member], []) for alpha, member in enumerate(path.ends)]
        save_points(ends.store, path, points)


class PairBench:
    """The network, data and endpoints of `paths`, which are all of one cell and one measurement.

    Curves are evaluated on `dataset`; moments come from `statistics`, images of the train split. Moments and
    evaluations of endpoints that are in the store are not measured again.
    """

    def __init__(self, store: Store, paths: Sequence[WeightPath], data_dir: Folder) -> None:
        self.store = store
        self.cell = cell = paths[0].pairing.cell
        self.measurement = measurement = paths[0].measurement
        self.network = build_network(cell)
        self.spec = cell_permutation_spec(cell)
        dataset = check_data(load_dataset(cell.data.name, data_dir), cell.data)
        self.dataset = dataset.reduced(measurement.evaluation)
        self.statistics = statistics_images(dataset, cell.recipe.augmentation, measurement.samples)
        weights = load_weights(store, [member for path in paths for member in (path.pairing.a, path.pairing.b)])
        blocks = any(CORRECTIONS[path.correction].blocks for path in paths)
        self.endpoints = {member: self._side(member, state, blocks) for member, state in weights.items()}

    def _side(self, member: Member, state: State, blocks: bool) -> Side:
        moments_id = member.moments_id(self.cell, self.measurement.samples, blocks=blocks)
        known = load_moments(self.store, moments_id)
        side = measure_side(self.network, state, self.statistics, blocks=blocks, moments=known)
        if known is None:
            save_moments(self.store, moments_id, side.moments)
        return side

    def evaluate(self, member: Member) -> Splits:
        """Return the evaluation of an endpoint as it was trained."""
        evaluation_id = member.evaluation_id(self.cell, self.measurement)
        if (seen := load_evaluation(self.store, evaluation_id)) is None:
            state = self.endpoints[member].state
            seen = evaluate_splits(self.network, state, self.dataset, viewing=self.measurement.viewing)
            save_evaluation(self.store, evaluation_id, seen)
        return seen

    def aligned(self, pairing: Pairing) -> tuple[Side, Side]:
        """Return A, and B permuted into alignment with it; without a matcher, B as it is.

        Of a control against itself, return A and its shuffled copy, permuted back.
        """
        b = self.endpoints[pairing.b]
        if pairing.permuted_self:
            b = b.permuted(self.spec, shuffle(self.spec, b.state, PERMUTED_SELF))
        if pairing.matcher != "none":
            b = b.permuted(self.spec, load_permutation(self.store, pairing, self.spec))
        return self.endpoints[pairing.a], b

    def measure(self, path: WeightPath, ends: tuple[Splits, Splits] | None = None) -> list[Point]:
        """Return the points along `path`; `ends` are the evaluations of its endpoints, where they are its ends."""
        return measure_path(
            self.network,
            self.aligned(path.pairing),
            path.correction,
            path.measurement.grid.tolist(),
            self.dataset,
            self.statistics,
            ends=ends,
            viewing=path.measurement.viewing,
        )


def save_points(store: Store, path: Path, points: Sequence[Point]) -> None:
    """Store the points of `path`, its curve last: the path counts as measured once that is there."""
    layers: list[dict[str, Any]] = []
    curve: list[dict[str, Any]] = []
    for point in points:
        key = {"merge_id": path.pairing.id, "correction": path.correction, "alpha": point.alpha}
        layers += [{**key, **dataclasses.asdict(layer)} for layer in point.layers]
        layers += [{**key, "layer": one.name, "n_units": one.n_units, "left_out": one.reason} for one in point.left_out]
        curve += [
            {**key, "method": path.method, "split": split, **dataclasses.asdict(evaluation)}
            for split, evaluation in point.splits.items()
        ]
    save_rows(store, LAYER_ROWS, path.id, layers)
    save_rows(store, PATH_ROWS, path.id, curve)
