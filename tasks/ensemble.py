"""Measures pairs whose outputs are averaged instead of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as Folder

from prefect import task

from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store
from tasks.artifacts import has_path, load_weights
from tasks.datasets import load_dataset
from tasks.pairs import save_points
from tasks.science.ensembling import measure_ensemble, outputs_of
from tasks.science.networks import build_network
from tasks.science.specs import Path


@task(**TASK_OPTIONS)
def ensemble(paths: Sequence[Path], store_url: str, data_dir: Folder) -> None:
    """Measures those ensembles of one cell and measurement that the store lacks; each endpoint is run once."""
    store = Store(store_url)
    missing = [path for path in paths if not has_path(store, path)]
    if not missing:
        return
    cell, measurement = missing[0].merge.cell, missing[0].measurement
    network = build_network(cell)
    dataset = load_dataset(cell.data.name, data_dir).reduced(measurement.evaluation)
    weights = load_weights(store, [member for path in missing for member in (path.merge.a, path.merge.b)])
    outputs = {
        member: outputs_of(network, state, dataset, flip_averaged=measurement.flip_averaged)
        for member, state in weights.items()
    }
    for path in missing:
        a, b = outputs[path.merge.a], outputs[path.merge.b]
        save_points(store, path, measure_ensemble(a, b, measurement.grid.tolist(), dataset))
    run_logger().info("%s: %d ensembles measured", cell.label, len(missing))
