"""A study's report: its claim in a sentence, its figures, the ablation, what failed, and where it comes from.

The page is one file that asks nobody for anything: tables and charts stand in it as data, and plotly.js, which draws
them, does too. The same charts lie beside it as pictures.
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
from flows.report.controls import began_apart, tell_controls
from flows.report.figures.ablation import PUBLISHED, chart_against, chart_barriers, chart_errors, factors_varied
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
from flows.report.gathered import TABLES, check_gathered, read_gathering
from flows.report.labels import FACTORS, NETWORK, cell_names, label_points, label_value, swept_factors
from flows.report.paper_points import tabulate_paper
from flows.report.prefect_page import show_report
from flows.report.summary import TEXT_COLUMNS, section_starts, summarise_ablation, tabulate_left_out
from infra.paths import figure_key, report_key
from infra.runners import TASK_OPTIONS, run_logger
from infra.sealing import seal_page, seal_png
from infra.storage import Store
from tasks.stored.study_tables import StudyTables, wait_until_still

METRICS = ("accuracy_barrier", "loss_barrier", "midpoint_accuracy")
"""What barriers are looked at by."""

SECTIONS = {
    "barriers": (
        "Barriers",
        "Mean over all pairs of a cell on the test split; bars are 95 % intervals over seeds.",
    ),
    "comparison": (
        "Beside the paper",
        "Test accuracy of midpoints and endpoints. Bars say where a new pair of two new seeds would fall in 95 of 100 "
        "cases; open markers are what the authors saved, one pair each.",
    ),
    "paths": (
        "Along the path",
        "Test accuracy from A (alpha 0) to B (alpha 1): mean over pairs, and the band from the worst to the best of "
        "them.",
    ),
    "variance": (
        "Variance by layer",
        "Variance of each hidden layer's pre-activations at the midpoint, over the mean of the two endpoints': "
        "interpolation collapses it, REPAIR sets it to its goal. Corrected direct paths have goals of their own, and "
        "are left out.",
    ),
    "correlation": (
        "How well units matched",
        "Correlation of every unit's activations with those of its partner in the other network, mean over the units "
        "of a layer and over pairs, and the band from the worst to the best pair; dashed, as the networks were "
        "trained.",
    ),
    "errors": (
        "Barriers against errors",
        "Accuracy barrier against the endpoints' test error, a point per cell, mean over pairs; bars are 95 % "
        "intervals over seeds. Thin lines join cells that differ in one factor alone.",
    ),
    "closed_form": (
        "Closed form against forward pass",
        "Test accuracy and loss at the midpoint of each aligned pair: corrected from the endpoints' moments alone "
        "(closed form) against corrected by a pass over the interpolated network. On the dotted line both are equal; "
        "the closed form is behind where its accuracy lies below, or its loss above.",
    ),
    "predictions": (
        "What the closed form predicts",
        "How well the closed form predicts each layer's moments at the midpoint: the correlation over units of "
        "predicted deviations and means with those of the layer behind corrected layers, mean over aligned pairs.",
    ),
}
"""The figures of a report, with their titles and captions, in order."""

OF_PUBLISHED = (
    " Open markers are what the authors of REPAIR saved, one pair each, of its midpoint: point at one for the verdict "
    "on it."
)
"""Stands behind the caption of barriers where there are such points."""

FIRST_SECTIONS = ("barriers", "comparison")
"""What stands above the table."""

MAX_DRAWN_PANELS = 40
"""Of a picture; the page turns through more."""


@task(**TASK_OPTIONS)
def report(study: str, store: Store) -> str:
    """Writes the report, and shows its table and main figure in the Prefect UI; returns where the page lies."""
    where = write_report(store, study)
    if TaskRunContext.get() is not None:
        try:
            show_report(store, study, where)
        except httpx.HTTPError as error:
            # The tables and the page are there; its artifacts are not worth a study.
            run_logger().warning("the Prefect server has not taken the report's artifacts: %s", error)
    return where


def write_report(store: Store, study: str) -> str:
    """Draws figures and page from the study's tables; returns where the page lies. Raises StoreError without them."""
    check_gathered(store, study, TABLES)
    while not _write_pages(store, study, StudyTables(store, study)):
        run_logger().info("%s was gathered anew meanwhile: its report is drawn again", study)
        wait_until_still(store, study)
    return store.locate(report_key(study))


def _write_pages(store: Store, study: str, found: StudyTables) -> bool:
    """Draw figures and page, and say whether they are of the tables as they were `found`: as soon as others have
    written these, no more is written."""
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
"""The charts of each section, by the choice that shows them: what barriers are of, and against what. A section of one
chart has it under the choice of nothing."""


def make_charts(tables: Mapping[str, pd.DataFrame]) -> Charts:
    """Every chart that there is something to draw in."""
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
    """The only chart of a section, with as many panels as a picture has room for."""
    (chart,) = of_section.values()
    return dataclasses.replace(chart, panels=chart.panels[:MAX_DRAWN_PANELS])


def render(study: str, tables: Mapping[str, pd.DataFrame], charts: Charts, provenance: Mapping[str, Any]) -> str:
    """The page."""
    ablation, endpoints = tables["ablation"], tables["endpoints"]
    summary = summarise_ablation(ablation)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    published = {name: OF_PUBLISHED if _has_published(of_section) else "" for name, of_section in charts.items()}
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
        controls=tell_controls(tables["barriers"], ablation, began_apart(tables["cells"], endpoints)),
        columns=list(summary.columns),
        rows=list(zip(summary.index, summary["path"], summary.to_numpy().tolist(), strict=True)),
        section_starts=section_starts(summary),
        text_columns=(*TEXT_COLUMNS, "network", "method", "verdict", "seeds", "status", "message"),
        points=tabulate_paper(tables["paper"]),
        missing=tabulate_left_out(endpoints),
        endpoints=endpoints,
        n_pairs=len(_of_pairs(tables["barriers"]).drop_duplicates(["cell_id", "seed_a", "seed_b"])),
        provenance=provenance,
        # None of these is anybody's words but ours and plotly's; data are escaped by `as_json`.
        style=Markup(_template("report.css")),
        script=Markup(_template("report.js")),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        data=Markup(as_json(page_data(ablation, charts))),
    )


def page_data(ablation: pd.DataFrame, charts: Charts) -> dict[str, Any]:
    """What the page's script draws and filters by: the cells with what varies among them, the paths, the charts."""
    cells = ablation.drop_duplicates(["cell_id", "measurement"])
    cells = cells.assign(key=cell_names(cells), label=label_points(cells))
    swept = swept_factors(cells)
    names = [*NETWORK, *FACTORS, *swept, *([] if swept else ["recipe", "measurement"])]
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
    return any(line.label == PUBLISHED for line in lines)


def as_json(data: Any) -> str:
    """`data` as JSON that can stand in a page's script: what is not finite is null, five digits of every number, and
    nothing in it ends the script."""
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
    """Without controls."""
    return frame[frame["kind"] == "pair"]


def _template(name: str) -> str:
    return resources.files("flows.report").joinpath(f"templates/{name}").read_text()
