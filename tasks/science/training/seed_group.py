"""A group of seeds in training: weights, optimizer and streams of random numbers, one epoch after another.

Every seed has its own initial weights, order of examples and augmentation, each from a stream named by the seed; the
seeds of a group share nothing but the data. On a GPU the seeds of a group take every step together (`stacking`), and
within an epoch nothing waits for the GPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.science.data.augmentation import TrainImages, Views, draw_views
from tasks.science.data.examples import Dataset
from tasks.science.evaluation.functional import mode
from tasks.science.networks import draw_state, find_architecture
from tasks.science.networks.user_defined import drawing
from tasks.science.specs.cell import Cell
from tasks.science.specs.identity import stream
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State
from tasks.science.training.optimization import Updates, finite_seeds
from tasks.science.training.progress import TrainingState
from tasks.science.training.recording import RecordedStep, Step, is_recorded
from tasks.science.training.schedules import learning_rate
from tasks.science.training.stacking import Scheme, bind, choose_scheme

LOWER = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""The types that forward and backward passes compute in where that is not the type of the weights."""


class SeedGroup:
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
        """Start before the first epoch, or from `starts`, one state per seed and all of one epoch.

        `scheme` says how the seeds are computed, and `recorded` whether their steps are recorded as a CUDA graph; by
        default as `choose_scheme` and `is_recorded` say.
        """
        begun = time.perf_counter()
        self.seeds = seeds
        self._network, self._cell, self._dataset, self._device, self._dtype = network, cell, dataset, device, dtype
        architecture, recipe = find_architecture(cell.architecture), cell.recipe
        self._batch_size = min(recipe.batch_size, len(dataset.train))
        # What the first layer rounds at every step is rounded once: the same values in half the memory. Float64 is
        # never rounded.
        rounds = dtype == torch.float32 and architecture.rounds_images
        read_as = LOWER.get(recipe.precision, dtype) if rounds else dtype
        self._images = TrainImages(dataset, recipe, device, read_as)
        self._labels = dataset.train.labels.to(device)
        self._weights = self._stack_weights(starts)
        scheme = scheme or choose_scheme(network, len(seeds))
        parts, self._forward = bind(network, self._weights, scheme, held=architecture.holds_weights)
        self._updates = Updates(recipe, network, parts, stacked=scheme != "apart")
        self._is_recorded = is_recorded(cell, device) if recorded is None else recorded
        self._step: Step = RecordedStep(self._take_step) if self._is_recorded else self._take_step
        self.epoch = 0
        self._last_finite = [0] * len(seeds)
        self._seconds = 0.0
        self._is_lost = False
        self._drawn: tuple[Tensor, Views | None] | None = None
        if starts is not None:
            self._go_on(starts)
        self._seconds += time.perf_counter() - begun

    def _stack_weights(self, starts: Sequence[TrainingState] | None) -> State:
        """Return the weights of all seeds with a leading dimension of seeds: drawn, or those of `starts`."""
        if starts is None:
            states = [draw_state(self._cell, stream("initialization", seed)) for seed in self.seeds]
        else:
            states = [start.weights for start in starts]
        stacks = {name: torch.stack([state[name] for state in states]).to(self._device) for name in states[0]}
        return {name: stack.to(self._dtype) if stack.is_floating_point() else stack for name, stack in stacks.items()}

    def _go_on(self, starts: Sequence[TrainingState]) -> None:
        self._updates.recall([start.memory for start in starts], [start.n_skipped for start in starts])
        self.epoch = starts[0].epoch
        self._last_finite = [start.last_finite for start in starts]
        self._seconds = sum(start.seconds for start in starts)
        self._is_lost = not any(finite_seeds(self._weights.values()))

    def train_epoch(self) -> None:
        """Train for one more epoch of the schedule.

        Where no seed is finite any more only the epoch is counted: weights that are not finite stay so.
        """
        begun = time.perf_counter()
        if not self._is_lost:
            with _forward_draws(self._cell, self.seeds, self.epoch):
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
        """Take one step of every seed, on `images` (n_seeds, batch_size, channels, height, width) and `labels`."""
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
        """Return a copy of the state of one seed."""
        return TrainingState(
            self.epoch,
            {name: tensor[index].detach().cpu().clone() for name, tensor in self._weights.items()},
            self._updates.memory(index),
            self._last_finite[index],
            self._updates.n_skipped[index],
            self._seconds / len(self.seeds),
        )


def _autocast(recipe: Recipe, device: torch.device, *, cached: bool) -> torch.autocast:
    """Return the precision of a recipe's passes; `cached`: a weight read twice is rounded once, unless recorded."""
    lower = LOWER.get(recipe.precision, torch.bfloat16)
    return torch.autocast(device.type, lower, enabled=recipe.precision in LOWER, cache_enabled=cached)


def _draw_epoch(
    cell: Cell, seeds: Sequence[int], epoch: int, n_examples: int, size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Views | None]:
    """Return each seed's order of examples (n_seeds, n_examples), and the views of augmented images, seed after seed.

    Images are seen at `size`.
    """
    kin = _stream_suffix(cell)
    orders = np.stack([stream("order", seed, epoch, *kin).permutation(n_examples) for seed in seeds])
    views = None
    if cell.recipe.augments:
        drawn = [
            draw_views(stream("augmentation", seed, epoch, *kin), n_examples, size, cell.recipe.augmentation)
            for seed in seeds
        ]
        crops = [each.crops for each in drawn if each.crops is not None]
        views = Views(
            to_device(torch.cat([each.offsets for each in drawn]), device),
            to_device(torch.cat([each.mirrored for each in drawn]), device),
            to_device(torch.cat([each.corners for each in drawn]), device),
            torch.cat(crops) if crops else None,
        )
    return to_device(torch.from_numpy(orders), device), views


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Return `drawn` on `device`, without the CPU waiting for it."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn


def _forward_draws(cell: Cell, seeds: Sequence[int], epoch: int) -> AbstractContextManager[None]:
    """Draw what forward passes draw in an epoch, such as the units that are dropped out, from a stream of its own."""
    if not find_architecture(cell.architecture).draws:
        return nullcontext()
    return drawing(int(stream("forward", *seeds, epoch, *_stream_suffix(cell)).integers(2**63)))


def _stream_suffix(cell: Cell) -> tuple[int | str, ...]:
    """Return what a child's streams are named by besides: they never are those of a training of its own seed.

    That training may be its parent. The epoch it was spawned at is not named: along a study's epochs to spawn at, a
    child sees the same order wherever it has parted already.
    """
    return () if cell.spawn is None else ("spawned", cell.spawn[0])
