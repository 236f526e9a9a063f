from __future__ import annotations

import logging

import torch
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from infra.runners import TASK_OPTIONS, make_runner, retry_transient, run_logger
from infra.settings import Settings


def test_settings_choose_the_runner_and_its_workers():
    processes, threads = (make_runner(Settings(runner=name, workers=3)) for name in ("processes", "threads"))
    assert isinstance(processes, ProcessPoolTaskRunner)
    assert isinstance(threads, ThreadPoolTaskRunner)
    assert processes._max_workers == threads._max_workers == 3
    assert torch.get_num_threads() == 1


class Ended:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def result(self, raise_on_failure: bool) -> BaseException:
        assert not raise_on_failure
        return self.error


def test_a_task_is_tried_again_only_for_a_fault_that_passes():
    assert retry_transient(None, None, Ended(ConnectionResetError()))
    assert not retry_transient(None, None, Ended(ValueError("wrong")))
    assert TASK_OPTIONS["retry_condition_fn"] is retry_transient
    assert TASK_OPTIONS["persist_result"] is False


def test_outside_of_a_run_a_task_logs_where_python_does(caplog):
    with caplog.at_level(logging.INFO, logger="repairlab"):
        run_logger().info("hello")
    assert "hello" in caplog.text
