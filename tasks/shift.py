"""The verb that measures the endpoints of pairs with a constant added to half of their logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as Folder

from prefect import task

from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store
from tasks.science.paths.logit_shift import measure_shifted
from tasks.science.specs.path import LogitShiftPath
from tasks.stored.pairs import load_ends, save_ends


@task(**TASK_OPTIONS)
def shift(paths: Sequence[LogitShiftPath], store: Store, data_dir: Folder) -> None:
    """Measure the missing shifted endpoints of one cell, method and measurement, each once for all its pairs.

    A is at alpha 0, B at 1.
    """
    ends = load_ends(paths, store, data_dir)
    if ends is None:
        return
    measurement = ends.measurement
    shifted = {
        member: measure_shifted(
            ends.network,
            state,
            ends.dataset,
            ends.cell.data.train_subset(member.seed),
            measurement.evaluation,
            on_test=paths[0].chosen_on == "test",
            viewing=measurement.viewing,
        )
        for member, state in ends.weights.items()
    }
    save_ends(ends, shifted)
    run_logger().info("%s: %d pairs measured with shifted logits", ends.cell.label, len(ends.paths))
