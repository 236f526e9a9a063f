"""What is seen along a path between two endpoints: loss, accuracy, and the spread of each layer's pre-activations."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from tasks.science.calibration import calibration_halves
from tasks.science.correction import Corrected, Estimator, correct, preactivation_moments
from tasks.science.correction_table import find_correction
from tasks.science.evaluation import Evaluation, evaluate
from tasks.science.examples import Dataset
from tasks.science.interpolation import interpolate
from tasks.science.layout import Layout, find_layout
from tasks.science.preactivations import (
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
from tasks.science.specs import State

Splits = dict[str, Evaluation]
"""An evaluation of the train split and one of the test split, by name."""


@dataclass(frozen=True)
class Side:
    """One end of a path: an endpoint's weights, where its network is corrected, and its moments there on the statistics
    samples."""

    state: State
    layout: Layout
    moments: LayerMoments

    def permuted(self, spec: PermutesStates, permutation: Any) -> Side:
        """The endpoint with its units reordered; moments are reordered too, never measured again."""
        units = {site.name: site.units or site.name for site in self.layout.sites if site.name in self.moments}
        orders = unit_orders(spec, permutation, set(units.values()), self.state)
        moments = reorder_layers(self.moments, {name: orders[layer] for name, layer in units.items()})
        return Side(spec.apply(self.state, permutation), self.layout, moments)


def measure_side(network: nn.Module, state: State, statistics: Tensor, *, blocks: bool = False) -> Side:
    """An endpoint of paths, measured once over all of `statistics`; `blocks` for corrections of residual blocks."""
    layout = find_layout(network, state, statistics)
    return Side(state, layout, preactivation_moments(network, state, statistics, layout, blocks=blocks))


@dataclass(frozen=True)
class Point:
    """A path at one alpha. `layers` is empty where they were not measured."""

    alpha: float
    splits: Splits
    layers: list[LayerReport]


def evaluate_splits(network: nn.Module, state: State, dataset: Dataset, *, flip_averaged: bool = False) -> Splits:
    """Both splits; the test split with its calibrated loss too, for a loss on the train split is one of memory.
    `flip_averaged` as in `evaluate`."""
    halves = calibration_halves(dataset.spec.fingerprint, len(dataset.test))
    return {
        "train": evaluate(network, state, dataset.train, flip_averaged=flip_averaged),
        "test": evaluate(network, state, dataset.test, halves, flip_averaged=flip_averaged),
    }


@dataclass(frozen=True, eq=False)
class CorrectedPath:
    """The path from the first of `sides` to the second under `correction`, of `network` on the samples `statistics`."""

    network: nn.Module
    sides: tuple[Side, Side]
    correction: str
    statistics: Tensor
    estimator: Estimator = "one-pass"

    @cached_property
    def _covariances(self) -> dict[str, Tensor] | None:
        """What the closed form needs, once for all alphas."""
        if not find_correction(self.correction).closed_form:
            return None
        a, b = self.sides
        return matched_covariances(self.network, a.layout, a.state, b.state, self.statistics)

    def goal(self, alpha: float) -> LayerMoments:
        a, b = self.sides
        return goal_moments(a.moments, b.moments, alpha)

    def at(self, alpha: float) -> Corrected:
        """The corrected network at `alpha`. ValueError where the correction is not defined for this network."""
        a, b = self.sides
        return correct(
            self.network, a.layout, interpolate(a.state, b.state, alpha), self.correction, self.goal(alpha),
            self.statistics, predicted=self.predicted(alpha), estimator=self.estimator,
        )  # fmt: skip

    def predicted(self, alpha: float) -> LayerMoments | None:
        """The moments that the closed form takes the interpolated network to have; None for other corrections."""
        if self._covariances is None:
            return None
        a, b = self.sides
        return predicted_moments(a.moments, b.moments, self._covariances, alpha)


def measure_path(
    network: nn.Module,
    sides: tuple[Side, Side],
    correction: str,
    alphas: Sequence[float],
    dataset: Dataset,
    statistics: Tensor,
    ends: tuple[Splits, Splits] | None = None,
    estimator: Estimator = "one-pass",
    *,
    flip_averaged: bool = False,
) -> list[Point]:
    """The path from the first of `sides` to the second under `correction`, at every one of `alphas`.

    Uncorrected, it ends in the raw endpoints' evaluations `ends`, which all such paths of a cell share (made where they
    are not given), and its layers are measured at the midpoint alone. Corrected, it is measured at alpha 0 and 1 as
    anywhere, for a correction may move the endpoints, and its layers are at every alpha. `flip_averaged` as in
    `evaluate`.
    Raises ValueError where the correction is not defined for this network.
    """
    a, b = sides
    judge = functools.partial(evaluate_splits, flip_averaged=flip_averaged)
    if correction == "none":
        ends = ends or (judge(network, a.state, dataset), judge(network, b.state, dataset))
    path = CorrectedPath(network, sides, correction, statistics, estimator)
    points: list[Point] = []
    for alpha in alphas:
        if correction == "none" and ends and alpha in (0, 1):
            points.append(Point(alpha, ends[int(alpha)], []))
            continue
        if correction == "none" and alpha != 0.5:
            points.append(Point(alpha, judge(network, interpolate(a.state, b.state, alpha), dataset), []))
            continue
        corrected = path.at(alpha)
        goal, predicted = path.goal(alpha), path.predicted(alpha)
        layers = report_layers(corrected.achieved, goal, a.moments, b.moments, predicted)
        points.append(Point(alpha, judge(corrected.network, corrected.state, dataset), layers))
    return points
