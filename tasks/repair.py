"""Corrects the interpolated networks of pairs and measures the corrected paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as Folder

from prefect import task

from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store
from tasks.science.paths.curves import measure_path
from tasks.science.specs.pairing import Path
from tasks.stored.artifacts import has_path
from tasks.stored.pairs import PairBench, save_points


@task(**TASK_OPTIONS)
def repair(paths: Sequence[Path], store: Store, data_dir: Folder) -> None:
    """Measures those corrected paths of one cell and measurement that the store lacks; each names its correction."""
    missing = [path for path in paths if not has_path(store, path)]
    if not missing:
        return
    bench = PairBench(store, missing, data_dir)
    for path in missing:
        alphas = path.measurement.grid.tolist()
        sides = bench.aligned(path.pairing)
        points = measure_path(
            sides,
            path.correction,
            alphas,
            bench.dataset,
            bench.statistics,
            viewing=path.measurement.viewing,
        )
        save_points(store, path, points)
    run_logger().info("%s: %d paths corrected", missing[0].pairing.cell.label, len(missing))
