from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings import load_settings


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("REPAIRLAB_STORE", "s3://bucket/x")
    monkeypatch.setenv("REPAIRLAB_DATA_DIR", "/data")
    monkeypatch.setenv("REPAIRLAB_RUNNER", "threads")
    monkeypatch.setenv("REPAIRLAB_WORKERS", "7")
    settings = load_settings()
    assert (settings.store, settings.data_dir, settings.runner, settings.workers) == (
        "s3://bucket/x", Path("/data"), "threads", 7,
    )  # fmt: skip


def test_without_any_a_laptop_is_assumed():
    settings = load_settings()
    assert settings.store == "./runs"
    assert settings.runner == "processes"
    assert settings.workers >= 1


def test_a_value_that_cannot_be_names_its_variable(monkeypatch):
    monkeypatch.setenv("REPAIRLAB_RUNNER", "carrier-pigeon")
    with pytest.raises(
        ValueError, match="REPAIRLAB_RUNNER='carrier-pigeon': Input should be 'processes', 'threads' or 'dask'"
    ):
        load_settings()
