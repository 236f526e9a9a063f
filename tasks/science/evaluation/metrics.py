"""Loss and accuracy of networks and of logits on examples as they are, with the calibrated loss where asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.science.data.examples import Examples
from tasks.science.evaluation.calibration import Halves, calibrate
from tasks.science.evaluation.functional import is_convolutional, lay_out, mode, within
from tasks.science.evaluation.outputs import logits_in
from tasks.science.specs.measurement import PLAINLY, Viewing
from tasks.science.specs.state import State

BATCH_SIZE = 2000
"""Examples that a network without convolutions sees at a time."""

CONV_BATCH_SIZE = 32
"""Examples that a convolutional network sees at a time.

Large maps fall out of the caches and are given fresh memory by the system: ResNet20 of width 1 is 1.2 to 1.4 times as
fast as in batches of 125, and 2 times as fast as in batches of 2000 (one thread of an AMD EPYC, torch 2.14).
"""


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy over some examples: `loss` in nats per example, `accuracy` a fraction.

    `calibrated_loss` is the loss of logits divided by `temperature`, which is fitted on other examples than those that
    the loss is taken on; `temperature_at_bound` tells that the search ended at a bound. None where not asked for, or
    where some logit is not finite.
    """

    loss: float
    accuracy: float
    n_examples: int
    temperature: float | None = None
    calibrated_loss: float | None = None
    temperature_at_bound: bool | None = None


@torch.no_grad()
def evaluate(
    network: nn.Module, state: State, examples: Examples, halves: Halves | None = None, *, viewing: Viewing = PLAINLY
) -> Evaluation:
    """Return mean cross-entropy and accuracy over all of `examples`, summed in float64 over batches of fixed size.

    With `halves` of the examples, logits are kept and the loss is calibrated across them as well. `viewing` says
    whether logits are averaged over an image and its mirror image, left for right, and whether products and
    convolutions are in bfloat16, as under autocast; losses are in float32 in any case.
    The network is in evaluation mode: BatchNorm takes its running statistics from `state`, which is left as it was.
    """
    return within(network, state, lambda loaded: evaluate_batches(_batches(loaded, examples, viewing), halves))


@torch.no_grad()
def logits_of(network: nn.Module, state: State, examples: Examples, *, viewing: Viewing = PLAINLY) -> Tensor:
    """Return the logits (n_examples, n_out) of all `examples`, on the CPU; `viewing` as in `evaluate`."""

    def collect(loaded: nn.Module) -> Tensor:
        return torch.cat([logits.cpu() for logits, _ in _batches(loaded, examples, viewing)])

    return within(network, state, collect)


def evaluate_logits(logits: Tensor, labels: Tensor, halves: Halves | None = None) -> Evaluation:
    """Return the evaluation of `logits` (n_examples, n_out) for `labels` (n_examples,); `halves` as in `evaluate`."""
    return evaluate_batches([(logits, labels)], halves)


def _batches(network: nn.Module, examples: Examples, viewing: Viewing) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and labels in evaluation mode, batch by batch."""
    batch_size = CONV_BATCH_SIZE if is_convolutional(network) else BATCH_SIZE

    def run(images: Tensor) -> Tensor:
        if viewing.evaluated_in == "float32":
            return logits_in(network(lay_out(network, images)))
        with torch.autocast(images.device.type, torch.bfloat16):
            return logits_in(network(lay_out(network, images))).float()

    with mode(network, training=False):
        for images, labels in examples.batches(batch_size):
            if viewing.flip_averaged and images.ndim == 2:
                raise ValueError("token ids have no mirror image: evaluate them with flip_averaged=False")
            logits = run(images)
            if viewing.flip_averaged:
                logits = (logits + run(images.flip(-1))) / 2
            yield logits, labels


def evaluate_batches(batches: Iterable[tuple[Tensor, Tensor]], halves: Halves | None) -> Evaluation:
    """Return the evaluation of all `batches` of logits (n, n_out) and labels (n,); `halves` as in `evaluate`."""
    loss, n_correct = 0.0, 0
    kept: list[Tensor] = []
    seen: list[Tensor] = []
    for logits, labels in batches:
        loss += float(_losses(logits, labels).double().sum())
        logits = logits.contiguous()
        # A row with a value that is not finite is no answer, so not a right one.
        n_correct += int(((logits.argmax(1) == labels) & logits.isfinite().all(1)).sum())
        seen.append(labels.cpu())
        if halves is not None:
            kept.append(logits.cpu())
    every = torch.cat(seen)
    evaluation = Evaluation(loss / len(every), n_correct / len(every), len(every))
    if halves is None:
        return evaluation
    found = calibrate(torch.cat(kept).numpy(), every.numpy(), halves)
    if found is None:
        return evaluation
    return replace(
        evaluation, temperature=found.temperature, calibrated_loss=found.loss, temperature_at_bound=found.at_bound
    )


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy (n,) of every example; with ten classes outermost in memory it is 13 times as fast."""
    if logits.is_contiguous():
        return F.cross_entropy(logits, labels, reduction="none")
    return F.cross_entropy(logits.T[None], labels[None], reduction="none")[0]
