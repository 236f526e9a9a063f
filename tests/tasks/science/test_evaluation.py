from __future__ import annotations

import math

import torch
from torch import nn

from tasks.science.evaluation import evaluate
from tasks.science.examples import Examples

LABELS = torch.tensor([0, 1, 2, 0, 1])


def test_loss_is_the_mean_over_examples_and_accuracy_the_share_of_right_ones():
    logits = torch.tensor([[3.0, 0, 0], [0, 3, 0], [3, 0, 0], [3, 0, 0], [0, 3, 0]])
    seen = evaluate(nn.Flatten(), {}, Examples(logits[:, :, None, None], LABELS))
    right, wrong = math.log(1 + 2 * math.exp(-3)), math.log(math.exp(3) + 2)
    assert math.isclose(seen.loss, (4 * right + wrong) / 5, rel_tol=1e-6)
    assert (seen.accuracy, seen.n_examples) == (0.8, 5)


def test_logits_that_are_no_numbers_are_never_right():
    """The largest of three NaNs is the first, and the first class is some example's own."""
    images = torch.full((5, 3, 1, 1), float("nan"))
    seen = evaluate(nn.Flatten(), {}, Examples(images, LABELS))
    assert seen.accuracy == 0
    assert math.isnan(seen.loss)
