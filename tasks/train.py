"""The verb that trains endpoints and stores each as soon as its epoch is reached."""

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
from tasks.stored.artifacts import save_endpoint
from tasks.stored.expansion import EndpointFile
from tasks.stored.trainings import StoredProgress, ensure_states


@task(**TASK_OPTIONS)
def train(
    cell: Cell,
    seeds: Sequence[int],
    store: Store,
    data_dir: Path,
    epochs: Sequence[int | None] | None = None,
    device: Device = "cpu",
) -> None:
    """Train the missing ones of a group of seeds, each in one run through all of its missing checkpoints.

    `epochs` are the checkpoints, by default the cell's own. Imported endpoints are not trained.
    """
    dataset = check_data(load_dataset(cell.data.name, data_dir), cell.data)
    wanted = [cell.at(epoch) for epoch in ([cell.epoch] if epochs is None else epochs)]
    lacking = {
        seed: [c.last_epoch for c in wanted if not EndpointFile(Endpoint(c, seed)).is_in(store)] for seed in seeds
    }
    missing = {seed: epochs for seed, epochs in lacking.items() if epochs}
    if not missing or cell.origin is not None:
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
    """Train one seed through `parents`, checkpoints that others are spawned from, where their states are missing."""
    data = parents[0].cell.data
    ensure_states(store, parents, check_data(load_dataset(data.name, data_dir), data), device)


def _name_device(device: Device) -> str:
    """Return the device's name for the table `endpoints`."""
    return torch.cuda.get_device_name() if device == "cuda" else device
