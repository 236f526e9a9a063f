"""Whether two ways of training are equivalent: the tests that decide it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks import equivalence

SEEDS = range(16)
ALONE = [(seed, seed) for seed in SEEDS]
PAIRS = list(itertools.combinations(SEEDS, 2))


@pytest.mark.parametrize("seed_pairs", [ALONE, PAIRS], ids=["seeds", "pairs"])
def test_what_differs_by_less_than_the_margin_is_equivalent_and_by_more_different(seed_pairs: list[tuple[int, int]]):
    of_seed = np.random.default_rng(0).normal(0, 0.1, len(SEEDS))
    left = np.array([of_seed[a] + of_seed[b] for a, b in seed_pairs])
    noise = np.random.default_rng(1).normal(0, 0.1, len(SEEDS))
    right = left + np.array([noise[a] + noise[b] for a, b in seed_pairs])
    right -= (right - left).mean()

    def verdict(shift: float, times: float = 1.0) -> tuple[str, float]:
        moved = left + times * (right - left) + shift
        found = equivalence.compare("it", seed_pairs, left.tolist(), moved.tolist(), 0.5)
        assert found.difference == pytest.approx(shift, abs=1e-12)
        assert found.low < found.difference < found.high
        return found.verdict, found.p

    assert verdict(0.0)[0] == "equivalent"
    assert verdict(0.5)[0] == "undecided"
    assert verdict(0.5)[1] == pytest.approx(0.5)
    assert verdict(2.0)[0] == verdict(-2.0)[0] == "different"
    assert verdict(0.0, times=100)[0] == "undecided"
    assert verdict(0.2)[1] == pytest.approx(verdict(-0.2)[1])


def test_two_one_sided_tests_are_those_of_scipy():
    from scipy import stats

    rng = np.random.default_rng(2)
    left, right = rng.normal(90, 1, 16), rng.normal(90.1, 1, 16)
    above, below = (
        stats.ttest_1samp(right - left, side * 0.5, alternative=word).pvalue
        for side, word in ((-1, "greater"), (1, "less"))
    )
    found = equivalence.compare("accuracy", ALONE, left.tolist(), right.tolist(), 0.5)
    assert found.p == pytest.approx(max(above, below), rel=1e-6)
