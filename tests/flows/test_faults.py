"""What may break, broken for real: each time the tables are those of a run that nothing disturbed, to the bit.

A fault waits for the store to show its moment, not for a clock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from object_storage import BUCKET, ObjectStorage
from processes import (
    DaskCluster,
    PrefectServer,
    Process,
    assert_same_tables,
    count,
    finish_study,
    read_tables,
    run_study,
    wait_until,
)

from infra.storage import Store
from tasks.stored.integrity import find_damaged_files

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]

Tables = dict[str, pd.DataFrame]

DOWN_SECONDS = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """One for all: without, every run would start its own, which takes longer than the runs."""
    with PrefectServer(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, server: PrefectServer) -> Tables:
    folder = tmp_path_factory.mktemp("undisturbed")
    store = Store(str(folder / "store"))
    finish_study(folder, store, **server.environment)
    return read_tables(store)


def assert_nothing_is_torn(store: Store) -> None:
    """Every file is what was written, and no writer has left half of one."""
    entries = store.entries()
    assert not any(entry.is_temporary for entry in entries)
    assert not any(error for _, error in find_damaged_files(store, entries))


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_ends_at_once_and_leaves_no_process(
    tmp_path: Path, store: Store, server: PrefectServer, ending: signal.Signals
):
    # With a server of its own, which has to end as well.
    with run_study(tmp_path, store, PREFECT_HOME=server.environment["PREFECT_HOME"]) as process:
        wait_until(lambda: count(store, "endpoints/") or not process.is_running)
        process.send(ending, to_all=ending == signal.SIGINT)  # A terminal sends Ctrl-C to all.
        assert process.wait(60) == 130
        assert "repairlab: stopped; the same command goes on from here" in process.output()
        wait_until(
            lambda: not subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, check=False).stdout, 10
        )


MADE = ("endpoints/", "permutations/", "moments/", "rows/")
MOMENTS = (*range(1, 9), 12, 16, 24, 32, 44, 60, 80, 100, 130)
"""Of 168 files that the study makes before it gathers, after how many it is killed: 8 endpoints, then 12 times a
permutation and its two files of rows, then 48 paths in two files each, those of direct paths in between, and before the
first path of an endpoint its moments and its evaluation."""
GATHERING = ("cells.parquet", "paper.parquet", "report.html")
"""The first and last table, and the page: whose writing is waited for by the last three kills."""


@pytest.fixture(params=["folder", pytest.param("s3", marks=[pytest.mark.s3, pytest.mark.dask])])
def place(request: pytest.FixtureRequest, tmp_path: Path, store: Store) -> tuple[Store, tuple[str, ...]]:
    """A store, and the words for the runner that works on it: processes on a folder, Dask on S3."""
    if request.param == "folder":
        return store, ()
    request.getfixturevalue("s3_credentials")
    return Store(f"s3://{BUCKET}/{tmp_path.name}"), ("--runner", "dask")


def test_a_run_that_is_killed_twenty_times_goes_on_to_the_same_tables(
    tmp_path: Path, place: tuple[Store, tuple[str, ...]], server: PrefectServer, undisturbed: Tables
):
    store, runner = place
    n_made = 0
    for moment in MOMENTS:
        with run_study(tmp_path, store, *runner, **server.environment) as process:
            wait_until(lambda: count_made(store) >= moment or not process.is_running)  # noqa: B023
            assert process.is_running, process.output()
        assert count_made(store) >= n_made, "something that was finished is gone"
        n_made = count_made(store)
        assert not count(store, "studies/digits-depth/ablation")
    for name in GATHERING:
        before = store.versions("studies/digits-depth").get(name)
        with run_study(tmp_path, store, *runner, **server.environment) as process:
            wait_until(
                lambda: store.versions("studies/digits-depth").get(name) != before or not process.is_running,  # noqa: B023
                every=0.001,
            )
            assert process.is_running, process.output()
    kept = {entry.key: entry.modified for entry in store.entries() if entry.key.startswith(MADE)}
    finish_study(tmp_path, store, *runner, **server.environment)
    after = {entry.key: entry.modified for entry in store.entries()}
    assert {key: after[key] for key in kept} == kept, "something that was finished was made again"
    assert not any(error for _, error in find_damaged_files(store, store.entries()))
    assert_same_tables(read_tables(store), undisturbed)


def count_made(store: Store) -> int:
    return sum(count(store, prefix) for prefix in MADE)


def test_two_runs_of_one_study_on_one_store_at_once_tear_nothing(
    tmp_path: Path, store: Store, server: PrefectServer, undisturbed: Tables
):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    runs = [run_study(folder, store, **server.environment) for folder in folders]
    try:
        for run in runs:
            assert run.wait() == 0, run.output()[-3000:]
    finally:
        for run in runs:
            run.kill()
    assert_nothing_is_torn(store)
    assert_same_tables(read_tables(store), undisturbed)


@pytest.mark.dask
class TestDask:
    def test_a_worker_that_is_killed_in_a_task_loses_nothing(
        self, tmp_path: Path, store: Store, server: PrefectServer, undisturbed: Tables
    ):
        with (
            DaskCluster(tmp_path, **server.environment) as cluster,
            run_study(tmp_path, store, *cluster.words, **server.environment) as run,
        ):
            for prefix in ("endpoints/", "rows/paths/"):
                wait_until(lambda: count(store, prefix) or not run.is_running)  # noqa: B023
                assert run.is_running, run.output()
                kill_worker(cluster.workers[0])
            assert run.wait() == 0, run.output()[-3000:]
        assert_nothing_is_torn(store)
        assert_same_tables(read_tables(store), undisturbed)

    def test_a_worker_that_is_gone_for_good_leaves_its_work_to_the_others(
        self, tmp_path: Path, store: Store, server: PrefectServer, undisturbed: Tables
    ):
        with (
            DaskCluster(tmp_path, **server.environment) as cluster,
            run_study(tmp_path, store, *cluster.words, **server.environment) as run,
        ):
            wait_until(lambda: count(store, "endpoints/") or not run.is_running)
            cluster.workers[0].kill()
            assert run.wait() == 0, run.output()[-3000:]
        assert_same_tables(read_tables(store), undisturbed)

    def test_a_scheduler_that_is_killed_ends_the_run_in_a_sentence_and_the_next_goes_on(
        self, tmp_path: Path, store: Store, server: PrefectServer, undisturbed: Tables
    ):
        with DaskCluster(tmp_path, **server.environment) as cluster:
            with run_study(tmp_path, store, *cluster.words, **server.environment) as run:
                wait_until(lambda: count(store, "endpoints/") or not run.is_running)
                assert cluster.scheduler is not None
                cluster.scheduler.kill()
                assert run.wait() == 1
                assert "repairlab: " in run.output()
                assert "the Dask scheduler is gone" in run.output()
                assert "Traceback" not in run.output()
            cluster.kill()
            cluster.start()
            finish_study(tmp_path, store, *cluster.words, **server.environment)
        assert_same_tables(read_tables(store), undisturbed)

    def test_a_task_that_always_kills_its_worker_is_one_failed_cell_of_a_study_that_ends(
        self, tmp_path: Path, store: Store, server: PrefectServer
    ):
        (tmp_path / "deadly.py").write_text(DEADLY)
        words = ("deadly", "--network", "deadly:build", "--data", "digits", "--recipe", "small/digits")
        words += ("--epochs", "10", "--seeds", "3", "--runner", "dask")
        with run_study(tmp_path, store, *words, "--width", "8,16", **server.environment) as run:
            # Eight workers start one after another.
            assert run.wait(600) == 1
            assert "every worker that it ran on was killed" in run.output()
        found = read_tables(store, "deadly")
        failed = found["endpoints"].query("status == 'failed'")
        assert set(failed["width"]) == {16}
        assert len(failed) == 3
        assert failed["message"].str.contains("every worker that it ran on was killed").all()
        other = Store(f"{store.url}-other")
        finish_study(tmp_path, other, *words, "--width", "8", **server.environment)
        for name, wanted in read_tables(other, "deadly").items():
            mine = found[name]
            if "width" in mine:
                mine = mine[mine["width"] != 16].reset_index(drop=True)
            if name in ("endpoints", "paths", "barriers", "merges", "layers", "axes"):
                # Counts beside the nulls of what failed are floats.
                pd.testing.assert_frame_equal(mine, wanted, check_exact=True, check_dtype=False)


DEADLY = """
import multiprocessing, os, signal
from torch import nn

class Deadly(nn.Sequential):
    def forward(self, x):
        # Where it is trained, not where the command looks at it.
        if self[1].out_features == 16 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

def build(width):
    return Deadly(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


def kill_worker(worker: Process) -> None:
    """The process that computes; its nanny, which lives, starts another."""
    children = subprocess.run(
        ["pgrep", "-P", str(worker.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    computing = [pid for pid in children if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert computing
    for pid in computing:
        os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["as workers start", "in training"])
def test_a_prefect_server_that_is_down_for_a_while_delays_a_run_and_no_more(
    tmp_path: Path, store: Store, server: PrefectServer, undisturbed: Tables, moment: str
):
    with run_study(tmp_path, store, **server.environment) as run:
        if moment == "in training":
            wait_until(lambda: count(store, "endpoints/") or not run.is_running)
        else:
            wait_until(lambda: "train: begun" in run.output() or not run.is_running)
        server.kill()
        try:
            time.sleep(DOWN_SECONDS)
        finally:
            server.start()
        assert run.wait() == 0, run.output()[-3000:]
    assert_same_tables(read_tables(store), undisturbed)


@pytest.mark.s3
@pytest.mark.usefixtures("s3_credentials")
def test_an_s3_server_that_is_down_for_a_while_delays_a_run_and_no_more(
    tmp_path: Path, object_storage: ObjectStorage, server: PrefectServer, undisturbed: Tables
):
    store = Store(f"s3://{BUCKET}/{tmp_path.name}")
    with run_study(tmp_path, store, **server.environment) as run:
        wait_until(lambda: count(store, "endpoints/") or not run.is_running, every=0.2)
        object_storage.kill()
        try:
            time.sleep(DOWN_SECONDS)
        finally:
            object_storage.start()
        assert run.wait() == 0, run.output()[-3000:]
    assert_nothing_is_torn(store)
    assert_same_tables(read_tables(store), undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_ends_a_run_in_a_sentence_and_the_next_goes_on(
    tmp_path: Path, small_disk: Path, server: PrefectServer, undisturbed: Tables
):
    store = Store(str(small_disk / "store"))
    with run_study(tmp_path, store, **server.environment) as run:
        assert run.wait() == 1
        assert "cannot be written (No space left on device): free or unlock it" in run.output()
        assert "Traceback" not in run.output()
    assert count(store, "endpoints/")
    assert_nothing_is_torn(store)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    finish_study(tmp_path, store, **server.environment)
    assert_same_tables(read_tables(store), undisturbed)
