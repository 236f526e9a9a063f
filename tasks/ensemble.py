"""The verb that measures pairs with their outputs averaged instead of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as Folder

from prefect import task

from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store
from tasks.science.paths.ensembles import measure_ensemble, outputs_of
from tasks.science.specs.path import EnsemblePath
from tasks.stored.pairs import load_ends, save_points


@task(**TASK_OPTIONS)
def ensemble(paths: Sequence[EnsemblePath], store: Store, data_dir: Folder) -> None:
    """Measure the missing ensembles of one cell and measurement; each endpoint is run once."""
    ends = load_ends(paths, store, data_dir)
    if ends is None:
        return
    measurement = ends.measurement
    dataset = ends.dataset.reduced(measurement.evaluation)
    outputs = {
        member: outputs_of(ends.network, state, dataset, viewing=measurement.viewing)
        for member, state in ends.weights.items()
    }
    for path in ends.paths:
        a, b = outputs[path.pairing.a], outputs[path.pairing.b]
        save_points(ends.store, path, measure_ensemble(a, b, measurement.grid.tolist(), dataset))
    run_logger().info("%s: %d ensembles measured", ends.cell.label, len(ends.paths))
