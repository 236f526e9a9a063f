"""The numbers of each verb, held to their revision.

When one of these fails, the verb computes something else than it did: raise its revision in identity.py, say so in the
CHANGELOG, and put the new numbers here under the new revision. In float64, so that they hold on other machines.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tasks.science.alignment.matching import match
from tasks.science.correction.correction import goal_moments, preactivation_moments, repair
from tasks.science.data.examples import Dataset
from tasks.science.networks import build_network
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.paths.curves import evaluate_splits
from tasks.science.paths.interpolation import interpolate
from tasks.science.specs.cell import Cell
from tasks.science.specs.identity import REVISIONS
from tasks.science.training.training import train_group

GOLDEN = {
    ("train", 1): [
        30.16974863,
        0.01456120096,
        31.05181404,
        0.01704152139,
        31.95315226,
        0.0417645263,
        8.340829708,
        0.04660944839,
    ],
    ("match", 2): [11.00593137, 0.3213081503, 0.254443028, 0.1704827734],
    ("correct", 1): [
        26.7945383,
        0.6242902363,
        29.74113114,
        1.476495402,
        43.72039536,
        1.611958902,
        6.957208599,
        0.05530431189,
    ],
    ("correct", 2): [
        26.7945383,
        0.6242902363,
        29.74113114,
        1.476495402,
        43.72039536,
        1.611958902,
        6.957208599,
        0.05530431189,
    ],
    ("evaluate", 1): [1.157444894, 0.5125],
    ("evaluate", 2): [1.157444894, 0.5125, 0.3760050231, 1.102451325],
    ("evaluate", 3): [1.157444894, 0.5125, 0.3760050231, 1.102451325],
}


@pytest.fixture(scope="module")
def numbers(blobs: Dataset, cell: Cell) -> dict[str, list[float]]:
    def double(examples):
        return dataclasses.replace(examples, images=examples.images.double())

    data = dataclasses.replace(blobs, train=double(blobs.train), test=double(blobs.test))
    cell = dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, translate=1, flip=True, weight_decay=1e-3))
    a, b = (trained.state for trained in train_group(cell, [0, 1], blobs, dtype=torch.float64))
    network = build_network(cell)
    spec = cell_permutation_spec(cell)
    (matched,) = match(network, spec, [a, b], [(0, 1)], "activation", data.train.images)
    aligned = spec.apply(b, matched.permutation)
    goal = goal_moments(
        preactivation_moments(network, a, data.train.images),
        preactivation_moments(network, aligned, data.train.images),
        0.5,
    )
    fixed = repair(network, interpolate(a, aligned, 0.5), goal, data.train.images).state
    seen = evaluate_splits(network, fixed, data)["test"]
    assert seen.temperature is not None
    assert seen.calibrated_loss is not None
    return {
        "train": [float(tensor.square().sum()) for tensor in a.values()],
        "match": [matched.objective, *(axis.matched_correlation for axis in matched.axes)],
        "correct": [float(tensor.square().sum()) for tensor in fixed.values()],
        "evaluate": [seen.loss, seen.accuracy, seen.temperature, seen.calibrated_loss],
    }


@pytest.mark.parametrize("verb", list(REVISIONS))
def test_a_verbs_numbers_change_only_with_its_revision(numbers, verb: str):
    assert (verb, REVISIONS[verb]) in GOLDEN, f"put the numbers of {verb} at its new revision here"
    assert np.allclose(numbers[verb], GOLDEN[verb, REVISIONS[verb]], rtol=1e-6, atol=0)


def test_the_second_revision_of_evaluate_added_numbers_and_changed_none(numbers):
    """Raised because rows have more columns: what is measured anew is what revision 1 measured."""
    assert np.allclose(numbers["evaluate"][:2], GOLDEN["evaluate", 1], rtol=1e-6, atol=0)


def test_the_last_revisions_of_correct_and_evaluate_moved_numbers_by_rounding_alone(numbers):
    """Raised because MLPs are corrected and evaluated in another order of operations; in float64 it does not show."""
    assert np.allclose(numbers["correct"], GOLDEN["correct", 1], rtol=1e-6, atol=0)
    assert np.allclose(numbers["evaluate"], GOLDEN["evaluate", 2], rtol=1e-6, atol=0)
