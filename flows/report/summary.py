"""Summaries of tables as text: the ablation, the endpoints left out, the layers not corrected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from flows.report.figures.curves import curves_of
from flows.report.labels import NETWORK, cell_names, distinguishing, label_value, swept_factors


@dataclass(frozen=True)
class SummaryColumn:
    """A metric of the ablation as a column of text.

    In a brief summary its title is `short`, it is left out if that is empty, and has no interval if it is `bare`.
    """

    metric: str
    title: str
    short: str
    bare: bool

    @property
    def scale(self) -> int:
        """The factor of the unit: percent for accuracies and shares, nats for losses."""
        return 100 if "accuracy" in self.metric or "reduction" in self.metric else 1


COLUMNS = (
    SummaryColumn("accuracy_barrier", "accuracy barrier, points", "barrier, points", bare=False),
    SummaryColumn("accuracy_barrier_reduction", "accuracy removed, %", "removed, %", bare=False),
    SummaryColumn("loss_barrier", "loss barrier, nats", "loss", bare=True),
    SummaryColumn("loss_barrier_reduction", "loss removed, %", "", bare=True),
    SummaryColumn("midpoint_accuracy", "midpoint, %", "mid", bare=True),
    SummaryColumn("endpoint_accuracy", "endpoints, %", "ends", bare=True),
)
"""The metrics of a summary, of the test split."""

TEXT_COLUMNS = ("dataset", "architecture", "normalization", "path", "recipe", "measurement")


def summarise_ablation(ablation: pd.DataFrame, brief: bool = False) -> pd.DataFrame:
    """Return the ablation of the test split as text: a row per cell and path, indexed by the names of cells."""
    test = ablation[ablation["split"] == "test"]
    swept = swept_factors(ablation)
    names = ["dataset", "architecture", "normalization", "width", "depth", *swept, "recipe", "measurement"]
    shown = distinguishing(test, names) or ([] if brief else ["width", "depth"])
    rows: list[dict[str, Any]] = []
    cells: list[str] = []
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
                row[title] = tell_interval(known.iloc[0], column.scale, brief and column.bare) if len(known) else "-"
            counts = {"pairs": "n_pairs", "diverged": "n_diverged", "untrained": "n_untrained"}
            rows.append(row | {title: int(first[name]) for title, name in counts.items()})
            cells.append(cell_names(of_path.head(1)).iloc[0])
    return pd.DataFrame(rows, index=cells)


def tabulate_left_out(endpoints: pd.DataFrame) -> pd.DataFrame:
    """Return a row for the untrained endpoints of each network and reason, with their seeds."""
    columns = distinguishing(endpoints, [*NETWORK, "width", "depth", "recipe"]) or ["width", "depth"]
    rows: list[dict[str, str]] = []
    left_out = endpoints[endpoints["status"] != "trained"]
    for _, alike in left_out.groupby([*columns, "status", "message"], dropna=False):
        network = {name: str(alike.iloc[0][name]) for name in columns}
        seeds = ", ".join(str(seed) for seed in sorted(alike["seed"]))
        rows.append(network | {"seeds": seeds, "status": alike.iloc[0]["status"], "message": alike.iloc[0]["message"]})
    return pd.DataFrame(rows)


def section_starts(summary: pd.DataFrame) -> list[int]:
    """Return the positions of the rows of a summary at which a cell begins."""
    cells = summary.iloc[:, : list(summary.columns).index("path")].to_numpy().tolist()
    return [i for i in range(len(cells)) if i == 0 or cells[i] != cells[i - 1]]


def tell_interval(row: Any, scale: int, bare: bool = False, digits: int | None = None) -> str:
    """Return a mean times `scale` with its interval in brackets, if it has one and is not `bare`."""
    digits = digits if digits is not None else (2 if scale == 1 else 1)
    mean = f"{row['mean'] * scale:.{digits}f}"
    if bare or pd.isna(row["low"]):
        return mean
    return f"{mean} [{row['low'] * scale:.{digits}f}, {row['high'] * scale:.{digits}f}]"


def uncorrected_layers(layers: pd.DataFrame) -> list[str]:
    """Return a sentence for every network and correction that does not reach all layers, with the reasons."""
    sentences: list[str] = []
    missed = layers[layers["left_out"].notna()]
    for (architecture, correction), alike in missed.groupby(["architecture", "correction"]):
        reasons = alike.groupby("left_out", sort=False)["layer"].unique()
        told = "; ".join(f"{', '.join(sorted(names))}: {reason}" for reason, names in reasons.items())
        sentences.append(f"In {architecture}, {correction} does not reach {told}.")
    return sentences
