from __future__ import annotations

import math

import torch
from torch import nn

from tasks.science.data.examples import Examples, Scaling
from tasks.science.evaluation.metrics import evaluate, evaluate_logits, logits_of
from tasks.science.specs.measurement import PLAINLY, Viewing

FLIPPED = Viewing(flip_averaged=True)

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


def test_flip_averaged_is_of_the_mean_of_both_logits_and_the_same_of_mirrored_images():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(3 * 2 * 3, 3))
    state = dict(network.state_dict())
    examples = Examples(torch.randn(5, 1, 4, 5, generator=torch.Generator().manual_seed(0)), LABELS)
    mirrored = Examples(examples.images.flip(-1), LABELS)
    plain, averaged = (evaluate(network, state, examples, viewing=viewing) for viewing in (PLAINLY, FLIPPED))
    assert averaged == evaluate(network, state, mirrored, viewing=FLIPPED)
    assert averaged.loss != plain.loss
    with torch.no_grad():
        mean = (network(examples.images) + network(mirrored.images)) / 2
    assert torch.allclose(logits_of(network, state, examples, viewing=FLIPPED), mean, atol=1e-6)
    assert math.isclose(averaged.loss, evaluate_logits(mean, LABELS).loss, rel_tol=1e-6)


def test_in_bfloat16_logits_are_those_of_autocast_and_losses_are_of_float32():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(3 * 2 * 3, 3))
    state = dict(network.state_dict())
    examples = Examples(torch.randn(5, 1, 4, 5, generator=torch.Generator().manual_seed(0)), LABELS)
    rounded = Viewing(evaluated_in="bfloat16")
    found = logits_of(network, state, examples, viewing=rounded)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = network(torch.empty_like(examples.images, memory_format=torch.channels_last).copy_(examples.images))
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted.float())
    exact = logits_of(network, state, examples)
    assert 0 < (found - exact).abs().max() < 0.02 * exact.abs().max()
    assert evaluate(network, state, examples, viewing=rounded).loss == evaluate_logits(found, LABELS).loss


def test_bytes_are_normalised_batch_by_batch():
    pixels = torch.randint(0, 256, (7, 3, 2, 2), dtype=torch.uint8)
    scaling = Scaling((10.0, 20.0, 30.0), (2.0, 4.0, 8.0))
    examples = Examples(pixels, torch.arange(7), scaling)
    images = torch.cat([images for images, _ in examples.batches(3)])
    mean, deviation = (torch.tensor(of)[:, None, None] for of in (scaling.mean, scaling.deviation))
    assert torch.equal(images, (pixels.float() - mean) / deviation)
    few = next(examples.chosen(torch.tensor([4, 2])).batches(2))
    assert torch.equal(few[0], images[[4, 2]])
    assert few[1].tolist() == [4, 2]
