"""Intervals for the difference of two means over pairs of seeds.

Two paths of the same pairs share their seeds, and a seed moves both paths alike: the difference is taken pair by pair,
and the jackknife drops a seed from both. Two cells share no network, so the errors of their means are independent:
their variances add, with the degrees of freedom of Welch and Satterthwaite, which lie between those of the noisier
cell alone and those of both cells together.

Both intervals cover the choice of seeds, with the data, the test examples and the training recipe held fixed. They are
not adjusted for multiple comparisons. Simulated coverage of the nominal 95 %: .94-.99 for paired differences, .94-.97
across cells, but .92 for three seeds against sixteen equally variable ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.science.statistics.jackknife import Estimate, Interval, interval_of, jackknife


def paired_difference(seed_pairs: Sequence[tuple[int, int]], this: Sequence[float], other: Sequence[float]) -> Interval:
    """Return the mean of `other` less the mean of `this` over the same pairs, with its interval.

    Raises ValueError if the lengths differ.
    """
    return jackknife(seed_pairs, {"this": this, "other": other}, lambda means: means["other"] - means["this"])


def independent_difference(this: Estimate, other: Estimate) -> Interval:
    """Return `other` less `this`, which share no network, with its interval.

    Without an interval if either has too few seeds for one. Source: Welch 1947; Satterthwaite 1946.
    """
    difference = other.mean - this.mean
    if not (this.spreads and other.spreads):
        return interval_of(difference, float("nan"), 0)
    spreads = (*this.spreads, *other.spreads)
    variance = sum(spread.variance for spread in spreads)
    if variance == 0:  # The degrees of freedom would be 0 / 0.
        return Interval(difference, difference, difference)
    shares = [(spread.variance / variance) ** 2 / spread.degrees for spread in spreads]
    return interval_of(difference, variance, float(1 / np.sum(shares)))
