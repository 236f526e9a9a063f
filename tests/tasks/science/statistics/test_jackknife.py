from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from tasks.science.statistics.jackknife import jackknife, mean_interval, reduction_interval


def pairs_of(n_seeds: int) -> list[tuple[int, int]]:
    return list(combinations(range(n_seeds), 2))


def simulate(rng: np.random.Generator, n_seeds: int, seed_sd: float, pair_sd: float) -> list[float]:
    """Pair effects around 0: one share from each of the two seeds, one from the pair itself."""
    seeds = rng.normal(0, seed_sd, n_seeds)
    return [seeds[i] + seeds[j] + rng.normal(0, pair_sd) for i, j in pairs_of(n_seeds)]


@pytest.mark.parametrize("n_seeds", [3, 4, 8, 16])
@pytest.mark.parametrize(("seed_sd", "pair_sd", "at_most"), [(1.0, 0.1, 0.975), (0.0, 1.0, 1.0), (0.5, 0.5, 1.0)])
def test_the_interval_holds_the_truth_as_often_as_it_says(n_seeds: int, seed_sd: float, pair_sd: float, at_most: float):
    rng = np.random.default_rng(n_seeds)
    n_studies = 1500
    hits = 0
    for _ in range(n_studies):
        interval = mean_interval(pairs_of(n_seeds), simulate(rng, n_seeds, seed_sd, pair_sd))
        hits += interval.low <= 0 <= interval.high
    assert 0.93 <= hits / n_studies <= at_most


def pairs_across(n_seeds: int) -> list[tuple[int, int]]:
    """Even seeds against odd ones, as a data set in halves has them."""
    return list(product(range(0, n_seeds, 2), range(1, n_seeds, 2)))


@pytest.mark.parametrize("n_seeds", [4, 6, 16])
@pytest.mark.parametrize(("seed_sd", "pair_sd", "at_most"), [(1.0, 0.1, 0.975), (0.0, 1.0, 1.0)])
def test_pairs_across_halves_have_an_interval_as_honest(n_seeds: int, seed_sd: float, pair_sd: float, at_most: float):
    rng = np.random.default_rng(n_seeds)
    pairs = pairs_across(n_seeds)
    n_studies = 1000
    hits = 0
    for _ in range(n_studies):
        seeds = rng.normal(0, seed_sd, n_seeds)
        values = [seeds[a] + seeds[b] + rng.normal(0, pair_sd) for a, b in pairs]
        interval = mean_interval(pairs, values)
        hits += interval.low <= 0 <= interval.high
    assert 0.93 <= hits / n_studies <= at_most


def test_across_halves_the_variances_of_two_means_add():
    x = np.random.default_rng(0).normal(size=6)
    interval = mean_interval(pairs_across(6), [x[a] + x[b] for a, b in pairs_across(6)])
    error = np.sqrt((x[::2].var(ddof=1) + x[1::2].var(ddof=1)) / 3)
    assert interval.mean == pytest.approx(x[::2].mean() + x[1::2].mean())
    assert interval.high - interval.mean == pytest.approx(stats.t.ppf(0.975, 4) * error)


def test_one_seed_of_a_half_leaves_no_interval():
    assert np.isnan(mean_interval([(0, 1), (2, 1)], [1.0, 2.0]).low)


def test_for_values_that_belong_to_seeds_it_is_the_textbook_interval():
    """The mean over pairs of (x_i + x_j) / 2 is the mean over seeds, and so must its interval be."""
    x = np.random.default_rng(0).normal(size=6)
    interval = mean_interval(pairs_of(6), [(x[i] + x[j]) / 2 for i, j in pairs_of(6)])
    reach = stats.t.ppf(0.975, 5) * x.std(ddof=1) / np.sqrt(6)
    assert interval.mean == pytest.approx(x.mean())
    assert interval.low == pytest.approx(x.mean() - reach)
    assert interval.high == pytest.approx(x.mean() + reach)


def test_below_three_seeds_there_is_a_mean_and_no_interval():
    interval = mean_interval([(0, 1)], [0.3])
    assert interval.mean == 0.3
    assert np.isnan(interval.low)
    assert np.isnan(interval.high)


def test_pairs_that_all_share_a_seed_have_no_interval():
    assert np.isnan(mean_interval([(0, 1), (0, 2), (0, 3)], [1.0, 2.0, 3.0]).low)


def test_no_pairs_or_values_that_are_no_numbers_have_no_mean():
    assert np.isnan(mean_interval([], []).mean)
    assert np.isnan(mean_interval(pairs_of(3), [1.0, np.nan, 2.0]).mean)


def test_a_reduction_is_a_ratio_of_means_and_not_a_mean_of_ratios():
    before, after = [1.0] * 9 + [0.001], [0.1, 0.2] * 5
    reduction = reduction_interval(pairs_of(5), after, before)
    assert reduction.mean == pytest.approx(1 - np.mean(after) / np.mean(before))
    assert reduction.low < reduction.mean < reduction.high


def test_nothing_is_reduced_where_there_may_be_nothing():
    around_zero = [0.5, -0.4, 0.1, -0.3, 0.4, -0.2]
    assert np.isnan(reduction_interval(pairs_of(4), [0.1] * 6, around_zero).mean)
    assert np.isnan(reduction_interval([(0, 1)], [0.1], [1.0]).mean)


def test_a_seed_is_dropped_from_both_sides_of_a_difference_at_once():
    """Two corrections that differ by a constant differ by it exactly, however much the seeds differ."""
    values = simulate(np.random.default_rng(0), 5, 1.0, 0.3)
    columns = {"repair": values, "none": [value + 2 for value in values]}
    interval = jackknife(pairs_of(5), columns, lambda means: means["none"] - means["repair"])
    assert interval.mean == pytest.approx(2)
    assert interval.high - interval.low == pytest.approx(0, abs=1e-9)


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="one value per pair"):
        mean_interval([(0, 1)], [1.0, 2.0])
