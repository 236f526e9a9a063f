"""The verb that measures networks trained on both halves of the data, beside the pairs across the halves."""

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
    """Measure the missing joint trainings beside pairs of one cell and measurement, each network once for all pairs.

    The network with A's seed is at alpha 0, that with B's at 1.
    """
    ends = load_ends(paths, store, data_dir)
    if ends is None:
        return
    save_ends(ends, ends.evaluate(evaluate_splits))
    run_logger().info("%s: %d pairs set beside joint training", ends.cell.label, len(ends.paths))
