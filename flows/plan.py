"""What a request still needs, and about how long that takes."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from infra.settings import Device
from infra.storage import Store
from infra.text import one_line
from tasks.data.datasets import UNKNOWN_FINGERPRINT
from tasks.science.networks import build_network
from tasks.science.networks.normalization import LayerNorm2d
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.data import DataSpec
from tasks.science.specs.matchers import parse_matcher
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.request import Request
from tasks.science.training.training import check_trainable
from tasks.stored.artifacts import has_match, has_path, joint_members, missing_seeds, read_endpoint, trained_members
from tasks.stored.trainings import has_arrived

TASK_SECONDS = 20.0
"""About what one task should carry: long beside what a task costs, short beside what a killed one loses."""

LEAST_TASK_SECONDS = 2.0
"""What one task should carry at least: ten times what it costs."""

TASKS_PER_WORKER = 4
"""So many tasks of a stage for each worker, or more, leave workers idle at its end for a small part of it alone."""

CPU_FLOPS = 4e10
"""What one core is taken to do when tasks are cut; a plan for a person measures it instead."""

_STEP_SECONDS = 1e-4
"""What one layer costs per training step beside its arithmetic."""


def group_checkpoints(cells: Iterable[Cell]) -> dict[Cell, list[Cell]]:
    """Cells that one training per seed passes through, by the cell at its end."""
    groups: dict[Cell, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.at(None), []).append(cell)
    return groups


def parents_of(cells: Iterable[Cell]) -> list[list[Endpoint]]:
    """What `cells` are spawned from: the checkpoints of each training together."""
    trainings: dict[Endpoint, dict[Endpoint, None]] = {}
    for cell in cells:
        if (parent := cell.parent) is not None:
            trainings.setdefault(Endpoint(parent.cell.at(None), parent.seed), {})[parent] = None
    return [list(parents) for parents in trainings.values()]


def missing_parents(store: Store, request: Request) -> list[list[Endpoint]]:
    """As `parents_of`, those that some missing endpoint needs and the store has no state of."""
    waiting = [cell for cell in request.cells if cell.spawn is not None and missing_seeds(store, cell, request.seeds)]
    lacking = [cell for cell in waiting if cell.parent is not None and not has_arrived(store, cell.parent)]
    return parents_of(lacking)


def trainings_to_go(store: Store, request: Request) -> list[Cell]:
    """A cell for every training that is still to be run, of parents too: at the last epoch that it is wanted at."""
    to_go = [_latest(parent.cell for parent in parents) for parents in missing_parents(store, request)]
    for cells in group_checkpoints(request.trained_cells).values():
        missing: dict[int, list[Cell]] = {}
        for cell in cells:
            for seed in missing_seeds(store, cell, request.seeds):
                missing.setdefault(seed, []).append(cell)
        to_go += [_latest(of_seed) for of_seed in missing.values()]
    return to_go


def refuse_training(store: Store, request: Request, device: Device) -> str | None:
    """Why an endpoint that is missing cannot be trained on `device`, in a sentence; None where all can."""
    try:
        for cell in request.trained_cells:
            if missing_seeds(store, cell, request.seeds):
                check_trainable(cell.recipe, device)
    except ValueError as error:
        return str(error)
    return None


def _latest(cells: Iterable[Cell]) -> Cell:
    return max(cells, key=lambda cell: cell.last_epoch)


def training_flops(cell: Cell) -> float:
    """Arithmetic of one training up to the cell's epoch, of a child from where it is spawned: a forward pass per
    example and epoch, at the size that the recipe shows, and twice that backward. What was imported takes none."""
    if cell.origin is not None:
        return 0.0
    channels, height, width = cell.data.shape
    side = cell.recipe.resized_crop
    shape = (channels, side or height, side or width)
    return (
        3.0
        * _count_forward(tuple(cell.network.items()), shape, cell.data.n_classes)
        * cell.data.n_train_each
        * _n_epochs(cell)
    )


def _n_epochs(cell: Cell) -> int:
    return cell.last_epoch - (cell.spawn_epoch or 0)


def forward_flops(cell: Cell) -> int:
    """Additions and multiplications of one example's forward pass, counted on the network's shapes."""
    data = cell.data
    return _count_forward(tuple(cell.network.items()), data.shape, data.n_classes)


@functools.lru_cache(maxsize=1024)
def _count_forward(network: tuple[tuple[str, Any], ...], shape: tuple[int, ...], n_classes: int) -> int:
    data = DataSpec("", "", 1, 1, n_classes, shape)
    cell = Cell(data, recipe=Recipe("", 1, 1, 1.0, 0.0), **dict(network))
    counter = FlopCounterMode(display=False)
    module = build_network(cell)
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    if device.type == "meta":
        _leave_out_uncounted(module)
    with counter, torch.no_grad():
        module(torch.zeros((1, *shape), device=device))
    return int(counter.get_total_flops())


def _leave_out_uncounted(network: nn.Module) -> None:
    """Puts identities in the place of norms and ReLUs: they count for nothing, and take most of the time on shapes."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | LayerNorm2d | nn.ReLU):
                setattr(module, name, nn.Identity())


def training_seconds(cell: Cell, flops_per_second: float = CPU_FLOPS) -> float:
    steps = _n_epochs(cell) * max(1, cell.data.n_train_each // cell.recipe.batch_size)
    return training_flops(cell) / flops_per_second + steps * (cell.depth + 1) * _STEP_SECONDS


def path_seconds(cell: Cell, measurement: Measurement, flops_per_second: float = CPU_FLOPS) -> float:
    return path_flops(cell, measurement) / flops_per_second


def path_flops(cell: Cell, measurement: Measurement) -> float:
    """One path: at each alpha a forward pass over both splits, two where it is flip-averaged, and at most one over the
    statistics samples."""
    n_evaluated = (1 + measurement.flip_averaged) * sum(
        _at_most(measurement.evaluation, n) for n in (cell.data.n_train, cell.data.n_test)
    )
    n_examples = n_evaluated + _at_most(measurement.statistics, cell.data.n_train)
    return float(forward_flops(cell)) * n_examples * measurement.alphas


def alignment_flops(cell: Cell, measurement: Measurement, n_pairs: int) -> float:
    """About what aligning `n_pairs` by activations takes: a forward pass of each endpoint, of which there are at most
    as many as pairs and one, and for each pair the products of its units, a third of two passes for an MLP."""
    n_seen = _at_most(measurement.statistics, cell.data.n_train)
    return forward_flops(cell) * n_seen * (n_pairs + 1 + 0.7 * n_pairs) if n_pairs else 0.0


def _at_most(n_images: int | None, n_examples: int) -> int:
    return n_examples if n_images is None else min(n_images, n_examples)


def task_seconds(stage_seconds: float, n_workers: int) -> float:
    """About what one task should carry of a stage that takes `stage_seconds` of one core in all."""
    return min(TASK_SECONDS, max(LEAST_TASK_SECONDS, stage_seconds / (TASKS_PER_WORKER * n_workers)))


def group_size(seconds_each: float, seconds: float = TASK_SECONDS) -> int:
    """How many of a thing one task should carry that is to take `seconds`."""
    # Initial weights take no training at all.
    return max(1, round(seconds / max(seconds_each, 0.001)))


@dataclass(frozen=True)
class Plan:
    """`n_endpoints` and `n_pairs` are what the request asks for; `n_missing_*` what has to be made for it, and
    `training_flops` and `measuring_flops` the arithmetic of that; `rate` is what one core here does per second."""

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
    """Counts what is missing, and estimates its hours from the rate of matrix products measured on one core here.

    Needs no data: what a data set without its files would need counts as missing.
    """
    rate = measure_flops_per_second()
    n_missing_endpoints = n_missing_pairs = 0
    training = measuring = seconds = 0.0
    for cell in request.cells:
        n_endpoints, n_of_cell = _count_missing(store, request, cell)
        n_missing_endpoints += n_endpoints
        n_missing_pairs += n_of_cell
        measuring += measuring_flops(request, cell, n_of_cell)
    for cell in set(request.trained_cells) - set(request.cells):
        n_missing_endpoints += len(missing_seeds(store, cell, request.seeds))
    for cell in trainings_to_go(store, request):
        training += training_flops(cell)
        seconds += training_seconds(cell, rate)
    seconds += measuring / rate
    return Plan(
        n_endpoints=len(request.trained_cells) * len(request.seeds),
        n_pairs=request.n_pairs,
        n_missing_endpoints=n_missing_endpoints,
        n_missing_pairs=n_missing_pairs,
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
    """Of `n_pairs` of a cell under every matcher, correction and measurement of `request`."""
    n_paths = n_pairs * len(request.matchers) * len(request.corrections_of(cell))
    paths = sum(n_paths * path_flops(cell, measurement) for measurement in request.measurements)
    by_samples = {measurement.samples: measurement for measurement in request.measurements}
    aligned = any(parse_matcher(matcher).needs_data for matcher in request.matchers)
    return paths + sum(alignment_flops(cell, m, n_pairs if aligned else 0) for m in by_samples.values())


def measuring_seconds(request: Request) -> float:
    """What the paths of a whole request take one core, were none of them there yet."""
    flops = sum(measuring_flops(request, cell, len(cell.data.pairs(request.seeds))) for cell in request.cells)
    return flops / CPU_FLOPS


def request_flops(request: Request) -> float:
    """The arithmetic of a whole request, were nothing of it there yet."""
    trained = [_latest(cells) for cells in group_checkpoints(request.trained_cells).values()]
    training = len(request.seeds) * sum(training_flops(cell) for cell in trained)
    training += sum(training_flops(_latest(p.cell for p in parents)) for parents in parents_of(request.cells))
    return training + sum(measuring_flops(request, cell, len(cell.data.pairs(request.seeds))) for cell in request.cells)


def _count_missing(store: Store, request: Request, cell: Cell) -> tuple[int, int]:
    """How many endpoints of `cell`, and how many of its pairs, are still to be made.

    A pair with an endpoint that did not train is not made, so it is not missing either.
    """
    if cell.data.fingerprint == UNKNOWN_FINGERPRINT:
        return len(request.seeds), len(cell.data.pairs(request.seeds))
    records = {endpoint.seed: read_endpoint(store, endpoint) for endpoint in request.endpoints(cell)}
    if cell.origin is not None:
        records = {seed: record for seed, record in records.items() if record is not None}
    usable = [seed for seed, record in records.items() if record is None or record["status"] == "trained"]
    pairings = [
        pairing for pairing in request.pairings(cell, trained_members(store, request, cell)) if not pairing.control
    ]
    unmatched = [pairing for pairing in pairings if not has_match(store, pairing)]
    paths = request.paths(pairings, joint_members(store, request, cell))
    unmeasured = [path.pairing for path in paths if not has_path(store, path)]
    incomplete = {(pairing.a.seed, pairing.b.seed) for pairing in unmatched + unmeasured}
    n_done = len({(pairing.a.seed, pairing.b.seed) for pairing in pairings}) - len(incomplete)
    return sum(record is None for record in records.values()), len(cell.data.pairs(usable)) - n_done


def measure_flops_per_second() -> float:
    """float32 matrix products of 512 x 512, one thread, over about a tenth of a second."""
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
