"""The data of a figure: `drawing` draws it as a picture, the script of the report page on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

AxisScale = Literal["linear", "log", "log2"]
Dash = Literal["solid", "dash", "dot"]
Fill = Literal["full", "none", "bottom"]
Coordinates = tuple[float, ...]

INK = "#20242a"
"""Color of what belongs to no path; on a dark page the script takes the text color instead."""


@dataclass(frozen=True)
class PanelAxis:
    """An axis of a panel.

    `limits` are in the axis' own unit, None for automatic ones; `ticks` are places with their labels, empty for
    automatic ones.
    """

    title: str
    scale: AxisScale = "linear"
    limits: tuple[float, float] | None = None
    ticks: tuple[tuple[float, str], ...] = ()
    is_whole: bool = False
    """True if only whole numbers have a meaning."""
    is_turned: bool = False
    """True if the labels are long, and turned."""


@dataclass(frozen=True)
class Line:
    """Points of one kind in a panel; every field of them has shape (n_points,).

    `label` is the entry in the legend, empty for none. `path` is the label of the line's path, empty if it has none;
    `cells` are the cells of the points, empty if all are the panel's. `notes` are shown for each point on hovering.
    """

    label: str
    color: str
    x: Coordinates
    y: Coordinates
    path: str = ""
    marker: str = ""
    """Marker in the words of matplotlib; empty for none."""
    fill: Fill = "full"
    dash: Dash = "solid"
    is_joined: bool = True
    width: float = 1.5
    y_low: Coordinates = ()
    y_high: Coordinates = ()
    x_low: Coordinates = ()
    x_high: Coordinates = ()
    is_band: bool = False
    """True if `y_low` to `y_high` is a band around the line, false if they are bars at its points."""
    cells: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """A pair of axes with its lines.

    `cell` is the cell of all lines, empty if there are several. A panel of something measured once for several
    measurements of a cell names the cell only, with its swept values in `told`.
    """

    title: str
    x: PanelAxis
    y: PanelAxis
    lines: tuple[Line, ...]
    cell: str = ""
    told: tuple[tuple[str, str], ...] = ()
    has_diagonal: bool = False
    """True if the line of equality is drawn."""


@dataclass(frozen=True)
class Chart:
    """Panels side by side under one legend."""

    panels: tuple[Panel, ...]
    n_columns: int


def coordinates(values: Iterable[float], scale: float = 1) -> Coordinates:
    """Return `values` times `scale`, NaN if not finite."""
    return tuple(value * scale if math.isfinite(value) else math.nan for value in map(float, values))


def bar_ends(means: pd.Series, low: pd.Series, high: pd.Series, scale: float = 1) -> tuple[Coordinates, Coordinates]:
    """Return the lower and upper ends of bars, at the mean without an interval."""
    return coordinates(low.fillna(means), scale), coordinates(high.fillna(means), scale)


def marks() -> Iterator[tuple[str, Fill]]:
    """Yield markers with their fill, which distinguish series where color distinguishes paths, endlessly."""
    fills: tuple[Fill, ...] = ("full", "none", "bottom")
    while True:
        for fill in fills:
            for marker in "oDs^v<>PX*pd":
                yield marker, fill


def series_styles(series: pd.Series) -> dict[str, dict[str, Any]]:
    """Return label, marker and fill of the lines of each series; a single series has no label."""
    names = [str(name) for name in series.unique()]
    return {
        name: {"label": name if len(names) > 1 else "", "marker": marker, "fill": fill}
        for name, (marker, fill) in zip(names, marks(), strict=False)
    }


def fit_axis(title: str, means: pd.Series, highs: pd.Series) -> PanelAxis:
    """Return an axis up to the upper ends of the intervals.

    It is logarithmic if all means are positive and the largest is at least three times the smallest; otherwise it
    begins at 0.
    """
    top = max(means.max(), highs.fillna(0).max())
    if means.min() > 0 and means.max() >= 3 * means.min():
        return PanelAxis(title, "log", (means.min() / 1.5, top * 1.2))
    # Markers at 0 stay whole.
    return PanelAxis(title, "linear", (-0.03 * top, 1.05 * top) if top > 0 else (-0.1, 1.0))


def highest(lines: Sequence[Line]) -> float:
    """Return the highest point, bar or band; 0 without any."""
    tops = [value for line in lines for value in (*line.y, *line.y_high) if math.isfinite(value)]
    return max(tops, default=0.0)
