"""What is seen along a path between two endpoints: loss, accuracy, and the spread of each layer's pre-activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tasks.science.correction import (
    LayerMoments,
    LayerReport,
    goal_moments,
    preactivation_moments,
    reorder_layers,
    repair,
    report_layers,
)
from tasks.science.evaluation import Evaluation, evaluate
from tasks.science.examples import Dataset
from tasks.science.interpolation import interpolate
from tasks.science.networks.mlp import MLP
from tasks.science.permutation import Permutation, PermutationSpec
from tasks.science.specs import State

Splits = dict[str, Evaluation]
"""An evaluation of the train split and one of the test split, by name."""


@dataclass(frozen=True)
class Side:
    """One end of a path: an endpoint's weights, and its moments on the statistics samples."""

    state: State
    moments: LayerMoments

    def permuted(self, network: MLP, spec: PermutationSpec, permutation: Permutation) -> Side:
        """The endpoint with its units reordered; moments are reordered too, never measured again."""
        return Side(
            spec.apply(self.state, permutation),
            reorder_layers(self.moments, permutation, network.layer_axes),
        )


@dataclass(frozen=True)
class Point:
    """A path at one alpha. `layers` is empty where they were not measured."""

    alpha: float
    splits: Splits
    layers: list[LayerReport]


def evaluate_splits(network: MLP, state: State, dataset: Dataset) -> Splits:
    return {"train": evaluate(network, state, dataset.train), "test": evaluate(network, state, dataset.test)}


def uncorrected_path(
    network: MLP,
    sides: tuple[Side, Side],
    ends: tuple[Splits, Splits],
    alphas: Sequence[float],
    dataset: Dataset,
    statistics: Tensor,
) -> list[Point]:
    """The path as interpolation leaves it; its layers are measured at the midpoint alone.

    `ends` are the raw endpoints' evaluations, which all uncorrected paths of a cell share at alpha 0 and 1.
    """
    a, b = sides
    points = [Point(0.0, ends[0], [])]
    for alpha in alphas[1:-1]:
        state = interpolate(a.state, b.state, alpha)
        layers: list[LayerReport] = []
        if alpha == 0.5:
            achieved = preactivation_moments(network, state, statistics)
            layers = report_layers(achieved, goal_moments(a.moments, b.moments, alpha), a.moments, b.moments)
        points.append(Point(alpha, evaluate_splits(network, state, dataset), layers))
    return [*points, Point(1.0, ends[1], [])]


def repaired_path(
    network: MLP, sides: tuple[Side, Side], alphas: Sequence[float], dataset: Dataset, statistics: Tensor
) -> list[Point]:
    """The path after REPAIR at every alpha, 0 and 1 included, where a correction may move the endpoints."""
    a, b = sides
    points: list[Point] = []
    for alpha in alphas:
        goal = goal_moments(a.moments, b.moments, alpha)
        state, achieved = repair(network, interpolate(a.state, b.state, alpha), goal, statistics)
        layers = report_layers(achieved, goal, a.moments, b.moments)
        points.append(Point(alpha, evaluate_splits(network, state, dataset), layers))
    return points
