"""What a request still needs, and about how long that takes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from infra.storage import Store
from tasks.artifacts import as_member, has_match, has_path, read_endpoint
from tasks.datasets import UNKNOWN_FINGERPRINT
from tasks.science.networks import build_network
from tasks.science.specs import Cell, Endpoint, Member, Request

TASK_SECONDS = 20.0
"""About what one task should carry: long beside what a task costs, short beside what a killed one loses."""

CPU_FLOPS = 4e10
"""What one core is taken to do when tasks are cut; a plan for a person measures it instead."""

_STEP_SECONDS = 1e-4
"""What one layer costs per training step beside its arithmetic."""


def training_flops(cell: Cell) -> float:
    """Arithmetic of one training: forward and twice that backward, two operations per weight and example."""
    return 6.0 * _n_parameters(cell) * cell.data.n_train * cell.recipe.epochs


def training_seconds(cell: Cell, flops_per_second: float = CPU_FLOPS) -> float:
    steps = cell.recipe.epochs * max(1, cell.data.n_train // cell.recipe.batch_size)
    return training_flops(cell) / flops_per_second + steps * (cell.depth + 1) * _STEP_SECONDS


def path_seconds(cell: Cell, n_alphas: int, flops_per_second: float = CPU_FLOPS) -> float:
    """One path: at each alpha a forward pass over both splits, and at most one over the statistics samples."""
    n_examples = 2 * cell.data.n_train + cell.data.n_test
    return 2.0 * _n_parameters(cell) * n_examples * n_alphas / flops_per_second


def group_size(seconds_each: float) -> int:
    """How many of a thing one task should carry."""
    return max(1, round(TASK_SECONDS / seconds_each))


def trained_members(store: Store, request: Request, cell: Cell) -> list[Member]:
    """The endpoints of a cell that may take part in pairs."""
    found = ((endpoint, read_endpoint(store, endpoint)) for endpoint in request.endpoints(cell))
    return [as_member(endpoint, record) for endpoint, record in found if record and record["status"] == "trained"]


@dataclass(frozen=True)
class Plan:
    """`n_endpoints` and `n_pairs` are what the request asks for; `n_missing_*` what has to be made for it."""

    n_endpoints: int
    n_pairs: int
    n_missing_endpoints: int
    n_missing_pairs: int
    hours: float
    without_data: tuple[str, ...]

    def describe(self) -> str:
        lines = [
            f"{self.n_endpoints} endpoints, {self.n_pairs} pairs, {self.hours:.2g} hours",
            f"to do: {self.n_missing_endpoints} endpoints to train, {self.n_missing_pairs} pairs to measure",
        ]
        lines += [f"{name} was not found, so all of it counts as missing" for name in self.without_data]
        return "\n".join(lines)


def make_plan(store: Store, request: Request, n_workers: int) -> Plan:
    """Counts what is missing, and estimates its hours from the rate of matrix products measured on one core here.

    Needs no data: what a data set without its files would need counts as missing.
    """
    rate = measure_flops_per_second()
    seconds = 0.0
    n_missing_endpoints = n_missing_pairs = n_pairs = 0
    for cell in request.cells:
        n_of_cell = len(request.seeds) * (len(request.seeds) - 1) // 2
        n_pairs += n_of_cell
        n_paths = len(request.matchers) * len(request.corrections)
        each = training_seconds(cell, rate)
        missing = [e for e in request.endpoints(cell) if not _is_stored(store, e)]
        n_missing_endpoints += len(missing)
        n_done = 0
        if len(missing) < len(request.seeds):
            merges = request.merges(cell, trained_members(store, request, cell))
            done = {path.merge.id for path in request.paths(merges) if not has_path(store, path)}
            lacking = {(m.a.seed, m.b.seed) for m in merges if m.id in done or not has_match(store, m)}
            n_done = len({(m.a.seed, m.b.seed) for m in merges}) - len(lacking)
            if not missing:  # Pairs of endpoints that diverged are not made.
                n_done += n_of_cell - len({(m.a.seed, m.b.seed) for m in merges})
        n_missing_pairs += n_of_cell - n_done
        seconds += len(missing) * each
        seconds += (n_of_cell - n_done) * n_paths * path_seconds(cell, request.measurement.alphas, rate)
    without = sorted({cell.data.name for cell in request.cells if cell.data.fingerprint == UNKNOWN_FINGERPRINT})
    return Plan(
        n_endpoints=len(request.cells) * len(request.seeds),
        n_pairs=n_pairs,
        n_missing_endpoints=n_missing_endpoints,
        n_missing_pairs=n_missing_pairs,
        hours=seconds / 3600 / n_workers,
        without_data=tuple(without),
    )


def measure_flops_per_second() -> float:
    """float32 matrix products of 512 x 512, one thread, over about a tenth of a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = torch.ones(512, 512), torch.ones(512, 512)
        a @ b  # The first product loads the library.
        n_products, begun = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begun) < 0.1:
            a @ b
            n_products += 1
        return n_products * 2.0 * 512**3 / elapsed
    finally:
        torch.set_num_threads(threads)


def _is_stored(store: Store, endpoint: Endpoint) -> bool:
    return endpoint.cell.data.fingerprint != UNKNOWN_FINGERPRINT and read_endpoint(store, endpoint) is not None


def _n_parameters(cell: Cell) -> int:
    return sum(parameter.numel() for parameter in build_network(cell).parameters())
