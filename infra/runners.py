"""How Prefect carries tasks out: on which runner, with which retries, and where their words go.

Every process computes with one torch thread: small networks gain nothing from more, and intra-op threads that wait for
each other on a shared machine are slower by up to two orders of magnitude. Parallelism comes from processes.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from infra.faults import RETRY_DELAYS_SECONDS, is_transient
from infra.settings import Settings


def make_runner(settings: Settings) -> TaskRunner[Any]:
    """The runner that `settings` name, with as many workers as they say."""
    if settings.runner == "threads":
        use_one_thread()
        return ThreadPoolTaskRunner(max_workers=settings.workers)
    return ProcessPoolTaskRunner(max_workers=settings.workers, initializer=use_one_thread)


def use_one_thread() -> None:
    """Sets this process to one intra-op thread."""
    torch.set_num_threads(1)


def retry_transient(_task: Any, _run: Any, state: Any) -> bool:
    """Prefect's `retry_condition_fn`: a failed task is tried again only where the fault may have passed."""
    result = state.result(raise_on_failure=False)
    return isinstance(result, BaseException) and is_transient(result)


TASK_OPTIONS: dict[str, Any] = {
    "retries": len(RETRY_DELAYS_SECONDS),
    "retry_delay_seconds": RETRY_DELAYS_SECONDS,
    "retry_condition_fn": retry_transient,
    # The store knows what is done; Prefect's cache would pickle results and lose them with its database.
    "cache_policy": NO_CACHE,
    "persist_result": False,
}
"""What every task of the project is declared with."""


def run_logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """The log of the task that is running, as the UI shows it; a plain one where a task is called without Prefect."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("repairlab")
