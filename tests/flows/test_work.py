"""What becomes of a task that does not end as it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

from flows import work as work_module
from flows.work import LOST_TRIES, Submitted, Work
from infra.faults import RETRY_DELAYS_SECONDS
from infra.runners import Routing, ServerError
from infra.storage import StoreError


class KilledWorker(Exception):  # noqa: N818
    """Named as Dask's, whose package is not needed to tell it."""


class FutureCancelledError(Exception):
    """Likewise."""


NO_API = RuntimeError("Failed to reach API at http://127.0.0.1:1/api")


class Stages:
    def __init__(self) -> None:
        self.expected = self.done = self.failed = 0

    def expect(self, _stage: str, n: int) -> None:
        self.expected += n

    def advance(self, _stage: str, n: int, *, failed: bool = False) -> None:
        if failed:
            self.failed += n
        else:
            self.done += n


class Future:
    """Ends as it is told to, once it is asked for its result or told to end."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome
        self.end: Callable[[], None] = lambda: None

    def add_done_callback(self, call: Callable[[Future], None]) -> None:
        self.end = lambda: call(self)

    def result(self) -> Any:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


class Task:
    """One that ends so, as Prefect would have it."""

    name = "train"

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome

    def with_options(self, **_options: Any) -> Task:
        return self

    def submit(self, *_arguments: Any, **_options: Any) -> Future:
        return Future(self._outcome)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(work_module.time, "sleep", waits.append)
    return waits


def wait_for(*outcomes: Any) -> tuple[Work, Any, Iterator[Any]]:
    """A task that ends so, one outcome for each time that it is submitted."""
    left = iter(outcomes)
    stages: Any = Stages()
    work = Work(stages, Routing(False, ()))
    submitted: Any = Submitted(Future(next(left)), "train it", "train", 4, lambda: Future(next(left)))  # pyright: ignore
    return work, work.wait(submitted), left


def test_a_task_that_ends_well_is_done(slept: list[float]):
    work, outcome, _ = wait_for("it")
    assert (outcome.result, outcome.failure, work.problems, slept) == ("it", None, [], [])


def test_one_that_lost_its_workers_is_submitted_again_and_then_given_up(slept: list[float]):
    assert wait_for(KilledWorker(), "it")[1].result == "it"
    work, outcome, left = wait_for(*[KilledWorker()] * LOST_TRIES, "too late")
    assert (
        outcome.failure == "it was given up, for every worker that it ran on was killed, most likely for want of memory"
    )
    assert work.problems == [f"train it: {outcome.failure}"]
    assert list(left) == ["too late"]
    assert set(slept) == {0.0}


def test_one_that_did_not_reach_the_prefect_server_is_submitted_again_after_a_while(slept: list[float]):
    assert wait_for(NO_API, NO_API, "it")[1].result == "it"
    assert slept == RETRY_DELAYS_SECONDS[:2]
    slept.clear()
    _, outcome, _ = wait_for(*[NO_API] * 9)
    assert "Failed to reach API" in outcome.failure
    assert slept == RETRY_DELAYS_SECONDS


def test_one_that_failed_by_itself_is_not_tried_again(slept: list[float]):
    for error, failure in (
        (ValueError("two\nlines"), "ValueError: two"),
        (StoreError("the disk is full"), "the disk is full"),
        (RuntimeError(""), "RuntimeError: RuntimeError"),
    ):
        work, outcome, left = wait_for(error, "again")
        assert outcome.failure == failure
        assert work.problems == [f"train it: {failure}"]
        assert list(left) == ["again"]
    assert slept == []


def test_a_pool_that_lost_a_worker_is_told_once_with_the_way_out():
    work, outcome, _ = wait_for(BrokenProcessPool())
    assert work.problems == [outcome.failure]
    assert "the same command goes on from here, perhaps with fewer workers (REPAIRLAB_WORKERS)" in outcome.failure


def test_a_task_is_counted_as_soon_as_it_ends_and_once():
    counted: Any = Stages()
    task: Any = Task("it")
    work = Work(counted, Routing(False, ()))
    first, second = (work.submit(task, name, 4) for name in ("first", "second"))
    assert (counted.expected, counted.done) == (8, 0)
    future: Any = second.future
    future.end()
    assert counted.done == 4
    future.end()
    assert work.wait(second).result == "it"
    assert counted.done == 4
    assert work.wait(first).result == "it"
    assert (counted.done, counted.failed) == (8, 0)


def test_one_that_failed_is_counted_as_failed_once_it_is_given_up():
    counted: Any = Stages()
    task: Any = Task(ValueError("no luck"))
    work = Work(counted, Routing(False, ()))
    submitted = work.submit(task, "it", 4)
    future: Any = submitted.future
    future.end()
    assert (counted.done, counted.failed) == (0, 0)
    work.wait(submitted)
    assert (counted.done, counted.failed) == (0, 4)


def test_every_problem_stands_in_the_log_once(caplog: pytest.LogCaptureFixture):
    work, outcome, _ = wait_for(ValueError("no luck"))
    work.report(work.problems[0])
    assert caplog.messages == [f"train it: {outcome.failure}"]


def test_without_a_scheduler_nothing_is_waited_for():
    with pytest.raises(ServerError, match=r"the Dask scheduler is gone.*the same command goes on from here"):
        wait_for(FutureCancelledError())
