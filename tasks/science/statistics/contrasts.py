"""Intervals for the difference of two means over pairs of seeds.

Two paths of the same pairs are measured on the same seeds, and most of what a seed does to one it does to the other:
their difference is taken pair by pair, and the jackknife drops a seed from both. Two cells have networks of their own,
so their means err independently: the variances of both add, and the degrees of freedom are those of Welch and
Satterthwaite, which lie between those of the noisier cell alone and those of both together.

Both intervals are about other seeds. They hold the data, the test examples and the training recipe fixed, and each is
one interval: of twenty true zeros, one is expected to be missed. Simulated coverage of the nominal 95 %: .94-.99 for
paired differences, .94-.97 across cells, but .92 where three seeds meet sixteen as variable as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.science.statistics.jackknife import Estimate, Interval, interval_of, jackknife


def paired_difference(seed_pairs: Sequence[tuple[int, int]], this: Sequence[float], other: Sequence[float]) -> Interval:
    """Mean of `other` less mean of `this`, both of the same pairs, with its interval.

    Raises ValueError where the lengths differ.
    """
    return jackknife(seed_pairs, {"this": this, "other": other}, lambda means: means["other"] - means["this"])


def independent_difference(this: Estimate, other: Estimate) -> Interval:
    """`other` less `this`, which share no network; without an interval where either has too few seeds for one.

    Source: Welch 1947; Satterthwaite 1946.
    """
    difference = other.mean - this.mean
    if not (this.spreads and other.spreads):
        return interval_of(difference, float("nan"), 0)
    spreads = (*this.spreads, *other.spreads)
    variance = sum(spread.variance for spread in spreads)
    if variance == 0:  # Nothing moved: whatever the degrees of freedom, there is no reach.
        return Interval(difference, difference, difference)
    shares = [(spread.variance / variance) ** 2 / spread.degrees for spread in spreads]
    return interval_of(difference, variance, float(1 / np.sum(shares)))
