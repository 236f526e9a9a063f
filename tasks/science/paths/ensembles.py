"""Ensembles: the outputs of two networks are averaged, where a path averages their weights.

An ensemble is the reference for a merged network: it costs twice as much to run and has next to no barrier.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.science.data.examples import Dataset
from tasks.science.evaluation.calibration import calibration_halves
from tasks.science.evaluation.metrics import evaluate_logits, logits_of
from tasks.science.paths.curves import PathPoint, Splits
from tasks.science.specs.measurement import PLAINLY, Viewing
from tasks.science.specs.state import State

Outputs = dict[str, Tensor]
"""Log-probabilities (n_examples, n_classes) float64 on the train and the test split, by name."""


def outputs_of(network: nn.Module, state: State, dataset: Dataset, *, viewing: Viewing = PLAINLY) -> Outputs:
    """Return the log-probabilities of an endpoint for every example of both splits; `viewing` as in `evaluate`."""
    return {
        split: F.log_softmax(logits_of(network, state, examples, viewing=viewing).double(), dim=1)
        for split, examples in (("train", dataset.train), ("test", dataset.test))
    }


def mix(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Return the log of the mixture (1 - alpha) p_a + alpha p_b of log-probabilities, all (n_examples, n_classes)."""
    weights = torch.tensor([1 - alpha, alpha], dtype=a.dtype).log()
    return torch.logsumexp(torch.stack([a + weights[0], b + weights[1]]), dim=0)


def measure_ensemble(a: Outputs, b: Outputs, alphas: Sequence[float], dataset: Dataset) -> list[PathPoint]:
    """Return loss and accuracy of the mixture of two endpoints' probabilities at all `alphas`; alpha weights B."""
    halves = calibration_halves(dataset.spec.fingerprint, len(dataset.test))

    def evaluate_mixture(alpha: float) -> Splits:
        train, test = (mix(a[split], b[split], alpha) for split in ("train", "test"))
        return {
            "train": evaluate_logits(train, dataset.train.labels),
            "test": evaluate_logits(test, dataset.test.labels, halves),
        }

    return [PathPoint(alpha, evaluate_mixture(alpha), []) for alpha in alphas]
