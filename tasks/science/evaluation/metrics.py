"""Loss and accuracy of a network on a split that is never augmented."""

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


CONV_BATCH_SIZE = 32
"""For convolutional networks, whose maps fall out of the caches sooner, and are given fresh memory by the system where
they are large: ResNet20 of width 1 is 1.2 to 1.4 times as fast as in batches of 125, and 2 times as in batches of 2000
(one thread of an AMD EPYC, torch 2.14)."""


@dataclass(frozen=True)
class Evaluation:
    """`loss` in nats per example (mean over all examples), `accuracy` a fraction.

    `calibrated_loss` is the loss once logits are divided by a temperature, fitted on other examples than those it is
    judged on; `temperature_at_bound` where the search ended at a bound. None where not asked for, or where some logit
    is not finite.
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
    """Mean cross-entropy and accuracy over all of `examples`, summed in float64 over batches of fixed size.

    With `halves` of the examples, logits are kept and the loss is calibrated across them as well. `viewing`: whether of
    logits averaged over an image and its mirror image, left for right, and whether products and convolutions are in
    bfloat16, as autocast has them; losses are in float32 whatever it is.
    Always in evaluation mode: BatchNorm takes its running statistics from `state`, which is left as it was.
    """
    return within(network, state, lambda loaded: evaluate_batches(_batches(loaded, examples, viewing), halves))


@torch.no_grad()
def logits_of(network: nn.Module, state: State, examples: Examples, *, viewing: Viewing = PLAINLY) -> Tensor:
    """What the network puts out for every one of `examples`, in evaluation mode: (n_examples, n_out), on the CPU.
    `viewing` as in `evaluate`."""

    def collect(loaded: nn.Module) -> Tensor:
        return torch.cat([logits.cpu() for logits, _ in _batches(loaded, examples, viewing)])

    return within(network, state, collect)


def evaluate_logits(logits: Tensor, labels: Tensor, halves: Halves | None = None) -> Evaluation:
    """As `evaluate`, of outputs (n_examples, n_out) that were made elsewhere."""
    return evaluate_batches([(logits, labels)], halves)


def _batches(network: nn.Module, examples: Examples, viewing: Viewing) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels, batch by batch."""
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
    """As `evaluate`, of outputs (n, n_out) and labels (n,), batch by batch."""
    loss, n_correct = 0.0, 0
    kept: list[Tensor] = []
    seen: list[Tensor] = []
    for logits, labels in batches:
        loss += float(_losses(logits, labels).double().sum())
        logits = logits.contiguous()
        # The largest of values that are no numbers is whatever comes first: no answer, so not a right one.
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
    """Cross-entropy (n,) of every example; of ten classes it is 13 times as fast where these come first in memory."""
    if logits.is_contiguous():
        return F.cross_entropy(logits, labels, reduction="none")
    return F.cross_entropy(logits.T[None], labels[None], reduction="none")[0]
