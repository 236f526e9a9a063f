from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from infra import runners
from infra.runners import (
    TASK_OPTIONS,
    ServerError,
    is_watched,
    lost_the_api,
    make_runner,
    retry_transient,
    run_logger,
    safe_path,
    telling_of_the_api,
)
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


def test_a_server_of_our_own_is_not_watched_and_any_other_is(monkeypatch):
    monkeypatch.setattr(runners, "_own_servers", [SimpleNamespace(api_url="http://127.0.0.1:1/api")])
    for url, watched in (
        (None, False), ("http://127.0.0.1:1/api", False), ("http://127.0.0.1:2/api", True)
    ):  # fmt: skip
        with temporary_settings({PREFECT_API_URL: url}):
            assert is_watched() is watched


def test_outside_of_a_run_a_task_logs_where_python_does(caplog):
    with caplog.at_level(logging.INFO, logger="repairlab"):
        run_logger().info("hello")
    assert "hello" in caplog.text


class Client:
    """Answers from the third time on."""

    def __init__(self) -> None:
        self.n_asked = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_error: object) -> None: ...

    def raise_for_api_version_mismatch_once(self) -> None:
        self.n_asked += 1
        if self.n_asked < 3:
            raise RuntimeError("Failed to reach API")


FIRST_CONVOLUTION = """
import os, torch
from infra.runners import make_runner
from infra.settings import Settings
from prefect import flow, task

layer, images = torch.nn.Conv2d(8, 8, 3), torch.randn(16, 8, 16, 16)

@task
def convolve():
    before = len(os.listdir("/proc/self/task"))
    layer(images)
    return len(os.listdir("/proc/self/task")) - before

runner = make_runner(Settings(runner="threads", workers=1))
with runner:
    runner._executor.submit(lambda: print(convolve.fn())).result()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted on Linux")
def test_the_first_convolution_of_a_new_thread_is_computed_by_that_thread_alone():
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", FIRST_CONVOLUTION]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "0\n"


def test_a_worker_waits_for_the_prefect_server_before_its_first_task(monkeypatch):
    client = Client()
    monkeypatch.setattr(runners, "get_client", lambda **_: client)
    monkeypatch.setattr(runners.time, "sleep", lambda _seconds: None)
    runners._greet("http://127.0.0.1:1/api")
    assert client.n_asked == 3
    client.n_asked = -1000
    monkeypatch.setattr(runners, "_GREETING_SECONDS", 0)
    with pytest.raises(RuntimeError, match="Failed to reach API"):
        runners._greet("http://127.0.0.1:1/api")


def refusal(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1:1/api/flow_runs/")
    return httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            httpx.ConnectError("refused"),
            r"the Prefect server is gone \(refused\): start it, and the same command goes on",
        ),
        (
            refusal(500),
            r"the Prefect server fails \(500 Internal Server Error\), .*database is away: mend it, and the same",
        ),
        (refusal(503), r"the Prefect server fails \(503 Service Unavailable\)"),
        (refusal(401), r"without its password \(401 Unauthorized\): set PREFECT_API_AUTH_STRING"),
    ],
)
def test_a_prefect_server_that_fails_or_refuses_is_told_of_in_a_sentence(error: Exception, sentence: str):
    with pytest.raises(ServerError, match=sentence), telling_of_the_api():
        raise error


def test_what_no_person_can_mend_stays_what_it_is():
    for error in (refusal(422), ValueError("wrong")):
        with pytest.raises(type(error)), telling_of_the_api():
            raise error


def test_a_task_that_the_server_could_not_begin_is_told_from_one_that_it_refused():
    assert lost_the_api(RuntimeError("Failed to reach API at http://127.0.0.1:1/api"))
    assert lost_the_api(refusal(500))
    assert not lost_the_api(refusal(422))
    assert not lost_the_api(RuntimeError("wrong"))


def test_what_is_started_with_a_safe_path_does_not_look_for_modules_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "theirs.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    command = [sys.executable, "-c", "import theirs"]
    with safe_path():
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    with safe_path():
        pass
    assert os.environ["PYTHONSAFEPATH"] == ""
