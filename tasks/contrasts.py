"""The table `contrasts`: between paths of a cell, and between cells that differ in one factor, with intervals."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import Any

import pandas as pd

from tasks import schema
from tasks.ablation import BARRIER_METRICS, barrier_metrics
from tasks.factors import label_factor, neighbours, none_first
from tasks.science.contrasts import independent_difference, paired_difference
from tasks.science.statistics import Estimate, mean_estimate

Measured = dict[tuple[str, str, str, str, str], pd.DataFrame]
"""Barriers of the pairs of one cell, matcher, correction, measurement and split, indexed by (seed_a, seed_b)."""

SAME_SEEDS = ("epoch", "spawn_epoch")
"""Factors whose values are times of the same trainings, or have the same children: a seed is dropped from both."""

_KEY = ["cell_id", "matcher", "correction", "measurement", "split"]


def tabulate_contrasts(cells: pd.DataFrame, barriers: pd.DataFrame) -> pd.DataFrame:
    """Differences of mean barriers, each the other less this.

    Within a cell between every two paths, over the pairs that both have; across cells between every two that differ in
    exactly one factor, of the same path, over the pairs that both have where that is a time. Without rows where one of
    the two was not measured.
    """
    records: list[dict[str, Any]] = [
        {str(name): value for name, value in cell.items()} for cell in cells.to_dict(orient="records")
    ]
    measured: Measured = {}
    for key, frame in barriers[barriers["kind"] == "pair"].groupby(_KEY):
        cell_id, matcher, correction, measurement, split = (str(word) for word in key)
        indexed = frame.set_index(["seed_a", "seed_b"]).sort_index()
        measured[cell_id, matcher, correction, measurement, split] = indexed
    rows = [*_within(records, measured), *_across(records, measured)]
    return pd.DataFrame(rows, columns=list(schema.CONTRASTS.columns))


def _within(cells: list[dict[str, Any]], measured: Measured) -> list[dict[str, Any]]:
    paths: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    for cell_id, matcher, correction, measurement, split in measured:
        paths[cell_id, measurement, split].append((matcher, correction))
    columns = {cell["cell_id"]: _cell_columns(cell) for cell in cells}
    rows: list[dict[str, Any]] = []
    for (cell_id, measurement, split), of_cell in paths.items():
        ordered = sorted(of_cell, key=lambda path: [none_first(word) for word in path])
        for this, other in combinations(ordered, 2):
            one, two = (measured[cell_id, *path, measurement, split] for path in (this, other))
            both = one.index.intersection(two.index)
            pairs = [(int(a), int(b)) for a, b in both]
            n_seeds = len({seed for pair in pairs for seed in pair})
            key = columns[cell_id] | {"other_cell_id": cell_id} | _path_columns(this, other, measurement, split)
            counts = {"n_seeds": n_seeds, "other_n_seeds": n_seeds, "n_pairs": len(pairs), "other_n_pairs": len(pairs)}
            for metric in barrier_metrics(split) if pairs else ():
                difference = paired_difference(pairs, list(one.loc[both, metric]), list(two.loc[both, metric]))
                rows.append(
                    key
                    | _differing(this, other)
                    | counts
                    | {"metric": metric, "difference": difference.mean, "low": difference.low, "high": difference.high}
                )
    return rows


def _across(cells: list[dict[str, Any]], measured: Measured) -> list[dict[str, Any]]:
    estimates: dict[tuple[str, ...], dict[str, Estimate]] = {
        key: {metric: mean_estimate(_seed_pairs(frame), list(frame[metric])) for metric in BARRIER_METRICS}
        for key, frame in measured.items()
    }
    by_cell: dict[str, list[tuple[str, str, str, str]]] = defaultdict(list)
    for cell_id, *path in measured:
        by_cell[cell_id].append((path[0], path[1], path[2], path[3]))
    rows: list[dict[str, Any]] = []
    for this, other, factor in neighbours(cells):
        values = {"value": label_factor(this, factor), "other_value": label_factor(other, factor)}
        changed = {"factor": factor} | values
        for matcher, correction, measurement, split in by_cell[this["cell_id"]]:
            keys = [(cell["cell_id"], matcher, correction, measurement, split) for cell in (this, other)]
            if keys[1] not in measured:
                continue
            one, two = (measured[key] for key in keys)
            is_paired = factor in SAME_SEEDS
            if is_paired:
                both = one.index.intersection(two.index)
                one, two = one.loc[both], two.loc[both]
            if one.empty:
                continue
            path = (matcher, correction)
            key = _cell_columns(this) | {"other_cell_id": other["cell_id"]} | changed
            key |= _path_columns(path, path, measurement, split)
            counts: dict[str, int] = {}
            for prefix, of in (("", one), ("other_", two)):
                pairs = _seed_pairs(of)
                counts[f"{prefix}n_pairs"] = len(pairs)
                counts[f"{prefix}n_seeds"] = len({seed for pair in pairs for seed in pair})
            for metric in BARRIER_METRICS:
                if is_paired:
                    difference = paired_difference(_seed_pairs(one), list(one[metric]), list(two[metric]))
                else:
                    difference = independent_difference(estimates[keys[0]][metric], estimates[keys[1]][metric])
                rows.append(
                    key
                    | counts
                    | {"metric": metric, "difference": difference.mean, "low": difference.low, "high": difference.high}
                )
    return rows


def _cell_columns(cell: Any) -> dict[str, Any]:
    return {name: cell[name] for name in schema.CELL}


def _path_columns(this: tuple[str, str], other: tuple[str, str], measurement: str, split: str) -> dict[str, str]:
    return {
        "matcher": this[0],
        "other_matcher": other[0],
        "correction": this[1],
        "other_correction": other[1],
        "measurement": measurement,
        "split": split,
    }


def _differing(this: tuple[str, str], other: tuple[str, str]) -> dict[str, str]:
    """What two paths of a cell differ in: one word, or `path` where both do."""
    if this[1] == other[1]:
        return {"factor": "matcher", "value": this[0], "other_value": other[0]}
    if this[0] == other[0]:
        return {"factor": "correction", "value": this[1], "other_value": other[1]}
    return {"factor": "path", "value": ", ".join(this), "other_value": ", ".join(other)}


def _seed_pairs(frame: pd.DataFrame) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in frame.index]
