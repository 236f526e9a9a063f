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
from tasks.science.specs.state import State

DEAD_SHARE = 1e-6
"""A unit is dead where its deviation is below this share of the root mean square of its layer's, or axis', values:
float32 cannot tell it from a constant."""

_CHUNK = 4096
"""Values per unit that are added up in their own type. With channels innermost torch adds them one after another: sums
of 500,000 float32 values near 1000 are off by .4 %, those of 4,096 by 2e-6."""

_PAIRED_BYTES = 2**28
"""Most bytes that the values of one network's layers take while another's are compared with them."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (n_units,) of a site's values over the statistics samples."""

    mean: Tensor
    sd: Tensor

    def reorder(self, indices: Tensor) -> Moments:
        """The moments of the permuted network, without measuring it: position i takes unit indices[i]."""
        return Moments(self.mean[indices], self.sd[indices])

    def dead(self) -> Tensor:
        """Units (n_units,) bool whose spread float32 cannot tell from none, beside the scale of their layer."""
        scale = (self.mean.square() + self.sd.square()).mean().sqrt()
        return self.sd <= DEAD_SHARE * scale


LayerMoments = dict[str, Moments]
"""Moments by the name of the layer whose output they describe, front to back."""


class RunningMoments:
    """Moments (n_units,) float64 of all values shown so far, by the merging of means and squared deviations (Chan,
    Golub and LeVeque 1979): exact over any batches, without the cancellation of E[x^2] - E[x]^2."""

    def __init__(self) -> None:
        self._n = 0
        self._mean = self._squares = torch.zeros(())

    def add(self, values: Tensor, dim: int) -> Moments:
        """Adds `values`, whose units lie along `dim`; returns the moments of these values alone."""
        if dim % values.ndim != 1:
            values = values.movedim(dim, -1).reshape(-1, values.shape[dim])
        per_row = values[0, 0].numel()
        # The statistics of BatchNorm's own kernel: 4 to 10 times as fast as torch.var_mean.
        parts = [
            (*torch.batch_norm_update_stats(rows, None, None, 0.0), len(rows) * per_row)
            for rows in values.split(max(1, _CHUNK // per_row))
        ]
        counts = torch.tensor([n for *_, n in parts], dtype=torch.float64, device=values.device)[:, None]
        means = torch.stack([mean for mean, *_ in parts]).double()
        variances = torch.stack([variance for _, variance, _ in parts]).double()
        n = len(values) * per_row
        mean = (counts * means).sum(0) / n
        squares = (counts * (variances + (means - mean).square())).sum(0)
        total = self._n + n
        drift = mean - self._mean
        self._mean = self._mean + drift * (n / total)
        self._squares = self._squares + squares + drift.square() * (self._n * n / total)
        self._n = total
        return Moments(mean, (squares / n).sqrt())

    def result(self) -> Moments:
        return Moments(self._mean, (self._squares / self._n).sqrt())


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
    """For every layer the covariances (n_units,) float64 of A's pre-activations with those of B at the same position,
    over all of `images`, from one pass of both; B is already permuted into alignment.

    Batches are such that what all layers of one network put out stays below 256 MB, where one image allows it.
    """
    n_seen = 0
    means = {site.name: (torch.zeros(()), torch.zeros(())) for site in sites.layers}
    products = {site.name: torch.zeros((), dtype=torch.float64) for site in sites.layers}
    outputs: dict[str, Tensor] = {}

    def keep(site: Site, values: Tensor) -> None:
        # A copy: an activation in place may overwrite the values before the other network's are seen.
        outputs[site.name] = values.movedim(site.dim, -1).clone()

    def compare(site: Site, values: Tensor) -> None:
        one = outputs.pop(site.name).reshape(-1, values.shape[site.dim])
        other = values.movedim(site.dim, -1).reshape(one.shape)
        mean_a, mean_b = one.double().mean(0), other.double().mean(0)
        product = ((one - mean_a.to(one.dtype)) * (other - mean_b.to(one.dtype))).sum(0, dtype=torch.float64)
        old_a, old_b = means[site.name]
        n, total = len(batch), n_seen + len(batch)
        per_image = len(one) / n
        drift_a, drift_b = mean_a - old_a, mean_b - old_b
        means[site.name] = old_a + drift_a * (n / total), old_b + drift_b * (n / total)
        products[site.name] = products[site.name] + product / per_image + drift_a * drift_b * (n_seen * n / total)

    per_image_bytes = max(1, sites.n_values * images.element_size())
    for batch in images.split(max(1, min(500, _PAIRED_BYTES // per_image_bytes))):
        for state, see in ((a, keep), (b, compare)):
            observe(network, state, sites.layers, [batch], see)
        n_seen += len(batch)
    return {name: product / n_seen for name, product in products.items()}


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
