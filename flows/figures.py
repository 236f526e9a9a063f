"""The figures of a report, drawn from a study's tables alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from flows.labels import (
    FACTORS,
    NETWORK,
    cells_of,
    label_cell,
    label_lines,
    label_path,
    label_points,
    label_value,
    main_factor,
    swept_factors,
)

mpl.use("Agg")


Panel = TypeVar("Panel")


@dataclass(frozen=True)
class Curve:
    """A path as figures and tables show it."""

    matcher: str
    correction: str
    label: str
    color: str
    marker: str


CURVES = (
    Curve("none", "none", "direct", "#8a8f98", "s"),
    Curve("none", "repair", "direct, REPAIR", "#c9a227", "v"),
    Curve("activation", "none", "aligned", "#c0392b", "o"),
    Curve("activation", "repair", "aligned, REPAIR", "#1f6fb2", "D"),
)

_ALIGNED, _REPAIRED = CURVES[2:]

_ENDS = Curve("", "", "endpoints", "#20242a", "8")

_COLORS = ("#2e8b57", "#8e44ad", "#d35400", "#16a085", "#7f5539", "#c2185b", "#5c6bc0", "#9e9d24")
_MARKERS = "^<>Pph*X"

_SERIES_MARKERS = [(marker, fill) for fill in ("full", "none", "bottom") for marker in "oDs^v<>PX*pd"]
"""What tells series apart where colour tells paths."""

MAX_SERIES = 4
"""More series than that have no panels of their own."""

MIN_CELLS = 3
"""Fewer cells than that say nothing of how their barriers go with their errors."""

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.dpi": 130,
}


def curves_of(frame: pd.DataFrame) -> list[Curve]:
    """The paths that `frame` has rows of: the four of every study first, then by matcher and correction."""
    present = set(zip(frame["matcher"], frame["correction"], strict=True))
    usual = [curve for curve in CURVES if (curve.matcher, curve.correction) in present]
    others = sorted(present - {(curve.matcher, curve.correction) for curve in CURVES})
    return usual + [
        Curve(*words, label_path(*words), _COLORS[i % len(_COLORS)], _MARKERS[(i + i // len(_COLORS)) % len(_MARKERS)])
        for i, words in enumerate(others)
    ]


def draw_barriers(ablation: pd.DataFrame) -> bytes | None:
    """Test accuracy and loss barrier with 95 % intervals cut off at 0: against the main factor, a panel per series;
    where that makes too many panels, or one per cell, all cells side by side."""
    factor = main_factor(ablation)
    metrics = {"accuracy_barrier": "accuracy barrier (points)", "loss_barrier": "loss barrier (nats)"}
    shown = ablation[(ablation["split"] == "test") & ablation["mean"].notna() & ablation["metric"].isin(list(metrics))]
    if shown.empty:
        return None
    # What has no value comes last: all images, or the end of training.
    shown = shown.sort_values([factor, *NETWORK, *FACTORS]).assign(series=lambda f: label_points(f, factor))
    n_series, n_places = shown["series"].nunique(), shown.groupby("series")[factor].nunique(dropna=False)
    apart = n_series > MAX_SERIES or (n_series > 1 and n_places.max() == 1)
    if apart:
        shown = shown.sort_values([*NETWORK, *FACTORS]).assign(series="", place=label_points)
    else:
        shown = shown.assign(place=[label_value(value, factor) for value in shown[factor]])
    panels = [(series, metric) for metric in metrics for series in sorted(shown["series"].unique())]

    def draw(axes: Axes, panel: tuple[str, str]) -> None:
        series, metric = panel
        of_panel = shown[(shown["series"] == series) & (shown["metric"] == metric)]
        scale = 100 if metric.startswith("accuracy") else 1
        positions = {place: position for position, place in enumerate(of_panel["place"].unique())}
        curves = curves_of(shown)
        for curve, aside in zip(curves, np.linspace(-0.02, 0.02, len(curves)) * (len(curves) - 1), strict=True):
            line = _of_curve(of_panel, curve)
            if line.empty:
                continue
            axes.errorbar(
                [positions[place] + aside for place in line["place"]], line["mean"] * scale,
                yerr=_reach(line) * scale, color=curve.color, marker=curve.marker, capsize=3,
                label=curve.label, markersize=5, linestyle="none" if apart else "-",
            )  # fmt: skip
        axes.set_xticks(range(len(positions)), list(positions))
        if apart:
            axes.tick_params(axis="x", rotation=60)
        else:
            axes.set_xlabel("hidden layers" if factor == "depth" and set(shown["architecture"]) == {"mlp"} else factor)
        if len(positions) == 1:
            axes.set_xlim(-0.5, 0.5)  # Else what only stands aside would look far apart.
        axes.set_ylabel(metrics[metric])
        axes.set_ylim(bottom=0)
        axes.set_title(series)

    return _panels(panels, draw, max(2, shown["series"].nunique()))


def draw_width(ablation: pd.DataFrame, metric: str, split: str) -> Figure:
    """`metric` against width, both logarithmic where the metric's means allow it: a line per path with 95 % intervals,
    a panel per series of cells. ValueError, naming what there is, where it has no value."""
    shown = ablation[(ablation["split"] == split) & (ablation["metric"] == metric) & ablation["mean"].notna()]
    if shown.empty:
        known = ", ".join(sorted(ablation.loc[ablation["mean"].notna(), "metric"].unique()))
        raise ValueError(f"there is no {metric} on the {split} split; there are {known}")
    shown = shown.assign(series=label_points(shown, "width"))
    scale, unit = (100, "%" if metric.startswith(("mid", "end")) else "points") if "accuracy" in metric else (1, "nats")

    def draw(axes: Axes, series: str) -> None:
        of_series = shown[shown["series"] == series]
        for curve in curves_of(shown):
            line = _of_curve(of_series, curve).sort_values("width")
            if not line.empty:
                axes.errorbar(
                    line["width"], line["mean"] * scale, yerr=_reach(line) * scale, color=curve.color,
                    marker=curve.marker, capsize=3, markersize=5, label=curve.label,
                )  # fmt: skip
        widths = sorted(of_series["width"].unique())
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.set_xlabel("width")
        axes.set_ylabel(f"{metric.replace('_', ' ')} ({unit})")
        _fit_axis(axes, "y", of_series["mean"] * scale, of_series["high"] * scale)
        axes.set_title(series)

    return _grid(list(dict.fromkeys(shown.sort_values("width")["series"])), draw, 3)


def draw_paths(paths: pd.DataFrame) -> bytes | None:
    """Test accuracy along alpha, a panel per cell: the mean over pairs, and the band from the worst to the best."""
    shown = paths[(paths["split"] == "test") & (paths["method"] == "weights")]
    if shown.empty:
        return None

    def draw(axes: Axes, of_cell: pd.DataFrame) -> None:
        for curve in curves_of(shown):
            by_alpha = _of_curve(of_cell, curve).groupby("alpha")["accuracy"]
            if by_alpha.ngroups:
                mean = by_alpha.mean() * 100
                axes.plot(mean.index, mean, color=curve.color, label=curve.label)
                axes.fill_between(
                    mean.index, by_alpha.min() * 100, by_alpha.max() * 100, color=curve.color, alpha=0.15, linewidth=0
                )
        axes.set_ylim(0, 100)
        axes.set_xlabel("alpha")
        axes.set_ylabel("test accuracy (%)")
        axes.set_title(label_cell(of_cell, shown))

    return _panels(cells_of(shown), draw, 4)


def draw_variance(layers: pd.DataFrame) -> bytes | None:
    """Variance of pre-activations at the midpoint over the endpoints', by layer: mean over pairs, and the goal's."""
    shown = layers[layers["alpha"] == 0.5]
    if shown.empty:
        return None

    def draw(axes: Axes, of_cell: pd.DataFrame) -> None:
        for curve in curves_of(shown):
            by_layer = _of_curve(of_cell, curve).groupby("position")["variance_ratio"]
            # Without a matcher a corrected path has a goal of its own, which would cover the other one.
            if by_layer.ngroups and (curve.matcher, curve.correction == "none") != ("none", False):
                mean = by_layer.mean()
                axes.plot(
                    mean.index + 1, mean, color=curve.color, marker=curve.marker, markersize=3.5, label=curve.label
                )
        goal = _of_curve(of_cell, _REPAIRED).groupby("position")["variance_ratio_target"].mean()
        if len(goal):
            # Over the repaired line, which it would otherwise be hidden by.
            axes.plot(goal.index + 1, goal, color="black", linestyle=":", linewidth=2, zorder=5, label="goal of REPAIR")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("hidden layer")
        axes.set_ylabel("variance ratio")
        axes.set_ylim(0, max(1.1, axes.get_ylim()[1]))
        axes.set_title(label_cell(of_cell, shown))

    return _panels(cells_of(shown), draw, 4)


def draw_predictions(layers: pd.DataFrame) -> bytes | None:
    """How well the closed form predicts the moments of the interpolated network at the midpoint, by layer: correlations
    over units, the mean over aligned pairs, a panel per cell. None where nothing was predicted."""
    shown = layers[(layers["alpha"] == 0.5) & (layers["matcher"] != "none") & layers["sd_correlation"].notna()]
    if shown.empty:
        return None

    def draw(axes: Axes, of_cell: pd.DataFrame) -> None:
        for curve in curves_of(shown):
            by_layer = _of_curve(of_cell, curve).groupby("position")
            for name, line in (("sd_correlation", "-"), ("mean_correlation", "--")):
                mean = by_layer[name].mean()
                label = f"{'deviation' if name == 'sd_correlation' else 'mean'}, {label_path(curve.matcher, 'none')}"
                axes.plot(
                    mean.index + 1, mean, line, color=curve.color, marker=curve.marker, markersize=3.5, label=label
                )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("hidden layer")
        axes.set_ylabel("correlation over units")
        axes.set_ylim(min(0, axes.get_ylim()[0]), 1.05)
        axes.set_title(label_cell(of_cell, shown))

    return _panels(cells_of(shown), draw, 4)


def draw_errors(ablation: pd.DataFrame) -> bytes | None:
    """Accuracy barrier against the test error of the endpoints as trained, a point per cell and measurement, with 95 %
    intervals of both: a panel for the aligned path, and one for the aligned and repaired.

    A panel needs MIN_CELLS cells; None where there is none.
    """
    test = ablation[(ablation["split"] == "test") & ablation["mean"].notna()]
    order = [*NETWORK, *FACTORS, *swept_factors(ablation)]
    barriers = test[test["metric"] == "accuracy_barrier"].sort_values(order)
    # A corrected path has endpoints of its own.
    ends = _of_curve(test[test["metric"] == "endpoint_accuracy"], _ALIGNED)
    errors = ends.assign(mean=1 - ends["mean"], low=1 - ends["high"], high=1 - ends["low"])
    both = barriers.merge(errors, on=["cell_id", "measurement"], suffixes=("", "_error")).assign(series=label_lines)
    panels = [
        (curve, points)
        for curve in (_ALIGNED, _REPAIRED)
        if (points := _of_curve(both, curve))["cell_id"].nunique() >= MIN_CELLS
    ]
    if not panels:
        return None
    shown = pd.concat([points for _, points in panels])

    def draw(axes: Axes, panel: tuple[Curve, pd.DataFrame]) -> None:
        curve, points = panel
        for name, marker, fill in _mark_series(axes, shown["series"]):
            line = points[points["series"] == name]
            axes.errorbar(
                line["mean_error"] * 100, line["mean"] * 100, xerr=_reach(line, "_error") * 100,
                yerr=_reach(line) * 100, color=curve.color, marker=marker, fillstyle=fill, markersize=6,
                linewidth=0.6, elinewidth=1, label="_",
            )  # fmt: skip
        _fit_axis(axes, "x", shown["mean_error"] * 100, shown["high_error"] * 100)
        _fit_axis(axes, "y", shown["mean"] * 100, shown["high"] * 100)
        axes.set_xlabel("test error of the endpoints (%)")
        axes.set_ylabel("accuracy barrier (points)")
        axes.set_title(curve.label)

    return _panels(panels, draw, 2)


def draw_closed_form(paths: pd.DataFrame) -> bytes | None:
    """Test accuracy and loss at the midpoint of every aligned pair, corrected in closed form against corrected by a
    forward pass, with the diagonal; two panels per matcher. None where no pair has both corrections."""
    shown = paths[(paths["split"] == "test") & (paths["method"] == "weights")]
    middle = shown[(shown["alpha"] == 0.5) & (shown["matcher"] != "none")]
    both = middle[middle["correction"] == "repair-closed-form"].merge(
        middle[middle["correction"] == "repair"], on=["merge_id", "measurement"], suffixes=("", "_forward")
    )
    both = both.sort_values([*NETWORK, *FACTORS, *swept_factors(both)]).assign(series=label_points)
    # What overflowed has no place on an axis.
    both = both.replace([np.inf, -np.inf], np.nan)
    metrics = {"accuracy": ("accuracy, {} (%)", 100), "loss": ("loss, {} (nats)", 1)}
    panels = [
        (curve, metric, points)
        # The colours that these paths have in the figures beside this one.
        for curve in curves_of(shown)
        for metric in metrics
        if len(points := _of_curve(both, curve).dropna(subset=[metric, f"{metric}_forward"]))
    ]
    if not panels:
        return None

    def draw(axes: Axes, panel: tuple[Curve, str, pd.DataFrame]) -> None:
        curve, metric, points = panel
        label, scale = metrics[metric]
        for name, marker, fill in _mark_series(axes, both["series"]):
            of_series = points[points["series"] == name]
            axes.plot(
                of_series[f"{metric}_forward"] * scale, of_series[metric] * scale, linestyle="none",
                color=curve.color, marker=marker, fillstyle=fill, markersize=6, label="_",
            )  # fmt: skip
        values = pd.concat([points[metric], points[f"{metric}_forward"]]) * scale
        if metric == "accuracy":
            room = max(1.0, 0.05 * (values.max() - values.min()))
            axes.set(**dict.fromkeys(("xlim", "ylim"), (values.min() - room, values.max() + room)))
        else:
            _fit_axis(axes, "x", values, values)
            _fit_axis(axes, "y", values, values)
        axes.plot(axes.get_xlim(), axes.get_xlim(), color="black", linestyle=":", linewidth=1, label="equal", zorder=1)
        axes.set_xlabel(label.format("forward pass"))
        axes.set_ylabel(label.format("closed form"))
        axes.set_title(label_path(curve.matcher, "none"))

    return _panels(panels, draw, 2)


def draw_comparison(paper: pd.DataFrame) -> bytes | None:
    """Test accuracy at midpoint and endpoints along width or depth, a panel per network and per way ours were trained
    and measured: ours with the prediction interval of a new pair, theirs, one pair each, as open markers.

    `paper` is the table of that name. None where nothing of ours is in it.
    """
    shown = paper[(paper["split"] == "test") & paper["metric"].str.endswith("accuracy")]
    ours = shown[shown["mean"].notna()]
    if ours.empty:
        return None
    network = ["dataset", "architecture", "normalization"]
    panels = [panel for _, panel in ours.groupby([*network, "recipe", "measurement"])]
    differing = [name for name in ("recipe", "measurement") if ours.groupby(network)[name].nunique().max() > 1]

    def draw(axes: Axes, panel: pd.DataFrame) -> None:
        first = panel.iloc[0]
        theirs = shown[(shown[network] == first[network]).all(axis=1)].drop_duplicates("point")
        factor = main_factor(theirs[FACTORS])
        curves = [_ENDS, *curves_of(shown)]
        # Bars of the same size would cover each other, so they stand a little aside.
        for curve, aside in zip(curves, np.linspace(-0.01, 0.01, len(curves)) * (len(curves) - 1), strict=True):
            at_ends = curve is _ENDS
            line, points = (
                rows[rows["metric"].str.startswith("endpoint")] if at_ends
                else _of_curve(rows[rows["metric"].str.startswith("midpoint")], curve)
                for rows in (panel, theirs)
            )  # fmt: skip
            if len(line):
                line = line.sort_values(factor)
                reach = [line["mean"] - line["new_pair_low"], line["new_pair_high"] - line["mean"]]
                sizes = line[factor] * 2**aside if factor == "width" else line[factor] + 3 * aside
                axes.errorbar(
                    sizes, line["mean"] * 100, yerr=np.nan_to_num(np.array(reach)) * 100,
                    color=curve.color, marker=curve.marker, capsize=3, markersize=4, label=curve.label,
                )  # fmt: skip
            axes.plot(
                points[factor], points["published"] * 100, linestyle="none", marker=curve.marker, markersize=7,
                markerfacecolor="none", markeredgecolor=curve.color, zorder=5,
                label="_" if curve is _ENDS or len(_of_curve(ours, curve)) else curve.label,
            )  # fmt: skip
        axes.plot([], [], linestyle="none", marker="o", markerfacecolor="none", color="black", label="open: published")
        if factor == "width":
            axes.set_xscale("log", base=2)
            widths = sorted(theirs[factor].unique())
            axes.set_xticks(widths, [str(width) for width in widths])
        axes.set_xlabel("hidden layers" if factor == "depth" and first["architecture"] == "mlp" else factor)
        axes.set_ylabel("test accuracy (%)")
        axes.set_ylim(0, 102)
        axes.set_title(", ".join([" ".join(first[network]), *(str(first[name]) for name in differing)]))

    return _panels(panels, draw, 2)


def _of_curve(frame: pd.DataFrame, curve: Curve) -> pd.DataFrame:
    return frame[(frame["matcher"] == curve.matcher) & (frame["correction"] == curve.correction)]


def _reach(means: pd.DataFrame, of: str = "") -> np.ndarray:
    """How far the intervals of means reach below and above, of shape (2, n_means); not at all where there is none."""
    mean = means[f"mean{of}"]
    ends = [mean - means[f"low{of}"].fillna(mean), means[f"high{of}"].fillna(mean) - mean]
    return np.abs(np.array(ends))


def _mark_series(axes: Axes, series: pd.Series) -> list[tuple[str, str, Any]]:
    """Every series with a marker and its fill, which the legend shows where there are several."""
    names = [str(name) for name in series.unique()]
    marked = [(name, *_SERIES_MARKERS[i % len(_SERIES_MARKERS)]) for i, name in enumerate(names)]
    for name, marker, fill in marked if len(marked) > 1 else []:
        axes.plot([], [], linestyle="none", marker=marker, fillstyle=fill, color=_ENDS.color, label=name)
    return marked


def _fit_axis(axes: Axes, which: Literal["x", "y"], means: pd.Series, highs: pd.Series) -> None:
    """A logarithmic axis where all means are above 0 and the largest is three times the smallest, else one from 0; up
    to the upper ends of the intervals."""
    top = max(means.max(), highs.fillna(0).max())
    if means.min() > 0 and means.max() >= 3 * means.min():
        axis = axes.xaxis if which == "x" else axes.yaxis
        axes.set(**{f"{which}scale": "log", f"{which}lim": (means.min() / 1.5, top * 1.2)})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if top < 300 * means.min() else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    else:
        # A little room, in which markers at 0 are whole.
        axes.set(**{f"{which}lim": (-0.03 * top, 1.05 * top) if top > 0 else (-0.1, 1)})


def _panels(panels: Sequence[Panel], draw: Callable[[Axes, Panel], None], n_columns: int) -> bytes:
    """`_grid` as PNG."""
    figure = _grid(panels, draw, n_columns)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _grid(panels: Sequence[Panel], draw: Callable[[Axes, Panel], None], n_columns: int) -> Figure:
    """A grid with one panel for each of `panels`, one legend for all."""
    n_columns = min(n_columns, len(panels))
    n_rows = -(-len(panels) // n_columns)
    with mpl.rc_context(_STYLE):
        width = 13.2 / max(n_columns, 2) if n_columns > 1 else 6.6
        figure = Figure(figsize=(width * n_columns, min(3.6, 0.85 * width) * n_rows + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
        for axes, panel in zip(grid, panels, strict=False):
            draw(axes, panel)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        entries: Mapping[str, object] = {
            label: handle
            for axes in grid[: len(panels)]
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        if entries:
            # About 9 letters to an inch, and the line and gap of an entry are as long as 6.
            ncols = min(len(entries), max(1, int(9 * width * n_columns / (6 + max(map(len, entries))))))
            figure.legend(list(entries.values()), list(entries), loc="outside upper center", ncols=ncols)
            # Further lines of the legend are not at the panels' expense.
            figure.set_figheight(figure.get_figheight() + 0.2 * (-(-len(entries) // ncols) - 1))
        return figure
