"""Trains a group of seeds of one cell.

Every seed has its own initial weights, order of examples and augmentation, each from a stream named by the seed; the
seeds of a group share nothing but the data. On a CPU they are trained one after another, so that a seed's weights are
the same to the bit alone and in any group. On a GPU, where one small network leaves the device idle, the seeds of a
group take every step together: `stacking` says how. Within an epoch nothing waits for the GPU.

One run passes through all checkpoints of a seed. Between two epochs its whole state is a `TrainingState`: the streams
are named by seed and epoch, so no generator has a state of its own, and a training that goes on from there passes
through the same weights, to the bit on a CPU. Children are spawned from such a state of their parent: then their own
seed names the order and the augmentation of what is left.

Images that lie in files are decoded on the way. Every draw is made here, whoever decodes them, so the weights are the
same to the bit with any number of decoding processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.science.data.augmentation import TrainImages, Views, draw_views
from tasks.science.data.examples import Dataset, Examples, FileExamples, subset
from tasks.science.evaluation.functional import mode
from tasks.science.evaluation.metrics import Evaluation, evaluate
from tasks.science.networks import build_network, build_training_network, draw_state
from tasks.science.networks.folding import fold_batch_norm
from tasks.science.networks.mlp import MLP
from tasks.science.networks.user_defined import drawing
from tasks.science.specs.cell import Cell
from tasks.science.specs.checks import is_own
from tasks.science.specs.data import TrainSubset
from tasks.science.specs.identity import stream
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State
from tasks.science.training.optimization import Updates, finite_seeds, learning_rate
from tasks.science.training.stacking import (
    RecordedStep,
    Scheme,
    Step,
    bind,
    check_scheme,
    choose_scheme,
    fitting_seeds,
    is_recorded,
    seed_bytes,
)

UNTRAINED_SHARE = 0.95
"""An endpoint whose train loss is above this share of ln(n_classes) has learned next to nothing."""

JUDGED_IMAGES = 5_000
"""Of so many train images in files, at most, are an endpoint's train loss and accuracy: all of ImageNet's would take
half as long as an epoch of training, at every checkpoint."""

LOWER = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""What forward and backward passes compute in, where that is not the type of the weights."""

Status = Literal["trained", "diverged", "untrained"]


@dataclass(frozen=True)
class Training:
    """One seed at one checkpoint of its training. Loss and accuracy are of the weights there, without augmentation; NaN
    where it diverged. `train` is of the images it was trained on, or where these lie in files of `JUDGED_IMAGES` of
    them, as `subset` chooses them, `test` of the whole test split: `n_examples` says of how many. `seconds` and skipped
    steps count from the beginning, of a child from where it was spawned."""

    seed: int
    epoch: int | None
    """As in `Cell`: None at the end of the recipe's schedule."""
    state: State
    status: Status
    message: str
    train: Evaluation
    test: Evaluation
    seconds: float
    n_skipped_steps: int
    """Steps that were skipped because some gradient was not finite."""


@dataclass(frozen=True)
class TrainingState:
    """All that the training of one seed goes on from between two epochs, on the CPU."""

    epoch: int
    """How many epochs of the recipe's schedule are behind it."""
    weights: State
    """Parameters and buffers of the network that is trained, in the type it is trained in."""
    memory: State
    """The optimizer's, as `Updates.memory` gives it."""
    last_finite: int
    """How many epochs ended finite, one after another."""
    n_skipped: int
    seconds: float


class Progress(Protocol):
    """Where trainings leave their states as they go, and find them when they begin again."""

    def load(self, seed: int, latest: int) -> TrainingState | None:
        """Where the training of `seed` has been left, if anywhere: the last state after at most `latest` epochs."""
        ...

    def is_due(self) -> bool:
        """Whether it is time to save again: asked after every epoch."""
        ...

    def save(self, seed: int, state: TrainingState) -> None: ...


def train_group(
    cell: Cell,
    seeds: Sequence[int],
    dataset: Dataset,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    group_size: int | None = None,
    *,
    checkpoints: Mapping[int, Collection[int]] | None = None,
    parent: TrainingState | None = None,
    progress: Progress | None = None,
    scheme: Scheme | None = None,
) -> Iterator[Training]:
    """Trains `seeds` of `cell` and yields each as it is done, in their order (of a data set in halves, those of the
    first half before those of the second); weights come back on the CPU.

    `checkpoints` are, by seed, the epochs of the schedule at which its weights are wanted, which are yielded as they
    are reached; by default the cell's own. `parent` is the state that a cell with `spawn` starts from. `progress` keeps
    states on the way; a stack of seeds goes on from there where all of them were left at the same epoch.
    `group_size` seeds are computed together at a time (`stacking`), of those that share their train images; by default
    as `default_group_size` has it. A group that a GPU's memory does not take is halved. `scheme`: how a group is
    computed, by default as `choose_scheme` has it.
    Raises ValueError where the recipe cannot be trained on `device` or the network cannot read images of the size that
    the recipe shows or the data set is evaluated at, for a checkpoint that training does not pass, and
    where `parent` is not the state at the epoch to spawn at.
    """
    device = torch.device(device)
    if cell.origin is not None:
        raise ValueError(f"the endpoints of {cell.label} were brought in as {cell.origin.name}: none is trained here")
    check_trainable(cell.recipe, device)
    first_epoch = cell.spawn_epoch or 0
    if (None if parent is None else parent.epoch) != cell.spawn_epoch:
        raise ValueError(
            f"{cell.label} starts from {'no parent' if cell.spawn is None else 'its parent at the epoch to spawn at'}, "
            f"got {'no state' if parent is None else f'a state after {parent.epoch} epochs'}"
        )
    wanted = {seed: sorted({cell.last_epoch} if checkpoints is None else set(checkpoints[seed])) for seed in seeds}
    for epoch in {epoch for epochs in wanted.values() for epoch in epochs}:
        if not first_epoch <= epoch <= cell.recipe.epochs:
            raise ValueError(
                f"training of {cell.label} passes epochs {first_epoch} to {cell.recipe.epochs}, not epoch {epoch}"
            )
    network, trained_network = build_network(cell), build_training_network(cell)
    _check_sizes(cell, dataset)
    if scheme is not None:
        check_scheme(scheme, trained_network, cell.recipe, device)
    by_subset: dict[TrainSubset, list[int]] = {}
    for seed in seeds:
        by_subset.setdefault(cell.data.train_subset(seed), []).append(seed)
    for train_subset, members in sorted(by_subset.items()):
        own = dataset.trained_on(train_subset)
        judged = _on_device(own, device)
        size = group_size or default_group_size(cell, own, len(members), device)

        def go_through(group: Sequence[int], own: Dataset = own) -> Iterator[tuple[int, TrainingState]]:
            targets = {epoch for seed in group for epoch in wanted[seed]}
            starts = _find_starts(group, min(targets, default=0), progress)
            if starts is None and parent is not None:
                starts = [replace(parent, n_skipped=0, seconds=0.0)] * len(group)
            stack = Stack(trained_network, cell, group, own, device, dtype, starts, scheme)
            for epoch in sorted(targets):
                _go_to(stack, epoch, max(targets), progress)
                for index, seed in enumerate(group):
                    if epoch in wanted[seed]:
                        yield seed, stack.state_of(index)

        for seed, state in _in_groups(members, size, go_through):
            yield judge(network, trained_network, cell, seed, state, judged)


def default_group_size(cell: Cell, dataset: Dataset, n_seeds: int, device: torch.device) -> int:
    """How many of `n_seeds` are trained as one network where nobody says: 1 on a CPU, for a person's own network, which
    may do what cannot be stacked, and for images in files, which are seen one seed after another; else as many as the
    free memory of the GPU takes by an estimate."""
    if device.type != "cuda" or is_own(cell.architecture) or isinstance(dataset.train, FileExamples):
        return 1
    n_channels, *size = cell.data.shape
    side = cell.recipe.resized_crop
    n_bytes = seed_bytes(
        build_training_network(cell), cell.recipe, (n_channels, side, side) if side else cell.data.shape,
        len(dataset.train),
    )  # fmt: skip
    # Both splits to judge by, and the train images again to train on, which for a moment are there twice.
    n_shared = (3 * len(dataset.train) + len(dataset.test)) * n_channels * math.prod(size) * 4
    return min(n_seeds, fitting_seeds(torch.cuda.mem_get_info(device)[0], n_bytes, n_shared))


def _in_groups(
    seeds: Sequence[int], size: int, go_through: Callable[[Sequence[int]], Iterator[tuple[int, TrainingState]]]
) -> Iterator[tuple[int, TrainingState]]:
    """What `go_through` yields of groups of `size` of `seeds`, each state once. Where a GPU's memory does not take a
    group, it is tried again in halves, and so are those after it: what has been yielded is not lost."""
    waiting, reached = list(seeds), set[tuple[int, int]]()
    while waiting:
        group = waiting[:size]
        try:
            for seed, state in go_through(group):
                if (seed, state.epoch) not in reached:
                    reached.add((seed, state.epoch))
                    yield seed, state
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
            size = (len(group) + 1) // 2
        else:
            del waiting[: len(group)]
            continue
        # Only here is the error gone, and with it the tensors that its frames held.
        torch.cuda.empty_cache()


def _on_device(dataset: Dataset, device: torch.device) -> Dataset:
    """What endpoints are judged by, on a GPU where it is in memory: there it takes as long as a few steps."""
    if device.type == "cpu" or isinstance(dataset.train, FileExamples) or isinstance(dataset.test, FileExamples):
        return dataset
    train, test = (
        replace(split, images=split.images.to(device), labels=split.labels.to(device))
        for split in (dataset.train, dataset.test)
    )
    return replace(dataset, train=train, test=test)


def train_states(
    cell: Cell,
    seed: int,
    epochs: Collection[int],
    dataset: Dataset,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    progress: Progress | None = None,
) -> Iterator[TrainingState]:
    """The states that the training of one seed of `cell` passes through after `epochs` of its schedule, ascending:
    what children are spawned from. Raises ValueError as `train_group` does, where the recipe cannot be trained."""
    device = torch.device(device)
    check_trainable(cell.recipe, device)
    _check_sizes(cell, dataset)
    own = dataset.trained_on(cell.data.train_subset(seed))
    starts = _find_starts([seed], min(epochs), progress)
    stack = Stack(build_training_network(cell), cell, [seed], own, device, dtype, starts)
    for epoch in sorted(epochs):
        _go_to(stack, epoch, max(epochs), progress)
        yield stack.state_of(0)


def _find_starts(seeds: Sequence[int], latest: int, progress: Progress | None) -> list[TrainingState] | None:
    """Where `progress` has left all of `seeds` at one epoch that is no later than `latest`."""
    found = [progress.load(seed, latest) for seed in seeds] if progress is not None else []
    left = [state for state in found if state is not None]
    return left if len(left) == len(seeds) and len({state.epoch for state in left}) == 1 else None


def _go_to(stack: Stack, epoch: int, last: int, progress: Progress | None) -> None:
    """Trains up to `epoch`, and leaves the states of the stack on the way; none at the `last`, after which there is
    nothing to go on with."""
    while stack.epoch < epoch:
        stack.train_epoch()
        if progress is not None and stack.epoch < last and progress.is_due():
            for index, seed in enumerate(stack.seeds):
                progress.save(seed, stack.state_of(index))


def check_trainable(recipe: Recipe, device: torch.device | str) -> None:
    """ValueError, with the way out, where `recipe` cannot be trained on `device`."""
    if recipe.precision == "float16" and torch.device(device).type == "cpu":
        raise ValueError(
            f"recipe {recipe.name} trains in float16, which needs a GPU: on a CPU ask for precision=bfloat16 or "
            "precision=float32"
        )


def _check_sizes(cell: Cell, dataset: Dataset) -> None:
    """ValueError where the network cannot compute images of the sizes that it is trained and evaluated on, where these
    are not what it is built for."""
    side = cell.recipe.resized_crop
    for size in ((side, side) if side else dataset.train.size, dataset.test.size):
        if size == cell.data.shape[1:]:
            continue
        on_meta = build_network(cell).to("meta")
        try:
            with torch.no_grad(), mode(on_meta, training=False):
                on_meta(torch.empty((1, cell.data.shape[0], *size), device="meta"))
        except RuntimeError as error:
            raise ValueError(
                f"{cell.architecture} cannot read images of {size[0]} x {size[1]} pixels, which recipe "
                f"{cell.recipe.name} and {cell.data.name} show it: take another architecture, or another resized_crop"
            ) from error


class Stack:
    """A group of seeds in training, between two epochs."""

    def __init__(
        self,
        network: nn.Module,
        cell: Cell,
        seeds: Sequence[int],
        dataset: Dataset,
        device: torch.device,
        dtype: torch.dtype,
        starts: Sequence[TrainingState] | None = None,
        scheme: Scheme | None = None,
        *,
        recorded: bool | None = None,
    ) -> None:
        """Before the first epoch, or where `starts`, one per seed and all of one epoch, left off. `scheme`: how its
        seeds are computed, and `recorded`: whether its steps are recorded as a CUDA graph, by default as
        `choose_scheme` and `is_recorded` have it."""
        begun = time.perf_counter()
        self.seeds = seeds
        self._network, self._cell, self._dataset, self._device, self._dtype = network, cell, dataset, device, dtype
        recipe = cell.recipe
        self._batch_size = min(recipe.batch_size, len(dataset.train))
        # What the first layer rounds at every step is rounded once: the same values in half the memory. A person's own
        # network may read its images otherwise, and float64 is never rounded.
        rounds = dtype == torch.float32 and not is_own(cell.architecture)
        read_as = LOWER.get(recipe.precision, dtype) if rounds else dtype
        self._images = TrainImages(dataset, recipe, device, read_as)
        self._labels = dataset.train.labels.to(device)
        if starts is None:
            states = [draw_state(cell, stream("initialization", seed)) for seed in seeds]
        else:
            states = [start.weights for start in starts]
        weights: State = {name: torch.stack([state[name] for state in states]).to(device) for name in states[0]}
        weights = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
        self._weights = weights
        scheme = scheme or choose_scheme(network, len(seeds))
        parts, self._forward = bind(network, weights, scheme, own=is_own(cell.architecture))
        self._updates = Updates(recipe, network, parts, stacked=scheme != "apart")
        self._is_recorded = is_recorded(cell, device) if recorded is None else recorded
        self._step: Step = RecordedStep(self._take_step) if self._is_recorded else self._take_step
        self.epoch = 0
        self._last_finite = [0] * len(seeds)
        self._seconds = 0.0
        self._is_lost = False
        self._drawn: tuple[Tensor, Views | None] | None = None
        if starts is not None:
            self._updates.recall([start.memory for start in starts], [start.n_skipped for start in starts])
            self.epoch = starts[0].epoch
            self._last_finite = [start.last_finite for start in starts]
            self._seconds = sum(start.seconds for start in starts)
            self._is_lost = not any(finite_seeds(weights.values()))
        self._seconds += time.perf_counter() - begun

    def train_epoch(self) -> None:
        """One more epoch of the schedule; nothing but its count where no seed is finite any more, for weights that are
        not finite stay so."""
        begun = time.perf_counter()
        if not self._is_lost:
            with _drawing(self._cell, self.seeds, self.epoch):
                self._take_steps()
            finite = finite_seeds(self._weights.values())
            for index in range(len(self.seeds)):
                if finite[index] and self._last_finite[index] == self.epoch:
                    self._last_finite[index] = self.epoch + 1
            self._is_lost = not any(finite)
        self.epoch += 1
        self._seconds += time.perf_counter() - begun

    def _take_steps(self) -> None:
        recipe, batch_size = self._cell.recipe, self._batch_size
        n_examples = len(self._dataset.train)
        n_steps = n_examples // batch_size
        rates = [learning_rate(recipe, self.epoch * n_steps + batch, n_steps) for batch in range(n_steps)]
        orders, views = self._drawn or self._draw(self.epoch)
        self._drawn = None
        on_device = to_device(torch.tensor(rates, dtype=torch.float32), self._device) if self._is_recorded else None
        with mode(self._network, training=True):
            for batch, seen in enumerate(self._images.batches(orders, views, batch_size)):
                labels = self._labels[orders[:, batch * batch_size : (batch + 1) * batch_size]]
                self._step(seen, labels, rates[batch] if on_device is None else on_device[batch])
        if self._device.type == "cuda" and self.epoch + 1 < recipe.epochs:
            self._drawn = self._draw(self.epoch + 1)  # While the device is still at work.

    def _take_step(self, images: Tensor, labels: Tensor, rate: float | Tensor) -> None:
        """One step of every seed, of `images` (n_seeds, batch_size, channels, height, width) and their `labels`."""
        with _autocast(self._cell.recipe, self._device, cached=not self._is_recorded):
            logits = self._forward(images)
        # Summed over seeds, so each seed's gradient is that of its own mean loss.
        losses = F.cross_entropy(
            logits.flatten(0, 1).to(self._dtype),
            labels.flatten(),
            reduction="none",
            label_smoothing=self._cell.recipe.label_smoothing,
        )
        self._updates.backward(losses.reshape(labels.shape).sum(1) / labels.shape[1])
        self._updates.step(rate)

    def _draw(self, epoch: int) -> tuple[Tensor, Views | None]:
        return _draw_epoch(self._cell, self.seeds, epoch, len(self._dataset.train), self._images.size, self._device)

    def state_of(self, index: int) -> TrainingState:
        """A copy of where one seed is."""
        return TrainingState(
            self.epoch,
            {name: tensor[index].detach().cpu().clone() for name, tensor in self._weights.items()},
            self._updates.memory(index),
            self._last_finite[index],
            self._updates.n_skipped[index],
            self._seconds / len(self.seeds),
        )


def _autocast(recipe: Recipe, device: torch.device, *, cached: bool) -> torch.autocast:
    """`cached`: whether a weight that is read twice is rounded once, which a recorded step could not."""
    lower = LOWER.get(recipe.precision, torch.bfloat16)
    return torch.autocast(device.type, lower, enabled=recipe.precision in LOWER, cache_enabled=cached)


def _draw_epoch(
    cell: Cell, seeds: Sequence[int], epoch: int, n_examples: int, size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Views | None]:
    """Each seed's order of examples (n_seeds, n_examples), and where these are augmented, to be seen at `size`, its
    views, one seed's after another's."""
    kin = _kin(cell)
    orders = np.stack([stream("order", seed, epoch, *kin).permutation(n_examples) for seed in seeds])
    views = None
    shown = cell.recipe.augmentation
    if cell.recipe.augments:
        drawn = [draw_views(stream("augmentation", seed, epoch, *kin), n_examples, size, shown) for seed in seeds]
        crops = [each.crops for each in drawn if each.crops is not None]
        views = Views(
            to_device(torch.cat([each.offsets for each in drawn]), device),
            to_device(torch.cat([each.mirrored for each in drawn]), device),
            to_device(torch.cat([each.corners for each in drawn]), device),
            torch.cat(crops) if crops else None,
        )
    return to_device(torch.from_numpy(orders), device), views


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """`drawn` on `device`, which the CPU does not wait for."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn


def _drawing(cell: Cell, seeds: Sequence[int], epoch: int) -> AbstractContextManager[None]:
    """What a person's own network may draw as it is trained through an epoch, such as the units that are dropped out,
    comes from a stream as well; our own draw nothing."""
    if not is_own(cell.architecture):
        return nullcontext()
    return drawing(int(stream("forward", *seeds, epoch, *_kin(cell)).integers(2**63)))


def _kin(cell: Cell) -> tuple[int | str, ...]:
    """What the streams of a child's training are named by besides: they are never those of a training of its own seed,
    which may be its parent. The epoch it was spawned at is not named: along a study's epochs to spawn at, a child sees
    the same order wherever it has parted already."""
    return () if cell.spawn is None else ("spawned", cell.spawn[0])


def _judged_train(dataset: Dataset) -> Examples:
    """The train images that an endpoint is judged by."""
    train = dataset.train
    if not isinstance(train, FileExamples):
        return train
    chosen = subset(dataset.spec.fingerprint, "train", len(train), JUDGED_IMAGES)
    return train if chosen is None else train.chosen(chosen)


def _fold(network: nn.Module, state: State) -> State:
    if not isinstance(network, MLP):
        raise ValueError(f"only an MLP is trained to be folded, got a {type(network).__name__}")
    return fold_batch_norm(network, state)


def judge(
    network: nn.Module, trained_network: nn.Module, cell: Cell, seed: int, reached: TrainingState, dataset: Dataset
) -> Training:
    """Measures a seed at a checkpoint, reached here or elsewhere, on the device that `dataset` is on, and says whether
    it may take part in pairs.

    Next to nothing learned counts against the end of training alone: who asks for an early epoch asks for that.
    """
    state = reached.weights
    if cell.normalization == "batch-fused":
        state = _fold(trained_network, state)
    device = dataset.test.labels.device
    as_trained = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    as_trained = {name: tensor.to(device) for name, tensor in as_trained.items()}
    train, test = (evaluate(network, as_trained, examples) for examples in (_judged_train(dataset), dataset.test))
    status: Status = "trained"
    message = ""
    epochs = cell.recipe.epochs
    is_end = reached.epoch == epochs
    last_finite = reached.last_finite
    if last_finite < reached.epoch or not (math.isfinite(train.loss) and math.isfinite(test.loss)):
        status = "diverged"
        when = "at the end of training" if is_end else f"after epoch {reached.epoch} of {epochs}"
        if last_finite < reached.epoch:
            when = f"in epoch {last_finite + 1} of {epochs}"
        message = f"weights or loss became non-finite {when}"
        train, test = replace(train, loss=math.nan, accuracy=math.nan), replace(test, loss=math.nan, accuracy=math.nan)
    elif is_end and train.loss > UNTRAINED_SHARE * math.log(dataset.spec.n_classes):
        status = "untrained"
        message = f"train loss {train.loss:.3f} is that of guessing among {dataset.spec.n_classes} classes"
    return Training(
        seed, None if is_end else reached.epoch, state, status, message, train, test, reached.seconds, reached.n_skipped
    )
