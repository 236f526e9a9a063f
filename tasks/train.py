"""Trains endpoints and stores each as soon as it is reached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from prefect import task

from infra.runners import TASK_OPTIONS, run_logger
from infra.settings import Device
from infra.storage import Store
from tasks.data.datasets import check_data, load_dataset
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.training.training import train_group
from tasks.stored.artifacts import missing_checkpoints, save_endpoint
from tasks.stored.trainings import StoredProgress, ensure_states
from tasks.user_code import reach_code


@task(**TASK_OPTIONS)
def train(
    cell: Cell,
    seeds: Sequence[int],
    store: Store,
    data_dir: Path,
    epochs: Sequence[int | None] | None = None,
    device: Device = "cpu",
) -> None:
    """Trains those of a group of seeds that the store lacks, each in one run through all checkpoints `epochs` that are
    missing; by default the cell's own."""
    reach_code(cell)
    dataset = check_data(load_dataset(cell.data.name, data_dir), cell.data)
    missing = missing_checkpoints(store, cell, seeds, [cell.epoch] if epochs is None else epochs)
    if not missing:
        return
    parent = None
    if cell.parent is not None:
        parent = ensure_states(store, [cell.parent], dataset, device)[cell.parent.cell.last_epoch]
    progress = StoredProgress(store, cell.at(None))
    for trained in train_group(
        cell, list(missing), dataset, device, checkpoints=missing, parent=parent, progress=progress
    ):
        endpoint = Endpoint(cell.at(trained.epoch), trained.seed)
        save_endpoint(store, endpoint, trained, device=_name_device(device))
        if endpoint.cell.last_epoch == max(missing[trained.seed]):
            progress.forget(trained.seed)
        run_logger().info(
            "%s, seed %d: %s, test accuracy %.4f, %d steps skipped, %.1f s%s",
            endpoint.cell.label, trained.seed, trained.status, trained.test.accuracy, trained.n_skipped_steps,
            trained.seconds, f" ({trained.message})" if trained.message else "",
        )  # fmt: skip


@task(**TASK_OPTIONS)
def train_parent(parents: Sequence[Endpoint], store: Store, data_dir: Path, device: Device = "cpu") -> None:
    """Trains one seed through `parents`, the checkpoints that others are spawned from, as far as the store lacks their
    states."""
    reach_code(parents[0].cell)
    data = parents[0].cell.data
    ensure_states(store, parents, check_data(load_dataset(data.name, data_dir), data), device)


def _name_device(device: Device) -> str:
    """What the table `endpoints` calls it."""
    return torch.cuda.get_device_name() if device == "cuda" else device
