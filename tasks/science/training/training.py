"""Training of the endpoints of a cell, through all checkpoints of a seed in one run.

On a CPU seeds are trained one after another, so that a seed's weights are the same to the bit alone and in any group.
On a GPU, where one small network leaves the device idle, they are trained in groups (`seed_group`).

Between two epochs the whole state of a training is a `TrainingState`: streams of random numbers are named by seed and
epoch, so no generator has a state of its own, and a training that goes on from there passes through the same weights,
to the bit on a CPU. Children are spawned from such a state of their parent: then their own seed names the order and the
augmentation of what is left.

Images that lie in files are decoded on the way. Every draw is made in this process, so the weights are the same to the
bit with any number of decoding processes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from tasks.science.data.examples import Dataset
from tasks.science.evaluation.functional import mode
from tasks.science.networks import build_network, build_training_network
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import TrainSubset
from tasks.science.specs.recipe import Recipe
from tasks.science.training.judging import Training, judge_endpoint, on_device
from tasks.science.training.memory import default_group_size
from tasks.science.training.progress import Progress, TrainingState
from tasks.science.training.seed_group import SeedGroup
from tasks.science.training.stacking import Scheme, check_scheme


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
    """Train `seeds` of `cell` and yield each checkpoint, judged, as it is reached; weights are on the CPU.

    Seeds come in their order; of a data set in halves, those of the first half before those of the second.

    `checkpoints` are, by seed, the epochs of the schedule at which weights are wanted, by default the cell's own.
    `parent` is the state that a cell with `spawn` starts from. `progress` keeps states on the way; a group goes on from
    there where all its seeds were left at the same epoch. `group_size` seeds that share their train images are computed
    together at a time, by default as `default_group_size` says; a group that a GPU's memory does not take is halved.
    `scheme` says how a group is computed, by default as `choose_scheme` says.
    Raises ValueError where the recipe cannot be trained on `device`, where the network cannot read images of the size
    that the recipe shows or the data set is evaluated at, for a checkpoint that training does not pass, and where
    `parent` is not the state at the epoch to spawn at.
    """
    device = torch.device(device)
    _check_start(cell, parent)
    check_trainable(cell.recipe, device)
    wanted = {seed: sorted({cell.last_epoch} if checkpoints is None else set(checkpoints[seed])) for seed in seeds}
    _check_passed(cell, {epoch for epochs in wanted.values() for epoch in epochs})
    network, trained_network = build_network(cell), build_training_network(cell)
    _check_sizes(cell, dataset)
    if scheme is not None:
        check_scheme(scheme, trained_network, cell.recipe, device)
    by_subset: dict[TrainSubset, list[int]] = {}
    for seed in seeds:
        by_subset.setdefault(cell.data.train_subset(seed), []).append(seed)
    for train_subset, members in sorted(by_subset.items()):
        own = dataset.trained_on(train_subset)
        judged = on_device(own, device)
        size = group_size or default_group_size(cell, own, len(members), device)

        def go_through(group: Sequence[int], own: Dataset = own) -> Iterator[tuple[int, TrainingState]]:
            targets = {epoch for seed in group for epoch in wanted[seed]}
            starts = _find_starts(group, min(targets, default=0), progress)
            if starts is None and parent is not None:
                starts = [replace(parent, n_skipped=0, seconds=0.0)] * len(group)
            seed_group = SeedGroup(trained_network, cell, group, own, device, dtype, starts, scheme)
            for epoch in sorted(targets):
                _go_to(seed_group, epoch, max(targets), progress)
                for index, seed in enumerate(group):
                    if epoch in wanted[seed]:
                        yield seed, seed_group.state_of(index)

        for seed, state in _in_groups(members, size, go_through):
            yield judge_endpoint(network, cell, seed, state, judged)


def _check_start(cell: Cell, parent: TrainingState | None) -> None:
    """Raise ValueError for a cell that was imported, and where `parent` is not the state that it starts from."""
    if cell.origin is not None:
        raise ValueError(f"the endpoints of {cell.label} were imported as {cell.origin.name}: none is trained here")
    if (None if parent is None else parent.epoch) != cell.spawn_epoch:
        raise ValueError(
            f"{cell.label} starts from {'no parent' if cell.spawn is None else 'its parent at the epoch to spawn at'}, "
            f"got {'no state' if parent is None else f'a state after {parent.epoch} epochs'}"
        )


def _check_passed(cell: Cell, epochs: Collection[int]) -> None:
    """Raise ValueError for an epoch that the training of `cell` does not pass."""
    first_epoch = cell.spawn_epoch or 0
    for epoch in epochs:
        if not first_epoch <= epoch <= cell.recipe.epochs:
            raise ValueError(
                f"training of {cell.label} passes epochs {first_epoch} to {cell.recipe.epochs}, not epoch {epoch}"
            )


def _in_groups(
    seeds: Sequence[int], size: int, go_through: Callable[[Sequence[int]], Iterator[tuple[int, TrainingState]]]
) -> Iterator[tuple[int, TrainingState]]:
    """Yield what `go_through` yields of groups of `size` of `seeds`, each state once.

    Where a GPU's memory does not take a group, it and those after it are tried again in halves; what has been yielded
    is not lost.
    """
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
    """Yield the states of the training of one seed of `cell` after `epochs` of its schedule, ascending.

    Children are spawned from them. Raises ValueError as `train_group`, where the recipe cannot be trained.
    """
    device = torch.device(device)
    check_trainable(cell.recipe, device)
    _check_sizes(cell, dataset)
    own = dataset.trained_on(cell.data.train_subset(seed))
    starts = _find_starts([seed], min(epochs), progress)
    group = SeedGroup(build_training_network(cell), cell, [seed], own, device, dtype, starts)
    for epoch in sorted(epochs):
        _go_to(group, epoch, max(epochs), progress)
        yield group.state_of(0)


def _find_starts(seeds: Sequence[int], latest: int, progress: Progress | None) -> list[TrainingState] | None:
    """Return the states in which `progress` has left all of `seeds` at one epoch no later than `latest`, if any."""
    found = [progress.load(seed, latest) for seed in seeds] if progress is not None else []
    left = [state for state in found if state is not None]
    return left if len(left) == len(seeds) and len({state.epoch for state in left}) == 1 else None


def _go_to(group: SeedGroup, epoch: int, last: int, progress: Progress | None) -> None:
    """Train up to `epoch`, and leave states on the way; none at the `last`, after which nothing goes on."""
    while group.epoch < epoch:
        group.train_epoch()
        if progress is not None and group.epoch < last and progress.is_due():
            for index, seed in enumerate(group.seeds):
                progress.save(seed, group.state_of(index))


def check_trainable(recipe: Recipe, device: torch.device | str) -> None:
    """Raise ValueError, with the way out, where `recipe` cannot be trained on `device`."""
    if recipe.precision == "float16" and torch.device(device).type == "cpu":
        raise ValueError(
            f"recipe {recipe.name} trains in float16, which needs a GPU: on a CPU ask for precision=bfloat16 or "
            "precision=float32"
        )


def _check_sizes(cell: Cell, dataset: Dataset) -> None:
    """Raise ValueError where the network cannot compute images of the sizes that it is trained and evaluated on."""
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
