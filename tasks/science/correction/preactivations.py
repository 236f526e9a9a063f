"""Mean and standard deviation of every unit over the statistics samples: measured, interpolated, compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tasks.science.correction.observing import PassEnded, observe
from tasks.science.correction.sites import CorrectionSites, Site
from tasks.science.evaluation.metrics import BATCH_SIZE, CONV_BATCH_SIZE
from tasks.science.evaluation.moments import Moments, RunningMoments
from tasks.science.specs.state import State

_PAIRED_BYTES = 2**28
"""Most bytes that the values of one network's layers take while another's are compared with them."""


LayerMoments = dict[str, Moments]
"""Moments by the name of the layer whose output they describe, front to back."""


@torch.no_grad()
def measure(
    network: nn.Module, state: State, sites: Sequence[Site], images: Tensor, *, stop: bool = False
) -> LayerMoments:
    """Return the exact moments (float64) of `sites` over all of `images`, from one pass in evaluation mode.

    With `stop`, the pass ends at the last of `sites`.
    """
    seen = {site.name: RunningMoments() for site in sites}
    convolutional = any(isinstance(module, nn.Conv2d) for module in network.modules())

    def see(site: Site, values: Tensor) -> None:
        seen[site.name].add(values, site.dim)
        if stop and site is sites[-1]:
            raise PassEnded

    observe(network, state, sites, images.split(CONV_BATCH_SIZE if convolutional else BATCH_SIZE), see)
    return {name: running.result() for name, running in seen.items()}


@torch.no_grad()
def matched_covariances(
    network: nn.Module, sites: CorrectionSites, a: State, b: State, images: Tensor
) -> dict[str, Tensor]:
    """Return, by layer, the covariances (n_units,) float64 of A's pre-activations with B's at the same position.

    They are over all of `images`, from one pass of both networks; B is already permuted into alignment. Batches are so
    small that the values of all layers of one network stay below 256 MB, where one image does.
    """
    moments_a, moments_b = ({site.name: RunningMoments() for site in sites.layers} for _ in range(2))
    products = dict.fromkeys(moments_a, torch.zeros((), dtype=torch.float64))
    centered: dict[str, Tensor] = {}

    def keep(site: Site, values: Tensor) -> None:
        centered[site.name] = moments_a[site.name].center(_as_rows(values, site.dim))

    def compare(site: Site, values: Tensor) -> None:
        left = centered.pop(site.name)
        right = moments_b[site.name].center(_as_rows(values, site.dim))
        products[site.name] = products[site.name] + right.mul_(left).sum(0, dtype=torch.float64)

    per_image_bytes = max(1, sites.n_values * images.element_size())
    for batch in images.split(max(1, min(500, _PAIRED_BYTES // per_image_bytes))):
        for state, see in ((a, keep), (b, compare)):
            observe(network, state, sites.layers, [batch], see)
    return {
        name: product / moments_a[name].n_samples - moments_a[name].offset * moments_b[name].offset
        for name, product in products.items()
    }


def _as_rows(values: Tensor, dim: int) -> Tensor:
    """Return `values` as (n_samples, n_units), given the dimension along which their units lie."""
    return values.movedim(dim, -1).reshape(-1, values.shape[dim])


def goal_moments(a: LayerMoments, b: LayerMoments, alpha: float) -> LayerMoments:
    """Return the goal at `alpha`: means and *standard deviations* (not variances) of the endpoints, interpolated."""
    return {
        name: Moments((1 - alpha) * a[name].mean + alpha * b[name].mean, (1 - alpha) * a[name].sd + alpha * b[name].sd)
        for name in a
    }


def predicted_moments(
    a: LayerMoments, b: LayerMoments, covariances: Mapping[str, Tensor], alpha: float
) -> LayerMoments:
    """Return the interpolated network's moments in closed form: those of (1 - alpha) x_A + alpha x_B, unit by unit.

    They are exact for the first layer; later layers differ, since their inputs are not interpolated.
    Source: REPAIR's closed form (arXiv 2211.08403).
    """
    predicted: LayerMoments = {}
    for name, covariance in covariances.items():
        variance = (
            (1 - alpha) ** 2 * a[name].sd.square()
            + alpha**2 * b[name].sd.square()
            + 2 * alpha * (1 - alpha) * covariance
        )
        mean = (1 - alpha) * a[name].mean + alpha * b[name].mean
        # Rounding can take a variance near 0 below it.
        predicted[name] = Moments(mean, variance.clamp_min(0).sqrt())
    return predicted


class PermutesStates(Protocol):
    """The part of a permutation spec that reorders an endpoint."""

    def apply(self, state: State, permutation: Any, /) -> State: ...


def unit_orders(spec: PermutesStates, permutation: Any, sites: Sequence[Site], state: State) -> dict[str, Tensor]:
    """Return, for every one of `sites`, the unit (n_units,) int64 at each position once `permutation` is applied.

    `spec` itself answers, whatever it is: the entries in the order of a site's units are filled with the numbers of
    these units, permuted, and read back.
    """
    orders: dict[str, Tensor] = {}
    waiting = [(site.name, site.order) for site in sites if site.order is not None]
    while waiting:
        # One site per tensor at a time: several may be parts of one.
        now = {order.key: (name, order) for name, order in reversed(waiting)}
        marks = {
            key: order.owner.to(state[key].device, torch.int32).expand(state[key].shape)
            for key, (_, order) in now.items()
        }
        moved = spec.apply({**state, **marks}, permutation)
        orders |= {name: order.order_in(moved[key]) for key, (name, order) in now.items()}
        waiting = [item for item in waiting if item[0] not in orders]
    return orders


def reorder_layers(moments: LayerMoments, orders: Mapping[str, Tensor]) -> LayerMoments:
    """Return the `moments` of an endpoint in the order of its permuted self; `orders` as `unit_orders` gives them."""
    return {name: layer.reorder(orders[name]) for name, layer in moments.items()}


@dataclass(frozen=True)
class LayerReport:
    """The moments of one layer of an interpolated network beside its goal and its endpoints.

    `variance_ratio`: mean over units of the pre-activation variance, divided by the mean of both endpoints' such means;
    `variance_ratio_target`: the same for the goal. `mean_error` and `sd_error`: root mean square over units of the
    distance to the goal's mean and standard deviation, in units of the root mean square of the goal's standard
    deviation. `n_dead`: units without spread, in the goal or in the interpolated network, which are not rescaled.
    A correction of residual blocks has a report for each block's output too, under the block's name.
    `mean_correlation` and `sd_correlation`: where moments were predicted, the correlation over live units of predicted
    means and standard deviations with those of the layer before its own correction; NaN elsewhere.
    """

    layer: str
    position: int
    n_units: int
    n_dead: int
    variance_ratio: float
    variance_ratio_target: float
    mean_error: float
    sd_error: float
    mean_correlation: float = math.nan
    sd_correlation: float = math.nan


def report_layers(
    achieved: LayerMoments,
    goal: LayerMoments,
    a: LayerMoments,
    b: LayerMoments,
    predicted: LayerMoments | None = None,
) -> list[LayerReport]:
    """Return a report per layer, from the moments `achieved` at some alpha, their goal and those of both endpoints.

    `predicted` are the moments that a correction in closed form took in place of measured ones.
    """
    reports: list[LayerReport] = []
    for position, name in enumerate(achieved):
        spread = (a[name].sd.square().mean() + b[name].sd.square().mean()) / 2
        goal_spread = goal[name].sd.square().mean()
        reports.append(
            LayerReport(
                layer=name,
                position=position,
                n_units=len(goal[name].sd),
                n_dead=int((achieved[name].dead() | goal[name].dead()).sum()),
                variance_ratio=float(achieved[name].sd.square().mean() / spread),
                variance_ratio_target=float(goal_spread / spread),
                mean_error=float(((achieved[name].mean - goal[name].mean).square().mean() / goal_spread).sqrt()),
                sd_error=float(((achieved[name].sd - goal[name].sd).square().mean() / goal_spread).sqrt()),
                **({} if predicted is None else _prediction_correlations(achieved[name], goal[name], predicted[name])),
            )
        )
    return reports


def _prediction_correlations(achieved: Moments, goal: Moments, predicted: Moments) -> dict[str, float]:
    """Return the correlations of `predicted` moments with those that the layer had before its correction.

    These follow from the `achieved` ones: the correction took a unit's value x to goal.mean + (x - predicted.mean)
    goal.sd / predicted.sd.
    """
    live = ~(predicted.dead() | goal.dead() | achieved.dead())
    scale = goal.sd[live] / predicted.sd[live]
    mean = predicted.mean[live] + (achieved.mean[live] - goal.mean[live]) / scale
    return {
        "mean_correlation": _correlation(predicted.mean[live], mean),
        "sd_correlation": _correlation(predicted.sd[live], achieved.sd[live] / scale),
    }


def _correlation(x: Tensor, y: Tensor) -> float:
    """Return Pearson's correlation of two (n_units,); NaN where either is constant or not finite."""
    x, y = x - x.mean(), y - y.mean()
    size = x.norm() * y.norm()
    return float((x * y).sum() / size) if size > 0 else math.nan
