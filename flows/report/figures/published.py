"""The figure of the table `paper`: what the authors of REPAIR saved, beside ours."""

from __future__ import annotations

import pandas as pd

from flows.report.figures.chart import INK, Chart, Line, Panel, PanelAxis, numbers
from flows.report.figures.curves import Curve, curves_of, spread
from flows.report.labels import FACTORS, NETWORK, cell_names, main_factor

ENDS = Curve("", "", "endpoints", INK, "8")


def chart_comparison(paper: pd.DataFrame) -> Chart | None:
    """Test accuracy at midpoint and endpoints along width or depth, a panel per network and per way ours were trained
    and measured: ours with the prediction interval of a new pair, theirs, one pair each, as open markers.

    `paper` is the table of that name. None where nothing of ours is in it.
    """
    shown = paper[(paper["split"] == "test") & paper["metric"].str.endswith("accuracy")]
    ours = shown[shown["mean"].notna()]
    if ours.empty:
        return None
    differing = [name for name in ("recipe", "measurement") if ours.groupby(NETWORK)[name].nunique().max() > 1]
    panels: list[Panel] = []
    for _, panel in ours.groupby([*NETWORK, "recipe", "measurement"]):
        first = panel.iloc[0]
        theirs = shown[(shown[NETWORK] == first[NETWORK]).all(axis=1)].drop_duplicates("point")
        factor = main_factor(theirs[FACTORS])
        lines: list[Line] = []
        for curve, aside in spread([ENDS, *curves_of(shown)], 0.02):
            line, points = (
                (rows[rows["metric"].str.startswith("endpoint")] if curve is ENDS
                else curve.of(rows[rows["metric"].str.startswith("midpoint")])).sort_values(factor)
                for rows in (panel, theirs)
            )  # fmt: skip
            has_ours = curve is ENDS or len(curve.of(ours))
            if len(line):
                sizes = line[factor] * 2**aside if factor == "width" else line[factor] + 3 * aside
                low, high = (line[f"new_pair_{end}"].fillna(line["mean"]) for end in ("low", "high"))
                counts = zip(line["n_pairs"], line["n_seeds"], line["verdict"], strict=True)
                lines.append(
                    Line(
                        curve.label, curve.color, numbers(sizes), numbers(line["mean"], 100), curve.label, curve.marker,
                        y_low=numbers(low, 100), y_high=numbers(high, 100),
                        cells=tuple(cell_names(line)),
                        notes=tuple(f"{n} pairs of {k} seeds; theirs is {verdict}" for n, k, verdict in counts),
                    )
                )  # fmt: skip
            if len(points):
                lines.append(
                    Line(
                        "" if has_ours else curve.label, curve.color, numbers(points[factor]),
                        numbers(points["published"], 100), curve.label, curve.marker, "none", is_joined=False,
                        # Those that ours were not run for are of no cell.
                        cells=tuple(cell_names(points).fillna("")),
                        notes=tuple(f"published, {method}" for method in points["method"]),
                    )
                )  # fmt: skip
        lines.append(Line("open: published", INK, (), (), marker="o", fill="none", is_joined=False))
        sizes = tuple((float(size), str(size)) for size in sorted(theirs[factor].unique()))
        is_mlp = first["architecture"] == "mlp"
        x = PanelAxis("hidden layers" if is_mlp else factor, is_whole=True)
        if factor == "width":
            x = PanelAxis("width", "log2", None, sizes)
        title = ", ".join([" ".join(first[NETWORK]), *(str(first[name]) for name in differing)])
        panels.append(Panel(title, x, PanelAxis("test accuracy (%)", "linear", (0.0, 102.0)), tuple(lines)))
    return Chart(tuple(panels), 2)
