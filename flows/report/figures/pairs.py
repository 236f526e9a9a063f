"""Figures of the tables of pairs: along the path, in the layers, and of the match of the units."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from flows.report.figures.chart import INK, Chart, Line, Panel, PanelAxis, coordinates, fit_axis, highest, series_styles
from flows.report.figures.curves import DIRECT, REPAIRED, Curve, curves_of
from flows.report.labels import (
    NETWORK,
    SIZE_FACTORS,
    cell_names,
    cells_of,
    label_path,
    label_points,
    label_value,
    swept_factors,
)

N_COLUMNS = 4

_LAYER = PanelAxis("hidden layer", is_whole=True)

Contents = tuple[PanelAxis, PanelAxis, list[Line]]
"""Both axes of a panel, and its lines."""


def _chart_cells(shown: pd.DataFrame, draw: Callable[[pd.DataFrame, list[Curve]], Contents]) -> Chart | None:
    """Chart a panel per cell, with what `draw` makes of its rows and of all curves; None without cells."""
    curves = curves_of(shown)
    panels: list[Panel] = []
    for label, of_cell in cells_of(shown):
        x, y, lines = draw(of_cell, curves)
        first = of_cell.iloc[0]
        told = tuple((name, label_value(first[name], name)) for name in swept_factors(of_cell))
        panels.append(Panel(label, x, y, tuple(lines), cell_names(of_cell.head(1)).iloc[0], told))
    return Chart(tuple(panels), N_COLUMNS) if panels else None


def _bands(of_cell: pd.DataFrame, curves: list[Curve], x: str, y: str, scale: float = 1) -> list[Line]:
    """Return a line per curve: the mean of `y` over pairs at each `x`, in a band from the worst to the best pair."""
    lines: list[Line] = []
    for curve in curves:
        values = curve.of(of_cell).groupby(x)[y]
        if not len(values):
            continue
        mean, low, high = values.mean(), coordinates(values.min(), scale), coordinates(values.max(), scale)
        lines.append(curve.line(mean.index, mean, scale, marker="", y_low=low, y_high=high, is_band=True))
    return lines


def _least(lines: list[Line], bound: float) -> float:
    """Return the lowest point, or `bound` if that is lower."""
    return min([bound, *(value for line in lines for value in line.y)])


def chart_paths(paths: pd.DataFrame) -> Chart | None:
    """Chart test accuracy along alpha, a panel per cell: mean over pairs, and band from the worst to the best."""

    def draw(of_cell: pd.DataFrame, curves: list[Curve]) -> Contents:
        lines = _bands(of_cell, curves, "alpha", "accuracy", 100)
        return PanelAxis("alpha", "linear", (0.0, 1.0)), PanelAxis("test accuracy (%)", "linear", (0.0, 100.0)), lines

    return _chart_cells(paths[(paths["split"] == "test") & (paths["method"] == "weights")], draw)


def chart_variance(layers: pd.DataFrame) -> Chart | None:
    """Chart the variance of pre-activations at the midpoint over the endpoints', and that of the goal, by layer."""

    def draw(of_cell: pd.DataFrame, curves: list[Curve]) -> Contents:
        lines: list[Line] = []
        for curve in curves:
            by_layer = curve.of(of_cell).groupby("position")["variance_ratio"].mean()
            # A corrected direct path has a goal of its own, which would cover the other one.
            if len(by_layer) and (curve.matcher != "none" or curve.correction == "none"):
                lines.append(curve.line(by_layer.index + 1, by_layer))
        goal = REPAIRED.of(of_cell).groupby("position")["variance_ratio_target"].mean()
        if len(goal):
            # Last, so that the repaired line does not hide it.
            x, y = coordinates(goal.index + 1), coordinates(goal)
            lines.append(Line("goal of REPAIR", INK, x, y, dash="dot", width=2.0))
        return _LAYER, PanelAxis("variance ratio", "linear", (0.0, max(1.1, 1.05 * highest(lines)))), lines

    return _chart_cells(layers[layers["alpha"] == 0.5], draw)


def chart_correlation(axes: pd.DataFrame) -> Chart | None:
    """Chart the correlation of units with their partners in the other network, as matched and before, by layer.

    Means over the units of a layer and over pairs, and the band from the worst to the best pair, a panel per cell.
    """

    def draw(of_cell: pd.DataFrame, curves: list[Curve]) -> Contents:
        names = sorted(of_cell["axis"].unique(), key=_in_order)
        of_cell = of_cell.assign(position=of_cell["axis"].map({name: i + 1 for i, name in enumerate(names)}))
        lines = _bands(of_cell, curves, "position", "matched_correlation")
        before = of_cell.groupby("position")["identity_correlation"].mean()
        x, y = coordinates(before.index), coordinates(before)
        lines.append(Line("before alignment", DIRECT.color, x, y, dash="dash", width=1.2))
        ticks = tuple((float(i + 1), name) for i, name in enumerate(names))
        # Layers of a plain network are numbered, as in the other figures; those of others have speaking names.
        is_plain = all(re.fullmatch(r"\D*\d+\D*", name) for name in names)
        places = _LAYER if is_plain else PanelAxis("", "linear", None, ticks, is_turned=True)
        return places, PanelAxis("correlation", "linear", (_least(lines, -0.05), 1.0)), lines

    return _chart_cells(axes[axes["matched_correlation"].notna()].assign(correction="none", measurement=""), draw)


def chart_predictions(layers: pd.DataFrame) -> Chart | None:
    """Chart the correlation over units of the closed form's moments at the midpoint with the actual ones, by layer.

    Means over aligned pairs, a panel per cell; None without predictions.
    """

    def draw(of_cell: pd.DataFrame, curves: list[Curve]) -> Contents:
        lines: list[Line] = []
        for curve in curves:
            by_layer = curve.of(of_cell).groupby("position")[["sd_correlation", "mean_correlation"]].mean()
            path = label_path(curve.matcher, "none")
            for name, words, dash in (("sd", "standard deviation", "solid"), ("mean", "mean", "dash")):
                values = by_layer[f"{name}_correlation"]
                lines.append(curve.line(values.index + 1, values, label=f"{words}, {path}", dash=dash))
        return _LAYER, PanelAxis("correlation over units", "linear", (_least(lines, 0.0), 1.05)), lines

    is_predicted = (layers["alpha"] == 0.5) & (layers["matcher"] != "none") & layers["sd_correlation"].notna()
    return _chart_cells(layers[is_predicted], draw)


def chart_closed_form(paths: pd.DataFrame) -> Chart | None:
    """Chart test accuracy and loss of aligned midpoints, corrected in closed form against by a forward pass.

    A point is a pair; two panels per matcher, with the diagonal. None if no pair has both corrections.
    """
    shown = paths[(paths["split"] == "test") & (paths["method"] == "weights")]
    middle = shown[(shown["alpha"] == 0.5) & (shown["matcher"] != "none")]
    both = middle[middle["correction"] == "repair-closed-form"].merge(
        middle[middle["correction"] == "repair"], on=["merge_id", "measurement"], suffixes=("", "_forward")
    )
    both = both.sort_values([*NETWORK, *SIZE_FACTORS, *swept_factors(both)])
    both = both.assign(series=label_points(both), cell=cell_names(both))
    # A loss that overflowed is not drawn.
    both = both.replace([np.inf, -np.inf], np.nan)
    styles = series_styles(both["series"])
    panels: list[Panel] = []
    # The curves of all paths, so that colors are the same as in the other figures.
    for curve in curves_of(shown):
        for metric, words, scale in (("accuracy", "accuracy, {} (%)", 100), ("loss", "loss, {} (nats)", 1)):
            points = curve.of(both).dropna(subset=[metric, f"{metric}_forward"])
            if points.empty:
                continue
            lines: list[Line] = []
            for series, style in styles.items():
                rows = points[points["series"] == series]
                notes = tuple(f"seeds {a} and {b}" for a, b in zip(rows["seed_a"], rows["seed_b"], strict=True))
                x, cells = rows[f"{metric}_forward"] * scale, tuple(rows["cell"])
                lines.append(curve.line(x, rows[metric], scale, **style, is_joined=False, cells=cells, notes=notes))
            values = pd.concat([points[metric], points[f"{metric}_forward"]]) * scale
            axis = fit_axis("", values, values)
            if metric == "accuracy":
                room = max(1.0, 0.05 * (values.max() - values.min()))
                axis = PanelAxis("", "linear", (values.min() - room, values.max() + room))
            x, y = (dataclasses.replace(axis, title=words.format(how)) for how in ("forward pass", "closed form"))
            panels.append(Panel(label_path(curve.matcher, "none"), x, y, tuple(lines), has_diagonal=True))
    return Chart(tuple(panels), 2) if panels else None


def _in_order(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts the numbers in names by size."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
