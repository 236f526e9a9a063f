"""From paths to barriers, and from barriers of many pairs to means with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tasks import schema
from tasks.science.barrier import barrier, midpoint_barrier
from tasks.science.prediction import new_pair_interval
from tasks.science.statistics import UNDEFINED, Interval, mean_interval, reduction_interval

BARRIER_METRICS = ("loss_barrier", "accuracy_barrier", "midpoint_loss_barrier", "midpoint_accuracy_barrier")
OWN_CHORD_METRICS = ("own_chord_loss_barrier", "own_chord_accuracy_barrier")
CALIBRATED_BARRIERS = ("calibrated_loss_barrier", "midpoint_calibrated_loss_barrier")
"""Of the test split alone, as the calibrated loss is."""

VALUE_METRICS = ("endpoint_loss", "endpoint_accuracy", "midpoint_loss", "midpoint_accuracy")
CALIBRATED_VALUES = ("endpoint_calibrated_loss", "midpoint_calibrated_loss")

Sample = tuple[list[tuple[int, int]], list[float]]
"""The seeds of some pairs, and each pair's value."""

_GROUP = ["cell_id", "matcher", "correction", "measurement"]


def tabulate_barriers(paths: pd.DataFrame) -> pd.DataFrame:
    """One row per path and split. The chord lies between the raw endpoints, also for corrected paths; that of
    `own_chord_*` between the path's own values at alpha 0 and 1.

    Accuracy barriers are rises of the error rate, as fractions. A path whose raw endpoints were not measured is left
    out: it has no chord yet.
    """
    columns = [*schema.PAIR, "correction", "measurement", "split"]
    rows: list[dict[str, Any]] = []
    curves = {
        key: curve.sort_values("alpha")
        for key, curve in paths[paths["method"] == "weights"].groupby(
            ["merge_id", "measurement", "split", "correction"], sort=True
        )
    }
    for (merge_id, measurement, split, _), curve in curves.items():
        raw = curves.get((merge_id, measurement, split, "none"))
        if raw is None:
            continue
        alphas = curve["alpha"].to_numpy()
        row: dict[str, Any] = {name: curve[name].iloc[0] for name in columns}
        for metric, values, ends in (
            ("loss_barrier", curve["loss"].to_numpy(), raw["loss"].to_numpy()),
            ("accuracy_barrier", 1 - curve["accuracy"].to_numpy(), 1 - raw["accuracy"].to_numpy()),
            ("calibrated_loss_barrier", curve["calibrated_loss"].to_numpy(), raw["calibrated_loss"].to_numpy()),
        ):
            chord = (float(ends[0]), float(ends[-1]))
            row[metric] = barrier(values, alphas, chord)
            row[f"midpoint_{metric}"] = midpoint_barrier(values, alphas, chord)
            row[f"own_chord_{metric}"] = barrier(values, alphas, (float(values[0]), float(values[-1])))
        rows.append(row)
    return pd.DataFrame(rows, columns=[*columns, *BARRIER_METRICS, *OWN_CHORD_METRICS, *CALIBRATED_BARRIERS])


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
    paths = paths[(paths["kind"] == "pair") & (paths["method"] == "weights")]
    barriers = barriers[barriers["kind"] == "pair"]
    curves = dict(iter(paths.groupby([*_GROUP, "split"])))
    heights = {key: frame.set_index("merge_id") for key, frame in barriers.groupby([*_GROUP, "split"])}
    rows: list[dict[str, Any]] = []
    for group in groups:
        of_cell = endpoints[endpoints["cell_id"] == group["cell_id"]]
        counts = {
            "n_diverged": int((of_cell["status"] == "diverged").sum()),
            "n_untrained": int((of_cell["status"] == "untrained").sum()),
        }
        key = tuple(group[name] for name in _GROUP)
        raw_key = tuple("none" if name == "correction" else group[name] for name in _GROUP)
        for split in ("train", "test"):
            barrier_names = barrier_metrics(split)
            value_names = (*VALUE_METRICS, *CALIBRATED_VALUES) if split == "test" else VALUE_METRICS
            measured = heights.get((*key, split))
            n_pairs = 0 if measured is None else len(measured)
            seeds: set[int] = set() if measured is None else {*measured["seed_a"], *measured["seed_b"]}
            intervals: dict[str, Interval] = {}
            new_pairs: dict[str, Interval] = {}
            if measured is not None:
                samples = _values(curves[(*key, split)])
                samples |= {metric: (_seed_pairs(measured), list(measured[metric])) for metric in barrier_names}
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
                    | {"split": split, "metric": metric, "n_seeds": len(seeds), "n_pairs": n_pairs}
                    | {"mean": interval.mean, "low": interval.low, "high": interval.high}
                    | {"new_pair_low": new_pair.low, "new_pair_high": new_pair.high}
                )
    return pd.DataFrame(rows, columns=list(schema.ABLATION.columns))


def _values(curves: pd.DataFrame) -> dict[str, Sample]:
    """Endpoints and midpoints of the paths of one group; a pair's endpoint value is the mean of its two ends."""
    values: dict[str, Sample] = {}
    by_alpha = curves.groupby("alpha")
    for place, alphas in (("endpoint", (0.0, 1.0)), ("midpoint", (0.5,))):
        for metric in ("loss", "accuracy", "calibrated_loss"):
            ends = [by_alpha.get_group(alpha).set_index("merge_id") for alpha in alphas]
            means = pd.concat([end[metric] for end in ends], axis=1).mean(axis=1, skipna=False)
            values[f"{place}_{metric}"] = (_seed_pairs(ends[0]), list(means))
    return values


def _reductions(corrected: pd.DataFrame, uncorrected: pd.DataFrame, metrics: Sequence[str]) -> dict[str, Interval]:
    both = uncorrected.loc[corrected.index]
    return {
        f"{metric}_reduction": reduction_interval(_seed_pairs(corrected), list(corrected[metric]), list(both[metric]))
        for metric in metrics
    }


def _seed_pairs(frame: pd.DataFrame) -> list[tuple[int, int]]:
    return list(zip(frame["seed_a"].astype(int), frame["seed_b"].astype(int), strict=True))
