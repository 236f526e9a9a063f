from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.science.data.examples import Dataset, Examples
from tasks.science.evaluation.calibration import MAX_TEMPERATURE, Halves, calibrate, calibration_halves
from tasks.science.evaluation.metrics import evaluate
from tasks.science.paths.curves import evaluate_splits


def draw(n: int, n_out: int, temperature: float, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits, and labels drawn from the softmax of logits / `temperature`: by construction the right one."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, n_out))
    return logits, (logits / temperature + rng.gumbel(size=logits.shape)).argmax(1)


def mean_loss(logits: NDArray[np.float64], labels: NDArray[np.int64], temperature: float) -> float:
    scaled = torch.from_numpy(logits / temperature)
    return float(nn.functional.cross_entropy(scaled, torch.from_numpy(labels)))


def halves_of(n: int) -> Halves:
    halves = calibration_halves("blobs-1", n)
    assert halves is not None
    return halves


def temperature_of(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the temperature that is fitted to all of these examples."""
    every = np.arange(len(labels))
    found = calibrate(logits, labels, (every, every))
    assert found is not None
    return found.temperature


@pytest.mark.parametrize(("n", "n_out", "temperature"), [(50, 2, 0.3), (300, 10, 1.0), (400, 4, 6.0)])
def test_the_temperature_is_the_best_of_a_fine_grid(n: int, n_out: int, temperature: float):
    logits, labels = draw(n, n_out, temperature)
    step = 0.002
    grid = np.exp(np.arange(-math.log(MAX_TEMPERATURE), math.log(MAX_TEMPERATURE), step))
    losses = [mean_loss(logits, labels, t) for t in grid]
    found = temperature_of(logits, labels)
    assert abs(math.log(found / grid[np.argmin(losses)])) <= step
    assert mean_loss(logits, labels, found) <= min(losses) + 1e-14


@pytest.mark.parametrize("scale", [0.25, 3.0])
def test_scaled_logits_have_a_scaled_temperature_and_the_same_calibrated_loss(scale: float):
    logits, labels = draw(400, 5, 1.5)
    plain, scaled = (calibrate(z, labels, halves_of(400)) for z in (logits, scale * logits))
    assert plain is not None
    assert scaled is not None
    assert scaled.temperature == pytest.approx(scale * plain.temperature, rel=1e-8)
    assert scaled.loss == pytest.approx(plain.loss, rel=1e-12)


def test_logits_that_are_right_as_they_are_keep_their_temperature():
    logits, labels = draw(20_000, 10, 1.0)
    found = calibrate(logits, labels, halves_of(20_000))
    assert found is not None
    assert found.temperature == pytest.approx(1, abs=0.03)
    assert found.loss == pytest.approx(mean_loss(logits, labels, 1), abs=1e-3)
    assert not found.at_bound


def test_no_temperature_matters_to_a_network_without_an_opinion():
    found = calibrate(np.full((40, 3), 7.3), np.arange(40) % 3, halves_of(40))
    assert found is not None
    assert (found.temperature, found.at_bound) == (1, False)
    assert found.loss == pytest.approx(math.log(3))


def test_logits_that_are_always_right_end_at_a_bound_and_say_so():
    labels = np.arange(40) % 3
    right, wrong = (calibrate(sign * np.eye(3)[labels], labels, halves_of(40)) for sign in (1, -1))
    assert right is not None
    assert wrong is not None
    assert (right.temperature, right.at_bound) == (pytest.approx(1 / MAX_TEMPERATURE), True)
    assert (wrong.temperature, wrong.at_bound) == (pytest.approx(MAX_TEMPERATURE), True)


def test_one_half_at_a_bound_is_enough_to_be_flagged():
    logits, labels = draw(40, 3, 1.0)
    halves = halves_of(40)
    logits[halves[0]] = np.eye(3)[labels[halves[0]]]
    found = calibrate(logits, labels, halves)
    assert found is not None
    assert found.at_bound
    assert found.temperature > 1 / MAX_TEMPERATURE


def test_no_example_is_judged_by_a_temperature_that_has_seen_it():
    """Whatever its label were, an example of one half would leave that half's own temperature as it is."""
    logits, labels = draw(100, 4, 2.0)
    first, second = halves_of(100)
    found = calibrate(logits, labels, (first, second))
    assert found is not None
    of_first, of_second = temperature_of(logits[first], labels[first]), temperature_of(logits[second], labels[second])
    total = mean_loss(logits[first], labels[first], of_second) + mean_loss(logits[second], labels[second], of_first)
    assert found.loss == pytest.approx(total / 2, rel=1e-12)
    assert found.temperature == pytest.approx(math.sqrt(of_first * of_second), rel=1e-12)
    for kept in (first, second):
        changed = labels.copy()
        changed[np.setdiff1d(np.arange(100), kept)] = 0
        assert temperature_of(logits[kept], changed[kept]) == temperature_of(logits[kept], labels[kept])


@pytest.mark.parametrize("n", [2, 7, 100])
def test_halves_are_disjoint_hold_all_examples_and_are_the_data_sets_own(n: int):
    first, second = halves_of(n)
    assert sorted([*first, *second]) == list(range(n))
    assert len(second) - len(first) == n % 2
    assert [half.tolist() for half in halves_of(n)] == [first.tolist(), second.tolist()]
    other = calibration_halves("other", n)
    assert n < 100 or (other is not None and other[0].tolist() != first.tolist())


def test_one_example_has_no_halves():
    assert calibration_halves("blobs-1", 1) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_have_no_calibrated_loss(value: float):
    logits, labels = draw(20, 3, 1.0)
    logits[7, 1] = value
    assert calibrate(logits, labels, halves_of(20)) is None
    images = torch.tensor(logits, dtype=torch.float32)[:, :, None, None]
    seen = evaluate(nn.Flatten(), {}, Examples(images, torch.from_numpy(labels)), halves_of(20))
    assert (seen.temperature, seen.calibrated_loss, seen.temperature_at_bound) == (None, None, None)


def test_calibrating_leaves_loss_and_accuracy_as_they_are_to_the_bit():
    logits, labels = draw(5000, 3, 2.0)
    examples = Examples(torch.tensor(logits, dtype=torch.float32)[:, :, None, None], torch.from_numpy(labels))
    plain, calibrated = (evaluate(nn.Flatten(), {}, examples, halves) for halves in (None, halves_of(5000)))
    assert dataclasses.replace(calibrated, temperature=None, calibrated_loss=None, temperature_at_bound=None) == plain
    assert calibrated.temperature == pytest.approx(2, rel=0.05)
    assert calibrated.calibrated_loss is not None
    assert calibrated.calibrated_loss < plain.loss


def test_the_test_split_alone_is_calibrated(blobs: Dataset):
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    splits = evaluate_splits(network, network.state_dict(), blobs)
    assert splits["train"].temperature is None
    assert splits["test"].temperature is not None
    assert splits["test"].temperature_at_bound is not None
