"""The flow, run for real on digits under a temporary Prefect server."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort

from flows.cli import main
from flows.options import StudyOptions
from flows.presets import PRESETS
from flows.report.page import write_report
from flows.study import UnfinishedError, label_seeds, run_study
from infra.settings import Settings
from infra.storage import Store
from tasks.data.datasets import DATASETS
from tasks.data.published import DataError
from tasks.science.specs.path import Method
from tasks.science.training import training
from tasks.tables import schema

pytestmark = pytest.mark.usefixtures("prefect_server")

SMALL = {"study": "digits-depth", "depth": [2, 3], "width": [32], "seeds": 3, "epochs": 4, "alphas": 5}


def run(store: Store, **changes):
    settings = Settings(store=store.url, runner="threads", workers=2)
    return run_study(StudyOptions(**{**SMALL, **changes}), settings)


def snapshot(store: Store) -> dict[str, int]:
    root = Path(store.url)
    folders = ("endpoints", "permutations", "moments", "rows")
    files = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in files}


def tables_of(store: Store, study: str = "digits-depth") -> dict[str, pd.DataFrame]:
    return {t.name: pd.read_parquet(f"{store.url}/studies/{study}/{t.name}.parquet") for t in schema.TABLES}


def test_a_study_runs_to_its_tables_and_a_second_run_makes_nothing(store: Store):
    result = run(store)
    assert Path(result.report).is_file()
    assert sorted(Path(table).name for table in result.tables) == sorted(f"{t.name}.parquet" for t in schema.TABLES)
    before, tables = snapshot(store), tables_of(store)
    assert len(tables["endpoints"]) == 6
    assert (tables["endpoints"]["status"] == "trained").all()
    assert len(tables["barriers"]) == 2 * 3 * 2 * 2 * 2

    run(store)
    assert snapshot(store) == before
    for name, frame in tables_of(store).items():
        pd.testing.assert_frame_equal(frame, tables[name])

    run(store, seeds=4, depth=[2])
    wider = tables_of(store)
    assert len(wider["endpoints"]) == 7
    assert {key: stamp for key, stamp in snapshot(store).items() if key in before} == before
    trained = set(snapshot(store)) - set(before)
    assert sum(key.startswith("endpoints/") for key in trained) == 1
    assert sum(key.startswith("permutations/") for key in trained) == 3


def test_other_corrections_and_alphas_train_and_match_nothing_and_figures_are_drawn_from_the_store_alone(
    store: Store, tmp_path: Path, monkeypatch
):
    run(store, depth=[2])
    before = snapshot(store)
    run(store, depth=[2], alphas=7, correction=["none", "repair", "reshift"])
    made = set(snapshot(store)) - set(before)
    assert {key.rpartition("/")[0] for key in made} == {"rows/paths", "rows/layers"}
    assert sum(key.startswith("rows/paths") for key in made) == 3 * 2 * 3  # pairs, matchers, corrections
    drawn = {path: path.read_bytes() for path in Path(store.url).rglob("studies/**/*.png")}
    assert len(drawn) >= 3
    for path in drawn:
        path.unlink()
    # A colleague has the store and neither data nor endpoints.
    shutil.rmtree(Path(store.url) / "endpoints")
    monkeypatch.chdir(tmp_path)
    write_report(Store(store.url), "digits-depth")
    assert {path: path.read_bytes() for path in drawn} == drawn


def test_of_data_in_halves_joint_training_is_run_beside_the_halves_and_nothing_of_it_twice(store: Store, monkeypatch):
    monkeypatch.setitem(DATASETS, "halved", dataclasses.replace(DATASETS["digits"], halves=True))
    asked = {"dataset": ["halved"], "depth": [2], "seeds": 2, "alphas": 3}
    asked |= dict.fromkeys(("ensembles", "logit_shifts", "joint_training"), True)
    run(store, **asked)
    tables = tables_of(store)
    assert sorted(tables["endpoints"]["train_subset"]) == ["all", "all", "first", "second"]
    assert (tables["endpoints"]["status"] == "trained").all()
    assert len(tables["merges"].query("kind == 'pair'")) == 2
    assert set(tables["paths"]["method"]) == set(get_args(Method))
    before = snapshot(store)
    run(store, **asked)
    assert snapshot(store) == before


def test_a_study_over_time_trains_each_seed_once(store: Store, monkeypatch):
    runs: list[tuple[int, ...]] = []
    honest = training.train_group

    def counted(cell, seeds, *arguments, **options):
        runs.append(tuple(seeds))
        return honest(cell, seeds, *arguments, **options)

    monkeypatch.setattr("tasks.train.train_group", counted)
    over_time = {"depth": [2], "alphas": 3, "sweep": {"epoch": [0, 1, "last"]}}
    run(store, **over_time)
    assert runs == [(0, 1, 2)]
    tables = tables_of(store)
    endpoints = tables["endpoints"]
    assert (endpoints["status"] == "trained").all()
    assert endpoints.groupby("checkpoint_epoch", dropna=False).size().tolist() == [3, 3, 3]
    assert (endpoints["epoch"].fillna(-1) == endpoints["checkpoint_epoch"].fillna(-1)).all()
    assert tables["barriers"].groupby("epoch", dropna=False).size().tolist() == [24, 24, 24]
    assert not (Path(store.url) / "trainings").exists() or not list((Path(store.url) / "trainings").iterdir())

    before = snapshot(store)
    run(store, **over_time)
    assert snapshot(store) == before
    assert len(runs) == 1


def test_children_are_spawned_from_one_training_of_their_parent(store: Store, monkeypatch):
    preset = dataclasses.replace(PRESETS["digits-depth"], spawns=((0, 0), (0, 2), (0, 100)), corrections=("none",))
    monkeypatch.setitem(PRESETS, "digits-depth", preset)
    runs: list[list[int]] = []
    honest = training.train_states

    def counted(cell, seed, epochs, *arguments, **options):
        runs.append([seed, *sorted(epochs)])
        return honest(cell, seed, epochs, *arguments, **options)

    monkeypatch.setattr("tasks.stored.trainings.train_states", counted)
    run(store, depth=[2], alphas=3)
    assert runs == [[0, 0, 2]]
    tables = tables_of(store)
    times = tables["ablation"][["spawn_seed", "spawn_epoch"]].drop_duplicates().to_numpy().tolist()
    assert sorted(times) == [[0, 0], [0, 2]]
    of_pairs = tables["barriers"].query("kind == 'pair' and matcher == 'none' and split == 'test'")
    assert of_pairs.groupby("spawn_epoch").size().tolist() == [3, 3]
    page = (Path(store.url) / "studies/digits-depth/report.html").read_text()
    assert "spawn_epoch" in page

    # More children start from the same states.
    run(store, depth=[2], alphas=3, seeds=4)
    assert len(runs) == 1
    assert len(tables_of(store)["endpoints"]) == 8


def find_latest_run(client: SyncPrefectClient) -> tuple[FlowRun, FlowRunFilter]:
    (flow_run,) = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
    return flow_run, FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))


def test_the_ui_has_named_tasks_tags_progress_the_table_and_the_figure(store: Store):
    run(store)
    with get_client(sync_client=True) as client:
        flow_run, of_run = find_latest_run(client)
        task_runs = client.read_task_runs(flow_run_filter=of_run)
        artifacts = {artifact.key: artifact for artifact in client.read_artifacts(flow_run_filter=of_run)}
    assert flow_run.name == "digits-depth"
    assert sorted(flow_run.tags) == ["data:digits", "network:mlp", "study:digits-depth"]
    assert flow_run.state.message == f"Report: {store.url}/studies/digits-depth/report.html"
    names = {task_run.name for task_run in task_runs}
    assert "train mlp w32 d3 digits, seeds 0-2" in names
    assert "align mlp w32 d2 digits, 3 pairs" in names
    assert "repair mlp w32 d2 digits, paths 1-6 of 6" in names
    assert not any(task_run.tags for task_run in task_runs), "each would cost calls, and could meet a limit"
    assert artifacts["digits-depth-ablation"].type == "table"
    assert "removed, %" in str(artifacts["digits-depth-ablation"].data)
    assert "data:image/png;base64," in str(artifacts["digits-depth-report"].data)
    for stage, counted in (
        ("train", "6 endpoints"), ("align", "6 pairs"), ("interpolate", "12 paths"), ("repair", "12 paths")
    ):  # fmt: skip
        progress = artifacts[f"digits-depth-progress-{stage}"]
        assert (progress.type, progress.data) == ("progress", 100)
        assert progress.description.startswith(f"{counted} in ")

    # Where all is there nothing moves.
    run(store)
    with get_client(sync_client=True) as client:
        _, of_run = find_latest_run(client)
        again = {artifact.key for artifact in client.read_artifacts(flow_run_filter=of_run)}
    assert again == {"digits-depth-ablation", "digits-depth-report"}


def test_a_run_on_a_server_of_its_own_pays_for_no_progress(store: Store, monkeypatch):
    monkeypatch.setattr("flows.report.prefect_page.is_watched", lambda: False)
    run(store, depth=[2])
    with get_client(sync_client=True) as client:
        _, of_run = find_latest_run(client)
        shown = {artifact.key for artifact in client.read_artifacts(flow_run_filter=of_run)}
    assert shown == {"digits-depth-ablation", "digits-depth-report"}


def test_a_data_set_that_is_missing_is_a_sentence_and_the_rest_is_measured(store: Store, monkeypatch):
    def fetch(_files: object, _folder: Path) -> Path:
        raise DataError("svhn: its files were not found")

    monkeypatch.setattr("tasks.data.published.MatFiles.fetch", fetch)
    monkeypatch.setattr("tasks.data.published.MatFiles.find", lambda _files, _folder: None)
    with pytest.raises(UnfinishedError, match="svhn: its files were not found; its cells are left out"):
        run(store, depth=[2], dataset=["digits", "svhn"])
    tables = tables_of(store)
    assert set(tables["cells"]["dataset"]) == {"digits"}
    assert (tables["ablation"].query("metric == 'loss_barrier'")["n_pairs"] == 3).all()
    with pytest.raises(DataError, match="svhn: its files were not found"):
        run(store, depth=[2], dataset=["svhn"])


def test_a_task_that_fails_is_a_sentence_and_the_rest_is_measured(store: Store, monkeypatch):
    import tasks.train

    honest = tasks.train.train_group

    def fails_at_depth_3(cell, *arguments, **options):
        if cell.depth == 3:
            raise RuntimeError("this worker has no luck\nand a long story about it")
        return honest(cell, *arguments, **options)

    monkeypatch.setattr("tasks.train.train_group", fails_at_depth_3)
    sentence = r"^train mlp w32 d3 digits, seeds 0-2: RuntimeError: this worker has no luck$"
    with pytest.raises(UnfinishedError, match=sentence):
        run(store)
    with get_client(sync_client=True) as client:
        flow_run, of_run = find_latest_run(client)
        artifacts = {artifact.key: artifact for artifact in client.read_artifacts(flow_run_filter=of_run)}
    assert flow_run.state.is_failed()
    assert re.match(sentence, flow_run.state.message), "the sentence alone, without the error's kind"
    assert artifacts["digits-depth-progress-train"].data == 50
    assert artifacts["digits-depth-progress-train"].description.endswith(", 3 failed")
    assert "this worker has no luck" in str(artifacts["digits-depth-left-out"].data)
    tables = tables_of(store)
    status = tables["endpoints"].set_index(["depth", "seed"])["status"]
    assert (status[2] == "trained").all()
    assert (status[3] == "failed").all()
    assert tables["endpoints"].query("depth == 3")["message"].unique() == ["RuntimeError: this worker has no luck"]
    assert tables["barriers"]["depth"].unique() == [2]
    assert (Path(store.url) / "studies/digits-depth/report.html").is_file()

    monkeypatch.undo()
    run(store)
    assert (tables_of(store)["endpoints"]["status"] == "trained").all()


def test_a_cell_whose_seeds_all_diverge_is_counted_and_the_rest_goes_on(store: Store, monkeypatch):
    preset = PRESETS["digits-depth"]
    (grid,) = preset.grids
    wild = dataclasses.replace(grid.recipes["digits"], name="wild", learning_rate=1e30)
    grids = (dataclasses.replace(grid, recipes={"digits": wild}),)
    monkeypatch.setitem(PRESETS, "digits-depth", dataclasses.replace(preset, grids=grids))
    run(store, depth=[2])
    tables = tables_of(store)
    assert (tables["endpoints"]["status"] == "diverged").all()
    assert (tables["ablation"]["n_diverged"] == 3).all()
    page = (Path(store.url) / "studies/digits-depth/report.html").read_text()
    assert "non-finite in epoch 1 of 4" in page


@pytest.mark.slow
def test_processes_compute_what_threads_compute(store: Store, tmp_path: Path):
    run(store)
    other = Store(str(tmp_path / "processes"))
    run_study(StudyOptions(**SMALL), Settings(store=other.url, runner="processes", workers=2))
    ours, theirs = tables_of(store), tables_of(other)
    clocks = ["train_seconds", "match_seconds"]
    for name in ours:
        pd.testing.assert_frame_equal(
            ours[name].drop(columns=clocks, errors="ignore"),
            theirs[name].drop(columns=clocks, errors="ignore"),
            check_exact=True,
        )


def test_seeds_are_named_as_a_person_would():
    assert label_seeds([3]) == "seed 3"
    assert label_seeds([0, 1, 2]) == "seeds 0-2"
    assert label_seeds([0, 2]) == "seeds 0, 2"


@pytest.mark.parametrize("words", [("--json",), ("--quiet",)])
def test_a_run_for_a_program_says_what_it_came_to_and_nothing_else(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys, words: tuple[str, ...]
):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # The test's own handlers stay.
    asked = ("--depth", "2", "--width", "16", "--seeds", "3", "--epochs", "2", "--alphas", "5", "--runner", "threads")
    monkeypatch.setattr(sys, "argv", ["repairlab", "run", "digits-depth", "--store", store.url, *asked, *words])
    monkeypatch.setenv("REPAIRLAB_STORE", store.url)
    monkeypatch.setenv("REPAIRLAB_RUNNER", "threads")
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    written = capsys.readouterr()
    assert "begun" not in written.err
    folder = f"{store.url}/studies/digits-depth"
    if words == ("--quiet",):
        assert written.out.splitlines() == [f"tables  {folder}/ablation.parquet", f"report  {folder}/report.html"]
        return
    outcome = json.loads(written.out)
    assert outcome["report"] == f"{folder}/report.html"
    assert outcome["tables"]["barriers"] == f"{folder}/barriers.parquet"
    assert outcome["problems"] == []
    wanted = pd.read_parquet(outcome["tables"]["ablation"])
    assert len(outcome["ablation"]) == len(wanted)
    assert {row["metric"] for row in outcome["ablation"]} == set(wanted["metric"])
