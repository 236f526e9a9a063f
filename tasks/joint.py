"""Measures the networks that were trained on both halves of the data at once, beside the pairs across the halves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as Folder

from prefect import task

from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store
from tasks.artifacts import has_path, load_weights
from tasks.datasets import load_dataset
from tasks.pairs import save_points
from tasks.science.curves import Point, evaluate_splits
from tasks.science.networks import build_network
from tasks.science.specs import Path


@task(**TASK_OPTIONS)
def evaluate_joint(paths: Sequence[Path], store_url: str, data_dir: Folder) -> None:
    """Measures what the store lacks of the joint training beside pairs of one cell and measurement: the network with
    A's seed at alpha 0, that with B's at 1, each once for all pairs."""
    store = Store(store_url)
    missing = [path for path in paths if not has_path(store, path)]
    if not missing:
        return
    cell, measurement = missing[0].merge.cell, missing[0].measurement
    network = build_network(cell)
    dataset = load_dataset(cell.data.name, data_dir).reduced(measurement.evaluation)
    weights = load_weights(store, [member for path in missing for member in path.joint])
    seen = {
        member: evaluate_splits(network, state, dataset, flip_averaged=measurement.flip_averaged)
        for member, state in weights.items()
    }
    for path in missing:
        save_points(store, path, [Point(float(end), seen[member], []) for end, member in enumerate(path.joint)])
    run_logger().info("%s: %d pairs set beside joint training", cell.label, len(missing))
