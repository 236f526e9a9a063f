"""The tasks of a flow run: one that fails is recorded and stops nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from prefect import Task
from prefect.futures import PrefectFuture

from flows.stages import Stages
from infra.faults import RETRY_DELAYS_SECONDS
from infra.runners import Routing, ServerError, lost_its_worker, lost_the_api, lost_the_scheduler, run_logger
from infra.storage import StoreError
from infra.text import one_line
from tasks.data.published import DataError


def describe_failure(error: Exception) -> str:
    """Return the first line of an error, with its type where the words alone would not tell."""
    if lost_its_worker(error):
        return "it was given up, for every worker that it ran on was killed, most likely for want of memory"
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if isinstance(error, StoreError | DataError) else f"{type(error).__name__}: {line}"


LOST_TRIES = 2
"""The times that a task is submitted whose workers keep being killed. Dask gives such a task up after four workers, and
with it others that only waited on the same workers; those are done at the second try."""


@dataclass
class Submitted:
    """A submitted task, and the number of endpoints, pairs or paths of its stage that it carries.

    `submit` submits it again. `has_ended_well` is set once it was waited for, `is_counted` once its stage counts it.
    """

    future: PrefectFuture[Any]
    name: str
    stage: str
    n_things: int
    submit: Callable[[], PrefectFuture[Any]]
    has_ended_well: bool = False
    is_counted: bool = False


@dataclass(frozen=True)
class Outcome:
    """The result of a task, or `failure`, a sentence that says why there is none."""

    result: Any = None
    failure: str | None = None


class Work:
    """The tasks of one flow run."""

    def __init__(self, stages: Stages, routing: Routing) -> None:
        self._stages, self._routing, self._counting = stages, routing, threading.Lock()
        self.problems: list[str] = []

    def submit(
        self,
        task: Task[..., Any],
        name: str,
        n_things: int,
        *arguments: Any,
        after: Sequence[Submitted] = (),
        trains: bool = False,
    ) -> Submitted:
        """Submit `task` under `name`, which carries `n_things` of its stage.

        `after` are tasks that were waited for and that it builds on, which the UI draws as edges. A task that `trains`
        goes where training is routed to.
        """
        self._stages.expect(task.name, n_things)
        done = [submitted.future for submitted in after if submitted.has_ended_well]
        named = task.with_options(task_run_name=name)
        if trains:
            named = named.with_options(tags=self._routing.tags)

        def submit() -> PrefectFuture[Any]:
            with self._routing.training() if trains else nullcontext():
                return named.submit(*arguments, wait_for=done)

        submitted = Submitted(submit(), name, task.name, n_things, submit)
        # Counted when it ends, not when its turn comes to be waited for.
        submitted.future.add_done_callback(lambda future: self._count_success(submitted, future))
        return submitted

    def _count_success(self, submitted: Submitted, future: PrefectFuture[Any]) -> None:
        # What has failed is told, perhaps tried again, and counted by who waits for it.
        with suppress(Exception):
            future.result()
            self._count(submitted)

    def _count(self, submitted: Submitted, *, failed: bool = False) -> None:
        with self._counting:
            if submitted.is_counted:
                return
            submitted.is_counted = True
        self._stages.advance(submitted.stage, submitted.n_things, failed=failed)

    def wait(self, submitted: Submitted) -> Outcome:
        """Wait for a task to end. Raises ServerError where no submitted task can end any more."""
        try:
            result = self._result(submitted)
        except BrokenProcessPool:
            failure = (
                "a worker process was killed, most likely for want of memory, or never reached the Prefect server; the "
                "same command goes on from here, perhaps with fewer workers (REPAIRLAB_WORKERS)"
            )
            self.report(failure)
            self._count(submitted, failed=True)
            return Outcome(failure=failure)
        except Exception as error:  # Whatever a task dies of becomes a recorded outcome of its cell.
            if lost_the_scheduler(error):
                raise ServerError(
                    "the Dask scheduler is gone, and with it all that was submitted: start it and its workers again, "
                    "and the same command goes on from here"
                ) from error
            failure = describe_failure(error)
            self.report(f"{submitted.name}: {failure}")
            self._count(submitted, failed=True)
            return Outcome(failure=failure)
        submitted.has_ended_well = True
        self._count(submitted)
        return Outcome(result)

    def _result(self, submitted: Submitted) -> Any:
        """Return the result of a task.

        A task that never began, since the Prefect server did not answer, is submitted again after a while; one that
        Dask gave up, at once.
        """
        waits, tries = iter(RETRY_DELAYS_SECONDS), iter([0.0] * (LOST_TRIES - 1))
        while True:
            try:
                return submitted.future.result()
            except Exception as error:
                pauses = waits if lost_the_api(error) else tries if lost_its_worker(error) else iter(())
                if (pause := next(pauses, None)) is None:
                    raise
            time.sleep(pause)
            submitted.future = submitted.submit()

    def report(self, problem: str) -> None:
        """Keep a problem for the user, once, and write it to the run's log."""
        problem = one_line(problem)
        if problem not in self.problems:
            self.problems.append(problem)
            run_logger().warning("%s", problem)
