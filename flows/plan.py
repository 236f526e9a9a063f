"""The missing part of a request, and an estimate of the time that it takes."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from infra.settings import Device
from infra.storage import Store
from infra.text import one_line
from tasks.data.datasets import UNKNOWN_FINGERPRINT
from tasks.science.networks import build_network
from tasks.science.networks.normalization import LayerNorm2d
from tasks.science.specs.cell import Cell, NetworkSpec
from tasks.science.specs.checks import is_own
from tasks.science.specs.data import DataSpec
from tasks.science.specs.matchers import parse_matcher
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.pairing import Pairing
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.request import Request
from tasks.science.training.training import check_trainable
from tasks.stored.expansion import Expansion, group_checkpoints, group_parents

TASK_SECONDS = 20.0
"""The seconds that one task should carry: long beside the cost of a task, short beside what a killed one loses."""

LEAST_TASK_SECONDS = 2.0
"""The seconds that one task should carry at least: ten times the cost of a task."""

TASKS_PER_WORKER = 4
"""The tasks of a stage for each worker that keep workers from being idle for long at its end."""

CPU_FLOPS = 4e10
"""The rate of one core that tasks are cut by; a plan measures it instead."""

_STEP_SECONDS = 1e-4
"""The cost of one layer per training step beside its arithmetic."""


def trainings_to_go(expansion: Expansion) -> list[Cell]:
    """Return a cell for every training still to be run, parents included, at the last epoch asked for."""
    groups = group_checkpoints(expansion.request.trained_cells).values()
    to_go = [*expansion.missing_parents()]
    to_go += [missing for cells in groups for missing in expansion.missing_checkpoints(cells).values()]
    return [_latest(endpoint.cell for endpoint in endpoints) for endpoints in to_go]


def refuse_training(store: Store, request: Request, device: Device) -> str | None:
    """Return the reason why a missing endpoint cannot be trained on `device`; None where all can be."""
    expansion = Expansion.of(request, store)
    try:
        for cell in request.trained_cells:
            if expansion.missing_endpoints(cell):
                check_trainable(cell.recipe, device)
    except ValueError as error:
        return str(error)
    return None


def _latest(cells: Iterable[Cell]) -> Cell:
    return max(cells, key=lambda cell: cell.last_epoch)


def training_flops(cell: Cell) -> float:
    """Return the arithmetic of one training up to the cell's epoch, of a child from where it is spawned.

    That is a forward pass per example and epoch, at the size that the recipe shows, and twice that backward. Imported
    endpoints take none.
    """
    if cell.origin is not None:
        return 0.0
    channels, height, width = cell.data.shape
    side = cell.recipe.resized_crop
    shape = (channels, side or height, side or width)
    return 3.0 * _count_forward(cell.network, shape, cell.data.n_classes) * cell.data.n_train_each * _n_epochs(cell)


def _n_epochs(cell: Cell) -> int:
    return cell.last_epoch - (cell.spawn_epoch or 0)


def forward_flops(cell: Cell) -> int:
    """Return the additions and multiplications of one example's forward pass, counted on the network's shapes."""
    data = cell.data
    return _count_forward(cell.network, data.shape, data.n_classes)


@functools.lru_cache(maxsize=1024)
def _count_forward(network: NetworkSpec, shape: tuple[int, ...], n_classes: int) -> int:
    data = DataSpec("", "", 1, 1, n_classes, shape)
    cell = Cell(data, recipe=Recipe("", 1, 1, 1.0, 0.0), **asdict(network))
    counter = FlopCounterMode(display=False)
    module = build_network(cell)
    if not is_own(cell.architecture):
        _leave_out_uncounted(module)
    with counter, torch.no_grad():
        # A person's own has weights, and is run.
        device = next((tensor.device for tensor in module.parameters()), "cpu")
        module(torch.zeros((1, *shape), device=device))
    return int(counter.get_total_flops())


def _leave_out_uncounted(network: nn.Module) -> None:
    """Replace norms and ReLUs by identities: they count for nothing and take most of the time on shapes."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | LayerNorm2d | nn.ReLU):
                setattr(module, name, nn.Identity())


def training_seconds(cell: Cell, flops_per_second: float = CPU_FLOPS) -> float:
    """Return an estimate of the seconds of one training."""
    steps = _n_epochs(cell) * max(1, cell.data.n_train_each // cell.recipe.batch_size)
    return training_flops(cell) / flops_per_second + steps * (cell.depth + 1) * _STEP_SECONDS


def path_seconds(cell: Cell, measurement: Measurement, flops_per_second: float = CPU_FLOPS) -> float:
    """Return an estimate of the seconds of one path."""
    return path_flops(cell, measurement) / flops_per_second


def path_flops(cell: Cell, measurement: Measurement) -> float:
    """Return the arithmetic of one path.

    That is, at each alpha, a forward pass over both splits, two where it is flip-averaged, and at most one over the
    statistics samples.
    """
    n_evaluated = (1 + measurement.flip_averaged) * sum(
        _at_most(measurement.evaluation, n) for n in (cell.data.n_train, cell.data.n_test)
    )
    n_examples = n_evaluated + _at_most(measurement.statistics, cell.data.n_train)
    return float(forward_flops(cell)) * n_examples * measurement.alphas


def alignment_flops(cell: Cell, measurement: Measurement, n_pairs: int) -> float:
    """Return an estimate of the arithmetic of aligning `n_pairs` by activations.

    That is a forward pass of each endpoint, of which there are at most one more than pairs, and for each pair the
    products of its units, a third of two passes for an MLP.
    """
    n_seen = _at_most(measurement.statistics, cell.data.n_train)
    return forward_flops(cell) * n_seen * (n_pairs + 1 + 0.7 * n_pairs) if n_pairs else 0.0


def _at_most(n_images: int | None, n_examples: int) -> int:
    return n_examples if n_images is None else min(n_images, n_examples)


def task_seconds(stage_seconds: float, n_workers: int) -> float:
    """Return the seconds that one task should carry of a stage that takes `stage_seconds` of one core in all."""
    return min(TASK_SECONDS, max(LEAST_TASK_SECONDS, stage_seconds / (TASKS_PER_WORKER * n_workers)))


def group_size(seconds_each: float, seconds: float = TASK_SECONDS) -> int:
    """Return the number of things that one task should carry to take `seconds`."""
    # Initial weights take no training at all.
    return max(1, round(seconds / max(seconds_each, 0.001)))


@dataclass(frozen=True)
class Plan:
    """The counts of a request, its missing part, and an estimate of the hours that this takes.

    `training_flops` and `measuring_flops` are the arithmetic of the missing part; `rate` is that of one core per
    second.
    """

    n_endpoints: int
    n_pairs: int
    n_missing_endpoints: int
    n_missing_pairs: int
    training_flops: float
    measuring_flops: float
    rate: float
    hours: float
    without_data: tuple[str, ...]
    left_out: tuple[str, ...]

    def describe(self) -> str:
        """Return the plan as lines of text."""
        lines = [
            f"{self.n_endpoints} endpoints, {self.n_pairs} pairs, {self.hours:.2g} hours to go",
            f"to do: {self.n_missing_endpoints} endpoints to train, {self.n_missing_pairs} pairs to measure",
            f"arithmetic: {self.training_flops:.2g} operations to train, {self.measuring_flops:.2g} to measure; "
            f"one core here does {self.rate:.2g} a second",
        ]
        lines += [f"{name} was not found, so all of it counts as missing" for name in self.without_data]
        lines += self.left_out
        return "\n".join(map(one_line, lines))


def make_plan(store: Store, request: Request, n_workers: int) -> Plan:
    """Count the missing part of a request, and estimate its hours from a rate measured on one core here.

    Needs no data: all of a data set without its files counts as missing.
    """
    rate, expansion = measure_flops_per_second(), Expansion.of(request, store)
    n_missing = {cell: _count_missing_pairs(expansion, cell) for cell in request.cells}
    to_go = trainings_to_go(expansion)
    training = sum(training_flops(cell) for cell in to_go)
    measuring = sum(measuring_flops(request, cell, n_pairs) for cell, n_pairs in n_missing.items())
    seconds = sum(training_seconds(cell, rate) for cell in to_go) + measuring / rate
    return Plan(
        n_endpoints=len(request.trained_cells) * len(request.seeds),
        n_pairs=request.n_pairs,
        n_missing_endpoints=sum(len(expansion.missing_endpoints(cell)) for cell in request.trained_cells),
        n_missing_pairs=sum(n_missing.values()),
        training_flops=training,
        measuring_flops=measuring,
        rate=rate,
        hours=seconds / 3600 / n_workers,
        left_out=tuple(request.left_out()),
        without_data=tuple(
            sorted({cell.data.name for cell in request.cells if cell.data.fingerprint == UNKNOWN_FINGERPRINT})
        ),
    )


def measuring_flops(request: Request, cell: Cell, n_pairs: int) -> float:
    """Return the arithmetic of `n_pairs` of a cell under every matcher, correction and measurement."""
    n_paths = n_pairs * len(request.matchers) * len(request.corrections_of(cell))
    paths = sum(n_paths * path_flops(cell, measurement) for measurement in request.measurements)
    by_samples = {measurement.samples: measurement for measurement in request.measurements}
    aligned = any(parse_matcher(matcher).needs_data for matcher in request.matchers)
    return paths + sum(alignment_flops(cell, m, n_pairs if aligned else 0) for m in by_samples.values())


def measuring_seconds(request: Request) -> float:
    """Return an estimate of the seconds of one core that all paths of a request take."""
    flops = sum(measuring_flops(request, cell, len(cell.data.pairs(request.seeds))) for cell in request.cells)
    return flops / CPU_FLOPS


def request_flops(request: Request) -> float:
    """Return the arithmetic of a whole request."""
    trained = [_latest(cells) for cells in group_checkpoints(request.trained_cells).values()]
    training = len(request.seeds) * sum(training_flops(cell) for cell in trained)
    parents = group_parents(cell.parent for cell in request.cells if cell.parent is not None)
    training += sum(training_flops(_latest(parent.cell for parent in of_one)) for of_one in parents)
    return training + sum(measuring_flops(request, cell, len(cell.data.pairs(request.seeds))) for cell in request.cells)


def _count_missing_pairs(expansion: Expansion, cell: Cell) -> int:
    """Return the number of a cell's pairs that are still to be made, controls apart.

    A pair with an endpoint that did not train is not made, so it is not missing either.
    """
    if cell.data.fingerprint == UNKNOWN_FINGERPRINT:
        return cell.data.n_pairs(expansion.request.seeds)
    records = expansion.records(cell).items()
    usable = [
        endpoint.seed
        for endpoint, record in records
        if (cell.origin is None if record is None else record["status"] == "trained")
    ]
    matches = [match for match in expansion.matches(cell) if not match.pairing.control]
    incomplete = [match.pairing for match in expansion.view.missing(matches)]
    incomplete += [measured.path.pairing for measured in expansion.view.missing(expansion.paths(cell, matches))]
    n_done = len({_seeds_of(match.pairing) for match in matches} - {_seeds_of(pairing) for pairing in incomplete})
    return cell.data.n_pairs(usable) - n_done


def _seeds_of(pairing: Pairing) -> tuple[int, int]:
    return pairing.a.seed, pairing.b.seed


def measure_flops_per_second() -> float:
    """Return the rate of float32 products of 512 x 512 matrices on one thread, over about a tenth of a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = torch.ones(512, 512), torch.ones(512, 512)
        torch.matmul(a, b)  # The first product loads the library.
        n_products, begun = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begun) < 0.1:
            torch.matmul(a, b)
            n_products += 1
        return n_products * 2.0 * 512**3 / elapsed
    finally:
        torch.set_num_threads(threads)
