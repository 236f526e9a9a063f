"""What the tasks on a cell's pairs share: endpoints loaded and measured once, permutations applied."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

from torch import nn

from infra.storage import Store
from tasks.data.datasets import check_data, load_dataset
from tasks.science.data.augmentation import statistics_images
from tasks.science.data.examples import Dataset
from tasks.science.networks import build_network
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.paths.curves import PathPoint, Side, Splits, evaluate_splits, measure_side
from tasks.science.specs.cell import Cell
from tasks.science.specs.corrections import CORRECTIONS
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.pairing import Member, Pairing, Path
from tasks.science.specs.state import State
from tasks.science.symmetry.controls import PERMUTED_SELF, shuffle
from tasks.stored.artifacts import (
    has_path,
    load_evaluation,
    load_moments,
    load_permutation,
    load_weights,
    save_evaluation,
    save_moments,
    save_rows,
)
from tasks.tables.schema import LAYER_ROWS, PATH_ROWS


@dataclass(frozen=True)
class Ends:
    """What is needed of the ends of `paths`, of one cell and measurement, where nothing between them is looked at."""

    store: Store
    paths: list[Path]
    network: nn.Module
    dataset: Dataset
    weights: dict[Member, State]

    @property
    def cell(self) -> Cell:
        return self.paths[0].pairing.cell

    @property
    def measurement(self) -> Measurement:
        return self.paths[0].measurement


def load_ends(paths: Sequence[Path], store: Store, data_dir: Folder) -> Ends | None:
    """The ends of those of `paths` that the store lacks, each once: A and B, or what stands in their place; None where
    it lacks none."""
    missing = [path for path in paths if not has_path(store, path)]
    if not missing:
        return None
    cell = missing[0].pairing.cell
    weights = load_weights(store, [member for path in missing for member in ends_of(path)])
    return Ends(
        store, missing, build_network(cell), check_data(load_dataset(cell.data.name, data_dir), cell.data), weights
    )


def ends_of(path: Path) -> tuple[Member, ...]:
    """What is at alpha 0 and 1 of `path`."""
    return path.joint or (path.pairing.a, path.pairing.b)


def save_ends(ends: Ends, seen: Mapping[Member, Splits]) -> None:
    """Stores what was `seen` at both ends of every path."""
    for path in ends.paths:
        points = [PathPoint(float(alpha), seen[member], []) for alpha, member in enumerate(ends_of(path))]
        save_points(ends.store, path, points)


class PairBench:
    """The network, data and endpoints of `paths`, which are all of one cell and one measurement.

    `dataset` is what their curves are evaluated on, `statistics` the images of the train split that moments come from.
    What the store has of an endpoint's moments and evaluation is not measured again.
    """

    def __init__(self, store: Store, paths: Sequence[Path], data_dir: Folder) -> None:
        self.store = store
        self.cell = cell = paths[0].pairing.cell
        self.measurement = measurement = paths[0].measurement
        self.network = build_network(cell)
        self.spec = cell_permutation_spec(cell)
        dataset = check_data(load_dataset(cell.data.name, data_dir), cell.data)
        self.dataset = dataset.reduced(measurement.evaluation)
        self.statistics = statistics_images(dataset, cell.recipe, measurement.samples)
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
        """What is seen of an endpoint as it was trained."""
        evaluation_id = member.evaluation_id(self.cell, self.measurement)
        if (seen := load_evaluation(self.store, evaluation_id)) is None:
            state = self.endpoints[member].state
            seen = evaluate_splits(self.network, state, self.dataset, viewing=self.measurement.viewing)
            save_evaluation(self.store, evaluation_id, seen)
        return seen

    def aligned(self, pairing: Pairing) -> tuple[Side, Side]:
        """A, and B permuted into alignment with it (as it is, where the pairing has no matcher); of a control against
        itself, A and its shuffled copy, permuted back."""
        b = self.endpoints[pairing.b]
        if pairing.permuted_self:
            b = b.permuted(self.spec, shuffle(self.spec, b.state, PERMUTED_SELF))
        if pairing.matcher != "none":
            b = b.permuted(self.spec, load_permutation(self.store, pairing, self.spec))
        return self.endpoints[pairing.a], b


def save_points(store: Store, path: Path, points: Sequence[PathPoint]) -> None:
    """Stores what was seen along `path`: its curve last, which says that the path is done."""
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
