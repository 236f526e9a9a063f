"""Measures the networks that were trained on both halves of the data at once, beside the pairs across the halves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as Folder

from prefect import task

from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store
from tasks.science.paths.curves import evaluate_splits
from tasks.science.specs.path import JointPath
from tasks.stored.pairs import load_ends, save_ends


@task(**TASK_OPTIONS)
def evaluate_joint(paths: Sequence[JointPath], store: Store, data_dir: Folder) -> None:
    """Measures what the store lacks of the joint training beside pairs of one cell and measurement: the network with
    A's seed at alpha 0, that with B's at 1, each once for all pairs."""
    ends = load_ends(paths, store, data_dir)
    if ends is None:
        return
    measurement = ends.measurement
    dataset = ends.dataset.reduced(measurement.evaluation)
    seen = {
        member: evaluate_splits(ends.network, state, dataset, viewing=measurement.viewing)
        for member, state in ends.weights.items()
    }
    save_ends(ends, seen)
    run_logger().info("%s: %d pairs set beside joint training", ends.cell.label, len(ends.paths))
