from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from tasks.science.data.examples import Dataset
from tasks.science.evaluation.metrics import evaluate
from tasks.science.networks import build_network, initial_state
from tasks.science.paths.ensembles import measure_ensemble, mix, outputs_of
from tasks.science.specs.cell import Cell
from tasks.science.specs.identity import stream


def test_a_mixture_is_the_weighted_mean_of_probabilities():
    rng = torch.Generator().manual_seed(0)
    a, b = (F.log_softmax(torch.randn(20, 4, generator=rng, dtype=torch.float64), 1) for _ in range(2))
    for alpha in (0.0, 0.25, 0.5, 1.0):
        torch.testing.assert_close(mix(a, b, alpha).exp(), (1 - alpha) * a.exp() + alpha * b.exp())


def test_probabilities_too_small_for_a_float_keep_their_loss():
    a, b = torch.tensor([[0.0, -900.0]], dtype=torch.float64), torch.tensor([[0.0, -800.0]], dtype=torch.float64)
    assert math.isclose(float(mix(a, b, 0.5)[0, 1]), -800 + math.log(0.5), rel_tol=1e-12)


def test_an_ensemble_ends_in_its_endpoints_and_is_no_worse_than_their_chord(cell: Cell, blobs: Dataset):
    """By Jensen's inequality the loss of a mixture lies on or below the mixture of losses."""
    network = build_network(cell)
    states = [initial_state(network, stream("ensemble", seed)) for seed in (0, 1)]
    points = measure_ensemble(*(outputs_of(network, state, blobs) for state in states), [0.0, 0.5, 1.0], blobs)
    for split, examples in (("train", blobs.train), ("test", blobs.test)):
        raw = [evaluate(network, state, examples) for state in states]
        for point, end in ((points[0], raw[0]), (points[2], raw[1])):
            assert math.isclose(point.splits[split].loss, end.loss, rel_tol=1e-6)
            assert point.splits[split].accuracy == end.accuracy
        assert points[1].splits[split].loss <= (raw[0].loss + raw[1].loss) / 2
    assert points[1].splits["test"].calibrated_loss is not None
    assert points[1].splits["train"].calibrated_loss is None
