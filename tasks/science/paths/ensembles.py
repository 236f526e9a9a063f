"""Two networks used together: their outputs are averaged, where a path averages their weights.

What a merged network is up against: twice the cost of one network, and no barrier to speak of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.science.data.examples import Dataset
from tasks.science.evaluation.calibration import Halves, calibration_halves
from tasks.science.evaluation.metrics import Evaluation, evaluate_logits, logits_of
from tasks.science.paths.curves import PathPoint
from tasks.science.specs.measurement import PLAINLY, Viewing
from tasks.science.specs.state import State

Outputs = dict[str, Tensor]
"""Log-probabilities (n_examples, n_classes) float64 on the train and the test split, by name."""


def outputs_of(network: nn.Module, state: State, dataset: Dataset, *, viewing: Viewing = PLAINLY) -> Outputs:
    """What an endpoint says of every example of both splits; `viewing` as in `evaluate`."""
    return {
        split: F.log_softmax(logits_of(network, state, examples, viewing=viewing).double(), dim=1)
        for split, examples in (("train", dataset.train), ("test", dataset.test))
    }


def mix(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Log of the mixture (1 - alpha) p_a + alpha p_b of probabilities given as logs, all (n_examples, n_classes)."""
    weights = torch.tensor([1 - alpha, alpha], dtype=a.dtype).log()
    return torch.logsumexp(torch.stack([a + weights[0], b + weights[1]]), dim=0)


def measure_ensemble(a: Outputs, b: Outputs, alphas: Sequence[float], dataset: Dataset) -> list[PathPoint]:
    """Loss and accuracy of the mixture of two endpoints' probabilities at every one of `alphas`; alpha weights B."""
    halves = calibration_halves(dataset.spec.fingerprint, len(dataset.test))

    def judge(split: str, alpha: float, labels: Tensor, across: Halves | None) -> Evaluation:
        return evaluate_logits(mix(a[split], b[split], alpha), labels, across)

    return [
        PathPoint(
            alpha,
            {
                "train": judge("train", alpha, dataset.train.labels, None),
                "test": judge("test", alpha, dataset.test.labels, halves),
            },
            [],
        )
        for alpha in alphas
    ]
