"""A constant added to half of an endpoint's logits, which corrects for classes that it was trained on more often.

An endpoint of a data set in halves has seen the classes of one half four times as often as those of the other, and
predicts them as often. By Bayes' rule that adds one constant, ideally ln 4, to the log-odds between the two halves of
the classes; adding a shift s to the logits of the upper half removes it, at no cost and without a second network.

The mean loss is convex in s, and depends on it through one number per image: the log-odds l that its class is in the
upper half. Its slope in s is the mean of sigmoid(l + s) less the share of images whose class is in the upper half, so
at the best shift the network expects the upper half as often as it comes.

Source: the authors of REPAIR saved two sweeps of such a constant (`adjusted_v1a` and `adjusted_v1b`), and show the
smallest test loss of each. Where the constant passes 0, losses and accuracies of both splits are those of the two
endpoints: so the authors shift the endpoints, neither the merged network nor the ensemble. They did not publish which
half of the classes is shifted; only the sign of s depends on it.
Deviates: the best shift is solved for instead of looked up in a sweep of 31; and by default it is chosen on images of
the train split that the endpoint was not trained on, instead of on the test images that it is evaluated on.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from scipy.special import expit, logit
from torch import Tensor, nn

from tasks.science.data.examples import Dataset, n_lower_classes
from tasks.science.evaluation.calibration import calibration_halves
from tasks.science.evaluation.metrics import evaluate_logits, logits_of
from tasks.science.paths.curves import Splits
from tasks.science.specs.data import TrainSubset
from tasks.science.specs.measurement import PLAINLY, Viewing
from tasks.science.specs.state import State

_TOLERANCE = 1e-10
"""Tolerance of a shift, in units of a logit."""


def shift_upper(logits: Tensor, shift: float) -> Tensor:
    """Return `logits` (n_examples, n_out) with `shift` added to those of the upper half of the classes."""
    n_out = logits.shape[1]
    return logits + shift * (torch.arange(n_out) >= n_lower_classes(n_out)).to(logits.dtype)


def choose_shift(logits: Tensor, labels: Tensor, shares: Tensor) -> float:
    """Return the shift of the upper half of the classes that minimizes the mean loss; NaN where a logit is not finite.

    `logits` (n_examples, n_out) on the CPU, `labels` (n_examples,) int64, `shares` (n_out,): the images of a class
    together weigh as much as its share, however many there are. A class without images does not count.
    Raises ValueError where all images are of one half of the classes, for which no finite shift is best.
    """
    n_out = logits.shape[1]
    n_lower = n_lower_classes(n_out)
    counts = torch.bincount(labels, minlength=n_out)
    n_images_lower, n_images_upper = int(counts[:n_lower].sum()), int(counts[n_lower:].sum())
    if not n_images_lower or not n_images_upper:
        raise ValueError(
            "a logit shift is chosen on images of both halves of the classes, got "
            + ("0 of the lower half" if not n_images_lower else "0 of the upper half")
        )
    if not logits.isfinite().all():
        return float("nan")
    weights = (shares.double() / counts)[labels].numpy()
    weights /= weights.sum()
    wide = logits.double()
    log_odds = (torch.logsumexp(wide[:, n_lower:], 1) - torch.logsumexp(wide[:, :n_lower], 1)).numpy()
    return _balancing_shift(log_odds, weights, float(weights[(labels >= n_lower).numpy()].sum()))


def _balancing_shift(log_odds: NDArray[np.float64], weights: NDArray[np.float64], share: float) -> float:
    """Return the shift of `log_odds` (n_examples,) at which the `weights`-weighted sum of probabilities is `share`."""

    def slope(shift: float) -> float:
        return float(weights @ expit(log_odds + shift)) - share

    # Between these every image's probability passes from below the share to above it. Rounding may leave the slope of
    # images that all agree a hair off 0 at either end.
    low, high = logit(share) - log_odds.max() - 1e-6, logit(share) - log_odds.min() + 1e-6
    return float(optimize.root_scalar(slope, bracket=(low, high), method="brentq", xtol=_TOLERANCE).root)


def held_out_shift(
    network: nn.Module,
    state: State,
    dataset: Dataset,
    train_subset: TrainSubset,
    n_images: int | None,
    *,
    viewing: Viewing = PLAINLY,
) -> float:
    """Return the shift of an endpoint trained on the half `train_subset`, chosen on images of the other half.

    At most `n_images` (None: all) are taken, which the endpoint has not seen, though its partner has; classes weigh as
    in the whole train split.
    Raises ValueError where `dataset` has no halves, or the images are of one half of the classes alone.
    """
    other: TrainSubset = "first" if train_subset == "second" else "second"
    held_out = dataset.trained_on(other).reduced(n_images).train
    shares = torch.bincount(dataset.train.labels, minlength=dataset.spec.n_classes) / len(dataset.train)
    logits = logits_of(network, state, held_out, viewing=viewing)
    return choose_shift(logits, held_out.labels, shares)


def measure_shifted(
    network: nn.Module,
    state: State,
    dataset: Dataset,
    train_subset: TrainSubset,
    n_images: int | None,
    *,
    on_test: bool,
    viewing: Viewing = PLAINLY,
) -> Splits:
    """Return loss and accuracy of an endpoint with its logits shifted, on at most `n_images` of each split (None: all).

    With `on_test` the shift is the best one for the test images that it is evaluated on, as published, which is no
    estimate for other images. Else it is that of `held_out_shift`, for an endpoint trained on the half `train_subset`.
    `viewing` as in `evaluate`.
    """
    judged = dataset.reduced(n_images)
    halves = calibration_halves(judged.spec.fingerprint, len(judged.test))
    train, test = (
        logits_of(network, state, examples, viewing=viewing).double() for examples in (judged.train, judged.test)
    )
    if on_test:
        frequencies = torch.bincount(judged.test.labels, minlength=judged.spec.n_classes) / len(judged.test)
        shift = choose_shift(test, judged.test.labels, frequencies)
    else:
        shift = held_out_shift(network, state, dataset, train_subset, n_images, viewing=viewing)
    return {
        "train": evaluate_logits(shift_upper(train, shift), judged.train.labels),
        "test": evaluate_logits(shift_upper(test, shift), judged.test.labels, halves),
    }
