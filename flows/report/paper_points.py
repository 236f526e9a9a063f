"""Published points beside ours, as text."""

from __future__ import annotations

import pandas as pd

from flows.report.labels import NETWORK
from tasks.tables.comparison import INSIDE, OUTSIDE, PATHS_OF_METHODS, UNINFORMATIVE

ALIKE = (INSIDE, OUTSIDE, UNINFORMATIVE)
"""The verdicts on points whose training and measurement were the same as ours."""


def tabulate_paper(paper: pd.DataFrame) -> pd.DataFrame:
    """Return a row of text per published test accuracy that the study measured too, those with a verdict first.

    Recipe and measurement of ours are columns if they vary. `paper` is the table of that name, or empty.
    """
    if paper.empty:
        return pd.DataFrame()
    run = paper[(paper["split"] == "test") & paper["metric"].str.endswith("accuracy") & (paper["n_pairs"] > 0)]
    differing = [name for name in ("recipe", "measurement") if run[name].nunique() > 1]
    tables: list[pd.DataFrame] = []
    for _, rows in run.groupby([*NETWORK, "recipe", "measurement"], dropna=False):
        first = rows.iloc[0]
        told = {"network": " ".join(map(str, first[NETWORK]))} | {name: str(first[name]) for name in differing}
        tables.append(tabulate_points(rows).assign(**told))
    if not tables:
        return pd.DataFrame()
    points = pd.concat(tables, ignore_index=True)
    order = points["verdict"].map(lambda verdict: ALIKE.index(verdict) if verdict in ALIKE else len(ALIKE))
    front = ["network", *differing]
    return points.iloc[order.argsort(kind="stable")][[*front, *points.columns.drop(front)]].fillna("")


def tabulate_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row of text per point: size, method, theirs, ours with a new pair's prediction interval, verdict."""
    text: list[dict[str, str]] = []
    for row in in_order(rows).to_dict(orient="records"):
        ours = "-" if pd.isna(row["mean"]) else f"{100 * row['mean']:.1f}"
        if not pd.isna(row["new_pair_low"]):
            ours += f" [{100 * row['new_pair_low']:.1f}, {100 * row['new_pair_high']:.1f}]"
        text.append(
            {name: str(row[name]) for name in sizes_varied(rows)}
            | {"method": row["method"], "theirs": f"{100 * row['published']:.1f}", "ours [a new pair]": ours}
            | {"pairs": str(row["n_pairs"]), "verdict": row["verdict"]}
        )
    return pd.DataFrame(text)


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Return `rows` sorted by network and size, and within them from endpoints to the most corrected path."""
    order = {method: position for position, method in enumerate(PATHS_OF_METHODS)}
    return rows.sort_values(
        [*NETWORK, "width", "depth", "method"],
        key=lambda column: column.map(order) if column.name == "method" else column,
    )


def sizes_varied(rows: pd.DataFrame) -> list[str]:
    """Return which of width and depth vary; the width if neither does."""
    return [name for name in ("width", "depth") if rows[name].nunique() > 1] or ["width"]
