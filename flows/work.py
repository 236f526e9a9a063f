"""Submits a study's tasks and waits for them: one that fails is recorded and stops nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from prefect import Task
from prefect.futures import PrefectFuture

from flows.progress import Stages
from infra.storage import StoreError
from tasks.published import DataError


def describe(error: Exception) -> str:
    """The first line of what went wrong, with its kind where the words alone would not tell."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if isinstance(error, StoreError | DataError) else f"{type(error).__name__}: {line}"


@dataclass(frozen=True)
class Submitted:
    """A task that was submitted, and how many `things` (endpoints, pairs, paths) of its stage it carries."""

    future: PrefectFuture[Any]
    name: str
    stage: str
    n_things: int


@dataclass(frozen=True)
class Outcome:
    """What a task returned; or `failure`, the sentence that says why it returned nothing."""

    result: Any = None
    failure: str | None = None


class Work:
    """The tasks of one flow run."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self.problems: list[str] = []

    def submit(
        self, task: Task[..., Any], name: str, n_things: int, *arguments: Any, after: Sequence[Submitted] = ()
    ) -> Submitted:
        """Submits `task` under `name`; `after` are finished tasks that it builds on, which the UI draws as edges."""
        self._stages.expect(task.name, n_things)
        done = [submitted.future for submitted in after if submitted.future.state.is_completed()]
        future = task.with_options(task_run_name=name).submit(*arguments, wait_for=done)
        return Submitted(future, name, task.name, n_things)

    def wait(self, submitted: Submitted) -> Outcome:
        """Waits for a task to end."""
        try:
            result = submitted.future.result()
        except BrokenProcessPool:
            failure = (
                "a worker process was killed, most likely for want of memory; the same command goes on from here, "
                "perhaps with fewer workers (REPAIRLAB_WORKERS)"
            )
            self.report(failure)
            return Outcome(failure=failure)
        except Exception as error:  # Whatever a task dies of becomes a recorded outcome of its cell.
            failure = describe(error)
            self.report(f"{submitted.name}: {failure}")
            return Outcome(failure=failure)
        self._stages.advance(submitted.stage, submitted.n_things)
        return Outcome(result)

    def report(self, problem: str) -> None:
        """Keeps a sentence for the person, once."""
        if problem not in self.problems:
            self.problems.append(problem)
