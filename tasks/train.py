"""Trains endpoints and stores each as soon as it is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect import task

from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store
from tasks.artifacts import missing_seeds, save_endpoint
from tasks.datasets import load_dataset
from tasks.science.specs import Cell, Endpoint
from tasks.science.training import train_group


@task(**TASK_OPTIONS)
def train(cell: Cell, seeds: Sequence[int], store_url: str, data_dir: Path) -> None:
    """Trains those of a group of seeds that the store lacks."""
    store = Store(store_url)
    dataset = load_dataset(cell.data.name, data_dir)
    for trained in train_group(cell, missing_seeds(store, cell, seeds), dataset):
        save_endpoint(store, Endpoint(cell, trained.seed), trained, device="cpu")
        run_logger().info(
            "%s, seed %d: %s, test accuracy %.4f, %d steps skipped, %.1f s%s",
            cell.label, trained.seed, trained.status, trained.test.accuracy, trained.n_skipped_steps, trained.seconds,
            f" ({trained.message})" if trained.message else "",
        )  # fmt: skip
