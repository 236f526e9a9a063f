"""A study's report: the claim, figures, the ablation, failures, and provenance, as one HTML page.

The page is self-contained: it holds the data of tables and charts, and plotly.js, which draws them. The same charts are
saved beside it as pictures.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

import httpx
import jinja2
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from prefect import task
from prefect.context import TaskRunContext

from flows.report.claims import answer_widths, make_claim
from flows.report.controls import independently_initialized, tell_controls
from flows.report.figures.ablation import PUBLISHED_LABEL, chart_against, chart_barriers, chart_errors, factors_varied
from flows.report.figures.chart import Chart
from flows.report.figures.curves import curves_of
from flows.report.figures.drawing import draw_png
from flows.report.figures.pairs import (
    chart_closed_form,
    chart_correlation,
    chart_paths,
    chart_predictions,
    chart_variance,
)
from flows.report.figures.published import chart_comparison
from flows.report.gathered import TABLES_BY_NAME, check_gathered, read_gathering
from flows.report.labels import NETWORK, SIZE_FACTORS, cell_names, label_points, label_value, swept_factors
from flows.report.paper_points import tabulate_paper
from flows.report.prefect_page import show_report
from flows.report.summary import TEXT_COLUMNS, section_starts, summarise_ablation, tabulate_left_out
from infra.paths import figure_key, report_key
from infra.runners import TASK_OPTIONS, run_logger
from infra.sealing import seal_page, seal_png
from infra.storage import Store
from tasks.stored.study_tables import StudyTables, wait_until_still

METRICS = ("accuracy_barrier", "loss_barrier", "midpoint_accuracy")
"""The metrics of the section of barriers."""

SECTIONS = {
    "barriers": (
        "Barriers",
        "Mean over all pairs of a cell on the test split; bars are 95 % intervals over seeds.",
    ),
    "comparison": (
        "Beside the paper",
        "Test accuracy of midpoints and endpoints. Bars are 95 % prediction intervals of a new pair of two new seeds; "
        "open markers are the authors' saved values, one pair each.",
    ),
    "paths": (
        "Along the path",
        "Test accuracy from A (alpha 0) to B (alpha 1): mean over pairs, and the band from the worst to the best.",
    ),
    "variance": (
        "Variance by layer",
        "Variance of each hidden layer's pre-activations at the midpoint, over the mean of the two endpoints': "
        "interpolation makes it collapse, REPAIR sets it to its goal. Corrected direct paths have other goals, and are "
        "left out.",
    ),
    "correlation": (
        "Correlation of matched units",
        "Correlation of a unit's activations with those of its partner in the other network: mean over the units of a "
        "layer and over pairs, with the band from the worst to the best pair. Dashed: before alignment.",
    ),
    "errors": (
        "Barriers against errors",
        "Accuracy barrier against the endpoints' test error, a point per cell, mean over pairs; bars are 95 % "
        "intervals over seeds. Thin lines join cells that differ in one factor only.",
    ),
    "closed_form": (
        "Closed form against forward pass",
        "Test accuracy and loss at the midpoint of each aligned pair: corrected from the endpoints' moments only "
        "(closed form) against corrected by a forward pass of the interpolated network. Both are equal on the dotted "
        "line; the closed form is worse if its accuracy lies below the line, or its loss above.",
    ),
    "predictions": (
        "Predictions of the closed form",
        "Correlation, over units, of the standard deviations and means that the closed form predicts for each layer at "
        "the midpoint with the actual ones behind corrected layers: mean over aligned pairs.",
    ),
}
"""Titles and captions of the figures of a report, in order."""

PUBLISHED_CAPTION = (
    " Open markers are midpoints saved by the authors of REPAIR, one pair each; hover over one for the verdict on it."
)
"""End of the caption of a figure with published points."""

FIRST_SECTIONS = ("barriers", "comparison")
"""The figures above the table."""

MAX_DRAWN_PANELS = 40
"""Largest number of panels in a picture; the page shows more."""


@task(**TASK_OPTIONS)
def report(study: str, store: Store) -> str:
    """Write the report, show it in the Prefect UI, and return the location of the page."""
    where = write_report(store, study)
    if TaskRunContext.get() is not None:
        try:
            show_report(store, study, where)
        except httpx.HTTPError as error:
            # The tables and the page are complete without the artifacts.
            run_logger().warning("the Prefect server did not accept the report's artifacts: %s", error)
    return where


def write_report(store: Store, study: str) -> str:
    """Write figures and page from the study's tables, and return the page's location; StoreError without tables."""
    check_gathered(store, study, TABLES_BY_NAME)
    while not _write_pages(store, study, StudyTables(store, study)):
        run_logger().info("%s was gathered again meanwhile: its report is drawn again", study)
        wait_until_still(store, study)
    return store.locate(report_key(study))


def _write_pages(store: Store, study: str, found: StudyTables) -> bool:
    """Draw and write figures and page; return False, and stop, once the tables are no longer as they were `found`."""
    tables, provenance = read_gathering(store, study)
    charts = make_charts(tables)
    pages: dict[str, bytes] = {}
    for name, chart in charts.items():
        drawn = chart_barriers(tables["ablation"]) if name == "barriers" else first_panels(chart)
        if drawn is not None:
            key = figure_key(study, name)
            pages[key] = seal_png(draw_png(drawn), key)
    page = render(study, tables, charts, provenance)
    pages[report_key(study)] = seal_page(page, report_key(study))
    for key, data in pages.items():
        if not found.are_as_found():
            return False
        store.replace(key, data)
    return found.are_as_found()


Charts = Mapping[str, Mapping[tuple[str, ...], Chart]]
"""The charts of each section by choice: the metric and the factor of barriers, nothing for a section of one chart."""


def make_charts(tables: Mapping[str, pd.DataFrame]) -> Charts:
    """Return every chart that has data."""
    ablation, paper = tables["ablation"], tables["paper"]
    barriers = {
        (metric.replace("_", " "), factor.replace("_", " ")): chart_against(ablation, factor, metric, paper)
        for metric in METRICS
        for factor in factors_varied(ablation)
    }
    paths, layers, axes = (_of_pairs(tables[name]) for name in ("paths", "layers", "axes"))
    others = {
        "comparison": chart_comparison(paper),
        "paths": chart_paths(paths),
        "variance": chart_variance(layers),
        "correlation": chart_correlation(axes),
        "errors": chart_errors(ablation),
        "closed_form": chart_closed_form(paths),
        "predictions": chart_predictions(layers),
    }
    charts = {"barriers": barriers} | {name: {(): chart} for name, chart in others.items()}
    known = {name: {choice: chart for choice, chart in of.items() if chart is not None} for name, of in charts.items()}
    return {name: of for name, of in known.items() if of}


def first_panels(of_section: Mapping[tuple[str, ...], Chart]) -> Chart:
    """Return the only chart of a section, with as many panels as a picture has room for."""
    (chart,) = of_section.values()
    return dataclasses.replace(chart, panels=chart.panels[:MAX_DRAWN_PANELS])


def render(study: str, tables: Mapping[str, pd.DataFrame], charts: Charts, provenance: Mapping[str, Any]) -> str:
    """Return the page as HTML."""
    ablation, endpoints = tables["ablation"], tables["endpoints"]
    summary = summarise_ablation(ablation)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    published = {name: PUBLISHED_CAPTION if _has_published(of_section) else "" for name, of_section in charts.items()}
    sections = [
        {"name": name, "title": title, "caption": caption + published[name], "is_first": name in FIRST_SECTIONS}
        for name, (title, caption) in SECTIONS.items()
        if name in charts
    ]
    return environment.from_string(_template("report.html")).render(
        study=study,
        claim=make_claim(ablation),
        widths=answer_widths(tables["width_laws"]),
        sections=sections,
        controls=tell_controls(tables["barriers"], ablation, independently_initialized(tables["cells"], endpoints)),
        columns=list(summary.columns),
        rows=list(zip(summary.index, summary["path"], summary.to_numpy().tolist(), strict=True)),
        section_starts=section_starts(summary),
        text_columns=(*TEXT_COLUMNS, "network", "method", "verdict", "seeds", "status", "message"),
        points=tabulate_paper(tables["paper"]),
        missing=tabulate_left_out(endpoints),
        endpoints=endpoints,
        n_pairs=len(_of_pairs(tables["barriers"]).drop_duplicates(["cell_id", "seed_a", "seed_b"])),
        provenance=provenance,
        # Ours or plotly's, so not escaped; `as_json` escapes the data.
        style=Markup(_template("report.css")),
        script=Markup(_template("report.js")),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        data=Markup(as_json(page_data(ablation, charts))),
    )


def page_data(ablation: pd.DataFrame, charts: Charts) -> dict[str, Any]:
    """Return the data of the page's script: the cells with their varying factors, the paths, the charts."""
    cells = ablation.drop_duplicates(["cell_id", "measurement"])
    cells = cells.assign(key=cell_names(cells), label=label_points(cells))
    swept = swept_factors(cells)
    names = [*NETWORK, *SIZE_FACTORS, *swept, *([] if swept else ["recipe", "measurement"])]
    varied = [name for name in names if cells[name].nunique(dropna=False) > 1]
    values = {name: {label_value(value, name): None for value in cells.sort_values(name)[name]} for name in varied}
    rows = cells.to_dict(orient="records")
    return {
        "cells": {
            row["key"]: {"label": row["label"], "factors": [label_value(row[name], str(name)) for name in varied]}
            for row in rows
        },
        "factors": [{"name": name.replace("_", " "), "values": list(values[name])} for name in varied],
        "paths": [{"label": curve.label, "color": curve.color} for curve in curves_of(ablation)],
        "sections": {
            name: [{"choice": list(choice), **dataclasses.asdict(chart)} for choice, chart in of_section.items()]
            for name, of_section in charts.items()
        },
    }


def _has_published(of_section: Mapping[tuple[str, ...], Chart]) -> bool:
    lines = (line for chart in of_section.values() for panel in chart.panels for line in panel.lines)
    return any(line.label == PUBLISHED_LABEL for line in lines)


def as_json(data: Any) -> str:
    """Return `data` as JSON for a script element: five digits, null if not finite, and HTML characters escaped."""
    text = json.dumps(_rounded(data), separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value


def _of_pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of pairs, without controls."""
    return frame[frame["kind"] == "pair"]


def _template(name: str) -> str:
    return resources.files("flows.report").joinpath(f"templates/{name}").read_text()
