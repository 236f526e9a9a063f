"""Loss, accuracy and the spread of each layer's pre-activations along a path between two endpoints."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from tasks.science.correction.correction import correct, load_model
from tasks.science.correction.estimators import Estimator
from tasks.science.correction.models import Corrected, Estimation, Model, Target
from tasks.science.correction.preactivations import (
    LayerMoments,
    LayerReport,
    PermutesStates,
    goal_moments,
    matched_covariances,
    predicted_moments,
    reorder_layers,
    report_layers,
    unit_orders,
)
from tasks.science.correction.sites import CorrectionSites, LeftOut
from tasks.science.data.examples import Dataset, Examples
from tasks.science.evaluation.calibration import Halves, calibration_halves
from tasks.science.evaluation.metrics import Evaluation, evaluate
from tasks.science.paths.networks import interpolate_network
from tasks.science.specs.corrections import find_correction
from tasks.science.specs.measurement import PLAINLY, Viewing
from tasks.science.specs.state import State

Splits = dict[str, Evaluation]
"""An evaluation of the train split and one of the test split, by name."""


@dataclass(frozen=True)
class Side:
    """One end of a path: an endpoint's model, and its moments on the statistics samples."""

    model: Model
    moments: LayerMoments

    @property
    def state(self) -> State:
        return self.model.state

    @property
    def sites(self) -> CorrectionSites:
        return self.model.sites

    def permuted(self, spec: PermutesStates, permutation: Any) -> Side:
        """Return the endpoint with its units reordered; moments are reordered too, never measured again."""
        sites = [site for site in self.sites.all if site.name in self.moments]
        orders = unit_orders(spec, permutation, sites, self.state)
        model = self.model.permuted(spec.apply(self.state, permutation), orders)
        return Side(model, reorder_layers(self.moments, orders))


def measure_side(
    network: nn.Module,
    state: State,
    statistics: Tensor,
    *,
    blocks: bool = False,
    moments: LayerMoments | None = None,
) -> Side:
    """Return an endpoint of paths, measured over all of `statistics` unless its `moments` there are known.

    With `blocks`, the outputs of residual blocks are measured too, for corrections of them.
    """
    model = load_model(network, state, statistics)
    return Side(model, model.moments(statistics, blocks=blocks) if moments is None else moments)


@dataclass(frozen=True)
class PathPoint:
    """A path at one alpha.

    `layers` is empty where they were not measured; `left_out` are those that the path's correction does not reach.
    """

    alpha: float
    splits: Splits
    layers: list[LayerReport]
    left_out: tuple[LeftOut, ...] = ()


def evaluate_splits(network: nn.Module, state: State, dataset: Dataset, *, viewing: Viewing = PLAINLY) -> Splits:
    """Return loss and accuracy on both splits, on the test split with its calibrated loss; `viewing` as in `evaluate`.

    The train split has none, for a loss on it measures memory.
    """
    return _on_splits(dataset, functools.partial(evaluate, network, state, viewing=viewing))


def _on_splits(dataset: Dataset, see: Callable[[Examples, Halves | None], Evaluation]) -> Splits:
    halves = calibration_halves(dataset.spec.fingerprint, len(dataset.test))
    return {"train": see(dataset.train, None), "test": see(dataset.test, halves)}


@dataclass(frozen=True, eq=False)
class CorrectedPath:
    """The path from the first of `sides` to the second under `correction`, measured on the samples `statistics`."""

    sides: tuple[Side, Side]
    correction: str
    statistics: Tensor
    estimator: Estimator = "one-pass"

    @cached_property
    def _covariances(self) -> dict[str, Tensor] | None:
        """The covariances that the closed form needs, once for all alphas; None for other corrections."""
        if not find_correction(self.correction).closed_form:
            return None
        a, b = self.sides
        return matched_covariances(a.model.network, a.sites, a.state, b.state, self.statistics)

    def target(self, alpha: float) -> Target:
        """Return the moments that the path aims at, with those predicted in closed form where it needs them."""
        a, b = (side.moments for side in self.sides)
        predicted = None if self._covariances is None else predicted_moments(a, b, self._covariances, alpha)
        return Target(goal_moments(a, b, alpha), self.statistics, predicted)

    def interpolated(self, alpha: float) -> Model:
        """Return the network at `alpha` as interpolation leaves it."""
        a, b = (side.model for side in self.sides)
        return a.between(b, alpha, interpolate_network(a.network, a.state, b.state, alpha))

    def at(self, alpha: float) -> Corrected:
        """Return the corrected network at `alpha`. Raises ValueError where its network has nothing to correct."""
        return correct(self.interpolated(alpha), self.correction, self.target(alpha), Estimation(self.estimator))

    def report(self, alpha: float, corrected: Corrected) -> list[LayerReport]:
        """Return what became of every layer of `corrected`, the network at `alpha`."""
        (a, b), target = self.sides, self.target(alpha)
        return report_layers(corrected.achieved, target.goal, a.moments, b.moments, target.predicted)


def measure_path(
    sides: tuple[Side, Side],
    correction: str,
    alphas: Sequence[float],
    dataset: Dataset,
    statistics: Tensor,
    ends: tuple[Splits, Splits] | None = None,
    estimator: Estimator = "one-pass",
    *,
    viewing: Viewing = PLAINLY,
) -> list[PathPoint]:
    """Return the path from the first of `sides` to the second under `correction`, at every one of `alphas`.

    Uncorrected, it ends in the raw endpoints' evaluations `ends`, which all such paths of a cell share (made where they
    are not given), and its layers are measured at the midpoint alone. Corrected, it is measured at alpha 0 and 1 as
    anywhere, for a correction may move the endpoints, and its layers are at every alpha. `viewing` as in `evaluate`.
    Raises ValueError where the correction is not defined for this network.
    """
    path = CorrectedPath(sides, correction, statistics, estimator)
    if correction != "none":
        return [_corrected_point(path, alpha, dataset, viewing) for alpha in alphas]
    if ends is None:
        a, b = (evaluate_splits(side.model.network, side.state, dataset, viewing=viewing) for side in sides)
        ends = a, b
    return [
        PathPoint(alpha, ends[int(alpha)], []) if alpha in (0, 1) else _raw_point(path, alpha, dataset, viewing)
        for alpha in alphas
    ]


def _corrected_point(path: CorrectedPath, alpha: float, dataset: Dataset, viewing: Viewing) -> PathPoint:
    corrected = path.at(alpha)
    splits = _on_splits(dataset, functools.partial(corrected.model.evaluate, viewing=viewing))
    left_out = path.sides[0].sites.left_out if find_correction(path.correction).layers else ()
    return PathPoint(alpha, splits, path.report(alpha, corrected), left_out)


def _raw_point(path: CorrectedPath, alpha: float, dataset: Dataset, viewing: Viewing) -> PathPoint:
    model, layers = path.interpolated(alpha), list[LayerReport]()
    if alpha == 0.5:
        layers = path.report(alpha, correct(model, "none", path.target(alpha)))
    return PathPoint(alpha, _on_splits(dataset, functools.partial(model.evaluate, viewing=viewing)), layers)
