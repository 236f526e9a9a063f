"""Loss and accuracy of a network's weights on a split, never augmented; where asked for, also the calibrated loss, or
all of it of logits averaged over each image and its mirror image, or computed in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tasks.science.calibration import Halves, calibrate
from tasks.science.examples import Examples
from tasks.science.modes import check_modes, watched
from tasks.science.outputs import logits_in
from tasks.science.specs import PLAINLY, State, Viewing

T = TypeVar("T")

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
    return within(network, state, lambda loaded: judge(_batches(loaded, examples, viewing), halves))


@torch.no_grad()
def logits_of(network: nn.Module, state: State, examples: Examples, *, viewing: Viewing = PLAINLY) -> Tensor:
    """What the network puts out for every one of `examples`, in evaluation mode: (n_examples, n_out), on the CPU.
    `viewing` as in `evaluate`."""

    def collect(loaded: nn.Module) -> Tensor:
        return torch.cat([logits.cpu() for logits, _ in _batches(loaded, examples, viewing)])

    return within(network, state, collect)


def evaluate_logits(logits: Tensor, labels: Tensor, halves: Halves | None = None) -> Evaluation:
    """As `evaluate`, of outputs (n_examples, n_out) that were made elsewhere."""
    return judge([(logits, labels)], halves)


def _batches(network: nn.Module, examples: Examples, viewing: Viewing) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels, batch by batch."""
    batch_size = CONV_BATCH_SIZE if _is_convolutional(network) else BATCH_SIZE

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


def judge(batches: Iterable[tuple[Tensor, Tensor]], halves: Halves | None) -> Evaluation:
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


def compute(network: nn.Module, state: State, *inputs: Tensor) -> Any:
    """What `network` with the weights `state` puts out for `inputs`, laid out as they are; it is left as it was."""
    return within(network, state, lambda loaded: loaded(*inputs))


def within(network: nn.Module, state: State, work: Callable[[nn.Module], T], *, writes: bool = False) -> T:
    """What `work` makes of `network` while its weights are `state`, in however many passes; both are left as they were,
    but for what `work` itself `writes` into `state`. NetworkError where a pass writes into weights."""
    # A parameter that two layers share has two names in a state dict, hence after interpolation two equal tensors,
    # which `functional_call` takes for a mistake unless it is told not to look for shared ones. Then a module under
    # two names would have its weights exchanged twice and the wrong ones put back: each place is given once.
    modules = dict(network.named_modules(remove_duplicate=False))
    once: dict[tuple[int | str, str], str] = {}
    for key in state:
        path, _, name = key.rpartition(".")
        once.setdefault((id(modules[path]) if path in modules else path, name), key)
    weights = {f"network.{key}": state[key] for key in once.values()}
    if writes:
        return functional_call(_Within(network), weights, (work,), tie_weights=False)
    with watched(network, state) as look:

        def looked(loaded: nn.Module) -> T:
            made = work(loaded)
            look()
            return made

        return functional_call(_Within(network), weights, (looked,), tie_weights=False)


class _Within(nn.Module):
    """Its forward pass is whatever is done with a network: `functional_call` exchanges the weights once for all."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, work: Callable[[nn.Module], Any]) -> Any:
        return work(self.network)


@contextmanager
def mode(network: nn.Module, *, training: bool) -> Generator[None]:
    """`network` in training or evaluation mode, and every module of it as it was afterwards. NetworkError where that
    would change its weights."""
    check_modes(network)
    before = [(module, module.training) for module in network.modules()]
    try:
        network.train(training)
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


def lay_out(network: nn.Module, images: Tensor) -> Tensor:
    """`images` (n, channels, height, width) as `network` reads them fastest: for convolutions with the channels
    innermost in memory, which every later map then keeps (ResNet20 trains 1.3 times as fast on one thread)."""
    if images.ndim != 4 or not _is_convolutional(network):
        return images
    # `contiguous` would leave images of one channel alone: both layouts are theirs, and later maps would get the other.
    return torch.empty_like(images, memory_format=torch.channels_last).copy_(images)


def lay_out_weights(network: nn.Module, state: State) -> State:
    """`state` as a convolutional `network` reads it fastest beside such images, for many passes: otherwise every pass
    makes copies of the kernels in this layout."""
    if not _is_convolutional(network):
        return state
    return {
        key: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for key, tensor in state.items()
    }


def _is_convolutional(network: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in network.modules())
