"""The table `contrasts`: between paths of a cell, and between cells that differ in one factor, with intervals."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tasks.science.statistics.contrasts import independent_difference, paired_difference
from tasks.science.statistics.jackknife import Estimate, Interval, mean_estimate
from tasks.tables import schema
from tasks.tables.ablation import BARRIER_METRICS, CALIBRATED_BARRIERS, barrier_metrics, places_by
from tasks.tables.factors import label_factor, neighbours, none_first

SAME_SEEDS = ("epoch", "spawn_epoch")
"""Factors whose values are times of the same trainings, or have the same children: a seed is dropped from both."""

_KEY = ["cell_id", "matcher", "correction", "measurement", "split"]

_DIFFERENCE = {"difference": "mean", "low": "low", "high": "high"}
"""The columns of a difference, and what they are of its interval."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Heights:
    """Barriers of the pairs of one cell, matcher, correction, measurement and split: by metric those of each pair."""

    pairs: list[Pair]
    values: Mapping[str, Sequence[float]]

    @property
    def n_seeds(self) -> int:
        return len({seed for pair in self.pairs for seed in pair})

    def of(self, pairs: Sequence[Pair]) -> Heights:
        """Those of `pairs` alone."""
        if self.pairs == pairs:
            return self
        places = [self.pairs.index(pair) for pair in pairs]
        return Heights(list(pairs), {name: [of[place] for place in places] for name, of in self.values.items()})


Measured = dict[tuple[str, str, str, str, str], Heights]


class _Rows:
    """The table as it comes to be, column by column: of every two cells it has some dozens of rows that differ in the
    metric alone, and a record for each would take several times the room."""

    def __init__(self) -> None:
        own = ("metric", *_DIFFERENCE)
        self._shared: dict[str, list[Any]] = {name: [] for name in schema.CONTRASTS.columns if name not in own}
        self._differences = {name: array("d") for name in _DIFFERENCE}
        self._metrics: list[str] = []
        self._counts = array("q")

    def add(self, shared: Mapping[str, Any], differences: Mapping[str, Interval]) -> None:
        """A row for every metric of `differences`."""
        for name, column in self._shared.items():
            column.append(shared[name])
        self._metrics += differences
        self._counts.append(len(differences))
        for name, part in _DIFFERENCE.items():
            self._differences[name].extend(getattr(difference, part) for difference in differences.values())

    def frame(self) -> pd.DataFrame:
        places = np.repeat(np.arange(len(self._counts)), self._counts)
        columns: dict[str, Any] = {name: _typed(name, column).take(places) for name, column in self._shared.items()}
        columns["metric"] = pd.Categorical(self._metrics)
        columns |= {name: np.asarray(values) for name, values in self._differences.items()}
        return pd.DataFrame({name: columns[name] for name in schema.CONTRASTS.columns})


def _typed(name: str, column: list[Any]) -> Any:
    """Words as numbers of words: there are few of each, in many rows."""
    is_text = schema.CONTRASTS.columns[name].kind == pa.string()
    return pd.Categorical(column) if is_text else np.asarray(column, dtype=np.int64)


def tabulate_contrasts(cells: pd.DataFrame, barriers: pd.DataFrame) -> pd.DataFrame:
    """Differences of mean barriers, each the other less this.

    Within a cell between every two paths, over the pairs that both have; across cells between every two that differ in
    exactly one factor, of the same path, over the pairs that both have where that is a time. Without rows where one of
    the two was not measured.
    """
    records: list[dict[str, Any]] = [
        {str(name): value for name, value in cell.items()} for cell in cells.to_dict(orient="records")
    ]
    ordered = barriers[barriers["kind"] == "pair"].sort_values(["seed_a", "seed_b"])
    pairs = list(zip(ordered["seed_a"].tolist(), ordered["seed_b"].tolist(), strict=True))
    values = {name: ordered[name].to_numpy() for name in (*BARRIER_METRICS, *CALIBRATED_BARRIERS)}
    measured: Measured = {}
    for (cell_id, matcher, correction, measurement, split), places in places_by(ordered, _KEY).items():
        of_key = {name: of[places].tolist() for name, of in values.items()}
        measured[cell_id, matcher, correction, measurement, split] = Heights([pairs[at] for at in places], of_key)
    rows = _Rows()
    _within(rows, records, measured)
    _across(rows, records, measured)
    return rows.frame()


def _within(rows: _Rows, cells: list[dict[str, Any]], measured: Measured) -> None:
    paths: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    for cell_id, matcher, correction, measurement, split in measured:
        paths[cell_id, measurement, split].append((matcher, correction))
    columns = {cell["cell_id"]: _cell_columns(cell) for cell in cells}
    for (cell_id, measurement, split), of_cell in paths.items():
        ordered = sorted(of_cell, key=lambda path: [none_first(word) for word in path])
        for this, other in combinations(ordered, 2):
            one, two = (measured[cell_id, *path, measurement, split] for path in (this, other))
            one, two = _shared(one, two)
            if not one.pairs:
                continue
            key = columns[cell_id] | {"other_cell_id": cell_id} | _path_columns(this, other, measurement, split)
            key |= _differing(this, other) | _counts(one, two)
            rows.add(
                key,
                {
                    metric: paired_difference(one.pairs, one.values[metric], two.values[metric])
                    for metric in barrier_metrics(split)
                },
            )


def _across(rows: _Rows, cells: list[dict[str, Any]], measured: Measured) -> None:
    estimates: dict[tuple[str, ...], dict[str, Estimate]] = {
        key: {metric: mean_estimate(of.pairs, of.values[metric]) for metric in BARRIER_METRICS}
        for key, of in measured.items()
    }
    by_cell: dict[str, list[tuple[str, str, str, str]]] = defaultdict(list)
    for cell_id, *path in measured:
        by_cell[cell_id].append((path[0], path[1], path[2], path[3]))
    for this, other, factor in neighbours(cells):
        values = {"value": label_factor(this, factor), "other_value": label_factor(other, factor)}
        changed = _cell_columns(this) | {"other_cell_id": other["cell_id"], "factor": factor} | values
        for matcher, correction, measurement, split in by_cell[this["cell_id"]]:
            keys = [(cell["cell_id"], matcher, correction, measurement, split) for cell in (this, other)]
            if keys[1] not in measured:
                continue
            one, two = (measured[key] for key in keys)
            is_paired = factor in SAME_SEEDS
            if is_paired:
                one, two = _shared(one, two)
            if not one.pairs:
                continue
            path = (matcher, correction)
            key = changed | _path_columns(path, path, measurement, split) | _counts(one, two)
            rows.add(
                key,
                {
                    metric: paired_difference(one.pairs, one.values[metric], two.values[metric])
                    if is_paired
                    else independent_difference(estimates[keys[0]][metric], estimates[keys[1]][metric])
                    for metric in BARRIER_METRICS
                },
            )


def _shared(one: Heights, two: Heights) -> tuple[Heights, Heights]:
    """Both over the pairs that both have."""
    have = set(two.pairs)
    both = [pair for pair in one.pairs if pair in have]
    return one.of(both), two.of(both)


def _counts(one: Heights, two: Heights) -> dict[str, int]:
    return {
        "n_pairs": len(one.pairs),
        "other_n_pairs": len(two.pairs),
        "n_seeds": one.n_seeds,
        "other_n_seeds": two.n_seeds,
    }


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
