"""The verb that measures the direct and aligned paths of pairs without correction."""

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
def interpolate(paths: Sequence[WeightPath], store: Store, data_dir: Folder) -> None:
    """Measure the missing uncorrected paths of one cell and measurement; raw endpoints are evaluated once for all."""
    missing = [path for path in paths if not MeasuredPath(path).is_in(store)]
    if not missing:
        return
    bench = PairBench(store, missing, data_dir)
    ends = {member: bench.evaluate(member) for member in bench.endpoints}
    for path in missing:
        save_points(store, path, bench.measure(path, (ends[path.pairing.a], ends[path.pairing.b])))
    run_logger().info("%s: %d paths interpolated", missing[0].pairing.cell.label, len(missing))
