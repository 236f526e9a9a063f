"""How Prefect carries tasks out: on which runner, with which retries, and where their words go.

Every process computes with one torch thread: small networks gain nothing from more, and intra-op threads that wait for
each other on a shared machine are slower by up to two orders of magnitude. Parallelism comes from processes.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from infra.faults import RETRY_DELAYS_SECONDS, is_transient
from infra.settings import Settings

if TYPE_CHECKING:
    from prefect.server.api.server import SubprocessASGIServer


def make_runner(settings: Settings) -> TaskRunner[Any]:
    """The runner that `settings` name, with as many workers as they say."""
    if settings.runner == "threads":
        use_one_thread()
        return ThreadPoolTaskRunner(max_workers=settings.workers)
    return ProcessPoolTaskRunner(max_workers=settings.workers, initializer=_begin_worker)


def use_one_thread() -> None:
    """Sets this process to one intra-op thread."""
    torch.set_num_threads(1)


def _begin_worker() -> None:
    use_one_thread()
    # Ctrl-C reaches every process of a terminal; the flow alone decides what it means, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


_own_servers: list[SubprocessASGIServer] = []


class ServerError(Exception):
    """The Prefect server cannot be reached or started; the message says what to do."""


@contextmanager
def prefect_api(startup_seconds: int = 180) -> Generator[None]:
    """A Prefect API for everything inside: the server that is configured, else one of our own.

    One for all: left to itself, Prefect starts a server in every worker process. Ours ends with this process, after
    the last log lines have gone to it. Raises ServerError where the configured one does not answer, or ours does not
    start.
    """
    url = get_current_settings().api.url
    if url is not None:
        with get_client(sync_client=True) as client:
            if (error := client.api_healthcheck()) is not None:
                reason = str(error) or type(error).__name__
                raise ServerError(
                    f"the Prefect server at {url} does not answer ({reason}): start it, or unset PREFECT_API_URL to "
                    "run without one"
                )
        yield
        return
    # The server takes seconds to import, which workers and commands that start none need not wait for.
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    try:
        server.start(timeout=startup_seconds)
    except RuntimeError as error:
        server.stop()
        raise ServerError(
            f"Prefect's own server did not start within {startup_seconds} s ({error}); run the same command again"
        ) from error
    _own_servers.append(server)
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        yield


def kill_own_servers() -> None:
    """Ends what `prefect_api` started, without waiting: for a process that is about to end itself."""
    for server in _own_servers:
        if server.server_process is not None:
            server.server_process.kill()


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
