"""What a run came to: for a person on a terminal, or for a program as JSON."""

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
from tasks.science.specs.request import Request
from tasks.tables import schema
from tasks.tables.build import NOT_YET


def asked_ablation(store: Store, request: Request) -> pd.DataFrame:
    """The rows of a study's table that `request` asked for, among all that were ever asked for under its name."""
    ablation = read_gathered(store, request.study, "ablation")
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
        "uncorrected_layers": uncorrected_layers(_asked_layers(store, request)),
        "problems": list(problems),
    }
    return json.dumps(outcome, indent=1)


def _asked_layers(store: Store, request: Request) -> pd.DataFrame:
    """The rows of the table of layers under the corrections that `request` asked for, of its cells."""
    layers = read_gathered(store, request.study, "layers")
    cell_ids = [cell.id for cell in request.cells]
    return layers[layers["cell_id"].isin(cell_ids) & layers["correction"].isin(request.corrections)]


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
        console.print(f"Of {len(endpoints)} endpoints, {counts}: left out of pairs, see the report.", highlight=False)
