"""One constant on half of an endpoint's logits: what undoes that it was trained on some classes more than on others.

An endpoint of a data set in halves has seen the classes of one half four times as often as those of the other, and
expects them as often. By Bayes' rule that adds one constant, ideally ln 4, to the log-odds between the two halves of
the classes; adding a shift s to the logits of the upper half takes it off, at no cost and without a second network.

The mean loss is convex in s, and depends on it through one number per image: the log-odds l that its class is in the
upper half. Its slope in s is the mean of sigmoid(l + s) less the share of images whose class is in the upper half, so
at the best shift the network expects the upper half as often as it comes.

Source: the authors of REPAIR saved two sweeps of such a constant (`adjusted_v1a` and `adjusted_v1b`), and show the
smallest test loss of each. Where the constant passes 0, losses and accuracies of both splits pass through those of the
two endpoints: so it is the endpoints that are shifted there, neither the merged network nor the ensemble. Which half of
the classes is shifted was not published, and only the sign of s depends on it.
Deviates: the best shift is solved for instead of looked up in a sweep of 31; and, unless that is asked for, it is
chosen on images of the train split that the endpoint was not trained on, instead of on the test images it is judged by.
"""

from __future__ import annotations

import torch
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
"""Of a shift, in units of a logit."""


def shift_upper(logits: Tensor, shift: float) -> Tensor:
    """`logits` (n_examples, n_out) with `shift` added to those of the upper half of the classes."""
    n_out = logits.shape[1]
    return logits + shift * (torch.arange(n_out) >= n_lower_classes(n_out)).to(logits.dtype)


def choose_shift(logits: Tensor, labels: Tensor, shares: Tensor) -> float:
    """The shift of the upper half of the classes that makes the mean loss smallest, were classes as frequent as
    `shares` has them; nan where a logit is not finite.

    `logits` (n_examples, n_out) on the CPU, `labels` (n_examples,) int64, `shares` (n_out,): the images of a class
    count together for its share, however many there are. A class without images does not count.
    Raises ValueError where all images are of one half of the classes: the more of a shift, the better.
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
    share = float(weights[(labels >= n_lower).numpy()].sum())

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
    """The shift of an endpoint trained on the half `train_subset`, chosen on at most `n_images` (None: all) of the
    other half, which the endpoint has not seen, though its partner has; classes count as in the whole train split.

    ValueError where `dataset` has no halves, or the images are of one half of the classes alone.
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
    """Loss and accuracy, on at most `n_images` of each split (None: all), of an endpoint with its logits shifted.

    `on_test`: the shift is the best one for the very test images that it is judged by, so it is no estimate of what it
    does for others, but the figure that was published. Else it is that of `held_out_shift`, for an endpoint trained on
    the half `train_subset`. `viewing` as in `evaluate`.
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
