"""A study's report: its claim in a sentence, its figures, the ablation, what failed, and where it comes from."""

from __future__ import annotations

import base64
from importlib import resources

import httpx
import jinja2
import pandas as pd
from prefect import task
from prefect.context import TaskRunContext

from flows.claims import answer_widths, make_claim
from flows.controls import began_apart, tell_controls
from flows.figures import (
    draw_barriers,
    draw_closed_form,
    draw_errors,
    draw_paths,
    draw_predictions,
    draw_variance,
)
from flows.prefect_page import show_report
from flows.summary import TEXT_COLUMNS, section_starts, summarise_ablation
from infra.paths import figure_key, report_key, table_key
from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store, StoreError
from infra.tables import read_provenance, read_table
from tasks.science.identity import safe_name

FIGURES = {
    "barriers": "Barrier on the test split, mean over pairs; bars are 95 % intervals over seeds, cut off at 0.",
    "errors": "Accuracy barrier against the endpoints' test error, a point per cell, mean over pairs; bars are 95 % "
    "intervals over seeds, cut off at the frame. Thin lines join cells that differ in one factor alone.",
    "paths": "Test accuracy along the path from A (alpha 0) to B (alpha 1): mean over pairs, and the band from the "
    "worst to the best of them.",
    "variance": "Variance of each hidden layer's pre-activations at the midpoint, over the mean of the two endpoints': "
    "interpolation collapses it, REPAIR sets it to its goal.",
    "closed_form": "Test accuracy and loss at the midpoint of each aligned pair: corrected from the endpoints' moments "
    "alone (closed form) against corrected by a pass over the interpolated network. On the dotted line both are equal; "
    "the closed form is behind where its accuracy lies below, or its loss above.",
    "predictions": "How well the closed form predicts each layer's moments at the midpoint: the correlation over units "
    "of predicted deviations and means with those of the layer behind corrected layers, mean over aligned pairs.",
}


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
    """Draws figures and page from the study's tables; returns where the page lies. Raises StoreError without tables."""
    check_gathered(store, study)
    tables = {
        name: read_table(store, table_key(study, name))
        for name in ("ablation", "barriers", "cells", "endpoints", "paths", "layers")
    }
    drawn = {
        "barriers": draw_barriers(tables["ablation"]),
        "errors": draw_errors(tables["ablation"]),
        "paths": draw_paths(_of_pairs(tables["paths"])),
        "variance": draw_variance(_of_pairs(tables["layers"])),
        "closed_form": draw_closed_form(_of_pairs(tables["paths"])),
        "predictions": draw_predictions(_of_pairs(tables["layers"])),
    }
    figures: list[dict[str, str]] = []
    for name, data in drawn.items():
        if data is not None:
            store.replace(figure_key(study, name), data)
            figures.append({"name": name, "caption": FIGURES[name], "png": base64.b64encode(data).decode()})
    summary = summarise_ablation(tables["ablation"])
    endpoints = tables["endpoints"]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        resources.files("flows").joinpath("templates/report.html").read_text()
    )
    page = template.render(
        study=study,
        claim=make_claim(tables["ablation"]),
        widths=answer_widths(store, study),
        figures=figures,
        controls=tell_controls(tables["barriers"], tables["ablation"], began_apart(tables["cells"], endpoints)),
        columns=list(summary.columns),
        rows=summary.to_numpy().tolist(),
        text_columns=TEXT_COLUMNS,
        section_starts=section_starts(summary),
        missing=endpoints[endpoints["status"] != "trained"].to_dict(orient="records"),
        n_endpoints=len(endpoints),
        provenance=read_provenance(store, table_key(study, "ablation")),
    )
    store.replace(report_key(study), page.encode())
    return store.locate(report_key(study))


def _of_pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Without controls."""
    return frame[frame["kind"] == "pair"]


def check_gathered(store: Store, study: str) -> None:
    """StoreError where the study has no tables, ValueError where its name is none."""
    safe_name(study)
    if not store.exists(table_key(study, "ablation")):
        raise StoreError(f"{store.url} holds no tables of {study}: `repairlab run {study}` makes them")
