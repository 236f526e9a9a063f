"""What orchestration costs as a study grows: overhead per task, memory of the flow and of the Dask scheduler.

A synthetic study of many small cells whose trainings are replaced by a stub of about a millisecond, and whose pairs are
measured on 20 images, so that nearly all of its time is the orchestration's. Each size and runner is run by a process
of its own, on a store of its own, with a Prefect server on SQLite. A unit is an endpoint or a path.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import prefect
from prefect.task_runners import ProcessPoolTaskRunner

import flows.study
from flows.options import OwnStudy, StudyOptions
from infra.dask import count_workers
from infra.runners import use_one_thread
from infra.settings import Settings
from infra.storage import Store
from tasks.science.evaluation import Evaluation
from tasks.science.identity import stream
from tasks.science.networks import draw_state
from tasks.science.specs import Cell
from tasks.science.training import Training

N_WORKERS = 2
N_SEEDS = 4
UNITS_PER_CELL = N_SEEDS + 6 * 3
"""Six pairs, each with a direct, an aligned and a repaired path."""

BIN = Path(sys.executable).parent


def install_stub() -> None:
    """In this process networks are drawn and not trained."""
    use_one_thread()
    import tasks.train

    def draw(cell: Cell, seeds: Sequence[int], *_: Any, **__: Any) -> Iterator[Training]:
        nothing = Evaluation(1.0, 0.5, 1)
        for seed in seeds:
            yield Training(
                seed, None, draw_state(cell, stream("growth", cell.id, seed)), "trained", "", nothing, nothing, 0.001, 0
            )

    tasks.train.train_group = draw  # pyright: ignore


def dask_setup(_worker: Any) -> None:
    """Called by a Dask worker that is started with this file as `--preload`."""
    install_stub()


def synthetic(n_units: int) -> StudyOptions:
    rates = [round(0.001 + 0.00001 * i, 6) for i in range(n_units // UNITS_PER_CELL)]
    own = OwnStudy(
        name="growth",
        dataset="digits",
        architecture="mlp",
        width=4,
        depth=1,
        seeds=N_SEEDS,
        recipe="small/digits",
        controls=False,
        measurement={"alphas": 3, "statistics": 20, "evaluation": 20},
        sweep={"learning_rate": rates},
    )
    return StudyOptions(study="growth", own=own)


def run_one(runner: str, n_units: int, scheduler: str | None) -> dict[str, Any]:
    """Runs the study in this process and tells what it cost, in seconds and bytes."""
    install_stub()
    begun = {"submit": 0.0, "n_tasks": 0}
    submit = flows.study.Work.submit

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return submit(*arguments, **options)
        finally:
            begun["submit"] += time.perf_counter() - start
            begun["n_tasks"] += 1

    flows.study.Work.submit = timed  # pyright: ignore
    if runner == "processes":
        flows.study.make_runner = lambda settings: ProcessPoolTaskRunner(  # pyright: ignore
            max_workers=settings.workers, initializer=install_stub
        )
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(store=folder, runner=runner, workers=N_WORKERS, scheduler=scheduler)
        start = time.perf_counter()
        flows.study.run_study(synthetic(n_units), settings)
        seconds = time.perf_counter() - start
        n_files = len(Store(folder).entries())
    return {
        "seconds": seconds,
        "submit_seconds": begun["submit"],
        "n_tasks": begun["n_tasks"],
        "n_files": n_files,
        "flow_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def process(*words: str, environment: Mapping[str, str]) -> Iterator[int]:
    """A process that ends with the block; its id."""
    started = subprocess.Popen(
        words, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield started.pid
    finally:
        started.terminate()
        started.wait()


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held, as Linux tells it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure(runner: str, n_units: int, environment: Mapping[str, str]) -> dict[str, Any]:
    """As `run_one`, in a process of its own; with Dask a scheduler and two workers beside it."""
    words = [sys.executable, __file__, "--one", runner, str(n_units)]
    with contextlib.ExitStack() as stack:
        scheduler = None
        if runner == "dask":
            address = f"tcp://127.0.0.1:{free_port()}"
            local = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
            dask = [str(BIN / "dask"), "scheduler", *local, "--port", address.rpartition(":")[2]]
            scheduler = stack.enter_context(process(*dask, environment=environment))
            for _ in range(N_WORKERS):
                worker = [str(BIN / "dask"), "worker", address, *local, "--nthreads", "1", "--preload", __file__]
                stack.enter_context(process(*worker, environment=environment))
            words += ["--scheduler", address]
            wait_until(lambda: count_workers(address)[0] == N_WORKERS)
        done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        told = json.loads(done.stdout.strip().splitlines()[-1])
        if scheduler is not None:
            told["scheduler_bytes"] = peak_bytes(scheduler)
        return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--runners", nargs="+", default=["threads", "processes", "dask"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--scheduler", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(run_one(asked.one[0], int(asked.one[1]), asked.scheduler)))
        return
    print(f"prefect {prefect.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores")
    print("| runner | units | tasks | files | s | ms per task | of it submitting | flow, MB | scheduler, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as home:
        port = str(free_port())
        url = f"http://127.0.0.1:{port}/api"
        environment = {"PREFECT_HOME": home, "PREFECT_API_URL": url, "PREFECT_LOGGING_TO_API_ENABLED": "true"}
        bound = {"PREFECT_SERVER_API_HOST": "127.0.0.1", "PREFECT_SERVER_API_PORT": port}
        with process(str(BIN / "prefect"), "server", "start", environment={**environment, **bound}):
            wait_until(lambda: answers(f"{url}/health"))
            for n_units in asked.units:
                for runner in asked.runners:
                    print_row(runner, n_units, measure(runner, n_units, environment))


def print_row(runner: str, n_units: int, told: Mapping[str, Any]) -> None:
    n_tasks = told["n_tasks"]
    scheduler = f"{told['scheduler_bytes'] / 1e6:.0f}" if "scheduler_bytes" in told else ""
    print(
        f"| {runner} | {n_units:,} | {n_tasks:,} | {told['n_files']:,} | {told['seconds']:.0f} | "
        f"{1000 * told['seconds'] / n_tasks:.0f} | {1000 * told['submit_seconds'] / n_tasks:.0f} | "
        f"{told['flow_bytes'] / 1e6:.0f} | {scheduler} |",
        flush=True,
    )


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit("a server did not start")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
