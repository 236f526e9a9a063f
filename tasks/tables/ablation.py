"""From paths to barriers, and from barriers of many pairs to means with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.science.evaluation.barrier import barrier, midpoint_barrier
from tasks.science.statistics.jackknife import UNDEFINED, Interval, mean_interval, reduction_interval
from tasks.science.statistics.new_pair import new_pair_interval
from tasks.tables import schema

BARRIER_METRICS = ("loss_barrier", "accuracy_barrier", "midpoint_loss_barrier", "midpoint_accuracy_barrier")
OWN_CHORD_METRICS = ("own_chord_loss_barrier", "own_chord_accuracy_barrier")
CALIBRATED_BARRIERS = ("calibrated_loss_barrier", "midpoint_calibrated_loss_barrier")
"""Of the test split alone, as the calibrated loss is."""

VALUE_METRICS = ("endpoint_loss", "endpoint_accuracy", "midpoint_loss", "midpoint_accuracy")
CALIBRATED_VALUES = ("endpoint_calibrated_loss", "midpoint_calibrated_loss")
_VALUES = ("loss", "accuracy", "calibrated_loss")

Sample = tuple[list[tuple[int, int]], list[float]]
"""The seeds of some pairs, and each pair's value."""

Columns = dict[str, list[Any]]
"""Rows, by the name of each column: a frame for each of thousands of groups would take far longer to look into."""

_GROUP = ["cell_id", "matcher", "correction", "measurement"]


def tabulate_barriers(paths: pd.DataFrame) -> pd.DataFrame:
    """One row per path and split. The chord lies between the raw endpoints, also for corrected paths; that of
    `own_chord_*` between the path's own values at alpha 0 and 1.

    Accuracy barriers are rises of the error rate, as fractions. A path whose raw endpoints were not measured is left
    out: it has no chord yet.
    """
    columns = [*schema.PAIR, "correction", "measurement", "split"]
    ordered = paths[paths["method"] == "weights"].sort_values("alpha", kind="stable")
    cells = {name: ordered[name].to_numpy() for name in (*columns, "alpha", "loss", "accuracy", "calibrated_loss")}
    curves = places_by(ordered, ["merge_id", "measurement", "split", "correction"])
    rows: list[dict[str, Any]] = []
    for (merge_id, measurement, split, _), places in curves.items():
        raw = curves.get((merge_id, measurement, split, "none"))
        if raw is None:
            continue
        alphas = cells["alpha"][places]
        row: dict[str, Any] = {name: cells[name][places[0]] for name in columns}
        for metric, values in (
            ("loss_barrier", cells["loss"]),
            ("accuracy_barrier", 1 - cells["accuracy"]),
            ("calibrated_loss_barrier", cells["calibrated_loss"]),
        ):
            curve, chord = values[places], (float(values[raw[0]]), float(values[raw[-1]]))
            row[metric] = barrier(curve, alphas, chord)
            row[f"midpoint_{metric}"] = midpoint_barrier(curve, alphas, chord)
            row[f"own_chord_{metric}"] = barrier(curve, alphas, (float(curve[0]), float(curve[-1])))
        rows.append(row)
    return pd.DataFrame(rows, columns=[*columns, *BARRIER_METRICS, *OWN_CHORD_METRICS, *CALIBRATED_BARRIERS])


def places_by(frame: pd.DataFrame, names: list[str]) -> dict[tuple[str, ...], NDArray[np.intp]]:
    """At which rows of `frame`, ascending, the columns `names` hold which words, in the order of the words."""
    found: dict[Any, NDArray[np.intp]] = frame.groupby(names).indices  # pyright: ignore[reportAssignmentType]
    return {tuple(map(str, words)): places for words, places in sorted(found.items())}


def barrier_metrics(split: str) -> tuple[str, ...]:
    """Those that are defined on `split`."""
    return (*BARRIER_METRICS, *CALIBRATED_BARRIERS) if split == "test" else BARRIER_METRICS


def summarise(
    groups: Sequence[dict[str, Any]], paths: pd.DataFrame, barriers: pd.DataFrame, endpoints: pd.DataFrame
) -> pd.DataFrame:
    """The ablation: per cell, matcher, correction, measurement and split, each metric's mean over pairs.

    Every group that was asked for has its rows, with nulls where no pair of it was measured, so that the counts of
    diverged and untrained endpoints always stand beside it.
    """
    curves = _by_group(paths[(paths["kind"] == "pair") & (paths["method"] == "weights")], ("alpha", *_VALUES))
    heights = _by_group(barriers[barriers["kind"] == "pair"], (*BARRIER_METRICS, *CALIBRATED_BARRIERS))
    statuses = {str(cell_id): list(of_cell) for cell_id, of_cell in endpoints.groupby("cell_id")["status"]}
    rows: list[dict[str, Any]] = []
    for group in groups:
        of_cell = statuses.get(group["cell_id"], [])
        counts = {f"n_{status}": of_cell.count(status) for status in ("diverged", "untrained")}
        key = tuple(group[name] for name in _GROUP)
        raw_key = tuple("none" if name == "correction" else group[name] for name in _GROUP)
        for split in ("train", "test"):
            barrier_names = barrier_metrics(split)
            value_names = (*VALUE_METRICS, *CALIBRATED_VALUES) if split == "test" else VALUE_METRICS
            measured = heights.get((*key, split))
            pairs = [] if measured is None else _seed_pairs(measured)
            seeds = {seed for pair in pairs for seed in pair}
            intervals: dict[str, Interval] = {}
            new_pairs: dict[str, Interval] = {}
            if measured is not None:
                samples = _values(curves[(*key, split)])
                samples |= {metric: (pairs, measured[metric]) for metric in barrier_names}
                intervals |= {metric: mean_interval(*sample) for metric, sample in samples.items()}
                new_pairs |= {metric: new_pair_interval(*sample) for metric, sample in samples.items()}
                if group["correction"] != "none":
                    intervals |= _reductions(measured, heights[(*raw_key, split)], barrier_names)
            for metric in (*value_names, *barrier_names, *(f"{name}_reduction" for name in barrier_names)):
                if metric.endswith("_reduction") and group["correction"] == "none":
                    continue
                interval = intervals.get(metric, UNDEFINED)
                new_pair = new_pairs.get(metric, UNDEFINED)
                rows.append(
                    group
                    | counts
                    | {"split": split, "metric": metric, "n_seeds": len(seeds), "n_pairs": len(pairs)}
                    | {"mean": interval.mean, "low": interval.low, "high": interval.high}
                    | {"new_pair_low": new_pair.low, "new_pair_high": new_pair.high}
                )
    return pd.DataFrame(rows, columns=list(schema.ABLATION.columns))


def _by_group(frame: pd.DataFrame, names: Sequence[str]) -> dict[tuple[str, ...], Columns]:
    """The rows of each group and split of it, in their order: who they are of, and their columns `names`."""
    arrays = {name: frame[name].to_numpy() for name in ("merge_id", "seed_a", "seed_b", *names)}
    return {
        key: {name: array[places].tolist() for name, array in arrays.items()}
        for key, places in places_by(frame, [*_GROUP, "split"]).items()
    }


def _values(curves: Columns) -> dict[str, Sample]:
    """Endpoints and midpoints of the paths of one group; a pair's endpoint value is the mean of its two ends."""
    rows = {pair: row for row, pair in enumerate(zip(curves["alpha"], curves["merge_id"], strict=True))}
    begins = [row for row, alpha in enumerate(curves["alpha"]) if alpha == 0]
    pairings = [curves["merge_id"][row] for row in begins]
    pairs = [(curves["seed_a"][row], curves["seed_b"][row]) for row in begins]
    values: dict[str, Sample] = {}
    for place, alphas in (("endpoint", (0.0, 1.0)), ("midpoint", (0.5,))):
        for metric in _VALUES:
            of = curves[metric]
            means = [sum(of[rows[alpha, pairing]] for alpha in alphas) / len(alphas) for pairing in pairings]
            values[f"{place}_{metric}"] = (pairs, means)
    return values


def _reductions(corrected: Columns, uncorrected: Columns, metrics: Sequence[str]) -> dict[str, Interval]:
    pairs, place = _seed_pairs(corrected), {pairing: row for row, pairing in enumerate(uncorrected["merge_id"])}
    raw = [place[pairing] for pairing in corrected["merge_id"]]
    return {
        f"{metric}_reduction": reduction_interval(pairs, corrected[metric], [uncorrected[metric][row] for row in raw])
        for metric in metrics
    }


def _seed_pairs(columns: Columns) -> list[tuple[int, int]]:
    return list(zip(columns["seed_a"], columns["seed_b"], strict=True))
