"""What a figure shows, as numbers and words: drawn as a picture by `drawing`, and on the report page by its script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

Scale = Literal["linear", "log", "log2"]
Dash = Literal["solid", "dash", "dot"]
Fill = Literal["full", "none", "bottom"]
Numbers = tuple[float, ...]

INK = "#20242a"
"""The colour of what is of no path; on a dark page the script takes the text's instead."""


@dataclass(frozen=True)
class PanelAxis:
    """`limits` are in the axis' own unit, where they are not left to whoever draws; `ticks` are places with their
    labels, where these are not the numbers themselves."""

    title: str
    scale: Scale = "linear"
    limits: tuple[float, float] | None = None
    ticks: tuple[tuple[float, str], ...] = ()
    is_whole: bool = False
    """Whether places between whole numbers mean nothing."""
    is_turned: bool = False
    """Whether the labels are long, and stand on their side."""


@dataclass(frozen=True)
class Line:
    """Points of one kind in a panel, of shape (n_points,) each, joined where they follow one another.

    `label` is its entry in the legend, empty for none. `path` is the label of the path that it is of, empty where it
    is of none; `cells` are the cells that its points are of, none where all are of the panel's. `notes` tell of each
    point what its place does not.
    """

    label: str
    color: str
    x: Numbers
    y: Numbers
    path: str = ""
    marker: str = ""
    """As matplotlib names them; none where empty."""
    fill: Fill = "full"
    dash: Dash = "solid"
    is_joined: bool = True
    width: float = 1.5
    y_low: Numbers = ()
    y_high: Numbers = ()
    x_low: Numbers = ()
    x_high: Numbers = ()
    is_band: bool = False
    """Whether `y_low` to `y_high` is a band around the line, else they are bars at its points."""
    cells: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `cell` is the one that all of it is of, empty where there are several. What is measured once
    for several measurements of a cell is of the one that has no name, under the factors that are `told`."""

    title: str
    x: PanelAxis
    y: PanelAxis
    lines: tuple[Line, ...]
    cell: str = ""
    told: tuple[tuple[str, str], ...] = ()
    has_diagonal: bool = False
    """Whether equality of both axes is drawn."""


@dataclass(frozen=True)
class Chart:
    """Panels beside one another under one legend."""

    panels: tuple[Panel, ...]
    n_columns: int


def numbers(values: Iterable[float], scale: float = 1) -> Numbers:
    """`values` times `scale`; what is not finite is NaN, and has no place on an axis."""
    return tuple(value * scale if math.isfinite(value) else math.nan for value in map(float, values))


def marks() -> Iterator[tuple[str, Fill]]:
    """Markers with their fill, which tell series apart where colour tells paths, over and over."""
    fills: tuple[Fill, ...] = ("full", "none", "bottom")
    while True:
        for fill in fills:
            for marker in "oDs^v<>PX*pd":
                yield marker, fill


def fit_axis(title: str, means: pd.Series, highs: pd.Series) -> PanelAxis:
    """A logarithmic axis where all means are above 0 and the largest is three times the smallest, else one from 0; up
    to the upper ends of the intervals."""
    top = max(means.max(), highs.fillna(0).max())
    if means.min() > 0 and means.max() >= 3 * means.min():
        return PanelAxis(title, "log", (means.min() / 1.5, top * 1.2))
    # A little room, in which markers at 0 are whole.
    return PanelAxis(title, "linear", (-0.03 * top, 1.05 * top) if top > 0 else (-0.1, 1.0))


def highest(lines: Sequence[Line]) -> float:
    """The highest point, bar or band of all; 0 where there is none."""
    tops = [value for line in lines for value in (*line.y, *line.y_high) if math.isfinite(value)]
    return max(tops, default=0.0)
