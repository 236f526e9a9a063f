"""The figure of the table `paper`: published points beside ours."""

from __future__ import annotations

import pandas as pd

from flows.report.figures.chart import INK, Chart, Line, Panel, PanelAxis, bar_ends
from flows.report.figures.curves import Curve, curves_of, spread
from flows.report.labels import NETWORK, SIZE_FACTORS, cell_names, main_factor

ENDS = Curve("", "", "endpoints", INK, "8")


def chart_comparison(paper: pd.DataFrame) -> Chart | None:
    """Chart test accuracy at midpoint and endpoints along width or depth, from the table `paper`.

    A panel is a network, recipe and measurement: ours with the prediction interval of a new pair, theirs, one pair
    each, as open markers. None if nothing was run.
    """
    shown = paper[(paper["split"] == "test") & paper["metric"].str.endswith("accuracy")]
    ours = shown[shown["mean"].notna()]
    if ours.empty:
        return None
    curves = curves_of(shown)
    absent = [curve for curve in curves if curve.of(ours).empty]
    differing = [name for name in ("recipe", "measurement") if ours.groupby(NETWORK)[name].nunique().max() > 1]
    panels: list[Panel] = []
    for _, alike in ours.groupby([*NETWORK, "recipe", "measurement"]):
        first = alike.iloc[0]
        theirs = shown[(shown[NETWORK] == first[NETWORK]).all(axis=1)].drop_duplicates("point")
        factor = main_factor(theirs[SIZE_FACTORS])
        lines: list[Line] = []
        for curve, aside in spread([ENDS, *curves], 0.02):
            rows, points = (_rows(curve, frame).sort_values(factor) for frame in (alike, theirs))
            if len(rows):
                lines.append(_our_line(rows, curve, factor, aside))
            if len(points):
                lines.append(_their_line(points, curve, factor, curve.label if curve in absent else ""))
        lines.append(Line("open: published", INK, (), (), marker="o", fill="none", is_joined=False))
        x = PanelAxis("hidden layers" if first["architecture"] == "mlp" else factor, is_whole=True)
        if factor == "width":
            ticks = tuple((float(width), str(width)) for width in sorted(theirs["width"].unique()))
            x = PanelAxis("width", "log2", None, ticks)
        title = ", ".join([" ".join(first[NETWORK]), *(str(first[name]) for name in differing)])
        panels.append(Panel(title, x, PanelAxis("test accuracy (%)", "linear", (0.0, 102.0)), tuple(lines)))
    return Chart(tuple(panels), 2)


def _rows(curve: Curve, frame: pd.DataFrame) -> pd.DataFrame:
    is_end = frame["metric"].str.startswith("endpoint")
    return frame[is_end] if curve is ENDS else curve.of(frame[~is_end])


def _our_line(rows: pd.DataFrame, curve: Curve, factor: str, aside: float) -> Line:
    sizes = rows[factor] * 2**aside if factor == "width" else rows[factor] + 3 * aside
    low, high = bar_ends(rows["mean"], rows["new_pair_low"], rows["new_pair_high"], 100)
    counts = zip(rows["n_pairs"], rows["n_seeds"], rows["verdict"], strict=True)
    notes = tuple(f"{n} pairs of {k} seeds; theirs is {verdict}" for n, k, verdict in counts)
    return curve.line(sizes, rows["mean"], 100, y_low=low, y_high=high, cells=tuple(cell_names(rows)), notes=notes)


def _their_line(points: pd.DataFrame, curve: Curve, factor: str, label: str) -> Line:
    # Points that were not run have no cell.
    cells = tuple(cell_names(points).fillna(""))
    notes = tuple(f"published, {method}" for method in points["method"])
    return curve.line(
        points[factor], points["published"], 100, label=label, fill="none", is_joined=False, cells=cells, notes=notes
    )
