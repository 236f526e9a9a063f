"""The tables that people open, column by column: a public contract, kept by a test, each change in the CHANGELOG.

Accuracies are fractions, losses nats per example, times seconds. What a column means is said in docs/tables.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa

from infra.tables import Table
from tasks.science.recipe import Recipe
from tasks.science.specs import DataSpec

_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()

CELL = {
    "study": _TEXT,
    "cell_id": _TEXT,
    "dataset": _TEXT,
    "architecture": _TEXT,
    "normalization": _TEXT,
    "width": _INT,
    "depth": _INT,
    "recipe": _TEXT,
}

TIME = {"epoch": _INT, "spawn_seed": _INT, "spawn_epoch": _INT}
"""After how many epochs a cell's weights are taken, null at the end of training; and which training, at which epoch,
its endpoints are spawned from, null where they are not."""

PAIR = CELL | {
    "merge_id": _TEXT,
    "kind": _TEXT,
    "control": _TEXT,
    "seed_a": _INT,
    "seed_b": _INT,
    "matcher": _TEXT,
}

_KINDS = {"int": _INT, "int | None": _INT, "float": _FLOAT, "bool": pa.bool_(), "str": _TEXT}


def column_kind(spec_field: dataclasses.Field[Any]) -> pa.DataType:
    """What a field of a spec is as a column; a tuple, as a choice of words, stands as text."""
    return _KINDS.get(str(spec_field.type), _TEXT)


def _described(owner: type, prefix: str) -> dict[str, pa.DataType]:
    """A column for every field of a spec but its name."""
    return {f"{prefix}_{f.name}": column_kind(f) for f in dataclasses.fields(owner) if f.name != "name"}


PATH_ROWS = Table(
    "paths",
    {
        "merge_id": _TEXT,
        "method": _TEXT,
        "correction": _TEXT,
        "alpha": _FLOAT,
        "split": _TEXT,
        "loss": _FLOAT,
        "accuracy": _FLOAT,
        "n_examples": _INT,
        "temperature": _FLOAT,
        "calibrated_loss": _FLOAT,
        "temperature_at_bound": pa.bool_(),
    },
    ("merge_id", "method", "correction", "alpha", "split"),
)
"""What a row file of a path holds; the name of the measurement is stamped on when tables are gathered."""

LAYER_ROWS = Table(
    "layers",
    {
        "merge_id": _TEXT,
        "correction": _TEXT,
        "alpha": _FLOAT,
        "layer": _TEXT,
        "position": _INT,
        "n_units": _INT,
        "n_dead": _INT,
        "variance_ratio": _FLOAT,
        "variance_ratio_target": _FLOAT,
        "mean_error": _FLOAT,
        "sd_error": _FLOAT,
        "mean_correlation": _FLOAT,
        "sd_correlation": _FLOAT,
    },
    ("merge_id", "correction", "alpha", "layer"),
    added=("mean_correlation", "sd_correlation"),
)

END_ROWS = Table(
    "ends",
    {name: kind for name, kind in PATH_ROWS.columns.items() if name not in PATH_ROWS.key or name == "split"},
    ("split",),
)
"""What was seen of an endpoint as it was trained, which all uncorrected paths that end in it share."""

MERGE_ROWS = Table(
    "merges",
    {
        "merge_id": _TEXT,
        "matcher_options": _TEXT,
        "objective": _FLOAT,
        "function_error": _FLOAT,
        "match_seconds": _FLOAT,
    },
    ("merge_id",),
)

AXIS_ROWS = Table(
    "axes",
    {
        "merge_id": _TEXT,
        "axis": _TEXT,
        "size": _INT,
        "n_dead": _INT,
        "matched_correlation": _FLOAT,
        "identity_correlation": _FLOAT,
    },
    ("merge_id", "axis"),
)


def _without_key(rows: Table, *keys: str) -> dict[str, pa.DataType]:
    return {name: kind for name, kind in rows.columns.items() if name not in ("merge_id", *keys)}


CELLS = Table("cells", CELL | TIME | _described(Recipe, "recipe") | _described(DataSpec, "data"), ("cell_id",))

ENDPOINTS = Table(
    "endpoints",
    CELL
    | {
        "endpoint_id": _TEXT,
        "seed": _INT,
        "train_subset": _TEXT,
        "checkpoint_epoch": _INT,
        "origin": _TEXT,
        "status": _TEXT,
        "message": _TEXT,
        "train_loss": _FLOAT,
        "train_accuracy": _FLOAT,
        "test_loss": _FLOAT,
        "test_accuracy": _FLOAT,
        "n_train_examples": _INT,
        "n_parameters": _INT,
        "n_skipped_steps": _INT,
        "train_seconds": _FLOAT,
        "device": _TEXT,
        "weights_sha256": _TEXT,
    },
    ("endpoint_id",),
)

MERGES = Table(
    "merges",
    PAIR
    | {"members": _TEXT, "train_subset_a": _TEXT, "train_subset_b": _TEXT, "n_statistics": _INT}
    | _without_key(MERGE_ROWS),
    ("merge_id",),
)

PATHS = Table(
    "paths",
    PAIR
    | {"method": _TEXT, "correction": _TEXT, "measurement": _TEXT}
    | _without_key(PATH_ROWS, "method", "correction"),
    ("merge_id", "method", "correction", "measurement", "alpha", "split"),
)

BARRIERS = Table(
    "barriers",
    PAIR
    | {
        "correction": _TEXT,
        "measurement": _TEXT,
        "split": _TEXT,
        "loss_barrier": _FLOAT,
        "accuracy_barrier": _FLOAT,
        "midpoint_loss_barrier": _FLOAT,
        "midpoint_accuracy_barrier": _FLOAT,
        "own_chord_loss_barrier": _FLOAT,
        "own_chord_accuracy_barrier": _FLOAT,
        "calibrated_loss_barrier": _FLOAT,
        "midpoint_calibrated_loss_barrier": _FLOAT,
    },
    ("merge_id", "correction", "measurement", "split"),
)

LAYERS = Table(
    "layers",
    PAIR | {"correction": _TEXT, "measurement": _TEXT} | _without_key(LAYER_ROWS, "correction"),
    ("merge_id", "correction", "measurement", "alpha", "layer"),
)

AXES = Table("axes", PAIR | _without_key(AXIS_ROWS), ("merge_id", "axis"))

ABLATION = Table(
    "ablation",
    CELL
    | {
        "matcher": _TEXT,
        "correction": _TEXT,
        "measurement": _TEXT,
        "split": _TEXT,
        "metric": _TEXT,
        "mean": _FLOAT,
        "low": _FLOAT,
        "high": _FLOAT,
        "new_pair_low": _FLOAT,
        "new_pair_high": _FLOAT,
        "n_seeds": _INT,
        "n_pairs": _INT,
        "n_diverged": _INT,
        "n_untrained": _INT,
    },
    ("cell_id", "matcher", "correction", "measurement", "split", "metric"),
)

PAPER = Table(
    "paper",
    CELL
    | {
        "point": _TEXT,
        "method": _TEXT,
        "matcher": _TEXT,
        "correction": _TEXT,
        "measurement": _TEXT,
        "split": _TEXT,
        "metric": _TEXT,
        "published": _FLOAT,
        "published_recipe": _TEXT,
        "published_recipe_known": pa.bool_(),
        "mean": _FLOAT,
        "new_pair_low": _FLOAT,
        "new_pair_high": _FLOAT,
        "difference": _FLOAT,
        "verdict": _TEXT,
        "n_seeds": _INT,
        "n_pairs": _INT,
        "n_diverged": _INT,
        "n_untrained": _INT,
        "source": _TEXT,
        "note": _TEXT,
    },
    ("point", "cell_id", "measurement", "split", "metric"),
)

CONTRASTS = Table(
    "contrasts",
    CELL
    | {
        "other_cell_id": _TEXT,
        "matcher": _TEXT,
        "other_matcher": _TEXT,
        "correction": _TEXT,
        "other_correction": _TEXT,
        "measurement": _TEXT,
        "split": _TEXT,
        "metric": _TEXT,
        "factor": _TEXT,
        "value": _TEXT,
        "other_value": _TEXT,
        "difference": _FLOAT,
        "low": _FLOAT,
        "high": _FLOAT,
        "n_seeds": _INT,
        "other_n_seeds": _INT,
        "n_pairs": _INT,
        "other_n_pairs": _INT,
    },
    (
        "cell_id", "other_cell_id", "matcher", "other_matcher", "correction", "other_correction", "measurement",
        "split", "metric",
    ),
)  # fmt: skip

WIDTH_LAWS = Table(
    "width_laws",
    {"study": _TEXT, "series_id": _TEXT}
    | {name: kind for name, kind in CELL.items() if name not in ("study", "cell_id", "width")}
    | TIME
    | {"matcher": _TEXT, "correction": _TEXT, "measurement": _TEXT, "split": _TEXT, "metric": _TEXT}
    | {f"{name}{end}": _FLOAT for name in ("c", "p", "floor") for end in ("", "_low", "_high")}
    | {
        "fit_probability": _FLOAT,
        "n_widths": _INT,
        "n_measured_widths": _INT,
        "threshold": _FLOAT,
        "answer": _TEXT,
        "width": _FLOAT,
        "width_low": _FLOAT,
        "width_high": _FLOAT,
        "answer_text": _TEXT,
    },
    ("series_id", "matcher", "correction", "measurement", "split", "metric"),
)

TABLES = (CELLS, ENDPOINTS, MERGES, PATHS, BARRIERS, LAYERS, AXES, ABLATION, PAPER, CONTRASTS, WIDTH_LAWS)
