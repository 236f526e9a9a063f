"""The benchmark for a GPU, which has to run where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def test_a_grid_that_a_budget_ends_is_estimated_from_what_was_done():
    whole = {"training": 10.0, "alignment": 2.0, "paths": 8.0, "pairs": 28}
    cut = {"training": 20.0, "alignment": 4.0, "paths": 4.0, "pairs": 7}
    assert gpu.estimate_grid([whole], 1, 28, 21.0) == pytest.approx(21.0)
    assert gpu.estimate_grid([whole, cut], 3, 28, 49.0) == pytest.approx(1 + 20 + 40 + 40)
    assert gpu.estimate_grid([], 3, 28, 1.0) is None
    assert gpu.estimate_grid([{**cut, "pairs": 0}], 3, 28, 28.0) is None


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["300", "0.001"])
def test_the_benchmark_of_a_gpu_runs_without_one(tmp_path: Path, budget: str):
    found = gpu.main(["--device", "cpu", "--tiny", "--budget", budget, "--json", str(tmp_path / "gpu.json")])
    assert json.loads((tmp_path / "gpu.json").read_text()) == found
    assert all(row["images_per_second"] > 0 for row in found["training"])
    assert {row["way"] for row in found["training"]} == {"one after another", "apart", "batched", "vectorised"}
    assert found["grid"]["finished"] == (budget == "300")
    if budget == "300":
        assert [row["pairs"] for row in found["grid"]["rows"]] == [3, 3]


@pytest.mark.slow
def test_processes_that_share_seeds_train_at_once():
    dataset = gpu.make_dataset(100, 1, 8)
    cell = gpu.make_cell("mlp", 8, 2, dataset, 9, "float32")
    row = gpu.compare_processes(cell, dataset, 3, 2, torch.device("cpu"))
    assert row["way"] == "2 processes"
    assert row["images_per_second"] > 0


def test_without_a_gpu_it_says_how_it_can_be_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no GPU here: --device cpu --tiny runs all of it"):
        gpu.main([])
