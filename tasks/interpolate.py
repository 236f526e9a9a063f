"""Measures the direct and aligned paths of pairs, as interpolation leaves them."""

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
def interpolate(paths: Sequence[Path], store: Store, data_dir: Folder) -> None:
    """Measures those uncorrected paths of one cell and measurement that the store lacks; raw endpoints are evaluated
    once for all."""
    missing = [path for path in paths if not has_path(store, path)]
    if not missing:
        return
    bench = PairBench(store, missing, data_dir)
    ends = {member: bench.evaluate(member) for member in bench.endpoints}
    for path in missing:
        pair, alphas = path.pairing, path.measurement.grid.tolist()
        save_points(
            store,
            path,
            measure_path(
                bench.aligned(pair),
                "none",
                alphas,
                bench.dataset,
                bench.statistics,
                ends=(ends[pair.a], ends[pair.b]),
                viewing=path.measurement.viewing,
            ),
        )
    run_logger().info("%s: %d paths interpolated", missing[0].pairing.cell.label, len(missing))
