"""What a study's flow run shows on Prefect's page."""

from __future__ import annotations

import base64
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.claims import make_claim
from flows.summary import summarise_ablation
from infra.paths import figure_key, table_key
from infra.storage import Store
from infra.tables import read_table


def show_report(store: Store, study: str, where: str) -> None:
    """The table and the main figure as artifacts of the task that runs."""
    ablation = read_table(store, table_key(study, "ablation"))
    rows: list[dict[str, Any]] = summarise_ablation(ablation).to_dict(orient="records")  # pyright: ignore
    create_table_artifact(rows, key=f"{study}-ablation", description=make_claim(ablation))
    if store.exists(figure_key(study, "barriers")):
        figure = base64.b64encode(store.read(figure_key(study, "barriers"))).decode()
        create_markdown_artifact(
            f"# {study}\n\n{make_claim(ablation)}\n\n![barriers](data:image/png;base64,{figure})\n\nReport: `{where}`",
            key=f"{study}-figure",
        )
