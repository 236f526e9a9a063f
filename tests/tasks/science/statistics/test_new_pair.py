from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from tasks.science.statistics.jackknife import mean_interval, samples_of
from tasks.science.statistics.new_pair import Components, new_pair_interval, variance_components


def pairs_of(n_seeds: int) -> list[tuple[int, int]]:
    return list(combinations(range(n_seeds), 2))


def pairs_across(n_seeds: int) -> list[tuple[int, int]]:
    """Even seeds against odd ones, as a data set in halves has them."""
    return list(product(range(0, n_seeds, 2), range(1, n_seeds, 2)))


INCOMPLETE = [pair for pair in pairs_of(6) if pair not in {(0, 1), (0, 2), (3, 5)}]
INCOMPLETE_ACROSS = [pair for pair in pairs_across(8) if pair not in {(0, 1), (4, 7)}]


@pytest.mark.parametrize("n_seeds", [4, 6, 8])
@pytest.mark.parametrize(("seed_sd", "pair_sd", "at_most"), [(1.0, 0.1, 0.975), (0.0, 1.0, 0.995)])
def test_the_interval_holds_a_new_pair_as_often_as_it_says(n_seeds: int, seed_sd: float, pair_sd: float, at_most):
    assert 0.93 <= coverage(pairs_of(n_seeds), seed_sd, pair_sd, 700) <= at_most


@pytest.mark.parametrize(("seed_sd", "pair_sd"), [(1.0, 0.1), (0.0, 1.0)])
def test_across_halves_and_with_pairs_missing_it_is_as_honest(seed_sd: float, pair_sd: float):
    for pairs in (pairs_across(6), INCOMPLETE):
        assert 0.93 <= coverage(pairs, seed_sd, pair_sd, 500) <= 0.995


def coverage(pairs: list[tuple[int, int]], seed_sd: float, pair_sd: float, n_studies: int) -> float:
    rng = np.random.default_rng(len(pairs))
    hits = 0
    for _ in range(n_studies):
        seeds = rng.normal(0, seed_sd, 8)
        interval = new_pair_interval(pairs, [seeds[a] + seeds[b] + rng.normal(0, pair_sd) for a, b in pairs])
        new = rng.normal(0, seed_sd, 2).sum() + rng.normal(0, pair_sd)
        hits += interval.low <= new <= interval.high
    return hits / n_studies


@pytest.mark.parametrize("pairs", [pairs_of(4), pairs_of(7), INCOMPLETE, pairs_across(6), INCOMPLETE_ACROSS])
def test_the_variances_are_those_of_a_dense_least_squares_fit(pairs: list[tuple[int, int]]):
    """The residuals of a fit by the normal equations' pseudo-inverse, and sums of squares set to what is expected."""
    rng = np.random.default_rng(0)
    sizes = rng.normal(0, 1, 8)
    y = np.array([3 + sizes[a] + sizes[b] + rng.normal(0, 0.3) for a, b in pairs])
    samples = samples_of(pairs)
    ones = np.ones((len(pairs), 1))
    designs = [np.array([[float(seed in pair) for seed in sample] for pair in pairs]) for sample in samples]

    def hat(*blocks: np.ndarray) -> np.ndarray:
        x = np.hstack(blocks)
        return x @ np.linalg.pinv(x)

    residual = np.eye(len(pairs)) - hat(ones, *designs)
    forms = [residual] + [
        hat(ones, *designs) - hat(ones, *(design for design in designs if design is not own)) for own in designs
    ]
    covariances = [np.eye(len(pairs)), *(design @ design.T for design in designs)]
    expected = np.array([[np.trace(form @ covariance) for covariance in covariances] for form in forms])
    of_pair, *of_seeds = np.linalg.solve(expected, [y @ form @ y for form in forms])
    assert of_pair > 0
    assert min(of_seeds) > 0
    found = variance_components(pairs, list(y))
    assert found is not None
    assert found.of_pair == pytest.approx(of_pair)
    assert found.of_seeds == pytest.approx(of_seeds)


def test_without_noise_of_pairs_the_seeds_variance_is_recovered_exactly():
    x = np.random.default_rng(0).normal(size=6)
    for pairs in (pairs_of(6), [*pairs_of(6)[:-1]]):
        found = variance_components(pairs, [5 + x[a] + x[b] for a, b in pairs])
        assert found is not None
        assert found.of_pair == pytest.approx(0, abs=1e-15)
    complete = variance_components(pairs_of(6), [5 + x[a] + x[b] for a, b in pairs_of(6)])
    assert complete is not None
    assert complete.of_seeds == pytest.approx((x.var(ddof=1),))
    interval = new_pair_interval(pairs_of(6), [5 + x[a] + x[b] for a, b in pairs_of(6)])
    error = np.sqrt((4 / 6 + 2) * x.var(ddof=1))
    assert interval.mean == pytest.approx(5 + 2 * x.mean())
    assert interval.high - interval.mean == pytest.approx(stats.t.ppf(0.975, 5) * error)


def test_across_halves_each_half_has_a_variance_of_its_own():
    x = np.random.default_rng(0).normal(size=6) * ([1, 5] * 3)
    values = [x[a] + x[b] for a, b in pairs_across(6)]
    found = variance_components(pairs_across(6), values)
    assert found is not None
    variances = (x[::2].var(ddof=1), x[1::2].var(ddof=1))
    assert found.of_seeds == pytest.approx(variances)
    assert found.of_new_pair == pytest.approx(sum(variances))
    interval = new_pair_interval(pairs_across(6), values)
    error = np.sqrt(sum(variances) * (1 / 3 + 1))
    assert interval.high - interval.mean == pytest.approx(stats.t.ppf(0.975, 4) * error)


def test_a_new_pair_has_two_seeds_of_one_sample():
    assert Components((0.5,), 0.1).of_new_pair == pytest.approx(1.1)


def test_where_all_pairs_agree_a_new_one_would_too():
    interval = new_pair_interval(pairs_of(4), [0.25] * 6)
    assert (interval.low, interval.mean, interval.high) == (0.25, 0.25, 0.25)


def test_a_negative_variance_is_none():
    """Values that differ less between seeds than chance would have it."""
    values = [1.0 if a + b == 3 else -0.5 for a, b in pairs_of(4)]
    found = variance_components(pairs_of(4), values)
    assert found is not None
    assert found.of_seeds == (0.0,)
    assert found.of_pair == pytest.approx(1.5)


def test_it_is_wider_than_the_interval_of_the_mean():
    values = list(np.random.default_rng(0).normal(size=10))
    mean, new = mean_interval(pairs_of(5), values), new_pair_interval(pairs_of(5), values)
    assert new.mean == mean.mean
    assert new.low < mean.low < mean.high < new.high


@pytest.mark.parametrize(
    "pairs",
    [
        pairs_of(3),
        [(0, 1), (0, 3)],
        [(0, 1), (1, 2), (2, 3), (0, 2)],  # As many pairs as seeds: nothing is left over.
        [(0, 1), (0, 3), (0, 5), (0, 7)],  # One seed of the first half.
    ],
)
def test_fewer_than_four_seeds_or_too_few_pairs_predict_nothing(pairs: list[tuple[int, int]]):
    interval = new_pair_interval(pairs, [float(position) for position in range(len(pairs))])
    assert interval.mean == pytest.approx(np.mean(range(len(pairs))))
    assert np.isnan(interval.low)
    assert np.isnan(interval.high)


def test_values_that_are_no_numbers_predict_nothing_and_lengths_must_agree():
    assert np.isnan(new_pair_interval(pairs_of(4), [1.0, 2.0, 3.0, 4.0, 5.0, np.nan]).low)
    assert np.isnan(new_pair_interval([], []).mean)
    with pytest.raises(ValueError, match="one value per pair"):
        new_pair_interval(pairs_of(4), [1.0])
