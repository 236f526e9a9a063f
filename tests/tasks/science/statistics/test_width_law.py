from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import optimize

from tasks.science.statistics.width_law import (
    EXPONENTS,
    Barriers,
    answer,
    answer_sentence,
    fit,
    fit_width_law,
    n_saturated,
)

WIDTHS = np.array([16, 32, 64, 128, 256, 512], dtype=np.float64)


def made(means: ArrayLike, errors: ArrayLike = 1e-3, widths: ArrayLike = WIDTHS, degrees=7.0, ceiling=np.inf):
    means = np.asarray(means, dtype=np.float64)
    widths = np.asarray(widths, dtype=np.float64)[: len(means)]
    full = [np.broadcast_to(np.asarray(v, dtype=np.float64), means.shape).copy() for v in (errors, degrees, ceiling)]
    return Barriers(widths, means, *full)


def law(c: float, p: float, floor: float, widths=WIDTHS):
    return c * widths**-p + floor


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(("c", "p", "floor"), [(5, 1, 0.02), (2, 0.5, 0.0), (300, 2, 0.05), (0.8, 0.25, 0.0)])
def test_a_law_without_noise_is_found(c: float, p: float, floor: float):
    found = fit(WIDTHS, law(c, p, floor)[None], np.full(6, 1e-3))
    assert found.p[0] == pytest.approx(p, rel=1e-4)
    assert found.c[0] == pytest.approx(c, rel=1e-3)
    assert found.floor[0] == pytest.approx(floor, abs=1e-4)
    assert found.misfit[0] < 1e-3


@pytest.mark.parametrize("seed", range(6))
def test_the_fit_is_that_of_a_plain_search(seed: int):
    """The reference: for every exponent of a fine grid SciPy's least squares with c and floor of at least 0."""
    of = np.random.default_rng(seed)
    errors = of.uniform(0.005, 0.05, 6)
    values = law(3, of.uniform(0.3, 2), of.uniform(0, 0.1)) + errors * of.normal(size=6)
    grid = np.exp(np.linspace(*np.log(EXPONENTS), 4000))
    solved = [
        optimize.nnls(np.stack([WIDTHS**-p * 16**p, np.ones(6)], axis=1) / errors[:, None], values / errors)
        for p in grid
    ]
    best = int(np.argmin([residual for _, residual in solved]))
    found = fit(WIDTHS, values[None], errors)
    assert found.misfit[0] <= solved[best][1] ** 2 + 1e-9
    assert found.misfit[0] == pytest.approx(solved[best][1] ** 2, rel=1e-3)
    assert found.at(WIDTHS)[0] == pytest.approx(
        solved[best][0][0] * (WIDTHS / 16) ** -grid[best] + solved[best][0][1], abs=2e-4
    )


def test_many_fits_at_once_are_those_one_by_one():
    values = law(3, 0.8, 0.02) + 0.02 * rng().normal(size=(5, 6))
    errors = np.full(6, 0.02)
    together = fit(WIDTHS, values, errors)
    for i in range(5):
        alone = fit(WIDTHS, values[i : i + 1], errors)
        assert together.p[i] == pytest.approx(alone.p[0], rel=1e-6)
        assert together.floor[i] == pytest.approx(alone.floor[0], abs=1e-9)


def test_intervals_hold_the_true_exponent_and_floor_as_often_as_they_say():
    of, n_studies, hits = rng(), 100, np.zeros(2)
    true = law(5, 1, 0.02)
    errors = 0.03 * true + 5e-4
    for _ in range(n_studies):
        estimated = errors * np.sqrt(of.chisquare(7, 6) / 7)
        found = fit_width_law(made(true + errors * of.normal(size=6), estimated), 0.01, of)
        assert found is not None
        hits += [found.p.low <= 1 <= found.p.high, found.floor.low <= 0.02 <= found.floor.high]
    assert (hits / n_studies >= 0.88).all()


def test_where_widths_on_both_sides_were_measured_the_answer_lies_between_them():
    barriers = made(law(1, 1, 0), 2e-4)  # .0156 at width 64, .0078 at 128
    found = answer(barriers, 0.01, fit_width_law(barriers, 0.01, rng()))
    assert (found.kind, found.low, found.high) == ("between", 64, 128)
    sentence = answer_sentence(found, "The barrier", "1 %", 512)
    assert sentence == "The barrier falls below 1 % between widths 64 and 128, both measured."


def test_between_needs_no_law():
    barriers = made([0.2, 0.005])
    assert fit_width_law(barriers, 0.01, rng()) is None
    assert answer(barriers, 0.01, None).kind == "between"


def test_beyond_the_widest_the_law_says_how_far():
    barriers = made(law(10, 1, 0), 0.01 * law(10, 1, 0))  # meets .01 at width 1000
    found = answer(barriers, 0.01, fit_width_law(barriers, 0.01, rng()))
    assert found.kind == "beyond"
    assert found.low < found.width < found.high
    assert found.width == pytest.approx(1000, rel=0.01)
    assert "of width 512; the fitted law falls below 1 % at width 1" in answer_sentence(found, "B", "1 %", 512)


def test_a_floor_above_the_threshold_is_never():
    barriers = made(law(20, 1, 0.05), 1e-3)
    found = answer(barriers, 0.01, fit_width_law(barriers, 0.01, rng()))
    assert found.kind == "never"
    assert answer_sentence(found, "B", "1 %", 512).startswith("B does not fall below 1 % at any width")


def test_a_barrier_that_is_below_everywhere_is_at_most_the_narrowest():
    found = answer(made([0.002, 0.001, 0.0005]), 0.01, None)
    assert (found.kind, found.high) == ("at most", 16)
    assert np.isnan(found.low)


def test_an_interval_around_the_threshold_leaves_it_unsettled():
    found = answer(made([0.2, 0.1, 0.011], [1e-3, 1e-3, 5e-3]), 0.01, None)
    assert (found.kind, found.low) == ("unsettled", 32)
    assert "more seeds there would tell" in answer_sentence(found, "The barrier", "1 %", 64)


def test_too_few_widths_identify_nothing():
    barriers = made([0.4, 0.2, 0.1])
    assert fit_width_law(barriers, 0.01, rng()) is None
    found = answer(barriers, 0.01, None)
    assert found.kind == "not identifiable"
    assert answer_sentence(found, "The barrier", "1 %", 64).endswith(
        "cannot be told: 3 of 3 widths are below saturation, and the law needs 4."
    )
    assert answer(made([]), 0.01, None).kind == "not identifiable"


def test_noise_identifies_nothing():
    for seed in range(5):
        of = np.random.default_rng(seed)
        barriers = made(0.3 + 0.05 * of.normal(size=6), 0.05)
        found = answer(barriers, 0.01, fit_width_law(barriers, 0.01, of))
        assert found.kind == "not identifiable"


def test_an_exponent_or_a_floor_that_may_be_anything_identifies_nothing():
    barriers = made(law(2, 0.5, 0.0)[:4], 0.005)
    found = answer(barriers, 0.01, fit_width_law(barriers, 0.01, rng()))
    assert found.kind == "not identifiable"
    assert "may be anything from" in found.reason


def test_barriers_that_follow_no_such_law_identify_nothing():
    barriers = made([0.6, 0.5, 0.45, 0.2, 0.19, 0.1], 1e-3)
    found = answer(barriers, 0.01, fit_width_law(barriers, 0.01, rng()))
    assert found.reason == "no power law with a floor describes these barriers"


def test_a_saturated_end_is_left_out_and_the_law_is_that_of_the_rest():
    widths = 2.0 ** np.arange(2, 11)
    free = law(20, 1, 0.01, widths)
    means = np.minimum(free, 0.85)  # at widths 4, 8 and 16
    barriers = made(means, 0.01 * means, widths)
    assert n_saturated(barriers) == 3
    found = fit_width_law(barriers, 0.01, rng())
    assert found is not None
    assert found.n_widths == 6
    assert found.p.mean == pytest.approx(1, abs=1e-3)


def test_a_barrier_that_rises_with_width_first_is_used_from_where_it_falls():
    """Networks too narrow to learn have little to lose: the hump and all before it are no part of the law."""
    assert n_saturated(made([0.1, 0.5, 0.6, 0.3, 0.15, 0.07])) == 3
    assert n_saturated(made([0.6, 0.3, 0.15, 0.07, 0.08, 0.07])) == 0
    assert n_saturated(made([0.3, 0.3, 0.3, 0.3])) == 4


def test_a_barrier_near_the_highest_there_can_be_is_saturated_though_it_still_falls():
    falling = [0.85, 0.75, 0.5, 0.3, 0.15, 0.07]
    assert n_saturated(made(falling)) == 0
    assert n_saturated(made(falling, ceiling=0.88)) == 2
    assert n_saturated(made(falling, ceiling=np.nan)) == 0


def test_pairs_that_agree_by_chance_do_not_have_all_the_weight():
    means = law(5, 1, 0.02) * np.array([1, 1.02, 0.98, 1, 1.01, 1])
    errors = 0.02 * means
    errors[2] = 0
    found = fit_width_law(made(means, errors), None, rng())
    assert found is not None
    assert found.p.mean == pytest.approx(1, abs=0.1)
    assert np.isnan(found.needed.mean)
    assert fit_width_law(made(means, 0), None, rng()) is None


@pytest.mark.parametrize(
    ("means", "errors", "widths", "words"),
    [
        ([0.1, 0.2], 0.1, [32, 16], "widths must ascend"),
        ([0.1, np.nan], 0.1, [16, 32], "finite mean and a standard error of at least 0"),
        ([0.1, 0.2], -0.1, [16, 32], "finite mean and a standard error of at least 0"),
        ([0.1, 0.2], 0.1, [16], "one value per width"),
    ],
)
def test_what_cannot_be_barriers_by_width_is_refused(means, errors, widths, words: str):
    with pytest.raises(ValueError, match=words):
        made(means, errors, widths)
