"""Pictures of charts, drawn with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from flows.report.figures.chart import Chart, Line, Panel, PanelAxis

mpl.use("Agg")

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.dpi": 130,
    # A name with dollar signs is not a formula.
    "text.parse_math": False,
}

_DASHES = {"solid": "-", "dash": "--", "dot": ":"}


def draw_png(chart: Chart) -> bytes:
    """Draw the chart as PNG."""
    buffer = io.BytesIO()
    draw(chart).savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw(chart: Chart) -> Figure:
    """Draw the chart's panels in a grid, with one legend."""
    n_rows = -(-len(chart.panels) // chart.n_columns)
    # Few enough columns that the last row is about as full as the others.
    n_columns = -(-len(chart.panels) // n_rows)
    with mpl.rc_context(_STYLE):
        width = 13.2 / max(n_columns, 2) if n_columns > 1 else 6.6
        figure = Figure(figsize=(width * n_columns, min(3.6, 0.85 * width) * n_rows + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
        for axes, panel in zip(grid, chart.panels, strict=False):
            _draw_panel(axes, panel)
        for axes in grid[len(chart.panels) :]:
            axes.set_visible(False)
        entries: Mapping[str, object] = {
            label: handle
            for axes in grid[: len(chart.panels)]
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        if entries:
            # An inch has about 9 letters, and the line and gap of an entry take 6.
            ncols = min(len(entries), max(1, int(9 * width * n_columns / (6 + max(map(len, entries))))))
            figure.legend(list(entries.values()), list(entries), loc="outside upper center", ncols=ncols)
            # More lines of the legend do not shrink the panels.
            figure.set_figheight(figure.get_figheight() + 0.2 * (-(-len(entries) // ncols) - 1))
        return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        _draw_line(axes, line)
    _set_axis(axes, "x", panel.x)
    _set_axis(axes, "y", panel.y)
    if panel.has_diagonal:
        ends = axes.get_xlim()
        axes.plot(ends, ends, color="black", linestyle=":", linewidth=1, label="equal", zorder=1)
    axes.set_title(panel.title)


def _draw_line(axes: Axes, line: Line) -> None:
    style: dict[str, Any] = {
        "color": line.color,
        "linestyle": _DASHES[line.dash] if line.is_joined else "none",
        "linewidth": line.width,
        # A label that begins with an underscore is not in the legend.
        "label": line.label or "_",
        "marker": line.marker or None,
        "fillstyle": line.fill,
        "markersize": 7 if line.fill == "none" else 5,
        # Goals and published points, which have neither bars nor band, lie on top.
        "zorder": 3 if line.y_low else 5,
    }
    if line.is_band:
        axes.fill_between(line.x, line.y_low, line.y_high, color=line.color, alpha=0.15, linewidth=0)
    if line.y_low and not line.is_band:
        reach = {"yerr": _reach(line.y, line.y_low, line.y_high)}
        if line.x_low:
            reach["xerr"] = _reach(line.x, line.x_low, line.x_high)
        axes.errorbar(line.x, line.y, capsize=3, elinewidth=min(1.0, line.width), **reach, **style)
    else:
        axes.plot(line.x, line.y, **style)


def _reach(values: tuple[float, ...], low: tuple[float, ...], high: tuple[float, ...]) -> np.ndarray:
    """Return the lengths of bars below and above, shape (2, n_points)."""
    return np.abs(np.array([np.subtract(values, low), np.subtract(high, values)]))


def _set_axis(axes: Axes, which: str, axis: PanelAxis) -> None:
    side = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}label": axis.title})
    if axis.scale == "log":
        least, top = axis.limits or (1.0, 1.0)
        axes.set(**{f"{which}scale": "log"})
        side.set_major_locator(LogLocator(subs=(1, 2, 5) if top < 300 * least else (1,)))
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        side.set_minor_formatter(NullFormatter())
    if axis.scale == "log2":
        getattr(axes, f"set_{which}scale")("log", base=2)
    if axis.limits:
        axes.set(**{f"{which}lim": axis.limits})
    if axis.ticks:
        side.set_ticks([place for place, _ in axis.ticks], [label for _, label in axis.ticks])
    elif axis.is_whole:
        side.set_major_locator(MaxNLocator(integer=True))
    if axis.is_turned:
        axes.tick_params(axis="x", rotation=60)
