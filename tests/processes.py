"""Real processes for tests: a study as a person runs it, a Prefect server, a Dask scheduler with its workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from object_storage import free_ports

from infra.storage import Store
from tasks.tables import schema

BIN = Path(sys.executable).parent

STUDY = ("digits-depth", "--width", "64", "--depth", "4,6", "--seeds", "4", "--epochs", "40")
"""8 endpoints and 12 pairs: some twenty seconds on two cores."""

CLOCKS = ["train_seconds", "match_seconds"]


def wait_until(holds: Callable[[], object], seconds: float = 240, every: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(every)


class Process:
    """A process in a group of its own, which is killed with all that it started."""

    def __init__(self, log: Path, *words: str, **environment: str) -> None:
        self.log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]],
                env={**os.environ, **environment},
                cwd=log.parent,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def wait(self, seconds: float = 300) -> int:
        return self._process.wait(timeout=seconds)

    def send(self, number: signal.Signals, *, to_all: bool = False) -> None:
        if to_all:
            os.killpg(self.pid, number)
        else:
            self._process.send_signal(number)

    def output(self) -> str:
        return self.log.read_text()


class PrefectServer:
    """A server on a free port that can be killed and comes back with what it knew."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self._folder, self._process = folder, None
        self.url = f"http://127.0.0.1:{port}/api"
        self.environment = {"PREFECT_HOME": str(folder), "PREFECT_API_URL": self.url}
        # Only by the environment do host and port reach the pages of the UI as well.
        self._bound = {"PREFECT_SERVER_API_HOST": "127.0.0.1", "PREFECT_SERVER_API_PORT": str(port)}

    def __enter__(self) -> PrefectServer:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def start(self) -> None:
        self._process = Process(
            self._folder / "server.log", "prefect", "server", "start", **self.environment, **self._bound
        )
        try:
            wait_until(self._is_up, 120, every=0.2)
        except BaseException:
            self.kill()
            raise

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.is_running, self._process.output()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
            return answer.status == 200
        return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()


class DaskCluster:
    """A scheduler and workers of one thread, as `dask scheduler` and `dask worker` start them; the workers run the file
    `preload` before they begin."""

    def __init__(self, folder: Path, n_workers: int = 2, preload: str = "", **environment: str) -> None:
        (port,) = free_ports(1)
        self.address = f"tcp://127.0.0.1:{port}"
        self.words = ("--runner", "dask", "--scheduler", self.address)
        self._folder, self._port, self._n_workers, self._environment = folder, port, n_workers, environment
        self._preload = ("--preload", preload) if preload else ()
        self.scheduler: Process | None = None
        self.workers: list[Process] = []

    def __enter__(self) -> DaskCluster:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def start(self) -> None:
        # Without an address its pages would listen on all, even where they are turned off.
        local = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
        self.scheduler = Process(
            self._folder / "scheduler.log",
            *("dask", "scheduler", *local, "--port", str(self._port)),
            **self._environment,
        )
        self.workers = [
            Process(
                self._folder / f"worker-{i}.log",
                *("dask", "worker", self.address, *local, "--nthreads", "1"),
                *("--local-directory", str(self._folder / f"worker-{i}"), *self._preload),
                **self._environment,
            )
            for i in range(self._n_workers)
        ]

    def kill(self) -> None:
        for process in (*self.workers, self.scheduler):
            if process is not None:
                process.kill()


def run_study(folder: Path, store: Store, *words: str, **environment: str) -> Process:
    """Starts a study; its output goes to `folder`/run.log."""
    study = words if words and not words[0].startswith("-") else (*STUDY, *words)
    return Process(folder / "run.log", "repairlab", "run", *study, "--store", store.url, **environment)


def finish_study(folder: Path, store: Store, *words: str, **environment: str) -> None:
    with run_study(folder, store, *words, **environment) as process:
        assert process.wait() == 0, process.output()[-3000:]


def read_tables(store: Store, study: str = "digits-depth") -> dict[str, pd.DataFrame]:
    """All tables without clocks."""
    return {
        table.name: pd.read_parquet(f"{store.url}/studies/{study}/{table.name}.parquet").drop(
            columns=CLOCKS, errors="ignore"
        )
        for table in schema.TABLES
    }


def assert_same_tables(found: dict[str, pd.DataFrame], wanted: dict[str, pd.DataFrame]) -> None:
    """To the last bit."""
    assert found.keys() == wanted.keys()
    for name, frame in wanted.items():
        pd.testing.assert_frame_equal(found[name], frame, check_exact=True)


def count(store: Store, prefix: str) -> int:
    """How many finished files there are under `prefix`."""
    return sum(entry.key.startswith(prefix) and not entry.is_temporary for entry in store.entries())
