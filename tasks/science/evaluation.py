"""Loss and accuracy of a network's weights on a split, never augmented."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from tasks.science.examples import Examples
from tasks.science.specs import State

BATCH_SIZE = 2000


@dataclass(frozen=True)
class Evaluation:
    """`loss` in nats per example (mean over all examples), `accuracy` a fraction."""

    loss: float
    accuracy: float
    n_examples: int


@torch.no_grad()
def evaluate(network: nn.Module, state: State, examples: Examples) -> Evaluation:
    """Mean cross-entropy and accuracy over all of `examples`, summed in float64 over batches of fixed size."""
    loss, n_correct = 0.0, 0
    for start in range(0, len(examples), BATCH_SIZE):
        labels = examples.labels[start : start + BATCH_SIZE]
        logits = functional_call(network, state, (examples.images[start : start + BATCH_SIZE],))
        loss += float(F.cross_entropy(logits, labels, reduction="none").double().sum())
        # The largest of values that are no numbers is whatever comes first: no answer, so not a right one.
        n_correct += int(((logits.argmax(1) == labels) & logits.isfinite().all(1)).sum())
    return Evaluation(loss / len(examples), n_correct / len(examples), len(examples))
