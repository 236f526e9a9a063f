"""`repairlab compare`: a study beside the figures that the authors of REPAIR saved, with a verdict on each."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table as TextTable
from rich.text import Text

from flows.report.figures.drawing import draw_png
from flows.report.figures.published import chart_comparison
from flows.report.gathered import check_gathered, read_gathered
from flows.report.labels import NETWORK
from flows.report.paper_points import ALIKE, in_order, sizes_varied, tabulate_points
from flows.terminal import tell
from infra.paths import figure_key
from infra.sealing import seal_png
from infra.storage import Store
from infra.text import one_line
from tasks.tables.comparison import NOT_RUN

LEGEND = (
    "Test accuracy in %. Theirs is one pair; ours is the mean over pairs, and in brackets where one new pair of two "
    "new seeds falls in 95 of 100 cases. uninformative: it would reach further than 10 points."
)
SUMMARY_LEGEND = (
    "Every published point once. inside: of those inside or outside; wide: uninformative; error: median of ours minus "
    "theirs, reach: median half width of the brackets, both in points and of these three; other: another recipe or "
    "measurement, or endpoints of theirs that had not learned."
)


def compare(store: Store, study: str, console: Console) -> None:
    """Print the comparison and its summary, and draw `figures/comparison.png`.

    Raises StoreError for a study without tables, or with tables of a version that made no comparison.
    """
    check_gathered(store, study, ["paper"])
    paper = read_gathered(store, study, "paper")
    if paper.empty:
        console.print(
            f"The authors of REPAIR saved no figure of a network that {study} has: there is nothing to compare with.",
            highlight=False,
        )
        return
    test = paper[(paper["split"] == "test") & paper["metric"].str.endswith("accuracy")]
    for network, of_network in test.groupby(NETWORK):
        console.print(one_line(" ".join(map(str, network))), style="bold", highlight=False)
        _print_points(of_network, console)
        console.print()
    console.print("In short", style="bold")
    console.print(_as_text(summarise_points(test), headed="network"))
    console.print(f"{LEGEND} {SUMMARY_LEGEND}", style="dim", highlight=False)
    chart = chart_comparison(paper)
    if chart is not None:
        key = figure_key(study, "comparison")
        store.replace(key, seal_png(draw_png(chart), key))
        console.print(f"figure  {store.locate(figure_key(study, 'comparison'))}", highlight=False, soft_wrap=True)


def _print_points(of_network: pd.DataFrame, console: Console) -> None:
    """Print the points of one kind of network: a table for each recipe and measurement, and the points not run."""
    known = of_network["published_recipe_known"]
    for recipe, of_recipe in of_network.groupby(of_network["published_recipe"].fillna("")):
        theirs = f"{recipe}{'' if known[of_recipe.index].all() else ' (a guess)'}" if recipe else "not known"
        tell(console, f"their recipe{_at_sizes(of_recipe, of_network)}: {theirs}")
    for note, of_note in of_network[of_network["note"].fillna("") != ""].groupby("note"):
        tell(console, f"note{_at_sizes(of_note, of_network)}: {note}")
    run = of_network[of_network["n_pairs"] > 0]
    for (recipe, measurement), rows in run.groupby(["recipe", "measurement"]):
        tell(console, f"our recipe: {recipe}, measurement: {measurement}")
        console.print(_as_text(tabulate_points(rows)))
    missing = in_order(of_network[~of_network["point"].isin(run["point"])].drop_duplicates("point"))
    methods_at: dict[str, list[str]] = {}
    for method, of_method in missing.groupby("method", sort=False):
        methods_at.setdefault(_at_sizes(of_method, of_network), []).append(str(method))
    for sizes, methods in methods_at.items():
        tell(console, f"{NOT_RUN}{sizes}: {', '.join(methods)}")
    for _, cell in missing.drop_duplicates("cell_id").iterrows():
        if cell["n_diverged"] + cell["n_untrained"]:
            where = ", ".join(f"{name} {cell[name]}" for name in sizes_varied(of_network))
            lost = f"{cell['n_diverged']} endpoints diverged, {cell['n_untrained']} did not learn"
            tell(console, f"no pair at {where} by {cell['recipe']}: {lost}")


def summarise_points(test: pd.DataFrame) -> pd.DataFrame:
    """Return a row of text per network and method: published points inside, our error, and points without a verdict.

    `test` are the accuracies of one split. A point with several cells or measurements counts once: by one that was
    trained and measured alike where there is one, with most pairs.
    """
    rank = test["verdict"].map(lambda verdict: 0 if verdict in ALIKE else 2 if verdict == NOT_RUN else 1)
    best = test.assign(rank=rank).sort_values(["rank", "n_pairs", "measurement"], ascending=[True, False, True])
    text: list[dict[str, str]] = []
    once = in_order(best.drop_duplicates("point"))
    for key, rows in once.groupby([*NETWORK, "method"], sort=False):
        *network, method = map(str, key)
        n_inside, n_outside, n_wide, n_missing = (
            int((rows["verdict"] == verdict).sum()) for verdict in (*ALIKE, NOT_RUN)
        )
        n_judged = n_inside + n_outside
        alike = rows[rows["verdict"].isin(ALIKE)]
        reach = (alike["new_pair_high"] - alike["new_pair_low"]) / 2
        text.append(
            {"network": " ".join(network), "method": method}
            | {"inside": f"{n_inside} of {n_judged}" if n_judged else "-", "wide": str(n_wide)}
            | {"error": _in_points(alike["difference"], "+.1f"), "reach": _in_points(reach, ".1f")}
            | {"other": str(len(rows) - n_judged - n_wide - n_missing), NOT_RUN: str(n_missing)}
        )
    return pd.DataFrame(text)


def _in_points(values: pd.Series, form: str) -> str:
    return f"{100 * values.median():{form}}" if values.notna().any() else "-"


def _at_sizes(rows: pd.DataFrame, among: pd.DataFrame) -> str:
    """Return the sizes of the rows in words; empty where they are all of the sizes in `among`."""
    factors = sizes_varied(among)
    of_rows, of_all = (frame[factors].drop_duplicates().sort_values(factors) for frame in (rows, among))
    if len(of_rows) == len(of_all):
        return ""
    sizes = [" x ".join(map(str, size)) for size in of_rows.to_numpy().tolist()]
    return f" at {' x '.join(factors)} {', '.join(sizes)}"


def _as_text(frame: pd.DataFrame, headed: str = "") -> TextTable:
    """Return a table without lines; every value of the column `headed` stands once, above its rows."""
    text = TextTable(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    left = {"method", "verdict"}
    for name in frame.columns.drop(headed or []):
        text.add_column(str(name), justify="left" if name in left else "right", overflow="fold")
    heading: Any = None
    for row in frame.to_dict(orient="records"):
        if headed and row[headed] != heading:
            heading = row[headed]
            text.add_row(Text(one_line(heading)), style="italic")
        text.add_row(*(Text(one_line(value)) for name, value in row.items() if name != headed))
    return text
