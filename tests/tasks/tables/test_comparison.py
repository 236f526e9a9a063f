from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tasks.science.specs.measurement import Measurement
from tasks.science.specs.overrides import override
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.recipes import MLP_BATCH, MLP_SAVED, R18_SAVED, VGG_SAVED
from tasks.tables import comparison, schema
from tasks.tables.comparison import judge_accuracy, published_figures, tabulate_comparison

FULL = {"default": Measurement("default")}


def cell_of(
    dataset="fashion_mnist",
    architecture="mlp",
    normalization="none",
    width=32,
    depth=11,
    recipe: Recipe = MLP_SAVED,
    **more,
) -> dict:
    spec = {f"recipe_{name}": value for name, value in dataclasses.asdict(recipe).items() if name != "name"}
    row = {"study": "s", "cell_id": f"{dataset}-{architecture}-{width}-{recipe.name}", "dataset": dataset}
    row |= {"architecture": architecture, "normalization": normalization, "width": width, "depth": depth}
    return row | {"recipe": recipe.name, "data_n_train": 60_000, "data_n_test": 10_000} | spec | more


def ablation_of(
    cell: dict, paths=(("none", "none"), ("activation", "none"), ("activation", "repair")), **given
) -> list:
    """Every metric of every path: .5, predicted between .4 and .6 from six pairs."""
    rows = []
    for matcher, correction in paths:
        for split in ("train", "test"):
            for metric in ("endpoint_accuracy", "endpoint_loss", "midpoint_accuracy", "midpoint_loss"):
                row = {name: cell[name] for name in schema.CELL}
                row |= {"matcher": matcher, "correction": correction, "measurement": "default", "split": split}
                row |= {"metric": metric, "mean": 0.5, "new_pair_low": 0.41, "new_pair_high": 0.59}
                row |= {"n_seeds": 4, "n_pairs": 6, "n_diverged": 1, "n_untrained": 0}
                rows.append(row | given)
    return rows


def compare(*cells: dict, rows: list | None = None, measurements=FULL) -> pd.DataFrame:
    if rows is None:
        rows = [row for cell in cells for row in ablation_of(cell)]
    return tabulate_comparison(pd.DataFrame(cells), pd.DataFrame(rows), measurements)


def only(paper: pd.DataFrame, **values) -> pd.Series:
    chosen = paper[np.logical_and.reduce([paper[name] == value for name, value in values.items()])]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_a_point_has_theirs_ours_and_a_verdict():
    paper = compare(cell_of())
    assert list(paper.columns) == list(schema.PAPER.columns)
    assert not paper.duplicated(list(schema.PAPER.key)).any()
    row = only(paper, width=32, method="aligned+repair", split="test", metric="midpoint_accuracy")
    assert row["point"] == "fashion_mnist/mlp/none/w32/d11/aligned+repair"
    assert row["published"] == pytest.approx(0.463, abs=1e-3)
    assert (row["mean"], row["new_pair_low"], row["new_pair_high"]) == (0.5, 0.41, 0.59)
    assert row["difference"] == pytest.approx(0.5 - row["published"])
    assert (row["matcher"], row["correction"]) == ("activation", "repair")
    assert (row["n_pairs"], row["n_diverged"], row["verdict"]) == (6, 1, "inside")
    assert (row["published_recipe"], row["published_recipe_known"]) == ("mlp", False)
    aligned = only(paper, width=32, method="aligned", split="test", metric="midpoint_accuracy")
    assert aligned["verdict"] == "outside"


def test_endpoints_are_compared_by_their_mean():
    row = only(compare(cell_of()), width=32, method="endpoints", split="test", metric="endpoint_accuracy")
    assert row["published"] == pytest.approx(0.8375, abs=2e-3)
    assert (row["matcher"], row["correction"]) == ("none", "none")


def test_endpoints_come_from_any_uncorrected_path():
    cell = cell_of()
    paper = compare(cell, rows=ablation_of(cell, paths=[("activation", "none")]))
    row = only(paper, width=32, method="endpoints", split="test", metric="endpoint_accuracy")
    assert (row["matcher"], row["mean"]) == ("activation", 0.5)


def test_where_endpoints_were_not_saved_the_ends_of_the_direct_path_are():
    (ends,) = (f for f in published_figures() if f.architecture == "resnet18" and f.method == "endpoints")
    assert ends.values["test", "accuracy"] == pytest.approx(0.9556, abs=1e-4)
    assert (ends.recipe, ends.is_recipe_known) == (R18_SAVED, False)


def test_sizes_of_the_studys_networks_that_were_not_run_are_listed_and_other_networks_are_not():
    paper = compare(cell_of())
    missing = paper[paper["verdict"] == "not run"]
    assert set(missing["width"]) == {256, 2048, 4096}
    assert missing[["cell_id", "recipe", "measurement", "mean", "difference"]].isna().all().all()
    assert (missing["study"] == "s").all()
    assert set(paper["dataset"]) == {"fashion_mnist"}
    assert set(paper["architecture"]) == {"mlp"}


def test_a_method_that_was_not_run_is_not_run():
    cell = cell_of()
    paper = compare(cell, rows=ablation_of(cell, paths=[("none", "none")]))
    assert set(paper[(paper["width"] == 32) & (paper["verdict"] == "not run")]["method"]) == {
        "aligned", "aligned+repair",
    }  # fmt: skip


def test_a_cell_of_which_no_pair_was_measured_is_not_run_and_says_what_became_of_its_endpoints():
    cell = cell_of()
    nothing = {"mean": np.nan, "new_pair_low": np.nan, "new_pair_high": np.nan, "n_pairs": 0, "n_diverged": 4}
    paper = compare(cell, rows=ablation_of(cell, **nothing), measurements={})
    rows = paper[paper["width"] == 32]
    assert (rows["verdict"] == "not run").all()
    assert (rows["n_diverged"] == 4).all()
    assert (rows["recipe"] == "mlp").all()


def test_losses_are_shown_and_not_judged():
    paper = compare(cell_of())
    losses = paper[paper["metric"].str.endswith("loss") & paper["mean"].notna()]
    assert len(losses)
    assert losses["verdict"].isna().all()
    assert losses["difference"].notna().all()


@pytest.mark.parametrize("changes", [{"epochs": 5}, {"learning_rate": 0.2}, {"flip": True}])
def test_another_recipe_takes_no_verdict(changes: dict):
    paper = compare(cell_of(recipe=override(MLP_SAVED, **changes)))
    assert set(paper[paper["width"] == 32]["verdict"]) == {"other recipe"}


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"skip_nonfinite": True}, {"epochs": MLP_SAVED.epochs}])
def test_what_a_cpu_cannot_do_alike_and_a_name_are_the_same_recipe(changes: dict):
    recipe = dataclasses.replace(override(MLP_SAVED, **changes), name="renamed")
    paper = compare(cell_of(recipe=recipe))
    assert only(paper, width=32, method="aligned+repair", split="test", metric="midpoint_accuracy")["verdict"] == (
        "inside"
    )


def test_two_recipes_and_two_measurements_have_rows_of_their_own():
    cells = [cell_of(), cell_of(recipe=override(MLP_SAVED, epochs=5))]
    rows = [row for cell in cells for row in ablation_of(cell)]
    rows += [row | {"measurement": "default/alphas=25"} for row in rows]
    measurements = FULL | {"default/alphas=25": Measurement("default/alphas=25", alphas=25)}
    paper = compare(*cells, rows=rows, measurements=measurements)
    assert not paper.duplicated(list(schema.PAPER.key)).any()
    repaired = paper[(paper["width"] == 32) & (paper["method"] == "aligned+repair") & (paper["split"] == "test")]
    repaired = repaired[repaired["metric"] == "midpoint_accuracy"]
    assert repaired["verdict"].tolist() == ["inside", "inside", "other recipe", "other recipe"]


def test_a_measurement_of_fewer_images_takes_no_verdict_where_they_matter():
    few = {"default": Measurement("default", statistics=5_000)}
    paper = compare(cell_of(), measurements=few)
    accuracies = paper[(paper["width"] == 32) & (paper["split"] == "test") & paper["metric"].str.endswith("accuracy")]
    verdicts = accuracies.set_index("method")["verdict"].to_dict()
    assert verdicts == {
        "endpoints": "outside", "direct": "outside", "aligned": "other measurement",
        "aligned+repair": "other measurement",
    }  # fmt: skip
    some = {"default": Measurement("default", statistics=60_000, evaluation=10_000)}
    paper = compare(cell_of(), measurements=some)
    repaired = paper[(paper["width"] == 32) & (paper["method"] == "aligned+repair")]
    repaired = repaired[repaired["metric"] == "midpoint_accuracy"].set_index("split")["verdict"]
    assert repaired.to_dict() == {"train": "other measurement", "test": "inside"}


def test_points_whose_endpoints_had_not_learned_or_were_trained_otherwise_keep_their_note_and_are_not_judged():
    paper = compare(cell_of(width=2048), cell_of(width=4096))
    by_width = paper.groupby("width")["verdict"].unique()
    assert by_width[2048].tolist() == ["other recipe"]
    assert by_width[4096].tolist() == ["unconverged"]
    assert (paper[paper["width"] == 2048]["note"] == "another recipe than widths up to 512").all()
    assert paper[paper["width"] == 2048]["published_recipe"].isna().all()
    assert not paper[paper["width"] == 2048]["published_recipe_known"].any()


def test_vggs_of_unknown_norm_are_compared_with_batchnorm_and_reset():
    vgg = cell_of("cifar10", "vgg11", "batch", width=1, depth=11, recipe=VGG_SAVED)
    rows = ablation_of(vgg, paths=[("none", "none"), ("activation", "none"), ("activation", "reset")])
    paper = compare(vgg, rows=rows)
    row = only(paper, method="aligned+repair", split="test", metric="midpoint_accuracy")
    assert row["point"] == "cifar10/vgg11/unknown/w1/d11/aligned+repair"
    assert (row["normalization"], row["correction"]) == ("batch", "reset")
    assert (row["published_recipe"], row["published_recipe_known"]) == ("vgg-saved", False)
    assert row["note"].startswith("batch norm with reset is likely")
    assert compare(cell_of("cifar10", "vgg11", "none", width=1, recipe=VGG_SAVED)).empty


def test_the_depth_study_is_compared_with_a_recipe_that_is_known():
    cell = cell_of("mnist", "mlp", "batch-fused", width=128, depth=11, recipe=MLP_BATCH)
    paper = compare(cell)
    assert paper["published_recipe_known"].all()
    assert set(paper["published_recipe"]) == {"mlp-batch"}
    assert set(paper["method"]) == {
        "endpoints", "direct", "aligned", "aligned+repair", "aligned+repair_closed_form",
    }  # fmt: skip


def test_a_study_of_nothing_published_has_an_empty_table():
    paper = compare(cell_of("digits"))
    assert paper.empty
    assert list(paper.columns) == list(schema.PAPER.columns)


@pytest.mark.parametrize(
    ("published", "low", "high", "verdict"),
    [
        (0.50, 0.45, 0.55, "inside"),
        (0.45, 0.45, 0.55, "inside"),
        (0.44, 0.45, 0.55, "outside"),
        (0.50, 0.39, 0.60, "uninformative"),
        (0.90, 0.39, 0.60, "uninformative"),
        (0.50, np.nan, np.nan, "uninformative"),
    ],
)
def test_a_point_is_judged_by_a_narrow_interval_alone(published: float, low: float, high: float, verdict: str):
    assert judge_accuracy(published, low, high) == verdict


def test_every_published_midpoint_of_a_network_that_can_be_trained_is_among_the_figures():
    figures = published_figures()
    assert len({figure.point for figure in figures}) == len(figures)
    n_midpoints = sum(
        point.alpha == 0.5 and not point.method.startswith("adjusted") and point.dataset not in ("imagenet",)
        and point.architecture != "unknown"
        for point in comparison.read_points()
    )  # fmt: skip
    assert sum(figure.method != "endpoints" for figure in figures) == n_midpoints
    networks = {(f.dataset, f.architecture, f.normalization, f.width, f.depth) for f in figures}
    assert sum(figure.method == "endpoints" for figure in figures) == len(networks)
