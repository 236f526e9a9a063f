"""ImageNet's study over a small folder in its layout, planned and run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
from image_files import write_folders
from typer.testing import CliRunner

from flows.cli import app
from flows.options import StudyOptions
from flows.plan import make_plan
from flows.presets import PRESETS
from flows.study import carry_out, run_study
from infra.settings import Settings
from infra.storage import Store
from tasks.data.datasets import describe_dataset, load_dataset
from tasks.data.published import DataError

ONE_NETWORK = {"study": "imagenet-curves", "architecture": ["resnet18"], "precision": "float32", "epochs": 1}


def test_the_study_is_planned_with_and_without_the_folder(tmp_path: Path, store: Store, monkeypatch):
    monkeypatch.setenv("REPAIRLAB_DATA_DIR", str(tmp_path))
    dry = ["run", "imagenet-curves", "--precision", "bfloat16", "--dry-run", "--store", store.url]
    told = CliRunner().invoke(app, dry)
    assert told.exit_code == 0, told.output
    assert "15 endpoints, 30 pairs" in told.output
    assert "imagenet was not found, so all of it counts as missing" in told.output
    write_folders(tmp_path, n_train=2, n_val=1)
    told = CliRunner().invoke(app, dry)
    assert told.exit_code == 0, told.output
    assert "to do: 15 endpoints to train, 30 pairs to measure" in told.output
    assert "not found" not in told.output


def test_a_plan_counts_the_size_that_is_trained_on_and_both_mirror_images(tmp_path: Path, store: Store):
    def plan(**options):
        options = {"study": "imagenet-curves", "architecture": ["resnet18"], "epochs": 1, **options}
        return make_plan(store, StudyOptions(**options).resolve(lambda name: describe_dataset(name, tmp_path)), 1)

    own, whole = plan(), plan(sweep={"resized_crop": [224]})
    assert own.training_flops == pytest.approx(whole.training_flops * (192 / 224) ** 2, rel=0.02)
    once = plan(sweep={"flip_averaged": [False]})
    assert once.measuring_flops < own.measuring_flops < 2 * once.measuring_flops


def test_a_study_whose_statistics_no_memory_holds_is_refused_before_it_trains(store: Store, monkeypatch):
    published = describe_dataset("imagenet", Path("/nonexistent"))
    data = dataclasses.make_dataclass("Data", [("spec", object)])(published)
    monkeypatch.setattr("flows.study.load_dataset", lambda _name, _folder: data)
    monkeypatch.setitem(
        PRESETS,
        "imagenet-curves",
        dataclasses.replace(PRESETS["imagenet-curves"], measurement=PRESETS["width"].measurement),
    )
    with pytest.raises(DataError, match="on 1281167 images at once, which take 771 GB: ask for fewer"):
        carry_out(StudyOptions(**ONE_NETWORK), Settings(store=store.url, data_dir=Path()))
    assert not Path(store.url).exists()


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("runner", ["threads", "processes"])
def test_the_study_runs_on_a_small_folder_to_its_tables(tmp_path: Path, store: Store, runner: str, monkeypatch):
    write_folders(tmp_path, n_train=8, n_val=2)
    preset = PRESETS["imagenet-curves"]
    (grid, _) = preset.grids
    quick = dataclasses.replace(
        grid.recipes["r18-imagenet"], batch_size=4, resized_crop=64, optimizer="adam", learning_rate=0.001, warmup=0.1
    )
    grids = (dataclasses.replace(grid, recipes={"r18-imagenet": quick}),)
    small = dataclasses.replace(
        preset,
        grids=grids,
        n_seeds=2,
        corrections=("none", "reset"),
        matchers=("none", "activation"),
        extras=preset.extras.model_copy(update={"controls": False}),
    )
    monkeypatch.setitem(PRESETS, "imagenet-curves", small)
    options = StudyOptions(**ONE_NETWORK | {"epochs": 8}, alphas=3, statistics=4, evaluation=3)
    settings = Settings(store=store.url, runner=runner, workers=2, data_dir=tmp_path)
    run_study(options, settings)
    tables = {
        name: pd.read_parquet(f"{store.url}/studies/imagenet-curves/{name}.parquet")
        for name in ("endpoints", "paths", "barriers", "cells")
    }
    assert (tables["endpoints"]["n_train_examples"] == 24).all()
    assert tables["cells"]["data_fingerprint"].item() == load_dataset("imagenet", tmp_path).spec.fingerprint
    assert (tables["cells"]["data_n_classes"] == 3).all()
    assert (tables["endpoints"]["status"] == "trained").all()
    assert set(tables["paths"]["method"]) == {"weights", "ensemble"}
    assert (tables["paths"]["n_examples"] == 3).all()
    assert tables["paths"]["measurement"].str.contains("flip_averaged=True").all()
    assert len(tables["barriers"]) == 2 * 2 * 2
