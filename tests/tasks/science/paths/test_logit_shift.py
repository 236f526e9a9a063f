from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.science.data.examples import Dataset, Examples
from tasks.science.evaluation.metrics import logits_of
from tasks.science.networks import build_network, initial_state
from tasks.science.paths.logit_shift import choose_shift, held_out_shift, measure_shifted, shift_upper
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import TrainSubset
from tasks.science.specs.identity import stream

N_CLASSES = 5
"""Odd, so that the halves of the classes differ: 0, 1 and 2 are the lower one."""


def draw(seed: int, n: int = 300) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(N_CLASSES), torch.randint(0, N_CLASSES, (n - N_CLASSES,), generator=rng)])
    return 2 * torch.randn(n, N_CLASSES, generator=rng, dtype=torch.float64), labels


def plain_loss(logits: Tensor, labels: Tensor, shares: Tensor, shift: float) -> float:
    """The reference: each class' mean cross-entropy, one class after another, weighted by the share of the class."""
    total = 0.0
    for label in range(N_CLASSES):
        rows = logits[labels == label].clone()
        for upper in (3, 4):
            rows[:, upper] += shift
        total += float(shares[label]) * float(F.cross_entropy(rows, labels[labels == label]))
    return total


@pytest.fixture
def halved(blobs: Dataset) -> Dataset:
    return dataclasses.replace(blobs, spec=dataclasses.replace(blobs.spec, halves=True))


@pytest.mark.parametrize("seed", range(5))
def test_the_chosen_shift_has_the_smallest_loss_of_all_where_classes_have_their_shares(seed: int):
    logits, labels = draw(seed)
    shares = torch.rand(N_CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    shares /= shares.sum()
    chosen = choose_shift(logits, labels, shares)
    best = plain_loss(logits, labels, shares, chosen)
    for step in (1e-4, 1e-2, 0.3, 2.0):
        assert plain_loss(logits, labels, shares, chosen - step) > best
        assert plain_loss(logits, labels, shares, chosen + step) > best


def test_a_shift_that_is_already_there_is_taken_off():
    logits, labels = draw(0)
    shares = torch.full((N_CLASSES,), 1 / N_CLASSES, dtype=torch.float64)
    chosen = choose_shift(logits, labels, shares)
    for there in (-40.0, -1.0, 3.0, 40.0):
        assert math.isclose(choose_shift(shift_upper(logits, there), labels, shares), chosen - there, abs_tol=1e-8)


def test_images_of_a_class_seen_many_times_count_no_more():
    logits, labels = draw(1)
    shares = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2], dtype=torch.float64)
    rows = torch.cat([torch.arange(len(labels)), *[(labels == 4).nonzero().flatten()] * 7])
    found = choose_shift(logits[rows], labels[rows], shares)
    assert math.isclose(found, choose_shift(logits, labels, shares), abs_tol=1e-8)


def test_exact_posteriors_under_skewed_classes_need_the_logarithm_of_the_skew():
    """Bayes' rule: classes 0 and 1 at 80 % to 20 % instead of alike add ln 4 to their log-odds."""
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(40_000) % 2
    evidence = torch.randn(40_000, generator=rng, dtype=torch.float64) + 2.0 * labels - 1
    # Of two unit Gaussians at -1 and 1 the log-odds are twice the position.
    logits = torch.stack([torch.full_like(evidence, math.log(4)), 2 * evidence], dim=1)
    assert math.isclose(choose_shift(logits, labels, torch.tensor([0.5, 0.5])), math.log(4), abs_tol=0.05)


def test_a_shift_moves_the_upper_half_of_the_classes_alone():
    logits, _ = draw(2)
    moved = shift_upper(logits, 1.5) - logits
    torch.testing.assert_close(moved[:, :3], torch.zeros_like(moved[:, :3]))
    torch.testing.assert_close(moved[:, 3:], torch.full_like(moved[:, 3:], 1.5))


@pytest.mark.parametrize("only", [0, 4])
def test_images_of_one_half_of_the_classes_choose_no_shift(only: int):
    logits, labels = draw(0)
    one_half = labels == only
    shares = torch.full((N_CLASSES,), 1 / N_CLASSES, dtype=torch.float64)
    with pytest.raises(ValueError, match="a logit shift is chosen on images of both halves of the classes, got 0 "):
        choose_shift(logits[one_half], labels[one_half], shares)


def test_logits_that_are_no_numbers_choose_no_number():
    logits, labels = draw(0)
    logits[7, 3] = float("nan")
    assert math.isnan(choose_shift(logits, labels, torch.full((N_CLASSES,), 1 / N_CLASSES, dtype=torch.float64)))


@pytest.mark.parametrize(("own", "other"), [("first", "second"), ("second", "first")])
def test_neither_the_test_split_nor_an_image_trained_on_has_a_part_in_the_held_out_shift(
    cell: Cell, halved: Dataset, own: TrainSubset, other: TrainSubset
):
    network = build_network(cell)
    state = initial_state(network, stream("shift", 0))
    before = held_out_shift(network, state, halved, own, None)
    seen = halved.trained_on(other).train.images
    mine = torch.tensor([not any(torch.equal(image, one) for one in seen) for image in halved.train.images])
    assert 0 < int(mine.sum()) < len(halved.train)
    images = torch.where(mine[:, None, None, None], torch.full_like(halved.train.images, 9.0), halved.train.images)
    garbled = dataclasses.replace(
        halved,
        train=Examples(images, halved.train.labels),
        test=Examples(-halved.test.images, halved.test.labels.flip(0)),
    )
    assert held_out_shift(network, state, garbled, own, None) == before
    assert held_out_shift(network, state, garbled, other, None) != held_out_shift(network, state, halved, other, None)


def test_the_shift_chosen_on_test_is_the_best_that_test_can_show(cell: Cell, halved: Dataset):
    network = build_network(cell)
    state = initial_state(network, stream("shift", 1))
    held_out = measure_shifted(network, state, halved, "first", None, on_test=False)
    on_test = measure_shifted(network, state, halved, "first", None, on_test=True)
    assert on_test["test"].loss <= held_out["test"].loss
    logits = logits_of(network, state, halved.test).double()
    for shift in (-1.0, 0.0, 1.0):
        assert on_test["test"].loss <= float(F.cross_entropy(shift_upper(logits, shift), halved.test.labels))
    assert on_test["test"].calibrated_loss is not None
    assert (on_test["train"].n_examples, on_test["test"].n_examples) == (240, 80)


def test_what_is_wrong_with_the_bias_of_the_upper_classes_is_what_the_shift_puts_right(cell: Cell, halved: Dataset):
    network = build_network(cell)
    state = initial_state(network, stream("shift", 2))
    name = [name for name in state if name.endswith("bias")][-1]
    skewed = {**state, name: state[name] - 3.0 * (torch.arange(4) >= 2)}
    plain, moved = (held_out_shift(network, one, halved, "first", None) for one in (state, skewed))
    assert math.isclose(moved - plain, 3.0, abs_tol=1e-4)
