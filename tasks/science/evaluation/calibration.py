"""The loss that a network would have if its confidence were right: logits divided by one temperature.

A network that was interpolated is often less sure of itself than its endpoints, so part of its loss says nothing about
what it tells apart. Dividing all logits by one number T changes no answer, and takes that part away once T is chosen to
make the loss smallest. T is fitted on one half of the examples and judged on the other, both ways round, so no example
is judged by a temperature that has seen it.

The mean loss is convex in 1/T, hence its slope in 1/T rises, and the best T is where the slope is 0: one root between
two bounds. The slope is the mean, over examples, of the logit expected under the softmax less the logit of the label.
Source: Guo et al. 2017 (arXiv 1706.04599) for temperature scaling; arXiv 2510.08023 for calibrating along merged paths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from tasks.science.specs.identity import stream

MAX_TEMPERATURE = 20.0
"""Temperatures are sought between this and its inverse: logits that no finite temperature serves best end there."""

_TOLERANCE = 1e-10
"""Of the logarithm of a temperature."""

Halves = tuple[NDArray[np.int64], NDArray[np.int64]]
"""The positions of two disjoint halves that hold every example between them, each ascending."""


@dataclass(frozen=True)
class Calibration:
    """`temperature` is the geometric mean of the two halves'; `loss` in nats per example, the mean over all examples,
    each under the temperature of the other half; `at_bound` where either temperature is the highest or lowest."""

    temperature: float
    loss: float
    at_bound: bool


def calibration_halves(fingerprint: str, n_examples: int) -> Halves | None:
    """Two halves of `n_examples`, drawn by a stream of the data set's own: the same for all networks. None where there
    are fewer than two examples."""
    if n_examples < 2:
        return None
    order = stream("calibration", fingerprint).permutation(n_examples)
    return np.sort(order[: n_examples // 2]), np.sort(order[n_examples // 2 :])


def calibrate(logits: NDArray[np.floating], labels: NDArray[np.int64], halves: Halves) -> Calibration | None:
    """Cross-fitted over `halves`; None where a logit is not finite.

    `logits` (n_examples, n_out), `labels` (n_examples,).
    """
    if not np.isfinite(logits).all():
        return None
    both = [_Shifted(logits[half], labels[half]) for half in halves]
    temperatures = [_fit(half) for half in both]
    total = sum(half.losses(t).sum() for half, t in zip(both, reversed(temperatures), strict=True))
    return Calibration(
        temperature=float(np.exp(np.mean(np.log(temperatures)))),
        loss=float(total / len(labels)),
        at_bound=any(t in (MAX_TEMPERATURE, 1 / MAX_TEMPERATURE) for t in temperatures),
    )


class _Shifted:
    """Logits with each example's largest at 0, which changes no loss: classes along the first axis, so that sums over
    them run along memory."""

    def __init__(self, logits: NDArray[np.floating], labels: NDArray[np.int64]) -> None:
        by_class = np.ascontiguousarray(logits.T, dtype=np.float64)
        self.logits = by_class - by_class.max(0)
        self.of_label = self.logits[labels, np.arange(len(labels))]

    def losses(self, temperature: float) -> NDArray[np.float64]:
        """(n_examples,)"""
        return np.log(np.exp(self.logits / temperature).sum(0)) - self.of_label / temperature

    def slope(self, log_inverse: float) -> float:
        """Of the mean loss in 1/T, at T = exp(-log_inverse)."""
        weights = np.exp(np.exp(log_inverse) * self.logits)
        expected = np.einsum("kn,kn->n", weights, self.logits) / weights.sum(0)
        return float((expected - self.of_label).mean())


def _fit(half: _Shifted) -> float:
    if not half.logits.any():
        return 1.0
    reach = float(np.log(MAX_TEMPERATURE))
    if half.slope(-reach) >= 0:
        return MAX_TEMPERATURE
    if half.slope(reach) <= 0:
        return 1 / MAX_TEMPERATURE
    found = optimize.root_scalar(half.slope, bracket=(-reach, reach), method="brentq", xtol=_TOLERANCE)
    return float(np.exp(-found.root))
