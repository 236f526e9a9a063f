"""A study's report: its claim in a sentence, its figures, the ablation, what failed, and where it comes from."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import httpx
import jinja2
import pandas as pd
from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import TaskRunContext
from rich.console import Console
from rich.table import Table as TextTable

from flows.controls import began_apart, tell_controls
from flows.figures import (
    curves_of,
    draw_barriers,
    draw_closed_form,
    draw_errors,
    draw_paths,
    draw_predictions,
    draw_variance,
)
from flows.labels import FACTORS, label_value, main_factor, swept_factors, telling
from infra.paths import figure_key, report_key, table_key
from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store, StoreError
from infra.tables import read_provenance, read_table
from tasks import schema
from tasks.gather import NOT_YET
from tasks.science.identity import safe_name
from tasks.science.request import Request
from tasks.science.statistics import MIN_SEEDS

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


@dataclass(frozen=True)
class Column:
    """A metric as a person reads it; where room is short under the title `short`, not at all where that is empty, and
    without its interval where `bare` is set."""

    metric: str
    title: str
    short: str
    bare: bool

    @property
    def scale(self) -> int:
        """Accuracies and shares are shown in percent, losses in nats."""
        return 100 if "accuracy" in self.metric or "reduction" in self.metric else 1


COLUMNS = (
    Column("accuracy_barrier", "accuracy barrier, points", "barrier, points", bare=False),
    Column("accuracy_barrier_reduction", "accuracy removed, %", "removed, %", bare=False),
    Column("loss_barrier", "loss barrier, nats", "loss", bare=True),
    Column("loss_barrier_reduction", "loss removed, %", "", bare=True),
    Column("midpoint_accuracy", "midpoint, %", "mid", bare=True),
    Column("endpoint_accuracy", "endpoints, %", "ends", bare=True),
)
"""What of the ablation a person is shown first, on the test split; the rest is in the table."""

_NETWORK = ["dataset", "architecture", "normalization", "width", "depth"]

TEXT_COLUMNS = ("dataset", "architecture", "normalization", "path", "recipe", "measurement")


@task(**TASK_OPTIONS)
def report(study: str, store: Store) -> str:
    """Writes the report, and shows its table and main figure in the Prefect UI; returns where the page lies."""
    where = write_report(store, study)
    if TaskRunContext.get() is not None:
        try:
            _show_in_prefect(store, study, where)
        except httpx.HTTPError as error:
            # The tables and the page are there; its artifacts are not worth a study.
            run_logger().warning("the Prefect server has not taken the report's artifacts: %s", error)
    return where


def _show_in_prefect(store: Store, study: str, where: str) -> None:
    """The table and the main figure as artifacts of the task that runs."""
    ablation = read_table(store, table_key(study, "ablation"))
    rows: list[dict[str, Any]] = summarise_ablation(ablation).to_dict(orient="records")  # pyright: ignore
    create_table_artifact(rows, key=f"{study}-ablation", description=make_claim(ablation))
    if store.exists(figure_key(study, "barriers")):
        figure = base64.b64encode(store.read(figure_key(study, "barriers"))).decode()
        create_markdown_artifact(
            f"# {study}\n\n{make_claim(ablation)}\n\n![{FIGURES['barriers']}](data:image/png;base64,{figure})\n\n"
            f"Report: `{where}`",
            key=f"{study}-figure",
        )


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


def make_claim(ablation: pd.DataFrame) -> str:
    """What the study found, in a sentence, at the largest depth, or smallest width, with a barrier to speak of: where
    the question is hardest. A study of one size has a sentence for each of its networks; one that sweeps something
    else for the least and the largest value."""
    factor = main_factor(ablation)
    test = ablation[(ablation["split"] == "test") & (ablation["matcher"] == "activation")]
    removed = test[(test["metric"] == "accuracy_barrier_reduction") & (test["correction"] == "repair")]
    known = removed[removed["mean"].notna()].sort_values([factor, "dataset"])
    if not ablation["n_pairs"].max():
        return "No pair was measured, so nothing is claimed."
    if "repair" not in set(test["correction"]):
        return "Nothing was aligned by activations and repaired here, so nothing is claimed."
    if known.empty and ablation["n_seeds"].max() < MIN_SEEDS:
        return f"With fewer than {MIN_SEEDS} trained seeds there are no intervals, and nothing is claimed."
    if known.empty:
        return (
            "No cell of this study has an aligned barrier whose 95 % interval excludes zero, "
            "so there is no share of it that REPAIR could be said to remove."
        )
    if factor in FACTORS and known[factor].nunique() > 1:
        return _claim_of(known.iloc[-1 if factor == "depth" else 0], test)
    if factor not in FACTORS:
        # Which value is hardest is what the study asks: the least and the largest of them have a sentence each.
        ends = known.iloc[[0, -1]] if len(known) > 1 else known
        return " ".join(
            _claim_of(end, test, f"{factor} {label_value(end[factor], factor)}") for _, end in ends.iterrows()
        )
    # Neither depth nor width is what this study asks about: every network has its sentence.
    return " ".join(_claim_of(best, test) for _, best in known.iterrows())


def answer_widths(store: Store, study: str) -> str:
    """How wide networks must be for their barriers to vanish once aligned and repaired, a sentence for each series of
    widths; empty without one, and where the tables were gathered before there was such a table."""
    key = table_key(study, "width_laws")
    if not store.exists(key):
        return ""
    laws = read_table(store, key)
    asked = laws[(laws["split"] == "test") & (laws["metric"] == "accuracy_barrier")]
    asked = asked[(asked["matcher"] == "activation") & (asked["correction"] == "repair")]
    return " ".join(dict.fromkeys(asked["answer_text"]))


def _claim_of(removed: pd.Series, test: pd.DataFrame, swept: str = "") -> str:
    """What REPAIR `removed` of the aligned barrier of one cell, and what there was to remove; `swept` says which of
    the values that a study sweeps the cell or measurement has."""
    before = test[(test["cell_id"] == removed["cell_id"]) & (test["metric"] == "accuracy_barrier")]
    before = before[(before["correction"] == "none") & (before["measurement"] == removed["measurement"])].iloc[0]
    network = f"At width {removed['width']} and {removed['depth']} hidden layers"
    if removed["architecture"] != "mlp":
        network = f"For {removed['architecture']} of width {removed['width']}"
    if test["normalization"].nunique() > 1 or removed["architecture"] != "mlp":
        network += f" with normalization {removed['normalization']}"
    alike = test[(test[_NETWORK] == removed[_NETWORK]).all(axis=1)]
    if alike["recipe"].nunique() > 1 and not swept:
        network += f", trained by {removed['recipe']},"
    if swept:
        network += f", with {swept},"
    return (
        f"{network} on {removed['dataset']}, alignment alone leaves an accuracy barrier of "
        f"{_interval(before, 100)} points; REPAIR removes {_interval(removed, 100, digits=0)} % of it "
        f"(means over {removed['n_pairs']} pairs of {removed['n_seeds']} seeds, 95 % intervals over seeds)."
    )


def summarise_ablation(ablation: pd.DataFrame, brief: bool = False) -> pd.DataFrame:
    """The ablation as a person reads it: a row per cell and path, means with intervals as text, on the test split."""
    test = ablation[ablation["split"] == "test"]
    swept = swept_factors(ablation)
    names = ["dataset", "architecture", "normalization", "width", "depth", *swept, "recipe", "measurement"]
    shown = telling(test, names) or ([] if brief else ["width", "depth"])
    rows: list[dict[str, Any]] = []
    for _, of_cell in test.groupby([*names, "cell_id"], sort=True, dropna=False):
        for curve in curves_of(of_cell):
            of_path = of_cell[(of_cell["matcher"] == curve.matcher) & (of_cell["correction"] == curve.correction)]
            first = of_path.iloc[0]
            values = {name: label_value(first[name], name) if name in swept else first[name] for name in shown}
            row: dict[str, Any] = values | {"path": curve.label}
            for column in COLUMNS:
                known = of_path[(of_path["metric"] == column.metric) & of_path["mean"].notna()]
                title = column.short if brief else column.title
                if not title:
                    continue
                row[title] = _interval(known.iloc[0], column.scale, brief and column.bare) if len(known) else "-"
            counts = {"pairs": "n_pairs", "diverged": "n_diverged", "untrained": "n_untrained"}
            rows.append(row | {title: int(first[name]) for title, name in counts.items()})
    return pd.DataFrame(rows)


def section_starts(summary: pd.DataFrame) -> list[int]:
    """The rows of a summary at which another cell begins."""
    cells = summary.iloc[:, : list(summary.columns).index("path")].to_numpy().tolist()
    return [i for i in range(len(cells)) if i == 0 or cells[i] != cells[i - 1]]


def asked_ablation(store: Store, request: Request) -> pd.DataFrame:
    """The rows of a study's table that `request` asked for, among all that were ever asked for under its name."""
    ablation = read_table(store, table_key(request.study, "ablation"))
    names = [measurement.name for measurement in request.measurements]
    cell_ids = [cell.id for cell in request.cells]
    ablation = ablation[ablation["cell_id"].isin(cell_ids) & ablation["measurement"].isin(names)]
    return ablation[ablation["matcher"].isin(request.matchers) & ablation["correction"].isin(request.corrections)]


def outcome_json(store: Store, request: Request, problems: Sequence[str]) -> str:
    """What a run came to, for a program: where everything lies, the claim, the rows of the ablation that were asked
    for, and what was left undone."""
    ablation = asked_ablation(store, request)
    outcome = {
        "study": request.study,
        "tables": {table.name: store.locate(table_key(request.study, table.name)) for table in schema.TABLES},
        "report": store.locate(report_key(request.study)),
        "claim": make_claim(ablation),
        # By way of pandas, for which what is missing is null, as in JSON.
        "ablation": json.loads(ablation.to_json(orient="records")),
        "left_out": request.left_out(),
        "problems": list(problems),
    }
    return json.dumps(outcome, indent=1)


def print_ablation(store: Store, request: Request, console: Console) -> None:
    """The claim and the ablation of what was asked for, on a terminal, in 80 columns where one factor is swept."""
    study, cell_ids = request.study, [cell.id for cell in request.cells]
    ablation = asked_ablation(store, request)
    summary = summarise_ablation(ablation, brief=True)
    dull = ["diverged", "untrained", *(["pairs"] if summary["pairs"].nunique() == 1 else [])]
    shown = summary.drop(columns=dull)
    factors = list(shown.columns[: list(shown.columns).index("path")])
    # Two factors beside the path do not fit: then every cell has a line of its own above its paths.
    headed = len(factors) > 1
    title = f"{study}, test split: means over pairs of seeds [95 % interval]"
    text = TextTable(title=title, box=None, padding=(0, 2, 0, 0), pad_edge=False, title_justify="left")
    for name in shown.columns.drop(factors if headed else []):
        text.add_column(name, justify="left" if name in TEXT_COLUMNS else "right", overflow="fold")
    starts = section_starts(summary)
    for position, row in enumerate(shown.to_dict(orient="records")):
        if position in starts:
            if position:
                text.add_row()
            if headed:
                text.add_row(", ".join(f"{name} {row[name]}" for name in factors), style="bold")
        text.add_row(*(str(value) for name, value in row.items() if not (headed and name in factors)))
    console.print(text)
    console.print(make_claim(ablation), highlight=False)
    legend = (
        "barrier: highest rise of the error above the chord, in points; removed: its share; loss: barrier in nats; "
    )
    console.print(legend + "mid, ends: accuracy in %.", style="dim", highlight=False)
    endpoints = read_table(store, table_key(study, "endpoints"))
    endpoints = endpoints[endpoints["cell_id"].isin(cell_ids)]
    fate = endpoints["status"].where(endpoints["message"] != NOT_YET, NOT_YET)
    left_out = fate[fate != "trained"].value_counts()
    if len(left_out):
        counts = ", ".join(f"{n} {status}" for status, n in left_out.items())
        console.print(f"Of {len(endpoints)} endpoints, {counts}: left out of pairs, see the report.", highlight=False)


def _interval(row: Any, scale: int, bare: bool = False, digits: int | None = None) -> str:
    digits = digits if digits is not None else (2 if scale == 1 else 1)
    mean = f"{row['mean'] * scale:.{digits}f}"
    if bare or pd.isna(row["low"]):
        return mean
    return f"{mean} [{row['low'] * scale:.{digits}f}, {row['high'] * scale:.{digits}f}]"
