"""What is seen along a path between two endpoints: loss, accuracy, and the spread of each layer's pre-activations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tasks.science.correction.correction import Corrected, Estimator, correct, preactivation_moments
from tasks.science.correction.first_layer import Between, FirstLayer, chunks_of
from tasks.science.correction.folded_norms import fold_norms
from tasks.science.correction.layout import Layout, LeftOut, find_layout
from tasks.science.correction.mlp import first_layer, is_plain_mlp, logits_between
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
from tasks.science.data.examples import Dataset, Examples
from tasks.science.evaluation.calibration import Halves, calibration_halves
from tasks.science.evaluation.metrics import Evaluation, evaluate, judge
from tasks.science.paths.networks import interpolate_network
from tasks.science.specs.corrections import find_correction
from tasks.science.specs.measurement import PLAINLY, Viewing
from tasks.science.specs.state import State

Splits = dict[str, Evaluation]
"""An evaluation of the train split and one of the test split, by name."""


@dataclass(frozen=True)
class Side:
    """One end of a path: an endpoint's weights, where its network is corrected, and its moments there on the statistics
    samples; of a plain MLP also its first layer, which keeps its values for all paths."""

    state: State
    layout: Layout
    moments: LayerMoments
    first: FirstLayer | None = None

    def permuted(self, spec: PermutesStates, permutation: Any) -> Side:
        """The endpoint with its units reordered; moments are reordered too, never measured again."""
        sites = [site for site in self.layout.sites if site.name in self.moments]
        orders = unit_orders(spec, permutation, sites, self.state)
        moments = reorder_layers(self.moments, orders)
        first = self.first and self.first.reordered(orders[self.first.name])
        return Side(spec.apply(self.state, permutation), self.layout, moments, first)


def measure_side(
    network: nn.Module,
    state: State,
    statistics: Tensor,
    *,
    blocks: bool = False,
    moments: LayerMoments | None = None,
) -> Side:
    """An endpoint of paths, measured once over all of `statistics`, unless its `moments` there are known; `blocks` for
    corrections of residual blocks."""
    layout = find_layout(network, state, statistics)
    first = first_layer(network, state) if is_plain_mlp(network) else None
    if moments is None:
        moments = preactivation_moments(network, state, statistics, layout, blocks=blocks, first=first)
    return Side(state, layout, moments, first)


@dataclass(frozen=True)
class Point:
    """A path at one alpha. `layers` is empty where they were not measured; `left_out` are those that the path's
    correction does not reach."""

    alpha: float
    splits: Splits
    layers: list[LayerReport]
    left_out: tuple[LeftOut, ...] = ()


def evaluate_splits(network: nn.Module, state: State, dataset: Dataset, *, viewing: Viewing = PLAINLY) -> Splits:
    """Both splits; the test split with its calibrated loss too, for a loss on the train split is one of memory.
    `viewing` as in `evaluate`."""
    return _splits(dataset, functools.partial(evaluate, network, state, viewing=viewing))


def _splits(dataset: Dataset, see: Callable[[Examples, Halves | None], Evaluation]) -> Splits:
    halves = calibration_halves(dataset.spec.fingerprint, len(dataset.test))
    return {"train": see(dataset.train, None), "test": see(dataset.test, halves)}


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

    def _state(self, alpha: float) -> State:
        a, b = self.sides
        return interpolate_network(self.network, a.state, b.state, alpha)

    def at(self, alpha: float) -> Corrected:
        """The corrected network at `alpha`. ValueError where the correction is not defined for this network."""
        return correct(
            self.network, self.sides[0].layout, self._state(alpha), self.correction, self.goal(alpha),
            self.statistics, predicted=self.predicted(alpha), estimator=self.estimator,
            first=self._first(alpha, self.statistics),
        )  # fmt: skip

    def _first(self, alpha: float, images: Tensor) -> Between | None:
        """The first layer at `alpha`, of a plain MLP whose endpoints keep its values on `images`."""
        a, b = (side.first for side in self.sides)
        return Between(a, b, alpha) if a and b and a.keeps(images) else None

    @torch.no_grad()
    def evaluate(self, alpha: float, corrected: Corrected | None, dataset: Dataset, *, viewing: Viewing) -> Splits:
        """Both splits of what `at` has `corrected` at `alpha`, or, for None, of what interpolation leaves.

        A plain MLP reads its first layer's values off those that the endpoints keep.
        """
        network: nn.Module = corrected.network if corrected else self.network
        state = corrected.state if corrected else self._state(alpha)
        ramp = corrected.first if corrected else None

        def see(examples: Examples, halves: Halves | None) -> Evaluation:
            as_they_are = examples.scaling is None and viewing == PLAINLY
            if is_plain_mlp(network) and as_they_are and (self.correction == "none" or ramp):
                first = self._first(alpha, examples.images)
                if first is not None:
                    logits = logits_between(network, state, first, examples.images, ramp)
                    return judge(zip(logits, chunks_of(examples.labels), strict=True), halves)
            return evaluate(*folded, examples, halves, viewing=viewing)

        folded = fold_norms(network, state, self.sides[0].layout)
        return _splits(dataset, see)

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
    viewing: Viewing = PLAINLY,
) -> list[Point]:
    """The path from the first of `sides` to the second under `correction`, at every one of `alphas`.

    Uncorrected, it ends in the raw endpoints' evaluations `ends`, which all such paths of a cell share (made where they
    are not given), and its layers are measured at the midpoint alone. Corrected, it is measured at alpha 0 and 1 as
    anywhere, for a correction may move the endpoints, and its layers are at every alpha. `viewing` as in
    `evaluate`.
    Raises ValueError where the correction is not defined for this network.
    """
    a, b = sides
    path = CorrectedPath(network, sides, correction, statistics, estimator)
    if correction == "none" and ends is None:
        see = functools.partial(evaluate_splits, network, dataset=dataset, viewing=viewing)
        ends = see(a.state), see(b.state)
    left_out = a.layout.left_out if find_correction(correction).layers else ()
    points: list[Point] = []
    for alpha in alphas:
        if correction == "none" and ends and alpha in (0, 1):
            points.append(Point(alpha, ends[int(alpha)], []))
            continue
        corrected, layers = None, list[LayerReport]()
        if correction != "none" or alpha == 0.5:
            corrected = path.at(alpha)
            layers = report_layers(corrected.achieved, path.goal(alpha), a.moments, b.moments, path.predicted(alpha))
        points.append(Point(alpha, path.evaluate(alpha, corrected, dataset, viewing=viewing), layers, left_out))
    return points
