"""The verb that corrects the interpolated networks of pairs and measures the corrected paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as Folder

from prefect import task

from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store
from tasks.science.specs.path import WeightPath
from tasks.stored.expansion import MeasuredPath
from tasks.stored.pairs import PairBench, save_points


@task(**TASK_OPTIONS)
def repair(paths: Sequence[WeightPath], store: Store, data_dir: Folder) -> None:
    """Measure the missing corrected paths of one cell and measurement; each names its correction."""
    missing = [path for path in paths if not MeasuredPath(path).is_in(store)]
    if not missing:
        return
    bench = PairBench(store, missing, data_dir)
    for path in missing:
        save_points(store, path, bench.measure(path))
    run_logger().info("%s: %d paths corrected", missing[0].pairing.cell.label, len(missing))
