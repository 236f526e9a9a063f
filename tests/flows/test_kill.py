"""SIGKILL at different stages, with real processes: the rerun's tables are those of a run that nothing disturbed.

A kill waits for the store to show its stage, not for a clock.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tasks import schema

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("prefect")]

COMMAND = [
    str(Path(sys.executable).with_name("repairlab")),
    *("run", "digits-depth", "--width", "64", "--depth", "4,6", "--seeds", "4", "--epochs", "40"),
]
CLOCKS = ["train_seconds", "match_seconds"]


def start(store: Path, home: Path) -> subprocess.Popen[bytes]:
    with (store.parent / "errors").open("wb") as errors:
        return subprocess.Popen(
            [*COMMAND, "--store", str(store)],
            env={**os.environ, "PREFECT_HOME": str(home)},
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )


def finish(store: Path, home: Path) -> None:
    process = start(store, home)
    try:
        assert process.wait(timeout=300) == 0
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the flow and every process it started, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def count(store: Path, folder: str) -> int:
    return sum(1 for path in (store / folder).rglob("*") if path.is_file() and not path.name.startswith("."))


def read_tables(store: Path) -> dict[str, pd.DataFrame]:
    folder = store / "studies" / "digits-depth"
    return {t.name: pd.read_parquet(folder / f"{t.name}.parquet").drop(columns=CLOCKS, errors="ignore")
            for t in schema.TABLES}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, home: Path) -> dict[str, pd.DataFrame]:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    finish(store, home)
    return read_tables(store)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_ends_at_once_and_leaves_no_process(tmp_path: Path, home: Path, ending: signal.Signals):
    store = tmp_path / "store"
    process = start(store, home)
    try:
        while not count(store, "endpoints"):
            assert process.poll() is None
            time.sleep(0.05)
        if ending == signal.SIGINT:
            os.killpg(process.pid, ending)  # A terminal sends Ctrl-C to all.
        else:
            process.send_signal(ending)
        assert process.wait(timeout=60) == 130
        assert "repairlab: stopped; the same command goes on from here" in (tmp_path / "errors").read_text()
        for _ in range(100):
            left = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, check=False).stdout
            if not left:
                break
            time.sleep(0.1)
        assert not left
    finally:
        kill(process)


STAGES: dict[str, Callable[[Path], bool]] = {
    "in training": lambda store: 1 <= count(store, "endpoints") < 8,
    "while permutations are written": lambda store: 1 <= count(store, "permutations") < 12,
    "while the first rows are written": lambda store: 1 <= count(store, "rows/paths") < 24,
    "while the last rows are written": lambda store: 36 <= count(store, "rows/paths") < 48,
}


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_run_that_is_killed_goes_on_to_the_same_tables(tmp_path: Path, home: Path, undisturbed, stage: str):
    store = tmp_path / "store"
    process = start(store, home)
    deadline = time.monotonic() + 240
    try:
        while not STAGES[stage](store):
            assert process.poll() is None, f"the run ended before it was {stage}"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        kill(process)
    assert not (store / "studies" / "digits-depth" / "ablation.parquet").exists()
    kept = {path: path.stat().st_mtime_ns for path in (store / "endpoints").glob("*.safetensors")}
    finish(store, home)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    tables = read_tables(store)
    for name, frame in undisturbed.items():
        pd.testing.assert_frame_equal(tables[name], frame, check_exact=True)
