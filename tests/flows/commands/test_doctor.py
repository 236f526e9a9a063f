"""`repairlab doctor`, on machines that have what a study needs and on those that lack it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from infra.storage import Store


def examine(*words: str) -> tuple[int, dict[str, dict]]:
    done = CliRunner().invoke(app, ["doctor", "--json", *words], terminal_width=80)
    return done.exit_code, {finding["what"]: finding for finding in json.loads(done.output)}


@pytest.fixture(autouse=True)
def _no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPAIRLAB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def test_a_machine_that_has_all_is_well_and_nothing_is_left_in_its_store(store: Store):
    code, found = examine("--store", store.url)
    assert code == 0
    assert all(finding["is_well"] for finding in found.values())
    assert f"{store.url} can be written, with studies none" in found["store"]["found"]
    assert list(store.entries()) == []
    assert "digits (comes with scikit-learn)" in found["data sets"]["found"]
    assert "cifar10" in found["not here"]["found"]
    assert "torch " in found["versions"]["found"]


def test_a_data_set_is_found_where_its_files_are(store: Store, tmp_path: Path):
    folder = tmp_path / "data/mnist"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte").touch()
    _, found = examine("--store", store.url)
    assert f"mnist ({folder})" in found["data sets"]["found"]
    assert " mnist" not in found["not here"]["found"]


def test_what_is_wrong_is_a_sentence_each_and_the_rest_is_still_told(tmp_path: Path):
    (tmp_path / "file").touch()
    code, found = examine("--store", f"{tmp_path}/file/store", "--device", "cuda")
    assert code == 1
    wrong = {what for what, finding in found.items() if not finding["is_well"]}
    assert wrong == {"store", "runner"}
    assert "cannot be written" in found["store"]["found"]
    assert "torch finds no GPU here" in found["runner"]["found"]
    assert found["versions"]["is_well"]


def test_a_person_reads_it_in_80_columns(store: Store):
    done = CliRunner().invoke(app, ["doctor", "--store", store.url], terminal_width=80)
    assert done.exit_code == 0
    assert "ok  versions" in done.output
    assert max(len(line) for line in done.output.splitlines()) <= 80
