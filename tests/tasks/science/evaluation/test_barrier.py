from __future__ import annotations

import numpy as np
import pytest

from tasks.science.evaluation.barrier import barrier, midpoint_barrier

ALPHAS = np.linspace(0, 1, 11)


def test_a_straight_line_has_no_barrier():
    line = 2 + 3 * ALPHAS
    assert barrier(line, ALPHAS, (2.0, 5.0)) == pytest.approx(0, abs=1e-12)
    assert midpoint_barrier(line, ALPHAS, (2.0, 5.0)) == pytest.approx(0, abs=1e-12)


def test_a_rise_is_measured_above_the_chord_and_not_above_the_ends():
    path = 2 + 3 * ALPHAS
    path[7] += 1.5
    assert barrier(path, ALPHAS, (2.0, 5.0)) == pytest.approx(1.5)


def test_a_path_that_only_sags_has_barrier_0_and_a_negative_midpoint():
    path = 1 - np.sin(np.pi * ALPHAS)
    assert barrier(path, ALPHAS, (1.0, 1.0)) == 0
    assert midpoint_barrier(path, ALPHAS, (1.0, 1.0)) == pytest.approx(-1)


def test_more_alphas_never_lower_the_barrier():
    def path(alphas):
        return np.sin(np.pi * alphas) ** 8

    coarse = np.linspace(0, 1, 4)
    fine = np.linspace(0, 1, 13)
    assert barrier(path(fine), fine, (0.0, 0.0)) > barrier(path(coarse), coarse, (0.0, 0.0))


def test_a_corrected_path_is_held_against_the_raw_endpoints():
    assert barrier(np.full(11, 0.3), ALPHAS, (0.1, 0.1)) == pytest.approx(0.2)


def test_a_value_that_is_no_number_shows():
    path = np.zeros(11)
    path[3] = np.nan
    assert np.isnan(barrier(path, ALPHAS, (0.0, 0.0)))


def test_alphas_that_are_no_path_are_refused():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got -0.1 to 1"):
        barrier(np.zeros(2), np.array([-0.1, 1.0]), (0.0, 0.0))
    with pytest.raises(ValueError, match="must ascend"):
        barrier(np.zeros(3), np.array([0.0, 0.5, 0.5]), (0.0, 0.0))
    with pytest.raises(ValueError, match="the midpoint is not among the alphas"):
        midpoint_barrier(np.zeros(2), np.array([0.0, 1.0]), (0.0, 0.0))
