from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from tasks.science.statistics.contrasts import independent_difference, paired_difference
from tasks.science.statistics.jackknife import Estimate, Spread, mean_estimate, mean_interval


def pairs_of(n_seeds: int) -> list[tuple[int, int]]:
    return list(combinations(range(n_seeds), 2))


def simulate(rng: np.random.Generator, n_seeds: int, seed_sd: float, pair_sd: float) -> list[float]:
    """Pair effects around 0: one share from each of the two seeds, one from the pair itself."""
    seeds = rng.normal(0, seed_sd, n_seeds)
    return [seeds[i] + seeds[j] + rng.normal(0, pair_sd) for i, j in pairs_of(n_seeds)]


@pytest.mark.parametrize("n_seeds", [3, 4, 8])
@pytest.mark.parametrize(("seed_sd", "pair_sd", "at_most"), [(1.0, 0.1, 0.975), (0.0, 1.0, 1.0), (0.5, 0.5, 1.0)])
def test_a_paired_interval_holds_the_truth_as_often_as_it_says(
    n_seeds: int, seed_sd: float, pair_sd: float, at_most: float
):
    """What both paths owe to a seed cancels; what only the other does remains."""
    rng = np.random.default_rng(n_seeds)
    n_studies, hits = 600, 0
    for _ in range(n_studies):
        shared = np.array(simulate(rng, n_seeds, 5.0, 5.0))
        own = np.array(simulate(rng, n_seeds, seed_sd, pair_sd))
        interval = paired_difference(pairs_of(n_seeds), list(shared), list(shared + own + 0.7))
        hits += interval.low <= 0.7 <= interval.high
    assert 0.93 <= hits / n_studies <= at_most


@pytest.mark.parametrize(("n_seeds", "at_least"), [((3, 3), 0.93), ((4, 8), 0.92), ((3, 16), 0.9), ((8, 8), 0.93)])
@pytest.mark.parametrize(("seed_sds", "pair_sd"), [((1.0, 1.0), 0.1), ((0.1, 1.0), 0.01), ((1.0, 0.1), 0.01)])
def test_an_interval_across_cells_holds_the_truth_as_often_as_it_says(
    n_seeds: tuple[int, int], at_least: float, seed_sds: tuple[float, float], pair_sd: float
):
    """Welch's interval is known to be a little too narrow where three seeds meet many: about .92."""
    rng = np.random.default_rng(sum(n_seeds))
    n_studies, hits = 600, 0
    for _ in range(n_studies):
        this, other = (
            mean_estimate(pairs_of(n), simulate(rng, n, sd, pair_sd)) for n, sd in zip(n_seeds, seed_sds, strict=True)
        )
        interval = independent_difference(this, other)
        hits += interval.low <= 0 <= interval.high
    assert at_least <= hits / n_studies <= 0.985


def test_the_difference_is_the_other_less_this():
    this, other = [1.0, 2.0, 3.0], [2.0, 4.0, 3.0]
    assert paired_difference(pairs_of(3), this, other).mean == pytest.approx(1)
    both = mean_estimate(pairs_of(3), this), mean_estimate(pairs_of(3), other)
    assert independent_difference(*both).mean == pytest.approx(1)


def test_for_values_that_belong_to_seeds_it_is_welchs_test():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, 6), rng.normal(1, 3, 4)
    estimates = [mean_estimate(pairs_of(len(v)), [(v[i] + v[j]) / 2 for i, j in pairs_of(len(v))]) for v in (x, y)]
    interval = independent_difference(estimates[0], estimates[1])
    welch = stats.ttest_ind(y, x, equal_var=False).confidence_interval()
    assert interval.low == pytest.approx(welch.low)
    assert interval.high == pytest.approx(welch.high)


def test_a_cell_in_halves_brings_both_its_samples():
    pairs = list(product((0, 2, 4), (1, 3, 5)))
    rng = np.random.default_rng(0)
    values = [float(rng.normal()) for _ in pairs]
    halves, whole = mean_estimate(pairs, values), mean_estimate(pairs_of(4), [float(rng.normal()) for _ in range(6)])
    assert [spread.degrees for spread in halves.spreads] == [2, 2]
    interval = independent_difference(halves, whole)
    spreads = [*halves.spreads, *whole.spreads]
    variance = sum(spread.variance for spread in spreads)
    degrees = variance**2 / sum(spread.variance**2 / spread.degrees for spread in spreads)
    assert interval.high - interval.mean == pytest.approx(stats.t.ppf(0.975, degrees) * np.sqrt(variance))


def test_against_a_cell_that_never_varies_it_is_the_other_cells_own_interval():
    values = [0.1, 0.4, 0.2, 0.9, 0.3, 0.5]
    alone = mean_interval(pairs_of(4), values)
    interval = independent_difference(mean_estimate(pairs_of(4), [0.0] * 6), mean_estimate(pairs_of(4), values))
    assert (interval.low, interval.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    still = independent_difference(Estimate(1.0, (Spread(0.0, 2),)), Estimate(3.0, (Spread(0.0, 2),)))
    assert (still.mean, still.low, still.high) == (2, 2, 2)


def test_below_three_seeds_on_either_side_there_is_a_difference_and_no_interval():
    few, many = mean_estimate([(0, 1)], [0.3]), mean_estimate(pairs_of(3), [1.0, 2.0, 3.0])
    for this, other in ((few, many), (many, few)):
        interval = independent_difference(this, other)
        assert interval.mean == pytest.approx(other.mean - this.mean)
        assert np.isnan([interval.low, interval.high]).all()
    assert np.isnan(paired_difference([(0, 1)], [0.1], [0.2]).low)


def test_a_value_that_is_no_number_leaves_no_difference():
    broken, whole = mean_estimate(pairs_of(3), [1.0, np.nan, 2.0]), mean_estimate(pairs_of(3), [1.0, 2.0, 3.0])
    assert np.isnan(independent_difference(broken, whole).mean)
    assert np.isnan(paired_difference(pairs_of(3), [1.0, np.nan, 2.0], [1.0, 2.0, 3.0]).mean)
