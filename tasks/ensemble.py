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
    outputs = ends.evaluate(outputs_of)
    for path in ends.paths:
        alphas = path.measurement.grid.tolist()
        save_points(store, path, measure_ensemble(outputs[path.a], outputs[path.b], alphas, ends.evaluated))
    run_logger().info("%s: %d ensembles measured", ends.cell.label, len(ends.paths))
