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
from tasks.science.specs.request import Request
from tasks.tables import schema
from tasks.tables.build import NOT_YET

_LEGEND = (
    "barrier: highest rise of the error above the chord, in points; removed: its share; loss: barrier in nats; "
    "mid, ends: accuracy in %."
)


def _read_asked(store: Store, request: Request, name: str) -> pd.DataFrame:
    """Return the rows of a study's table that are about cells of `request`."""
    table = read_gathered(store, request.study, name)
    return table[table["cell_id"].isin([cell.id for cell in request.cells])]


def asked_ablation(store: Store, request: Request) -> pd.DataFrame:
    """Return the rows of a study's ablation that `request` asked for."""
    ablation = _read_asked(store, request, "ablation")
    names = [measurement.name for measurement in request.measurements]
    ablation = ablation[ablation["measurement"].isin(names)]
    return ablation[ablation["matcher"].isin(request.matchers) & ablation["correction"].isin(request.corrections)]


def _tell_uncorrected(store: Store, request: Request) -> list[str]:
    layers = _read_asked(store, request, "layers")
    return uncorrected_layers(layers[layers["correction"].isin(request.corrections)])


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
        "uncorrected_layers": _tell_uncorrected(store, request),
        "problems": list(problems),
    }
    return json.dumps(outcome, indent=1)


def print_ablation(store: Store, request: Request, console: Console) -> None:
    """Print the requested rows of the ablation, and the claim; with one factor they fit in 80 columns."""
    ablation = asked_ablation(store, request)
    console.print(_ablation_text(request.study, summarise_ablation(ablation, brief=True)))
    tell(console, make_claim(ablation))
    console.print(_LEGEND, style="dim", highlight=False)
    for sentence in _tell_uncorrected(store, request):
        tell(console, sentence)
    endpoints = _read_asked(store, request, "endpoints")
    fate = endpoints["status"].where(endpoints["message"] != NOT_YET, NOT_YET)
    left_out = fate[fate != "trained"].value_counts()
    if len(left_out):
        counts = ", ".join(f"{n} {status}" for status, n in left_out.items())
        console.print(
            f"Left out of pairs: {counts} of {len(endpoints)} endpoints; the report says why.", highlight=False
        )


def _ablation_text(study: str, summary: pd.DataFrame) -> TextTable:
    """Return the summary as a table for the terminal."""
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
    return text
