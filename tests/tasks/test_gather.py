from __future__ import annotations

import dataclasses
import functools
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pipeline import make_request, merges_of, run_all, train_all

from infra.paths import row_key, table_key
from infra.storage import DamagedError, Store
from tasks.gather import _commit, gather
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.measurement import Measurement
from tasks.science.training import training
from tasks.stored.artifacts import read_endpoint
from tasks.stored.checkpoints import read_header
from tasks.stored.requests import save_request
from tasks.tables import schema
from tasks.tables.ablation import tabulate_ablation


@pytest.fixture
def tables(store: Store, cell: Cell) -> dict[str, pd.DataFrame]:
    run_all(store, make_request(cell, dataclasses.replace(cell, depth=2)))
    return read_all(store)


def read_all(store: Store) -> dict[str, pd.DataFrame]:
    return {t.name: pd.read_parquet(f"{store.url}/{table_key('test', t.name)}") for t in schema.TABLES}


def test_every_table_has_its_schema_and_a_unique_key(store: Store, tables):
    for table in schema.TABLES:
        written = pq.read_schema(f"{store.url}/{table_key('test', table.name)}").remove_metadata()
        assert written.equals(table.schema()), table.name
        frame = tables[table.name]
        # No network of the tests was ever published, and of one width there is no law.
        assert len(frame) or table.name in ("paper", "width_laws"), table.name
        assert not frame.duplicated(list(table.key)).any(), table.name


@pytest.mark.usefixtures("tables")
def test_every_column_that_was_gathered_says_what_it_means(store: Store):
    for table in schema.TABLES:
        written = pq.read_schema(f"{store.url}/{table_key('test', table.name)}")
        assert written.metadata[b"description"].decode() == table.description != ""
        told = {field.name: field.metadata[b"description"].decode() for field in written}
        assert told == {name: column.description for name, column in table.columns.items()}
        assert all(text.endswith(".") for text in told.values()), table.name


CONTRACT = """
C: study cell_id dataset architecture normalization width depth recipe
P: C merge_id kind control seed_a seed_b matcher
endpoints: C endpoint_id seed train_subset checkpoint_epoch origin status message train_loss train_accuracy test_loss
    test_accuracy n_train_examples n_parameters n_skipped_steps train_seconds device weights_sha256
merges: P members train_subset_a train_subset_b n_statistics matcher_options objective function_error match_seconds
paths: P method correction measurement alpha split loss accuracy n_examples temperature
    calibrated_loss temperature_at_bound
barriers: P correction measurement split loss_barrier accuracy_barrier midpoint_loss_barrier midpoint_accuracy_barrier
    own_chord_loss_barrier own_chord_accuracy_barrier calibrated_loss_barrier midpoint_calibrated_loss_barrier
layers: P correction measurement alpha layer position n_units n_dead variance_ratio variance_ratio_target mean_error
    sd_error mean_correlation sd_correlation left_out
axes: P axis size n_dead matched_correlation identity_correlation
ablation: C matcher correction measurement split metric mean low high new_pair_low new_pair_high n_seeds n_pairs
    n_diverged n_untrained
paper: C point method matcher correction measurement split metric published published_recipe published_recipe_known mean
    new_pair_low new_pair_high difference verdict n_seeds n_pairs n_diverged n_untrained source note
contrasts: C other_cell_id matcher other_matcher correction other_correction measurement split metric factor value
    other_value difference low high n_seeds other_n_seeds n_pairs other_n_pairs
width_laws: study series_id dataset architecture normalization depth recipe epoch spawn_seed spawn_epoch matcher
    correction measurement split metric c c_low c_high p p_low p_high floor floor_low floor_high fit_probability
    n_widths n_measured_widths threshold answer width width_low width_high answer_text
"""
"""Written out again from the design, so that a column cannot change on one side alone."""


def test_the_columns_are_those_of_the_contract():
    columns: dict[str, list[str]] = {}
    for line in CONTRACT.replace("\n    ", " ").strip().splitlines():
        name, words = line.split(": ")
        columns[name] = [column for word in words.split() for column in columns.get(word, [word])]
    for table in schema.TABLES:
        if table.name == "cells":
            assert list(table.columns)[: len(columns["C"])] == columns["C"]
            assert {"recipe_learning_rate", "recipe_epochs", "data_fingerprint", "data_n_train", "epoch"} <= set(
                table.columns
            )
        else:
            assert list(table.columns) == columns[table.name], table.name


def test_counts_are_those_of_the_grid(tables):
    n_cells, n_pairs, n_matchers, n_corrections, n_alphas, n_splits = 2, 3, 2, 2, 5, 2
    assert len(tables["cells"]) == n_cells
    assert len(tables["endpoints"]) == n_cells * 3
    assert len(tables["merges"]) == n_cells * n_pairs * n_matchers
    assert len(tables["paths"]) == n_cells * n_pairs * n_matchers * n_corrections * n_alphas * n_splits
    assert len(tables["barriers"]) == n_cells * n_pairs * n_matchers * n_corrections * n_splits
    assert len(tables["axes"]) == n_pairs * (3 + 2)
    assert len(tables["layers"]) == n_pairs * n_matchers * (3 + 2) * (1 + n_alphas)
    sizes = tables["ablation"].groupby(["split", "cell_id", "matcher", "correction"]).size()
    assert (set(sizes["train"]), set(sizes["test"])) == ({8, 12}, {12, 18})


def test_a_merge_without_a_matcher_has_no_objective_and_no_function_error(tables):
    direct = tables["merges"][tables["merges"]["matcher"] == "none"]
    assert direct[["objective", "function_error", "match_seconds"]].isna().all().all()
    aligned = tables["merges"][tables["merges"]["matcher"] == "activation"]
    assert (aligned["function_error"] < 1e-12).all()
    assert (aligned["objective"] > 0).all()
    assert (tables["merges"][["train_subset_a", "train_subset_b"]] == "all").all().all()


def test_tables_of_a_data_set_in_halves_tell_which_half(store: Store, cell: Cell, blobs, monkeypatch):
    halved = dataclasses.replace(blobs, spec=dataclasses.replace(blobs.spec, halves=True))
    for module in ("tasks.train", "tasks.align", "tasks.stored.pairs"):
        monkeypatch.setattr(f"{module}.load_dataset", lambda _name, _folder: halved)
    run_all(store, make_request(dataclasses.replace(cell, data=halved.spec), n_seeds=4))
    tables = read_all(store)
    assert tables["cells"]["data_halves"].tolist() == [True]
    endpoints = tables["endpoints"].set_index("seed").sort_index()
    assert endpoints["train_subset"].tolist() == ["first", "second"] * 2
    sizes = {side: len(halved.trained_on(side).train) for side in ("first", "second")}
    assert endpoints["n_train_examples"].tolist() == [sizes["first"], sizes["second"]] * 2
    pairings = tables["merges"].query("matcher == 'activation'")
    assert sorted(zip(pairings["seed_a"], pairings["seed_b"], strict=True)) == [(0, 1), (0, 3), (2, 1), (2, 3)]
    assert (pairings["train_subset_a"] == "first").all()
    assert (pairings["train_subset_b"] == "second").all()
    assert (pairings["n_statistics"] == len(blobs.train)).all()
    assert set(tables["paths"].query("split == 'train'")["n_examples"]) == {len(blobs.train)}
    accuracy = tables["ablation"].query("metric == 'endpoint_accuracy'")
    assert (accuracy["n_pairs"] == 4).all()
    assert accuracy["low"].notna().all()


def test_of_data_in_halves_shifted_logits_ensembles_and_joint_training_stand_beside_the_paths_in_one_table(
    store: Store, cell: Cell, blobs, monkeypatch
):
    halved = dataclasses.replace(blobs, spec=dataclasses.replace(blobs.spec, halves=True))
    for name in ("train", "align", "stored.pairs"):
        monkeypatch.setattr(f"tasks.{name}.load_dataset", lambda _name, _folder: halved)
    split = dataclasses.replace(cell, data=halved.spec)
    plain = make_request(split, n_seeds=4)
    run_all(store, plain)
    before = read_all(store)
    run_all(store, dataclasses.replace(plain, ensembles=True, logit_shifts=True, joint_training=True))
    tables = read_all(store)
    for name in ("merges", "barriers", "ablation", "contrasts", "width_laws", "paper"):
        pd.testing.assert_frame_equal(tables[name], before[name])
    paths = tables["paths"]
    assert set(paths["cell_id"]) == {split.id}
    ends = paths[paths["method"].isin(["logit-shift", "logit-shift/chosen=test", "joint"])]
    assert set(ends["alpha"]) == {0.0, 1.0}
    assert (ends.groupby("method").size() == 2 * 2 * 4).all()
    # Each seed has one network, whoever its partner.
    ends = ends.assign(seed=ends["seed_a"].where(ends["alpha"] == 0, ends["seed_b"]))
    assert (ends.groupby(["method", "seed", "split"])["loss"].nunique() == 1).all()
    loss = {
        method: of_method.set_index(["merge_id", "alpha"])["loss"].sort_index()
        for method, of_method in paths.query(
            "split == 'test' and matcher == 'none' and correction == 'none' and alpha in (0, 1)"
        ).groupby("method")
    }
    assert (loss["logit-shift/chosen=test"] <= loss["logit-shift"]).all()
    assert (loss["logit-shift/chosen=test"] <= loss["weights"]).all()
    np.testing.assert_allclose(loss["ensemble"], loss["weights"], rtol=1e-6)
    # What joint training has left is in the tables as endpoints of a cell on whole data.
    whole = tables["endpoints"].query("train_subset == 'all'").set_index("seed")
    assert whole.index.sort_values().tolist() == [0, 1, 2, 3]
    assert set(whole["cell_id"]) == set(tables["cells"].query("not data_halves")["cell_id"]) == {split.joint.id}
    assert (whole["n_train_examples"] == len(halved.train)).all()
    joint = ends.query("method == 'joint' and split == 'test'").drop_duplicates("seed").set_index("seed")
    pd.testing.assert_series_equal(joint["loss"].sort_index(), whole["test_loss"].sort_index(), check_names=False)


def test_barriers_are_what_the_curves_say(tables):
    paths, barriers = tables["paths"], tables["barriers"]
    row = barriers[(barriers["correction"] == "repair") & (barriers["split"] == "test")].iloc[0]
    curves = paths[(paths["merge_id"] == row["merge_id"]) & (paths["split"] == "test")]
    repaired = curves[curves["correction"] == "repair"].sort_values("alpha")
    raw = curves[curves["correction"] == "none"].sort_values("alpha")
    chord = np.interp(repaired["alpha"], [0, 1], [raw["loss"].iloc[0], raw["loss"].iloc[-1]])
    assert row["loss_barrier"] == pytest.approx(max(0, (repaired["loss"].to_numpy() - chord).max()))
    assert row["midpoint_loss_barrier"] == pytest.approx(repaired["loss"].iloc[2] - chord[2])
    own = np.interp(repaired["alpha"], [0, 1], [repaired["loss"].iloc[0], repaired["loss"].iloc[-1]])
    assert row["own_chord_loss_barrier"] == pytest.approx(max(0, (repaired["loss"].to_numpy() - own).max()))
    uncorrected = barriers[barriers["correction"] == "none"]
    for metric in ("loss_barrier", "accuracy_barrier"):
        assert uncorrected[f"own_chord_{metric}"].tolist() == uncorrected[metric].tolist()
    assert barriers["own_chord_loss_barrier"].tolist() != barriers["loss_barrier"].tolist()


def test_the_test_split_has_calibrated_losses_endpoints_included_and_the_train_split_none(tables):
    calibrated = ["temperature", "calibrated_loss", "temperature_at_bound"]
    on_test = tables["paths"].query("split == 'test'")
    assert on_test[calibrated].notna().all().all()
    assert set(on_test["alpha"]) == {0, 0.25, 0.5, 0.75, 1}
    assert tables["paths"].query("split == 'train'")[calibrated].isna().all().all()
    barriers = tables["barriers"]
    names = ["calibrated_loss_barrier", "midpoint_calibrated_loss_barrier"]
    assert barriers.query("split == 'test'")[names].notna().all().all()
    assert barriers.query("split == 'train'")[names].isna().all().all()
    row = barriers[(barriers["correction"] == "repair") & (barriers["split"] == "test")].iloc[0]
    curve = on_test[(on_test["merge_id"] == row["merge_id"])].set_index(["correction", "alpha"])["calibrated_loss"]
    chord = (curve["none", 0.0] + curve["none", 1.0]) / 2
    assert row["midpoint_calibrated_loss_barrier"] == pytest.approx(curve["repair", 0.5] - chord)


def test_the_ends_of_uncorrected_paths_are_the_endpoints(tables):
    ends = tables["paths"].query("correction == 'none' and alpha == 0 and split == 'test'")
    endpoints = tables["endpoints"].set_index(["cell_id", "seed"])
    for row in ends.itertuples():
        assert row.accuracy == endpoints.loc[(row.cell_id, row.seed_a), "test_accuracy"]


def test_the_ablation_means_what_it_says(tables):
    barriers = tables["barriers"].query("matcher == 'activation' and split == 'test'")
    of_cell = barriers[barriers["cell_id"] == barriers["cell_id"].iloc[0]]
    ablation = tables["ablation"].query("matcher == 'activation' and split == 'test'")
    ablation = ablation[ablation["cell_id"] == of_cell["cell_id"].iloc[0]].set_index(["correction", "metric"])
    for correction in ("none", "repair"):
        mean = of_cell[of_cell["correction"] == correction]["loss_barrier"].mean()
        assert ablation.loc[(correction, "loss_barrier"), "mean"] == pytest.approx(mean)
    assert ("none", "loss_barrier_reduction") not in ablation.index
    assert (ablation["n_pairs"] == 3).all()
    assert (ablation["n_seeds"] == 3).all()
    assert ablation["new_pair_low"].isna().all()


def test_four_seeds_predict_a_new_pair_and_are_set_beside_the_published_one(
    store: Store, cell: Cell, blobs, monkeypatch
):
    named = dataclasses.replace(blobs, spec=dataclasses.replace(blobs.spec, name="mnist"))
    for module in ("tasks.train", "tasks.align", "tasks.stored.pairs"):
        monkeypatch.setattr(f"{module}.load_dataset", lambda _name, _folder: named)
    published = dataclasses.replace(cell, data=named.spec, normalization="batch-fused", width=128, depth=2)
    run_all(store, make_request(published, n_seeds=4))
    tables = read_all(store)
    ablation = tables["ablation"]
    reductions = ablation["metric"].str.endswith("_reduction")
    assert ablation[reductions][["new_pair_low", "new_pair_high"]].isna().all().all()
    assert ablation[~reductions][["new_pair_low", "new_pair_high"]].notna().all().all()
    assert (ablation[~reductions]["new_pair_low"] <= ablation[~reductions]["low"]).all()
    written = pq.read_schema(f"{store.url}/{table_key('test', 'paper')}").remove_metadata()
    assert written.equals(schema.PAPER.schema())
    paper = tables["paper"]
    assert not paper.duplicated(list(schema.PAPER.key)).any()
    assert (paper["cell_id"].notna() == (paper["depth"] == 2) & ~paper["method"].str.contains("closed")).all()
    ours = paper.query("depth == 2 and method == 'aligned' and split == 'test' and metric == 'midpoint_accuracy'")
    mean = ablation.query(
        "matcher == 'activation' and correction == 'none' and split == 'test' and metric == 'midpoint_accuracy'"
    )
    assert ours["mean"].tolist() == mean["mean"].tolist()
    assert ours["verdict"].tolist() == ["other recipe"]


def test_a_study_holds_every_request_ever_made_once(store: Store, cell: Cell):
    run_all(store, make_request(cell, n_seeds=2))
    few = read_all(store)
    run_all(store, make_request(cell, dataclasses.replace(cell, width=8), n_seeds=3))
    many = read_all(store)
    for table in schema.TABLES:
        if table.name != "ablation":  # Its means are over all pairs there are now.
            key = list(table.key)
            merged = few[table.name][key].merge(many[table.name][key], on=key)
            assert len(merged) == len(few[table.name]), table.name
    assert len(many["endpoints"]) == 6
    assert set(many["width_laws"]["answer"].dropna()) <= {"not identifiable", "unsettled", "at most", "between"}
    assert len(many["width_laws"]) == 4 * 2 * 4
    run_all(store, make_request(cell, n_seeds=2))
    again = read_all(store)
    for table in schema.TABLES:
        pd.testing.assert_frame_equal(again[table.name], many[table.name])


def test_two_measurements_stand_side_by_side(store: Store, cell: Cell):
    run_all(store, make_request(cell))
    request = dataclasses.replace(make_request(cell), measurements=(Measurement("default/alphas=7", 7),))
    run_all(store, request)
    tables = read_all(store)
    assert sorted(tables["barriers"]["measurement"].unique()) == ["default", "default/alphas=7"]
    assert len(tables["merges"]) == 6


def test_an_endpoint_that_could_not_be_made_is_failed_with_its_reason(store: Store, cell: Cell):
    request = make_request(cell, n_seeds=4)
    train_all(store, make_request(cell, n_seeds=3))
    save_request(store, request)
    gather.fn("test", store, {Endpoint(cell, 3).id: "the disk caught fire"})
    endpoints = pd.read_parquet(f"{store.url}/studies/test/endpoints.parquet").set_index("seed")
    assert endpoints.loc[3, "status"] == "failed"
    assert endpoints.loc[3, "message"] == "the disk caught fire"
    assert (endpoints.loc[:2, "status"] == "trained").all()


def test_the_steps_that_a_training_skipped_are_counted(store: Store, cell: Cell, monkeypatch):
    def train_group(*arguments, **options):
        for trained in training.train_group(*arguments, **options):
            yield dataclasses.replace(trained, n_skipped_steps=10 + trained.seed)

    monkeypatch.setattr("tasks.train.train_group", train_group)
    run_all(store, make_request(cell))
    endpoints = pd.read_parquet(f"{store.url}/studies/test/endpoints.parquet").set_index("seed")
    assert endpoints["n_skipped_steps"].to_dict() == {0: 10, 1: 11, 2: 12}


def test_an_endpoint_of_before_steps_could_be_skipped_has_skipped_none(store: Store, cell: Cell, monkeypatch):
    def without_count(store: Store, key: str):
        header = read_header(store, key)
        del header["record"]["n_skipped_steps"]
        return header

    train_all(store, make_request(cell))
    monkeypatch.setattr("tasks.stored.artifacts.read_header", without_count)
    record = read_endpoint(store, Endpoint(cell, 0))
    assert record is not None
    assert record["n_skipped_steps"] == 0


@pytest.mark.usefixtures("tables")
def test_every_file_says_where_it_comes_from(store: Store):
    metadata = pq.read_schema(f"{store.url}/{table_key('test', 'barriers')}").metadata[b"repairlab"]
    provenance = json.loads(metadata)
    assert provenance.keys() == {
        "repairlab",
        "commit",
        "torch",
        "schema",
        "revisions",
        "requests",
        "upstream",
        "gathering",
    }
    assert len(provenance["requests"]) == 1


def test_a_damaged_row_file_is_a_sentence_and_the_tables_stay(store: Store, cell: Cell):
    request = make_request(cell)
    run_all(store, request)
    before = store.read(table_key("test", "paths"))
    path = request.paths(merges_of(store, request))[0]
    (Path(store.url) / row_key("paths", path.id)).write_bytes(b"PAR1 damaged")
    with pytest.raises(DamagedError, match=rf"{path.id}\.parquet is damaged \(it is cut short.*\): delete it"):
        gather.fn("test", store, {})
    assert store.read(table_key("test", "paths")) == before
    (Path(store.url) / row_key("paths", path.id)).unlink()
    run_all(store, request)
    assert store.read(table_key("test", "paths")) == before


def test_a_damaged_request_is_a_sentence(store: Store, cell: Cell):
    run_all(store, make_request(cell))
    store.create("studies/test/requests/bad.json", b"{}")
    with pytest.raises(DamagedError, match=r"bad\.json is damaged .*: delete it and run the study again"):
        gather.fn("test", store, {})


def test_the_commit_of_a_repository_around_an_installed_copy_is_not_ours(tmp_path: Path, monkeypatch):
    run = functools.partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True)
    run(["git", "init"])
    (tmp_path / "site" / "tasks").mkdir(parents=True)
    (tmp_path / "site" / "tasks" / "gather.py").write_text("")
    run(["git", "add", "-A"])
    run(["git", "-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "theirs"])
    monkeypatch.setattr("tasks.gather.__file__", str(tmp_path / "site" / "tasks" / "gather.py"))
    assert _commit() == ""
    monkeypatch.undo()
    assert re.fullmatch(r"([0-9a-f]{40}(-dirty)?)?", _commit())


def test_a_path_with_one_end_that_is_no_number_has_no_mean_of_ends(store: Store, cell: Cell):
    run_all(store, make_request(cell))
    tables = read_all(store)
    paths = tables["paths"]
    one = (paths["correction"] == "none") & (paths["alpha"] == 0) & (paths["seed_a"] == 0)
    paths.loc[one, "loss"] = np.nan
    group = tables["ablation"][["cell_id", "matcher", "correction", "measurement"]].iloc[0].to_dict()
    group |= {"matcher": "none", "correction": "none"}
    ablation = tabulate_ablation([group], paths, tables["barriers"], tables["endpoints"])
    assert ablation[ablation["metric"] == "endpoint_loss"]["mean"].isna().all()
