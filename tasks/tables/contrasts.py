"""The table `contrasts`: differences between paths of a cell, and between cells that differ in one factor."""

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
from tasks.tables.ablation import BARRIER_METRICS, CALIBRATED_BARRIERS, barrier_metrics
from tasks.tables.factors import label_factor, neighbours, none_first
from tasks.tables.frames import Row, places_by, read_frame

SAME_SEEDS = ("epoch", "spawn_epoch")
"""Factors whose values share their seeds: times of the same trainings, or of the same children."""

_KEY = ["cell_id", "matcher", "correction", "measurement", "split"]

_DIFFERENCE = {"difference": "mean", "low": "low", "high": "high"}
"""The columns of a difference, by the field of its interval."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Heights:
    """The barriers of each pair of one cell, matcher, correction, measurement and split, by metric."""

    pairs: list[Pair]
    values: Mapping[str, Sequence[float]]

    @property
    def n_seeds(self) -> int:
        return len({seed for pair in self.pairs for seed in pair})

    def of(self, pairs: Sequence[Pair]) -> Heights:
        """Return the barriers of `pairs` only."""
        if self.pairs == pairs:
            return self
        places = [self.pairs.index(pair) for pair in pairs]
        return Heights(list(pairs), {name: [of[place] for place in places] for name, of in self.values.items()})


Measured = dict[tuple[str, ...], Heights]
"""By cell, matcher, correction, measurement and split."""


class _Rows:
    """The table under construction, by column.

    Dozens of rows of every two cells differ only in the metric; a record for each would take several times the memory.
    """

    def __init__(self) -> None:
        own = ("metric", *_DIFFERENCE)
        self._shared: dict[str, list[Any]] = {name: [] for name in schema.CONTRASTS.columns if name not in own}
        self._differences = {name: array("d") for name in _DIFFERENCE}
        self._metrics: list[str] = []
        self._counts = array("q")

    def add(self, shared: Mapping[str, Any], differences: Mapping[str, Interval]) -> None:
        """Add a row for every metric of `differences`."""
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
    """Return a column as an array, or as a categorical if it is text."""
    is_text = schema.CONTRASTS.columns[name].kind == pa.string()
    return pd.Categorical(column) if is_text else np.asarray(column, dtype=np.int64)


def tabulate_contrasts(cells: pd.DataFrame, barriers: pd.DataFrame) -> pd.DataFrame:
    """Return the `contrasts` table: differences of mean barriers, each the other less this.

    Within a cell, every two paths are compared over the pairs that both have. Across cells, every two that differ in
    exactly one factor are compared under the same path; if that factor is a time, over the pairs that both have.
    Without rows if either was not measured.
    """
    records = read_frame(cells)
    ordered = barriers[barriers["kind"] == "pair"].sort_values(["seed_a", "seed_b"])
    pairs = list(zip(ordered["seed_a"].tolist(), ordered["seed_b"].tolist(), strict=True))
    values = {name: ordered[name].to_numpy() for name in (*BARRIER_METRICS, *CALIBRATED_BARRIERS)}
    measured: Measured = {
        key: Heights([pairs[at] for at in places], {name: of[places].tolist() for name, of in values.items()})
        for key, places in places_by(ordered, _KEY).items()
    }
    rows = _Rows()
    _add_within(rows, records, measured)
    _add_across(rows, records, measured)
    return rows.frame()


def _add_within(rows: _Rows, cells: list[Row], measured: Measured) -> None:
    paths: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    for cell_id, matcher, correction, measurement, split in measured:
        paths[cell_id, measurement, split].append((matcher, correction))
    columns = {cell["cell_id"]: _cell_columns(cell) for cell in cells}
    for (cell_id, measurement, split), of_cell in paths.items():
        ordered = sorted(of_cell, key=lambda path: [none_first(word) for word in path])
        for this, other in combinations(ordered, 2):
            one, two = _shared(*(measured[cell_id, *path, measurement, split] for path in (this, other)))
            if not one.pairs:
                continue
            key = columns[cell_id] | {"other_cell_id": cell_id} | _path_columns(this, other, measurement, split)
            rows.add(key | _differing(this, other) | _counts(one, two), _paired(one, two, barrier_metrics(split)))


def _add_across(rows: _Rows, cells: list[Row], measured: Measured) -> None:
    estimates: dict[tuple[str, ...], dict[str, Estimate]] = {
        key: {metric: mean_estimate(of.pairs, of.values[metric]) for metric in BARRIER_METRICS}
        for key, of in measured.items()
    }
    by_cell: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for cell_id, *path in measured:
        by_cell[cell_id].append(tuple(path))
    for this, other, factor in neighbours(cells):
        values = {"value": label_factor(this, factor), "other_value": label_factor(other, factor)}
        changed = _cell_columns(this) | {"other_cell_id": other["cell_id"], "factor": factor} | values
        for path in by_cell[this["cell_id"]]:
            keys = [(cell["cell_id"], *path) for cell in (this, other)]
            if keys[1] not in measured:
                continue
            one, two = (measured[key] for key in keys)
            if factor in SAME_SEEDS:
                one, two = _shared(one, two)
                differences = _paired(one, two, BARRIER_METRICS)
            else:
                ours, theirs = (estimates[key] for key in keys)
                differences = {name: independent_difference(ours[name], theirs[name]) for name in BARRIER_METRICS}
            if one.pairs:
                matcher, correction, measurement, split = path
                key = changed | _path_columns((matcher, correction), (matcher, correction), measurement, split)
                rows.add(key | _counts(one, two), differences)


def _paired(one: Heights, two: Heights, metrics: Sequence[str]) -> dict[str, Interval]:
    """Return `two` less `one`, which have the same pairs."""
    return {metric: paired_difference(one.pairs, one.values[metric], two.values[metric]) for metric in metrics}


def _shared(one: Heights, two: Heights) -> tuple[Heights, Heights]:
    """Return both over the pairs that both have."""
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


def _cell_columns(cell: Row) -> dict[str, Any]:
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
    """Return the factor in which two paths of a cell differ, `path` if both words do, and its values."""
    if this[1] == other[1]:
        return {"factor": "matcher", "value": this[0], "other_value": other[0]}
    if this[0] == other[0]:
        return {"factor": "correction", "value": this[1], "other_value": other[1]}
    return {"factor": "path", "value": ", ".join(this), "other_value": ", ".join(other)}
