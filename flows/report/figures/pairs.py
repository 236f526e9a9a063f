"""Figures of what was measured of every pair: along its path, in its layers, and of how its units matched."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from flows.report.figures.chart import INK, Chart, Line, Panel, PanelAxis, fit_axis, highest, marks, numbers
from flows.report.figures.curves import DIRECT, REPAIRED, Curve, curves_of
from flows.report.labels import (
    FACTORS,
    NETWORK,
    cell_names,
    cells_of,
    label_path,
    label_points,
    label_value,
    swept_factors,
)

N_COLUMNS = 4

_LAYER = PanelAxis("hidden layer", is_whole=True)


def chart_paths(paths: pd.DataFrame) -> Chart | None:
    """Test accuracy along alpha, a panel per cell: the mean over pairs, and the band from the worst to the best."""
    shown = paths[(paths["split"] == "test") & (paths["method"] == "weights")]
    curves = curves_of(shown)
    panels: list[Panel] = []
    for label, of_cell in cells_of(shown):
        lines = [
            _over_pairs(of_curve.groupby("alpha")["accuracy"], curve, 100)
            for curve in curves
            if len(of_curve := curve.of(of_cell))
        ]
        y = PanelAxis("test accuracy (%)", "linear", (0.0, 100.0))
        panels.append(_of_cell(label, of_cell, PanelAxis("alpha", "linear", (0.0, 1.0)), y, lines))
    return Chart(tuple(panels), N_COLUMNS) if panels else None


def chart_variance(layers: pd.DataFrame) -> Chart | None:
    """Variance of pre-activations at the midpoint over the endpoints', by layer: mean over pairs, and the goal's."""
    shown = layers[layers["alpha"] == 0.5]
    curves = curves_of(shown)
    panels: list[Panel] = []
    for label, of_cell in cells_of(shown):
        lines: list[Line] = []
        for curve in curves:
            by_layer = curve.of(of_cell).groupby("position")["variance_ratio"].mean()
            # Without a matcher a corrected path has a goal of its own, which would cover the other one.
            if len(by_layer) and (curve.matcher, curve.correction == "none") != ("none", False):
                x, y = numbers(by_layer.index + 1), numbers(by_layer)
                lines.append(Line(curve.label, curve.color, x, y, curve.label, curve.marker))
        goal = REPAIRED.of(of_cell).groupby("position")["variance_ratio_target"].mean()
        if len(goal):
            # Over the repaired line, which it would otherwise be hidden by.
            lines.append(Line("goal of REPAIR", INK, numbers(goal.index + 1), numbers(goal), dash="dot", width=2.0))
        y = PanelAxis("variance ratio", "linear", (0.0, max(1.1, 1.05 * highest(lines))))
        panels.append(_of_cell(label, of_cell, _LAYER, y, lines))
    return Chart(tuple(panels), N_COLUMNS) if panels else None


def chart_correlation(axes: pd.DataFrame) -> Chart | None:
    """Correlation of every unit with its partner in the other network, a mean over the units of a layer, as matched and
    before: the mean over pairs, and the band from the worst to the best of them; a panel per cell."""
    shown = axes[axes["matched_correlation"].notna()].assign(correction="none", measurement="")
    curves = curves_of(shown)
    panels: list[Panel] = []
    for label, of_cell in cells_of(shown):
        names = sorted(of_cell["axis"].unique(), key=_in_order)
        of_cell = of_cell.assign(position=of_cell["axis"].map({name: i + 1 for i, name in enumerate(names)}))
        lines = [
            _over_pairs(of_curve.groupby("position")["matched_correlation"], curve, 1)
            for curve in curves
            if len(of_curve := curve.of(of_cell))
        ]
        before = of_cell.groupby("position")["identity_correlation"].mean()
        lines.append(
            Line("before alignment", DIRECT.color, numbers(before.index), numbers(before), dash="dash", width=1.2)
        )
        ticks = tuple((float(i + 1), name) for i, name in enumerate(names))
        # Layers of a plain network are numbered, as in the other figures; those of others have names that tell.
        is_plain = all(re.fullmatch(r"\D*\d+\D*", name) for name in names)
        x = _LAYER if is_plain else PanelAxis("", "linear", None, ticks, is_turned=True)
        least = min((value for line in lines for value in line.y), default=0.0)
        panels.append(_of_cell(label, of_cell, x, PanelAxis("correlation", "linear", (min(-0.05, least), 1.0)), lines))
    return Chart(tuple(panels), N_COLUMNS) if panels else None


def chart_predictions(layers: pd.DataFrame) -> Chart | None:
    """How well the closed form predicts the moments of the interpolated network at the midpoint, by layer: correlations
    over units, the mean over aligned pairs, a panel per cell. None where nothing was predicted."""
    shown = layers[(layers["alpha"] == 0.5) & (layers["matcher"] != "none") & layers["sd_correlation"].notna()]
    curves = curves_of(shown)
    panels: list[Panel] = []
    for label, of_cell in cells_of(shown):
        lines: list[Line] = []
        for curve in curves:
            by_layer = curve.of(of_cell).groupby("position")[["sd_correlation", "mean_correlation"]].mean()
            for name, words in (("sd_correlation", "deviation"), ("mean_correlation", "mean")):
                lines.append(
                    Line(
                        f"{words}, {label_path(curve.matcher, 'none')}", curve.color, numbers(by_layer.index + 1),
                        numbers(by_layer[name]), curve.label, curve.marker,
                        dash="solid" if words == "deviation" else "dash",
                    )
                )  # fmt: skip
        least = min((value for line in lines for value in line.y), default=0.0)
        y = PanelAxis("correlation over units", "linear", (min(0.0, least), 1.05))
        panels.append(_of_cell(label, of_cell, _LAYER, y, lines))
    return Chart(tuple(panels), N_COLUMNS) if panels else None


def chart_closed_form(paths: pd.DataFrame) -> Chart | None:
    """Test accuracy and loss at the midpoint of every aligned pair, corrected in closed form against corrected by a
    forward pass, with the diagonal; two panels per matcher. None where no pair has both corrections."""
    shown = paths[(paths["split"] == "test") & (paths["method"] == "weights")]
    middle = shown[(shown["alpha"] == 0.5) & (shown["matcher"] != "none")]
    both = middle[middle["correction"] == "repair-closed-form"].merge(
        middle[middle["correction"] == "repair"], on=["merge_id", "measurement"], suffixes=("", "_forward")
    )
    both = both.sort_values([*NETWORK, *FACTORS, *swept_factors(both)])
    both = both.assign(series=label_points(both), cell=cell_names(both))
    # What overflowed has no place on an axis.
    both = both.replace([np.inf, -np.inf], np.nan)
    marked = dict(zip(both["series"].unique(), marks(), strict=False))
    panels: list[Panel] = []
    # The colours that these paths have in the figures beside this one.
    for curve in curves_of(shown):
        for metric, words, scale in (("accuracy", "accuracy, {} (%)", 100), ("loss", "loss, {} (nats)", 1)):
            points = curve.of(both).dropna(subset=[metric, f"{metric}_forward"])
            if points.empty:
                continue
            lines: list[Line] = []
            for name, (marker, fill) in marked.items():
                rows = points[points["series"] == name]
                lines.append(
                    Line(
                        str(name) if len(marked) > 1 else "", curve.color, numbers(rows[f"{metric}_forward"], scale),
                        numbers(rows[metric], scale), curve.label, marker, fill, is_joined=False,
                        cells=tuple(rows["cell"]),
                        notes=tuple(f"seeds {a} and {b}" for a, b in zip(rows["seed_a"], rows["seed_b"], strict=True)),
                    )
                )  # fmt: skip
            values = pd.concat([points[metric], points[f"{metric}_forward"]]) * scale
            if metric == "accuracy":
                room = max(1.0, 0.05 * (values.max() - values.min()))
                x, y = (
                    PanelAxis(words.format(how), "linear", (values.min() - room, values.max() + room))
                    for how in ("forward pass", "closed form")
                )
            else:
                x, y = (fit_axis(words.format(how), values, values) for how in ("forward pass", "closed form"))
            title = label_path(curve.matcher, "none")
            panels.append(Panel(title, x, y, tuple(lines), has_diagonal=True))
    return Chart(tuple(panels), 2) if panels else None


def _over_pairs(values: Any, curve: Curve, scale: float) -> Line:
    """Means over pairs, with the band from the worst to the best."""
    mean = values.mean()
    low, high = numbers(values.min(), scale), numbers(values.max(), scale)
    return Line(
        curve.label, curve.color, numbers(mean.index), numbers(mean, scale), curve.label, y_low=low, y_high=high,
        is_band=True,
    )  # fmt: skip


def _of_cell(label: str, of_cell: pd.DataFrame, x: PanelAxis, y: PanelAxis, lines: list[Line]) -> Panel:
    first = of_cell.iloc[0]
    told = tuple((name, label_value(first[name], name)) for name in swept_factors(of_cell))
    return Panel(label, x, y, tuple(lines), cell_names(of_cell.head(1)).iloc[0], told)


def _in_order(name: str) -> list[tuple[int, str]]:
    """Names as a person counts: the numbers in them by their size."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
