"""Figures of the table `ablation`: barriers against what a study varies, and against the endpoints' errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd

from flows.report.figures.chart import INK, Chart, Line, Panel, PanelAxis, fit_axis, highest, marks, numbers
from flows.report.figures.curves import ALIGNED, REPAIRED, Curve, curves_of, spread
from flows.report.labels import (
    FACTORS,
    NETWORK,
    cell_names,
    label_lines,
    label_points,
    label_value,
    main_factor,
    swept_factors,
)

BARRIERS = ("accuracy_barrier", "loss_barrier")

MAX_SERIES = 4
"""More series than that have no panels of their own in a picture."""

MIN_CELLS = 3
"""Fewer cells than that say nothing of how their barriers go with their errors."""

PUBLISHED = "published, one pair"


def in_unit(metric: str) -> tuple[float, str]:
    """By how much a metric is multiplied to be shown, and its name with that unit."""
    words = metric.replace("_", " ")
    if "accuracy" not in metric:
        return 1, f"{words} (nats)"
    return 100, f"{words} ({'%' if metric.startswith(('midpoint_acc', 'endpoint')) else 'points'})"


def factors_varied(ablation: pd.DataFrame) -> list[str]:
    """What a study varies that barriers can be drawn against, what has most values first."""
    names = [*FACTORS, "normalization", *swept_factors(ablation)]
    n_values = {name: ablation[name].nunique(dropna=False) for name in names}
    varied = [name for name in names if n_values[name] > 1]
    return sorted(varied, key=lambda name: -n_values[name]) or [main_factor(ablation)]


def chart_barriers(ablation: pd.DataFrame) -> Chart | None:
    """Test accuracy and loss barrier with 95 % intervals: against the main factor, a panel per series; where that makes
    too many panels, or one per cell, all cells side by side."""
    factor = main_factor(ablation)
    shown = _means(ablation, BARRIERS, factor)
    if shown is None:
        return None
    n_series, n_places = shown["series"].nunique(), shown.groupby("series")[factor].nunique(dropna=False)
    is_apart = n_series > MAX_SERIES or (n_series > 1 and n_places.max() == 1)
    if is_apart:
        shown = shown.sort_values([*NETWORK, *FACTORS]).assign(series="", place=label_points)
    panels = [
        _panel(
            shown[(shown["series"] == series) & (shown["metric"] == metric)], metric, curves_of(shown), factor, is_apart
        )
        for metric in BARRIERS
        for series in sorted(shown["series"].unique())
    ]
    return Chart(tuple(panels), max(2, shown["series"].nunique()))


def chart_against(ablation: pd.DataFrame, factor: str, metric: str, paper: pd.DataFrame) -> Chart | None:
    """`metric` on the test split against one factor, a panel per series of cells that differ in nothing else, with what
    the authors of REPAIR saved of these networks. `paper` is the table of that name."""
    shown = _means(ablation, (metric,), factor)
    if shown is None:
        return None
    panels: list[Panel] = []
    in_order = shown.sort_values([*NETWORK, *FACTORS, *swept_factors(ablation)], kind="stable")
    for series in in_order["series"].unique():
        of_series = shown[shown["series"] == series]
        theirs = _published(of_series, metric, paper)
        panels.append(_panel(of_series, metric, curves_of(shown), factor, False, theirs))
    return Chart(tuple(panels), 3)


def _means(ablation: pd.DataFrame, metrics: Sequence[str], factor: str) -> pd.DataFrame | None:
    """What is known of these metrics on the test split, in order, with its series and its `place` on the axis of
    `factor`; None where nothing is."""
    shown = ablation[(ablation["split"] == "test") & ablation["mean"].notna() & ablation["metric"].isin(list(metrics))]
    if shown.empty:
        return None
    # What has no value comes last: all images, or the end of training.
    shown = shown.sort_values([factor, *NETWORK, *FACTORS, *swept_factors(ablation)], kind="stable")
    return shown.assign(
        series=label_points(shown, factor),
        place=[label_value(value, factor) for value in shown[factor]],
        cell=cell_names(shown),
    )


def _panel(
    of_panel: pd.DataFrame, metric: str, curves: list[Curve], factor: str, is_apart: bool, theirs: Sequence[Line] = ()
) -> Panel:
    scale, title = in_unit(metric)
    places = {place: position for position, place in enumerate(of_panel["place"].unique())}
    lines = [
        _line(of_curve, curve, scale, [places[place] + aside for place in of_curve["place"]], not is_apart)
        for curve, aside in spread(curves, 0.04)
        if len(of_curve := curve.of(of_panel))
    ]
    lines += theirs
    is_mlp = set(of_panel["architecture"]) == {"mlp"}
    name = "" if is_apart else "hidden layers" if factor == "depth" and is_mlp else factor.replace("_", " ")
    # Else what only stands aside would look far apart.
    limits = (-0.5, len(places) - 0.5) if len(places) == 1 else None
    x = PanelAxis(
        name, "linear", limits, tuple((float(position), place) for place, position in places.items()), is_apart
    )
    series = str(of_panel["series"].iloc[0]) if len(of_panel) else ""
    return Panel(series, x, PanelAxis(title, "linear", (0.0, 1.05 * highest(lines) or 1.0)), tuple(lines))


def _line(rows: pd.DataFrame, curve: Curve, scale: float, x: Sequence[float], is_joined: bool) -> Line:
    low, high = rows["low"].fillna(rows["mean"]), rows["high"].fillna(rows["mean"])
    return Line(
        curve.label, curve.color, numbers(x), numbers(rows["mean"], scale), curve.label, curve.marker,
        is_joined=is_joined, y_low=numbers(low, scale), y_high=numbers(high, scale),
        cells=tuple(rows["cell"]), notes=tuple(_note(row, scale) for _, row in rows.iterrows()),
    )  # fmt: skip


def _note(row: pd.Series, scale: float) -> str:
    """How many pairs a mean is of, and where a new pair would fall."""
    note = f"{row['n_pairs']} pairs of {row['n_seeds']} seeds"
    if pd.isna(row["new_pair_low"]) or pd.isna(row["new_pair_high"]):
        return note
    return f"{note}; a new pair: {row['new_pair_low'] * scale:.3g} to {row['new_pair_high'] * scale:.3g}"


def _published(of_series: pd.DataFrame, metric: str, paper: pd.DataFrame) -> list[Line]:
    """What the authors saved of the cells of a panel: their midpoint's accuracy, or how far it lies below their
    endpoints', with the verdict on that accuracy beside this very cell and measurement of ours."""
    if metric not in ("midpoint_accuracy", "accuracy_barrier") or paper.empty:
        return []
    test = paper[paper["split"] == "test"]
    points = test[test["metric"] == "midpoint_accuracy"]
    points = points.merge(of_series[["cell_id", "measurement", "place"]].drop_duplicates())
    if metric == "accuracy_barrier":
        size = [*NETWORK, *FACTORS]
        ends = test[test["metric"] == "endpoint_accuracy"].drop_duplicates(size)[[*size, "published"]]
        points = points.merge(ends, on=size, suffixes=("", "_ends"))
        points = points.assign(published=points["published_ends"] - points["published"])
    places = {place: position for position, place in enumerate(of_series["place"].unique())}
    lines: list[Line] = []
    for curve, aside in spread(curves_of(of_series), 0.04):
        rows = curve.of(points)
        if rows.empty:
            continue
        told = zip(rows["method"], rows["verdict"], strict=True)
        lines.append(
            Line(
                PUBLISHED, INK, numbers(places[place] + aside for place in rows["place"]),
                numbers(rows["published"], 100), curve.label, curve.marker, "none", is_joined=False,
                cells=tuple(cell_names(rows)),
                notes=tuple(f"published midpoint, {method}: {verdict}" for method, verdict in told),
            )
        )  # fmt: skip
    return lines


def chart_width(ablation: pd.DataFrame, metric: str, split: str) -> Chart:
    """`metric` against width, both logarithmic where the metric's means allow it: a line per path with 95 % intervals,
    a panel per series of cells. ValueError, naming what there is, where it has no value."""
    shown = ablation[(ablation["split"] == split) & (ablation["metric"] == metric) & ablation["mean"].notna()]
    if shown.empty:
        known = ", ".join(sorted(ablation.loc[ablation["mean"].notna(), "metric"].unique()))
        raise ValueError(f"there is no {metric} on the {split} split; there are {known}")
    shown = shown.sort_values([*NETWORK, *FACTORS]).assign(
        series=lambda rows: label_points(rows, "width"), cell=cell_names
    )
    scale, title = in_unit(metric)
    panels: list[Panel] = []
    for series in shown["series"].unique():
        of_series = shown[shown["series"] == series]
        lines = [
            _line(of_curve, curve, scale, list(of_curve["width"]), True)
            for curve in curves_of(shown)
            if len(of_curve := curve.of(of_series))
        ]
        widths = tuple((float(width), str(width)) for width in of_series["width"].unique())
        y = fit_axis(title, of_series["mean"] * scale, of_series["high"] * scale)
        panels.append(Panel(str(series), PanelAxis("width", "log2", None, widths), y, tuple(lines)))
    return Chart(tuple(panels), 3)


def chart_errors(ablation: pd.DataFrame) -> Chart | None:
    """Accuracy barrier against the test error of the endpoints as trained, a point per cell and measurement, with 95 %
    intervals of both: a panel for the aligned path, and one for the aligned and repaired.

    A panel needs MIN_CELLS cells; None where there is none.
    """
    test = ablation[(ablation["split"] == "test") & ablation["mean"].notna()]
    order = [*NETWORK, *FACTORS, *swept_factors(ablation)]
    barriers = test[test["metric"] == "accuracy_barrier"].sort_values(order)
    # A corrected path has endpoints of its own.
    ends = ALIGNED.of(test[test["metric"] == "endpoint_accuracy"])
    errors = ends.assign(mean=1 - ends["mean"], low=1 - ends["high"], high=1 - ends["low"])
    both = barriers.merge(errors, on=["cell_id", "measurement"], suffixes=("", "_error"))
    both = both.assign(series=label_lines(both), cell=cell_names(both))
    of_curves = [(curve, curve.of(both)) for curve in (ALIGNED, REPAIRED)]
    of_curves = [(curve, points) for curve, points in of_curves if points["cell_id"].nunique() >= MIN_CELLS]
    if not of_curves:
        return None
    shown = pd.concat([points for _, points in of_curves])
    x = fit_axis("test error of the endpoints (%)", shown["mean_error"] * 100, shown["high_error"] * 100)
    y = fit_axis("accuracy barrier (points)", shown["mean"] * 100, shown["high"] * 100)
    marked = dict(zip(shown["series"].unique(), marks(), strict=False))
    panels: list[Panel] = []
    for curve, points in of_curves:
        lines: list[Line] = []
        for name, (marker, fill) in marked.items():
            rows = points[points["series"] == name]
            low, high = rows["low_error"].fillna(rows["mean_error"]), rows["high_error"].fillna(rows["mean_error"])
            line = _line(rows, curve, 100, list(rows["mean_error"] * 100), True)
            lines.append(
                dataclasses.replace(
                    line, label=str(name) if len(marked) > 1 else "", marker=marker, fill=fill, width=0.6,
                    x_low=numbers(low, 100), x_high=numbers(high, 100),
                )
            )  # fmt: skip
        panels.append(Panel(curve.label, x, y, tuple(lines)))
    return Chart(tuple(panels), 2)
