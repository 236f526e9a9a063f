"""Measures the endpoints of pairs with a constant added to half of their logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as Folder

from prefect import task

from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store
from tasks.artifacts import has_path, load_weights
from tasks.datasets import load_dataset
from tasks.pairs import save_points
from tasks.science.curves import Point
from tasks.science.logit_shift import measure_shifted
from tasks.science.networks import build_network
from tasks.science.specs import Path


@task(**TASK_OPTIONS)
def shift(paths: Sequence[Path], store_url: str, data_dir: Folder) -> None:
    """Measures those shifted endpoints of one cell, method and measurement that the store lacks: A at alpha 0, B at 1,
    each once for all its pairs."""
    store = Store(store_url)
    missing = [path for path in paths if not has_path(store, path)]
    if not missing:
        return
    cell, method, measurement = missing[0].merge.cell, missing[0].method, missing[0].measurement
    network = build_network(cell)
    dataset = load_dataset(cell.data.name, data_dir)
    weights = load_weights(store, [member for path in missing for member in (path.merge.a, path.merge.b)])
    on_test = method == "logit-shift/chosen=test"
    shifted = {
        member: measure_shifted(
            network,
            state,
            dataset,
            cell.data.train_subset(member.seed),
            measurement.evaluation,
            on_test=on_test,
            flip_averaged=measurement.flip_averaged,
        )
        for member, state in weights.items()
    }
    for path in missing:
        ends = ((0.0, path.merge.a), (1.0, path.merge.b))
        save_points(store, path, [Point(alpha, shifted[member], []) for alpha, member in ends])
    run_logger().info("%s: %d pairs measured with shifted logits", cell.label, len(missing))
