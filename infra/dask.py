"""Dask as the runner: its scheduler, its workers, and which of them have a GPU.

Dask sends tasks as pickles: whoever reaches the scheduler's port runs code. What is started here listens on loopback.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import dask
import torch
from dask.distributed import Client, Nanny, Scheduler, SpecCluster
from prefect.task_runners import TaskRunner
from prefect_dask.task_runners import DaskTaskRunner

GPU = {"GPU": 1}
"""The resource that a worker with a device of its own is started with, and that a task on it takes."""

_HOST = "127.0.0.1"
_CONNECT_SECONDS = 10

_LOST_WORKER = "24h"
"""Time that a worker of the own cluster may be gone before the cluster gives it up. Its nanny starts another at once,
which takes longer than Dask's 15 s on a busy machine; without any worker a study would wait for ever."""


def make_dask_runner(scheduler: str | None, n_workers: int, n_gpus: int) -> TaskRunner[Any]:
    """Return a runner on the workers of `scheduler`, or on workers of this machine if that is None."""
    if scheduler is not None:
        return DaskTaskRunner(address=scheduler)
    # Declared to take no arguments, and called with these.
    cluster_class: Any = start_cluster
    return DaskTaskRunner(cluster_class=cluster_class, cluster_kwargs={"n_workers": n_workers, "n_gpus": n_gpus})


def start_cluster(n_workers: int, n_gpus: int, asynchronous: bool = False) -> SpecCluster:
    """Start `n_workers` processes of one thread without a GPU, and one for each of `n_gpus`, which sees it alone."""
    workers = {f"cpu-{i}": _worker("", {}) for i in range(n_workers)}
    workers |= {f"gpu-{i}": _worker(str(i), GPU) for i in range(n_gpus)}
    dask.config.set({"distributed.deploy.lost-worker-timeout": _LOST_WORKER})  # pyright: ignore[reportPrivateImportUsage]
    scheduler = {"cls": Scheduler, "options": {"host": _HOST, "port": 0, "dashboard_address": f"{_HOST}:0"}}
    return SpecCluster(workers=workers, scheduler=scheduler, asynchronous=asynchronous, name="repairlab")


def _worker(device: str, resources: dict[str, int]) -> dict[str, Any]:
    options = {
        "nthreads": 1,
        "host": _HOST,
        "dashboard_address": f"{_HOST}:0",
        "resources": resources,
        "env": {"CUDA_VISIBLE_DEVICES": device},
        # What a worker tells of its start would stand among the lines of the study.
        "silence_logs": logging.WARNING,
    }
    return {"cls": Nanny, "options": options}


def on_gpu() -> AbstractContextManager[Any]:
    """Send what is submitted inside to workers with a GPU, one task at a time to each."""
    return dask.annotate(resources=GPU)  # pyright: ignore[reportPrivateImportUsage]


def n_gpus_here() -> int:
    """Return the number of GPUs of this machine."""
    return torch.cuda.device_count()


def count_workers(scheduler: str) -> tuple[int, int]:
    """Return the number of workers of `scheduler`, and of those with a GPU.

    Raises TimeoutError if no Dask scheduler answers there, else what Dask raises.
    """
    # Where another kind of server listens, Dask's client waits for ever for its first word.
    asking = ThreadPoolExecutor(1)
    try:
        return asking.submit(_count_workers, scheduler).result(timeout=2 * _CONNECT_SECONDS)
    finally:
        asking.shutdown(wait=False, cancel_futures=True)


def _count_workers(scheduler: str) -> tuple[int, int]:
    with Client(scheduler, timeout=_CONNECT_SECONDS, set_as_default=False) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        return len(workers), sum(worker["resources"].get("GPU", 0) > 0 for worker in workers)
