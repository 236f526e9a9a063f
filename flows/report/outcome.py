"""The outcome of a run: on a terminal, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table as TextTable
from rich.text import Text

from flows.report.claims import make_claim
from flows.report.gathered import read_gathered
from flows.report.summary import TEXT_COLUMNS, section_starts, summarise_ablation, uncorrected_layers
from flows.terminal import tell
from infra.paths import report_key, table_key
from infra.storage import Store
from infra.text import one_line
from tasks.gather import NOT_YET
from tasks.science.specs.request import Request
from tasks.tables import schema


def asked_ablation(store: Store, request: Request) -> pd.DataFrame:
    """Return the rows of a study's ablation that `request` asked for."""
    ablation = read_gathered(store, request.study, "ablation")
    names = [measurement.name for measurement in request.measurements]
    cell_ids = [cell.id for cell in request.cells]
    ablation = ablation[ablation["cell_id"].isin(cell_ids) & ablation["measurement"].isin(names)]
    return ablation[ablation["matcher"].isin(request.matchers) & ablation["correction"].isin(request.corrections)]


def outcome_json(store: Store, request: Request, problems: Sequence[str]) -> str:
    """Return a run's outcome as JSON: locations, the claim, the requested rows of the ablation, and what is missing."""
    ablation = asked_ablation(store, request)
    outcome = {
        "study": request.study,
        "tables": {table.name: store.locate(table_key(request.study, table.name)) for table in schema.TABLES},
        "report": store.locate(report_key(request.study)),
        "claim": make_claim(ablation),
        # pandas writes missing values as null.
        "ablation": json.loads(ablation.to_json(orient="records")),
        "left_out": request.left_out(),
        "uncorrected_layers": uncorrected_layers(_asked_layers(store, request)),
        "problems": list(problems),
    }
    return json.dumps(outcome, indent=1)


def _asked_layers(store: Store, request: Request) -> pd.DataFrame:
    """Return the rows of the table `layers` of the cells and corrections that `request` asked for."""
    layers = read_gathered(store, request.study, "layers")
    cell_ids = [cell.id for cell in request.cells]
    return layers[layers["cell_id"].isin(cell_ids) & layers["correction"].isin(request.corrections)]


def print_ablation(store: Store, request: Request, console: Console) -> None:
    """Print the requested rows of the ablation, and the claim; with one factor they fit in 80 columns."""
    study, cell_ids = request.study, [cell.id for cell in request.cells]
    ablation = asked_ablation(store, request)
    summary = summarise_ablation(ablation, brief=True)
    dull = ["diverged", "untrained", *(["pairs"] if summary["pairs"].nunique() == 1 else [])]
    shown = summary.drop(columns=dull)
    factors = list(shown.columns[: list(shown.columns).index("path")])
    # Two factors beside the path do not fit: every cell then has its own heading.
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
                text.add_row(Text(one_line(", ".join(f"{name} {row[name]}" for name in factors))), style="bold")
        text.add_row(*(Text(one_line(value)) for name, value in row.items() if not (headed and name in factors)))
    console.print(text)
    tell(console, make_claim(ablation))
    legend = (
        "barrier: highest rise of the error above the chord, in points; removed: its share; loss: barrier in nats; "
    )
    console.print(legend + "mid, ends: accuracy in %.", style="dim", highlight=False)
    for sentence in uncorrected_layers(_asked_layers(store, request)):
        tell(console, sentence)
    endpoints = read_gathered(store, study, "endpoints")
    endpoints = endpoints[endpoints["cell_id"].isin(cell_ids)]
    fate = endpoints["status"].where(endpoints["message"] != NOT_YET, NOT_YET)
    left_out = fate[fate != "trained"].value_counts()
    if len(left_out):
        counts = ", ".join(f"{n} {status}" for status, n in left_out.items())
        console.print(
            f"Left out of pairs: {counts} of {len(endpoints)} endpoints; the report says why.", highlight=False
        )
