from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import app
from flows.commands.compare import compare, summarise_points
from flows.refusals import WrongWordsError
from flows.report.figures.published import chart_comparison
from flows.report.paper_points import tabulate_points
from infra.storage import Store, StoreError
from infra.tables import write_table
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.overrides import override
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.recipes import MLP_BATCH, MLP_SAVED
from tasks.tables import schema
from tasks.tables.comparison import published_figures, tabulate_comparison

PATHS = (("none", "none"), ("activation", "none"), ("activation", "repair"))
HALF_WIDTHS = {"none": 0.05, "repair": 0.2}
"""Uncorrected paths can be judged, and repaired ones scatter too much."""


def make_paper(dataset: str, normalization: str, sizes: list[tuple[int, int]], recipe: Recipe) -> pd.DataFrame:
    """The table of a study that finds one point less than was published, everywhere."""
    spec = {f"recipe_{name}": value for name, value in dataclasses.asdict(recipe).items() if name != "name"}
    cells, rows = [], []
    for width, depth in sizes:
        cell = {"study": "s", "cell_id": f"{recipe.name}-{width}-{depth}", "dataset": dataset, "architecture": "mlp"}
        cell |= {"normalization": normalization, "width": width, "depth": depth, "recipe": recipe.name}
        cells.append(cell | spec | {"data_n_train": 60_000, "data_n_test": 10_000})
        for figure in published_figures():
            if (figure.dataset, figure.normalization, figure.width, figure.depth) != (
                dataset, normalization, width, depth,
            ) or figure.architecture != "mlp":  # fmt: skip
                continue
            matcher, correction = figure.paths[0]
            if (matcher, correction) not in PATHS:
                continue
            for (split, value), published in figure.values.items():
                row = cell | {"matcher": matcher, "correction": correction, "measurement": "default", "split": split}
                half = HALF_WIDTHS[correction]
                mean = published - 0.01
                row |= {"metric": f"{figure.place}_{value}", "mean": mean}
                row |= {"new_pair_low": mean - half, "new_pair_high": mean + half}
                rows.append(row | {"n_seeds": 4, "n_pairs": 6, "n_diverged": 0, "n_untrained": 0})
    return tabulate_comparison(pd.DataFrame(cells), pd.DataFrame(rows), {"default": Measurement("default")})


@pytest.fixture
def paper() -> pd.DataFrame:
    return make_paper("fashion_mnist", "none", [(32, 11), (256, 11)], MLP_SAVED)


def write_study(store: Store, paper: pd.DataFrame) -> None:
    write_table(store, "studies/s/paper.parquet", schema.PAPER, paper, {})
    empty = pd.DataFrame(columns=list(schema.ABLATION.columns))
    write_table(store, "studies/s/ablation.parquet", schema.ABLATION, empty, {})


def printed(store: Store, paper: pd.DataFrame, width: int = 80) -> str:
    write_study(store, paper)
    compare(store, "s", Console(width=width, file=(out := io.StringIO())))
    return out.getvalue()


def test_the_terminal_shows_theirs_ours_and_the_verdict_in_80_columns(store: Store, paper: pd.DataFrame):
    text = printed(store, paper)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "fashion_mnist mlp none" in lines
    assert "their recipe at width 32, 256: mlp (a guess)" in lines
    assert "their recipe at width 2048, 4096: not known" in lines
    assert "our recipe: mlp, measurement: default" in lines
    assert "32 endpoints 83.7 82.7 [77.7, 87.7] 6 inside" in lines
    assert "32 aligned+repair 46.3 45.3 [25.3, 65.3] 6 uninformative" in lines
    assert "not run at width 2048, 4096: endpoints, direct, aligned, aligned+repair" in lines
    assert "note at width 2048: another recipe than widths up to 512" in lines
    assert "…" not in text
    assert max(map(len, text.splitlines()[:-1])) <= 80


def test_every_network_and_method_is_summed_up(paper: pd.DataFrame):
    test = paper[(paper["split"] == "test") & paper["metric"].str.endswith("accuracy")]
    rows = summarise_points(test).set_index("method")
    assert rows.index.tolist() == ["endpoints", "direct", "aligned", "aligned+repair"]
    assert rows.loc["aligned"].to_dict() == {
        "network": "fashion_mnist mlp none", "inside": "2 of 2", "wide": "0", "error": "-1.0", "reach": "5.0",
        "other": "0", "not run": "2",
    }  # fmt: skip
    repaired = rows.loc["aligned+repair"]
    assert (repaired["inside"], repaired["wide"], repaired["error"], repaired["reach"]) == ("-", "2", "-1.0", "20.0")


def test_a_point_outside_and_one_of_another_recipe_are_told_apart():
    known = make_paper("mnist", "batch-fused", [(128, 11)], MLP_BATCH)
    off = known.copy()
    off.loc[off["method"] == "aligned", "verdict"] = "outside"
    other = make_paper("mnist", "batch-fused", [(128, 16)], override(MLP_BATCH, epochs=5))
    both = pd.concat([off[off["depth"] == 11], other[other["depth"] == 16]])
    test = both[(both["split"] == "test") & both["metric"].str.endswith("accuracy")]
    rows = summarise_points(test).set_index("method")
    assert rows.loc["aligned"][["inside", "other", "not run"]].tolist() == ["0 of 1", "1", "0"]
    assert rows.loc["endpoints"][["inside", "other", "not run"]].tolist() == ["1 of 1", "1", "0"]
    assert rows.loc["aligned+repair_closed_form"][["inside", "other", "not run"]].tolist() == ["-", "0", "2"]


def test_a_point_that_two_cells_speak_of_counts_once(paper: pd.DataFrame):
    more = paper.assign(measurement="default/alphas=25", n_pairs=paper["n_pairs"] - 1)
    other = make_paper("fashion_mnist", "none", [(32, 11)], override(MLP_SAVED, epochs=5))
    all_rows = pd.concat([more, paper, other], ignore_index=True)
    test = all_rows[(all_rows["split"] == "test") & all_rows["metric"].str.endswith("accuracy")]
    assert summarise_points(test).set_index("method").loc["aligned", "inside"] == "2 of 2"


def test_without_an_interval_there_is_a_mean_and_no_brackets(paper: pd.DataFrame):
    few = paper.assign(new_pair_low=np.nan, new_pair_high=np.nan, verdict="uninformative")
    test = few[(few["split"] == "test") & few["metric"].str.endswith("accuracy") & (few["width"] == 32)]
    assert tabulate_points(test)["ours [a new pair]"].tolist()[0] == "82.7"
    rows = summarise_points(test).set_index("method")
    assert rows.loc["aligned", ["error", "reach"]].tolist() == ["-1.0", "-"]


def test_a_cell_without_a_pair_is_not_run_and_says_what_became_of_its_endpoints(store: Store, paper: pd.DataFrame):
    lost = (paper["width"] == 32) & paper["cell_id"].notna()
    nothing = {"n_pairs": 0, "n_diverged": 3, "n_untrained": 1, "verdict": "not run", "mean": np.nan}
    nothing |= {"new_pair_low": np.nan, "new_pair_high": np.nan, "difference": np.nan}
    for name, value in nothing.items():
        paper.loc[lost, name] = value
    again = paper[lost].assign(measurement="default/alphas=25")
    text = " ".join(printed(store, pd.concat([paper, again], ignore_index=True)).split())
    assert "not run at width 32, 2048, 4096: endpoints, direct, aligned, aligned+repair" in text
    assert text.count("no pair at width 32 by mlp: 3 endpoints diverged, 1 did not learn") == 1
    assert "alphas=25" not in text


def test_a_study_that_nothing_published_is_like_is_told_so_in_one_sentence(store: Store):
    text = printed(store, pd.DataFrame(columns=list(schema.PAPER.columns)), width=200)
    assert text.count("\n") == 1
    assert text.startswith("The authors of REPAIR saved no figure of a network that s has")
    assert not store.exists("studies/s/figures/comparison.png")


def test_the_picture_lies_beside_the_others(store: Store, paper: pd.DataFrame):
    printed(store, paper)
    assert (Path(store.url) / "studies/s/figures/comparison.png").read_bytes().startswith(b"\x89PNG")
    deep = make_paper("mnist", "batch-fused", [(128, depth) for depth in (2, 11, 31)], MLP_BATCH)
    assert chart_comparison(pd.concat([paper, deep], ignore_index=True)) is not None


def test_where_nothing_was_run_there_is_a_table_and_no_picture(store: Store, paper: pd.DataFrame):
    missing = paper[paper["cell_id"].isna()]
    assert chart_comparison(missing) is None
    assert "not run" in printed(store, missing)


def test_a_study_without_tables_is_refused_as_for_a_report(store: Store):
    with pytest.raises(StoreError, match="has no tables of s; `repairlab run s`"):
        compare(store, "s", Console())
    empty = pd.DataFrame(columns=list(schema.ABLATION.columns))
    write_table(store, "studies/s/ablation.parquet", schema.ABLATION, empty, {})
    with pytest.raises(StoreError, match="without the table paper; running the same `repairlab run s` command"):
        compare(store, "s", Console())


def test_the_command_compares_and_an_unknown_study_is_named(store: Store, paper: pd.DataFrame):
    write_study(store, paper)
    called = CliRunner().invoke(app, ["compare", "s", "--store", store.url])
    assert called.exit_code == 0, called.output
    assert "comparison.png" in called.output
    called = CliRunner().invoke(app, ["compare", "nope", "--store", store.url])
    assert isinstance(called.exception, WrongWordsError)
    assert str(called.exception).startswith("there is no study 'nope'; known: ")
