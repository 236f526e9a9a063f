"""Tables as a study could have left them."""

from __future__ import annotations

import pandas as pd

from flows.report.figures.curves import CURVES
from infra.storage import Store
from infra.tables import Column, write_table
from tasks.tables import schema


def ablation_rows(depths=(4, 16), dataset="digits", aligned=0.4, repaired=0.1, low_share=0.5) -> list[dict]:
    """What a study would have found: barriers that grow with depth, of which REPAIR removes three quarters."""
    rows = []
    for depth in depths:
        for curve in CURVES:
            barrier = (repaired if curve.correction == "repair" else aligned) * depth / 16
            values = {
                "endpoint_accuracy": 0.97, "midpoint_accuracy": 0.97 - barrier, "accuracy_barrier": barrier,
                "loss_barrier": 3 * barrier,
            }  # fmt: skip
            if curve.correction == "repair":
                values["accuracy_barrier_reduction"] = 1 - repaired / aligned
            for split in ("train", "test"):
                for metric, mean in values.items():
                    rows.append(
                        dict.fromkeys(schema.ABLATION.columns)
                        | {"study": "s", "cell_id": f"{dataset}-{depth}", "dataset": dataset, "architecture": "mlp"}
                        | {"normalization": "none", "width": 128, "depth": depth, "recipe": "r"}
                        | {"matcher": curve.matcher, "correction": curve.correction, "measurement": "default"}
                        | {"split": split, "metric": metric, "mean": mean, "low": mean * low_share, "high": mean * 1.1}
                        | {"n_seeds": 4, "n_pairs": 6, "n_diverged": 1, "n_untrained": 0}
                    )
    return rows


def path_rows(accuracies: dict[str, float], merge_id="m", **other) -> list[dict]:
    """A pair's midpoint on the test split under each correction, and a better point beside it."""
    common = {"merge_id": merge_id, "kind": "pair", "seed_a": 0, "seed_b": 1, "matcher": "activation"}
    common |= {"study": "s", "cell_id": "c", "dataset": "digits", "architecture": "mlp", "normalization": "none"}
    common |= {"width": 8, "depth": 2, "recipe": "r", "method": "weights", "measurement": "default", "split": "test"}
    return [
        dict.fromkeys(schema.PATHS.columns)
        | common
        | {"correction": correction, "alpha": alpha, "accuracy": accuracy + alpha - 0.5, "loss": 2 - accuracy}
        | other
        for correction, accuracy in accuracies.items()
        for alpha in (0.5, 0.6)
    ]


def layer_rows(correlations: dict[str, list[float | None]], **other) -> list[dict]:
    """Every layer of a pair at the midpoint, and one point beside it, by correction."""
    (common,) = path_rows({"none": 0.5}, **other)[:1]
    common = {name: value for name, value in common.items() if name in schema.LAYERS.columns}
    return [
        dict.fromkeys(schema.LAYERS.columns)
        | common
        | {"correction": correction, "alpha": alpha, "position": position, "layer": f"l{position}"}
        | {"sd_correlation": value, "mean_correlation": value}
        for correction, values in correlations.items()
        for position, value in enumerate(values)
        for alpha in (0.5, 0.6)
    ]


def write_study(
    store: Store,
    ablation: pd.DataFrame,
    paths: pd.DataFrame | None = None,
    extra: dict[str, dict[str, Column]] | None = None,
    **more: pd.DataFrame,
) -> None:
    """All tables of a study `s` of three endpoints, two of which diverged; those that are not given are empty. `extra`
    are columns of what is swept, by table."""
    provenance = {
        "repairlab": "0",
        "commit": "",
        "torch": "0",
        "schema": 1,
        "revisions": {"train": 1},
        "requests": [],
        "gathering": "g",
    }
    for table in schema.TABLES:
        frame = ({"ablation": ablation, "paths": paths} | more).get(table.name)
        if frame is None:
            frame = pd.DataFrame(columns=list(table.columns))
        if table.name == "endpoints":
            seeds = [
                {"endpoint_id": str(i), "seed": i, "status": s} for i, s in enumerate(["trained", *["diverged"] * 2])
            ]
            frame = pd.DataFrame(seeds, columns=list(table.columns)).assign(
                width=128, depth=4, message="too wild", cell_id="digits-4"
            )
        own = (extra or {}).get(table.name, {})
        write_table(store, f"studies/s/{table.name}.parquet", table, frame, provenance, **own)


def axis_rows(correlations: dict[str, float], before=0.05, **other) -> list[dict]:
    """How well the units of every layer of an aligned pair matched."""
    (common,) = path_rows({"none": 0.5}, **other)[:1]
    return [
        dict.fromkeys(schema.AXES.columns)
        | {name: value for name, value in common.items() if name in schema.AXES.columns}
        | {"axis": axis, "size": 8, "n_dead": 0, "matched_correlation": value, "identity_correlation": before}
        for axis, value in correlations.items()
    ]
