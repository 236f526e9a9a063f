"""The tables `barriers` and `ablation`: barriers of paths, and their means over pairs with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tasks.science.evaluation.barrier import barrier, midpoint_barrier
from tasks.science.statistics.jackknife import UNDEFINED, Interval, mean_interval, reduction_interval
from tasks.science.statistics.new_pair import new_pair_interval
from tasks.tables import schema
from tasks.tables.frames import Row, places_by

BARRIER_METRICS = ("loss_barrier", "accuracy_barrier", "midpoint_loss_barrier", "midpoint_accuracy_barrier")
OWN_CHORD_METRICS = ("own_chord_loss_barrier", "own_chord_accuracy_barrier")
CALIBRATED_BARRIERS = ("calibrated_loss_barrier", "midpoint_calibrated_loss_barrier")
"""Barriers of the calibrated loss, which exists on the test split only."""

VALUE_METRICS = ("endpoint_loss", "endpoint_accuracy", "midpoint_loss", "midpoint_accuracy")
CALIBRATED_VALUES = ("endpoint_calibrated_loss", "midpoint_calibrated_loss")
_VALUES = ("loss", "accuracy", "calibrated_loss")

Sample = tuple[list[tuple[int, int]], list[float]]
"""The seeds of pairs, and the value of each pair."""

Columns = dict[str, list[Any]]
"""The rows of a group by column: thousands of small data frames would be much slower to read."""

_GROUP = ["cell_id", "matcher", "correction", "measurement"]


def tabulate_barriers(paths: pd.DataFrame) -> pd.DataFrame:
    """Return the `barriers` table of `paths`, a row per path and split.

    The chord lies between the raw endpoints, also for corrected paths; that of `own_chord_*` between the path's own
    values at alpha 0 and 1. Accuracy barriers are rises of the error rate, as fractions. Paths whose raw endpoints were
    not measured are left out.
    """
    columns = [*schema.PAIR, "correction", "measurement", "split"]
    ordered = paths[paths["method"] == "weights"].sort_values("alpha", kind="stable")
    cells = {name: ordered[name].to_numpy() for name in (*columns, "alpha", "loss", "accuracy", "calibrated_loss")}
    curves = places_by(ordered, ["merge_id", "measurement", "split", "correction"])
    rows: list[Row] = []
    for (merge_id, measurement, split, _), places in curves.items():
        raw = curves.get((merge_id, measurement, split, "none"))
        if raw is None:
            continue
        alphas = cells["alpha"][places]
        row: Row = {name: cells[name][places[0]] for name in columns}
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


def barrier_metrics(split: str) -> tuple[str, ...]:
    """Return the barriers that are defined on `split`."""
    return (*BARRIER_METRICS, *CALIBRATED_BARRIERS) if split == "test" else BARRIER_METRICS


def _metrics(split: str, correction: str) -> tuple[str, ...]:
    """Return the metrics of a path's rows on `split`, in order."""
    values = (*VALUE_METRICS, *CALIBRATED_VALUES) if split == "test" else VALUE_METRICS
    barriers = barrier_metrics(split)
    reductions = () if correction == "none" else (f"{name}_reduction" for name in barriers)
    return (*values, *barriers, *reductions)


def tabulate_ablation(
    groups: Sequence[Row], paths: pd.DataFrame, barriers: pd.DataFrame, endpoints: pd.DataFrame
) -> pd.DataFrame:
    """Return the `ablation` table: each metric's mean over pairs, per group and split.

    A group is a cell, matcher, correction and measurement. Every requested group has its rows, with nulls if no pair of
    it was measured, so that the counts of diverged and untrained endpoints always stand there.
    """
    curves = _by_group(paths[(paths["kind"] == "pair") & (paths["method"] == "weights")], ("alpha", *_VALUES))
    heights = _by_group(barriers[barriers["kind"] == "pair"], (*BARRIER_METRICS, *CALIBRATED_BARRIERS))
    statuses = {str(cell_id): list(of_cell) for cell_id, of_cell in endpoints.groupby("cell_id")["status"]}
    rows: list[Row] = []
    for group in groups:
        of_cell = statuses.get(group["cell_id"], [])
        counts = {f"n_{status}": of_cell.count(status) for status in ("diverged", "untrained")}
        key = tuple(group[name] for name in _GROUP)
        raw_key = tuple("none" if name == "correction" else group[name] for name in _GROUP)
        for split in ("train", "test"):
            measured = heights.get((*key, split))
            pairs = [] if measured is None else _seed_pairs(measured)
            intervals: dict[str, Interval] = {}
            new_pairs: dict[str, Interval] = {}
            if measured is not None:
                samples = _values(curves[(*key, split)])
                samples |= {metric: (pairs, measured[metric]) for metric in barrier_metrics(split)}
                intervals |= {metric: mean_interval(*sample) for metric, sample in samples.items()}
                new_pairs |= {metric: new_pair_interval(*sample) for metric, sample in samples.items()}
                if group["correction"] != "none":
                    intervals |= _reductions(measured, heights[(*raw_key, split)], barrier_metrics(split))
            n_seeds = len({seed for pair in pairs for seed in pair})
            shared = group | counts | {"split": split, "n_seeds": n_seeds, "n_pairs": len(pairs)}
            for metric in _metrics(split, group["correction"]):
                interval, new_pair = intervals.get(metric, UNDEFINED), new_pairs.get(metric, UNDEFINED)
                rows.append(
                    shared
                    | {"metric": metric, "mean": interval.mean, "low": interval.low, "high": interval.high}
                    | {"new_pair_low": new_pair.low, "new_pair_high": new_pair.high}
                )
    return pd.DataFrame(rows, columns=list(schema.ABLATION.columns))


def _by_group(frame: pd.DataFrame, names: Sequence[str]) -> dict[tuple[str, ...], Columns]:
    """Return the pairs and the columns `names` of each group and split, in the order of `frame`."""
    arrays = {name: frame[name].to_numpy() for name in ("merge_id", "seed_a", "seed_b", *names)}
    return {
        key: {name: array[places].tolist() for name, array in arrays.items()}
        for key, places in places_by(frame, [*_GROUP, "split"]).items()
    }


def _values(curves: Columns) -> dict[str, Sample]:
    """Return the endpoint and midpoint values of one group; a pair's endpoint value is the mean of its two ends."""
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
