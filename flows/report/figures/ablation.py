"""Figures of the table `ablation`: barriers against a factor of the study, and against the endpoints' errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd

from flows.report.figures.chart import INK, Chart, Line, Panel, PanelAxis, bar_ends, fit_axis, highest, series_styles
from flows.report.figures.curves import ALIGNED, REPAIRED, Curve, curves_of, spread
from flows.report.labels import (
    NETWORK,
    SIZE_FACTORS,
    cell_names,
    label_lines,
    label_points,
    label_value,
    main_factor,
    swept_factors,
)

DRAWN_BARRIERS = ("accuracy_barrier", "loss_barrier")

MAX_SERIES = 4
"""Largest number of series that have panels of their own in a picture."""

MIN_CELLS = 3
"""Fewest cells whose barriers are drawn against their errors."""

PUBLISHED_LABEL = "published, one pair"


def in_unit(metric: str) -> tuple[float, str]:
    """Return the scale of a metric in figures, and its name with the unit."""
    words = metric.replace("_", " ")
    if "accuracy" not in metric:
        return 1, f"{words} (nats)"
    return 100, f"{words} ({'%' if metric.startswith(('midpoint_acc', 'endpoint')) else 'points'})"


def factors_varied(ablation: pd.DataFrame) -> list[str]:
    """Return the factors that barriers can be drawn against, the one with most values first."""
    names = [*SIZE_FACTORS, "normalization", *swept_factors(ablation)]
    n_values = {name: ablation[name].nunique(dropna=False) for name in names}
    varied = [name for name in names if n_values[name] > 1]
    return sorted(varied, key=lambda name: -n_values[name]) or [main_factor(ablation)]


def chart_barriers(ablation: pd.DataFrame) -> Chart | None:
    """Chart test accuracy and loss barriers with 95 % intervals against the main factor, a panel per series.

    All cells stand side by side if there would be too many panels, or one per cell.
    """
    factor = main_factor(ablation)
    shown = _means(ablation, DRAWN_BARRIERS, factor)
    if shown is None:
        return None
    n_series, n_places = shown["series"].nunique(), shown.groupby("series")[factor].nunique(dropna=False)
    is_apart = n_series > MAX_SERIES or (n_series > 1 and n_places.max() == 1)
    if is_apart:
        shown = shown.sort_values([*NETWORK, *SIZE_FACTORS]).assign(series="", place=label_points)
    panels = [
        _panel(
            shown[(shown["series"] == series) & (shown["metric"] == metric)], metric, curves_of(shown), factor, is_apart
        )
        for metric in DRAWN_BARRIERS
        for series in sorted(shown["series"].unique())
    ]
    return Chart(tuple(panels), max(2, shown["series"].nunique()))


def chart_against(ablation: pd.DataFrame, factor: str, metric: str, paper: pd.DataFrame) -> Chart | None:
    """Chart `metric` on the test split against one factor, with the published points of the table `paper`.

    A panel is a series of cells that differ only in the factor.
    """
    shown = _means(ablation, (metric,), factor)
    if shown is None:
        return None
    panels = [
        _panel(of_series, metric, curves_of(shown), factor, False, _published(of_series, metric, paper))
        for of_series in _by_series(shown)
    ]
    return Chart(tuple(panels), 3)


def _means(ablation: pd.DataFrame, metrics: Sequence[str], factor: str, split: str = "test") -> pd.DataFrame | None:
    """Return the known means of `metrics`, sorted, with their series and their `place` on the axis; None if none is."""
    shown = ablation[(ablation["split"] == split) & ablation["mean"].notna() & ablation["metric"].isin(list(metrics))]
    if shown.empty:
        return None
    # Nulls come last: all images, or the end of training.
    shown = shown.sort_values([factor, *NETWORK, *SIZE_FACTORS, *swept_factors(ablation)], kind="stable")
    return shown.assign(
        series=label_points(shown, factor),
        place=[label_value(value, factor) for value in shown[factor]],
        cell=cell_names(shown),
    )


def _by_series(shown: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows of each series, in the order of networks, sizes and swept values."""
    in_order = shown.sort_values([*NETWORK, *SIZE_FACTORS, *swept_factors(shown)], kind="stable")
    return [shown[shown["series"] == series] for series in in_order["series"].unique()]


def _positions(of_panel: pd.DataFrame) -> dict[str, int]:
    return {place: position for position, place in enumerate(of_panel["place"].unique())}


def _panel(
    of_panel: pd.DataFrame, metric: str, curves: list[Curve], factor: str, is_apart: bool, theirs: Sequence[Line] = ()
) -> Panel:
    scale, title = in_unit(metric)
    places = _positions(of_panel)
    lines = [
        _line(of_curve, curve, scale, [places[place] + aside for place in of_curve["place"]], not is_apart)
        for curve, aside in spread(curves, 0.04)
        if len(of_curve := curve.of(of_panel))
    ]
    lines += theirs
    is_mlp = set(of_panel["architecture"]) == {"mlp"}
    name = "" if is_apart else "hidden layers" if factor == "depth" and is_mlp else factor.replace("_", " ")
    # Otherwise curves that only stand a little aside of a single place would look far apart.
    limits = (-0.5, len(places) - 0.5) if len(places) == 1 else None
    ticks = tuple((float(position), place) for place, position in places.items())
    series = str(of_panel["series"].iloc[0]) if len(of_panel) else ""
    y = PanelAxis(title, "linear", (0.0, 1.05 * highest(lines) or 1.0))
    return Panel(series, PanelAxis(name, "linear", limits, ticks, is_apart), y, tuple(lines))


def _line(rows: pd.DataFrame, curve: Curve, scale: float, x: Sequence[float], is_joined: bool) -> Line:
    low, high = bar_ends(rows["mean"], rows["low"], rows["high"], scale)
    notes = tuple(_note(row, scale) for _, row in rows.iterrows())
    return curve.line(
        x, rows["mean"], scale, is_joined=is_joined, y_low=low, y_high=high, cells=tuple(rows["cell"]), notes=notes
    )


def _note(row: pd.Series, scale: float) -> str:
    """Return the counts of a mean, and the prediction interval of a new pair."""
    note = f"{row['n_pairs']} pairs of {row['n_seeds']} seeds"
    if pd.isna(row["new_pair_low"]) or pd.isna(row["new_pair_high"]):
        return note
    return f"{note}; a new pair: {row['new_pair_low'] * scale:.3g} to {row['new_pair_high'] * scale:.3g}"


def _published(of_series: pd.DataFrame, metric: str, paper: pd.DataFrame) -> list[Line]:
    """Return the published points of a panel's cells, with the verdict on each beside this cell and measurement.

    The metric is the accuracy of the midpoint, or its difference from that of the endpoints.
    """
    if metric not in ("midpoint_accuracy", "accuracy_barrier") or paper.empty:
        return []
    test = paper[paper["split"] == "test"]
    points = test[test["metric"] == "midpoint_accuracy"]
    points = points.merge(of_series[["cell_id", "measurement", "place"]].drop_duplicates())
    if metric == "accuracy_barrier":
        size = [*NETWORK, *SIZE_FACTORS]
        ends = test[test["metric"] == "endpoint_accuracy"].drop_duplicates(size)[[*size, "published"]]
        points = points.merge(ends, on=size, suffixes=("", "_ends"))
        points = points.assign(published=points["published_ends"] - points["published"])
    places = _positions(of_series)
    lines: list[Line] = []
    for curve, aside in spread(curves_of(of_series), 0.04):
        rows = curve.of(points)
        if rows.empty:
            continue
        verdicts = zip(rows["method"], rows["verdict"], strict=True)
        notes = tuple(f"published midpoint, {method}: {verdict}" for method, verdict in verdicts)
        lines.append(
            curve.line(
                [places[place] + aside for place in rows["place"]], rows["published"], 100, label=PUBLISHED_LABEL,
                color=INK, fill="none", is_joined=False, cells=tuple(cell_names(rows)), notes=notes,
            )
        )  # fmt: skip
    return lines


def chart_width(ablation: pd.DataFrame, metric: str, split: str) -> Chart:
    """Chart `metric` against width with 95 % intervals, both logarithmic if the means allow it, a panel per series.

    Raises ValueError, with the metrics that there are, if it has no value.
    """
    shown = _means(ablation, (metric,), "width", split)
    if shown is None:
        known = ", ".join(sorted(ablation.loc[ablation["mean"].notna(), "metric"].unique()))
        raise ValueError(f"there is no {metric} on the {split} split; there are {known}")
    scale, title = in_unit(metric)
    panels: list[Panel] = []
    for of_series in _by_series(shown):
        lines = [
            _line(of_curve, curve, scale, list(of_curve["width"]), True)
            for curve in curves_of(shown)
            if len(of_curve := curve.of(of_series))
        ]
        widths = tuple((float(width), str(width)) for width in of_series["width"].unique())
        y = fit_axis(title, of_series["mean"] * scale, of_series["high"] * scale)
        panels.append(
            Panel(str(of_series["series"].iloc[0]), PanelAxis("width", "log2", None, widths), y, tuple(lines))
        )
    return Chart(tuple(panels), 3)


def chart_errors(ablation: pd.DataFrame) -> Chart | None:
    """Chart accuracy barriers against the test error of the endpoints as trained, with 95 % intervals of both.

    A point is a cell and measurement. The aligned path has a panel, and the aligned and repaired one, if it has
    MIN_CELLS cells; None without panels.
    """
    test = ablation[(ablation["split"] == "test") & ablation["mean"].notna()]
    order = [*NETWORK, *SIZE_FACTORS, *swept_factors(ablation)]
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
    panels: list[Panel] = []
    for curve, points in of_curves:
        lines: list[Line] = []
        for series, style in series_styles(shown["series"]).items():
            rows = points[points["series"] == series]
            low, high = bar_ends(rows["mean_error"], rows["low_error"], rows["high_error"], 100)
            line = _line(rows, curve, 100, list(rows["mean_error"] * 100), True)
            lines.append(dataclasses.replace(line, **style, width=0.6, x_low=low, x_high=high))
        panels.append(Panel(curve.label, x, y, tuple(lines)))
    return Chart(tuple(panels), 2)
