"""Task runners of Prefect: which one, with which retries, and where log lines go.

Every process computes with one torch thread: small networks gain nothing from more, and intra-op threads that wait for
each other on a shared machine are slower by up to two orders of magnitude. Parallelism comes from processes.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import torch
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from infra.faults import RETRY_DELAYS_SECONDS, is_transient
from infra.interrupt import prepare_for_workers
from infra.lifeline import begin_worker
from infra.settings import Settings

if TYPE_CHECKING:
    from infra.own_server import OwnServer


class OneThreadEach(ThreadPoolTaskRunner[Any]):
    """Threads of this process that compute with one torch thread each.

    torch keeps the number of its threads per thread. A new thread starts with one per core, and a convolution that is
    its first operation would be computed by all of them, with other last digits.
    """

    def _register_worker_thread(self) -> None:
        super()._register_worker_thread()
        use_one_thread()


def make_runner(settings: Settings) -> TaskRunner[Any]:
    """Return the runner that `settings` name; its workers report to the Prefect API in use here."""
    if settings.runner == "dask":
        from infra.dask import make_dask_runner, n_gpus_here

        n_gpus = n_gpus_here() if settings.device == "cuda" else 0
        return make_dask_runner(settings.scheduler, settings.workers, n_gpus)
    if settings.runner == "threads":
        use_one_thread()
        return OneThreadEach(max_workers=settings.workers)
    api_url = get_current_settings().api.url
    return ProcessPoolTaskRunner(max_workers=settings.workers, initializer=_begin_worker, initargs=(api_url,))


def check_runner(settings: Settings) -> None:
    """Raise ServerError, with the way out, if no worker could ever run a task."""
    on_gpu = settings.device == "cuda"
    if settings.runner != "dask" or settings.scheduler is None:
        if settings.runner == "dask":
            _check_dask_is_installed()
        if on_gpu and not torch.cuda.is_available():
            raise ServerError(
                "torch finds no GPU here: leave out --device cuda, or name a --scheduler with GPU workers"
            )
        return
    _check_dask_is_installed()
    from infra.dask import count_workers

    try:
        n_workers, n_gpus = count_workers(settings.scheduler)
    except Exception as error:  # Whatever an address, its TLS, or another kind of server makes Dask raise.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ServerError(
            f"the Dask scheduler {settings.scheduler} does not answer ({reason}): start it, set up Dask's TLS where it "
            "asks for it, or leave out --scheduler to run on this machine"
        ) from error
    if not n_workers or (on_gpu and not n_gpus):
        kind = "workers with a GPU" if n_workers else "workers"
        resource = " --nthreads 1 --resources GPU=1" if on_gpu else " --nthreads 1"
        raise ServerError(f"{settings.scheduler} has no {kind}: start some, dask worker {settings.scheduler}{resource}")
    host = urlsplit(settings.scheduler).hostname or ""
    if host not in ("localhost", "127.0.0.1", "::1") and get_current_settings().api.url is None:
        raise ServerError(
            f"the workers of {settings.scheduler} cannot reach a Prefect server that lives in this process: start one "
            "that they reach, and name it in PREFECT_API_URL here and there"
        )


def _check_dask_is_installed() -> None:
    if importlib.util.find_spec("prefect_dask") is None:
        raise ServerError("the runner dask needs two more packages: pip install 'repairlab[cluster]'")


@dataclass(frozen=True)
class Routing:
    """Workers that training tasks are sent to, and the tags that mark these tasks in the UI."""

    to_gpu_workers: bool
    tags: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings) -> Routing:
        on_gpu = settings.device == "cuda"
        return cls(on_gpu and settings.runner == "dask", ("gpu",) if on_gpu else ())

    def training(self) -> AbstractContextManager[Any]:
        """Submit the tasks inside as tasks that train."""
        if not self.to_gpu_workers:
            return nullcontext()
        from infra.dask import on_gpu

        return on_gpu()


_SERVER_FAILED = 500
_NOT_ADMITTED = (401, 403)


def lost_the_api(error: BaseException) -> bool:
    """Return whether a task could not begin because the Prefect server did not answer or failed."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= _SERVER_FAILED
    return isinstance(error, RuntimeError) and str(error).startswith("Failed to reach API")


@contextmanager
def telling_of_the_api() -> Generator[None]:
    """Raise ServerError, with the way out, for errors of the Prefect server's client that the user can mend."""
    try:
        yield
    except httpx.TransportError as error:
        raise ServerError(
            f"the Prefect server is gone ({error}): start it, and the same command goes on from here"
        ) from error
    except httpx.HTTPStatusError as error:
        answer = f"{error.response.status_code} {error.response.reason_phrase}"
        if error.response.status_code >= _SERVER_FAILED:
            raise ServerError(
                f"the Prefect server fails ({answer}), most likely because its database is away: mend it, and the same "
                "command goes on from here"
            ) from error
        if error.response.status_code in _NOT_ADMITTED:
            raise ServerError(
                f"the Prefect server admits nobody without its password ({answer}): set PREFECT_API_AUTH_STRING"
            ) from error
        raise


def lost_the_scheduler(error: BaseException) -> bool:
    """Return whether a task ended because Dask's scheduler is gone, and with it everything submitted."""
    return type(error).__name__ in ("FutureCancelledError", "ClosedClientError", "CommClosedError")


def lost_its_worker(error: BaseException) -> bool:
    """Return whether Dask gave a task up because every worker that it was sent to died."""
    return type(error).__name__ == "KilledWorker"


def use_one_thread() -> None:
    """Set the number of torch threads of this thread to one."""
    torch.set_num_threads(1)


def _begin_worker(api_url: str | None) -> None:
    begin_worker()
    use_one_thread()
    if api_url is not None:
        _greet(api_url)


_GREETING_SECONDS = 120


def _greet(api_url: str) -> None:
    """Ask the Prefect server for its version, which every process does once, until it answers.

    Left to the first task, a server that happens to be down ends the worker with SystemExit. Prefect's pool then hands
    out no more results, and the flow waits for ever.
    """
    begun = time.monotonic()
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        while True:
            try:
                return client.raise_for_api_version_mismatch_once()
            except RuntimeError:
                if time.monotonic() - begun > _GREETING_SECONDS:
                    raise
                time.sleep(1)


_SAFE_PATH = "PYTHONSAFEPATH"

_own_servers: list[OwnServer] = []


class ServerError(Exception):
    """Error of a server or worker that cannot be reached or started; the message says what to do."""


@contextmanager
def safe_path() -> Generator[None]:
    """Keep the current folder off the module path of the processes started inside, unless this process has it.

    Python puts that folder first for what is started with -m or -c, as workers and Prefect's own server are. A file
    there with the name of one of their modules would be run.
    """
    given = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if given is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = given


@contextmanager
def prefect_api(startup_seconds: int = 180) -> Generator[None]:
    """Provide a Prefect API inside: the configured server, else one of this process.

    Left to itself, Prefect starts a server in every worker process. The server of this process ends with it, after it
    has taken the last log lines. Raises ServerError if the configured server does not answer or the own one does not
    start.
    """
    prepare_for_workers()
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
    from infra.own_server import OwnServer

    server = OwnServer()
    try:
        # Its migrations put the folder that it runs in on Python's path: a file there named like a module would be run.
        with chdir(sys.prefix):
            server.start(timeout=startup_seconds)
    except RuntimeError as error:
        server.stop()
        raise ServerError(
            f"Prefect's own server did not start within {startup_seconds} s ({error}); run the same command again"
        ) from error
    _own_servers.append(server)
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        yield


def is_watched() -> bool:
    """Return whether the Prefect API in use is a server with pages, and not the one of this process."""
    url = get_current_settings().api.url
    return url is not None and all(url != server.api_url for server in _own_servers)


def retry_transient(_task: Any, _run: Any, state: Any) -> bool:
    """Return whether a failed task is tried again: Prefect's `retry_condition_fn`, true for faults that may pass."""
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
"""Options of every task of the project."""


def run_logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """Return the log of the running task, as the UI shows it, or a plain one if the task is called without Prefect."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("repairlab")
