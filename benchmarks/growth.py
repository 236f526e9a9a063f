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
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Its servers are those of the tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import prefect
from prefect.task_runners import ProcessPoolTaskRunner
from processes import DaskCluster, PrefectServer, wait_until

import flows.study
from flows.options import OwnStudy, StudyOptions
from infra.dask import count_workers
from infra.lifeline import begin_worker
from infra.runners import use_one_thread
from infra.settings import Settings
from infra.storage import Store
from tasks.science.evaluation.metrics import Evaluation
from tasks.science.networks import draw_state
from tasks.science.specs.cell import Cell
from tasks.science.specs.identity import stream
from tasks.science.training.judging import Training

N_WORKERS = 2
N_SEEDS = 4
UNITS_PER_CELL = N_SEEDS + 6 * 3
"""Six pairs, each with a direct, an aligned and a repaired path."""


def begin_stub_worker() -> None:
    """Prepare a worker process."""
    begin_worker()
    install_stub()


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
    gather = flows.study.gather.fn

    def gathered(*arguments: Any) -> Any:
        begun["bytes"], start = peak_bytes(os.getpid()), time.process_time()
        try:
            return gather(*arguments)
        finally:
            begun["gather"] = time.process_time() - start

    flows.study.gather.fn = gathered
    if runner == "processes":
        flows.study.make_runner = lambda settings: ProcessPoolTaskRunner(  # pyright: ignore
            max_workers=settings.workers, initializer=begin_stub_worker
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
        "gather_seconds": begun["gather"],
        "bytes_before": begun["bytes"],
        "flow_bytes": peak_bytes(os.getpid()),
    }


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
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            cluster = stack.enter_context(DaskCluster(folder, N_WORKERS, __file__, **environment))
            scheduler = cluster.scheduler
            words += ["--scheduler", cluster.address]
            wait_until(lambda: count_workers(cluster.address)[0] == N_WORKERS)
        done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        told = json.loads(done.stdout.strip().splitlines()[-1])
        if scheduler is not None:
            told["scheduler_bytes"] = peak_bytes(scheduler.pid)
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
    titles = ("runner", "units", "tasks", "files", "s", "ms per task", "of it submitting", "gathering, CPU s")
    titles += ("flow, MB", "of it before gathering", "scheduler, MB")
    print_cells(*titles)
    print_cells(*["---"] * len(titles))
    with tempfile.TemporaryDirectory() as home, PrefectServer(Path(home)) as server:
        environment = {**server.environment, "PREFECT_LOGGING_TO_API_ENABLED": "true"}
        for n_units in asked.units:
            for runner in asked.runners:
                print_row(runner, n_units, measure(runner, n_units, environment))


def print_row(runner: str, n_units: int, told: Mapping[str, Any]) -> None:
    n_tasks = told["n_tasks"]
    print_cells(
        runner,
        f"{n_units:,}",
        f"{n_tasks:,}",
        f"{told['n_files']:,}",
        f"{told['seconds']:.0f}",
        f"{1000 * told['seconds'] / n_tasks:.0f}",
        f"{1000 * told['submit_seconds'] / n_tasks:.0f}",
        f"{told['gather_seconds']:.1f}",
        f"{told['flow_bytes'] / 1e6:.0f}",
        f"{told['bytes_before'] / 1e6:.0f}",
        f"{told['scheduler_bytes'] / 1e6:.0f}" if "scheduler_bytes" in told else "",
    )


def print_cells(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
