"""The stack with its real servers, brought up once for all tests here, which build on each other in this order."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import s3fs
from processes import assert_same_tables, count, finish_study, read_tables, run_study, wait_until

from infra.stack import parts
from infra.stack.credentials import Credentials, load_credentials
from infra.stack.place import Folder, StackState
from infra.stack.processes import Started, end, family, marked
from infra.stack.register import pool_template
from infra.storage import Store

pytestmark = [pytest.mark.slow, pytest.mark.s3, pytest.mark.dask, pytest.mark.xdist_group("stack")]

TINY = {"study": "digits-depth", "width": [16], "depth": [2], "seeds": 2, "epochs": 2, "alphas": 3}


class Stack:
    """The stack as a person has it: by its command, and by what lies in its folder."""

    def __init__(self, path: Path) -> None:
        self.folder = Folder(path)

    def call(self, command: str, expected: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "infra.stack", command],
            env={**os.environ, "REPAIRLAB_STACK_DIR": str(self.folder.path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == expected, done.stdout + done.stderr + self.logs()
        return done.stdout + done.stderr

    def logs(self) -> str:
        """What every part has said last."""
        return "".join(f"\n== {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.logs.glob("*.log"))

    @property
    def state(self) -> StackState:
        state = self.folder.read_state()
        assert state is not None
        return state

    @property
    def credentials(self) -> Credentials:
        return load_credentials(self.folder.secrets, self.folder.path)

    def client(self) -> contextlib.AbstractContextManager[Any]:
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        given = parts.secret_environment(self.state, self.credentials)
        chosen = {PREFECT_API_URL: given["PREFECT_API_URL"],
                  PREFECT_API_AUTH_STRING: given["PREFECT_API_AUTH_STRING"]}  # fmt: skip

        @contextlib.contextmanager
        def connected() -> Iterator[Any]:
            with temporary_settings(chosen), get_client(sync_client=True) as client:
                yield client

        return connected()

    def ask(self, options: dict[str, Any], when: datetime, name: str) -> Any:
        """A run of the deployment `study`, scheduled at `when`."""
        from prefect.states import Scheduled

        with self.client() as client:
            deployment = client.read_deployment_by_name("study/study")
            return client.create_flow_run_from_deployment(
                deployment.id, parameters={"options": options}, state=Scheduled(scheduled_time=when), name=name
            ).id

    def wait_for(self, run: Any, wanted: str, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        with self.client() as client:
            while (found := client.read_flow_run(run)).state.name != wanted:
                assert time.monotonic() < deadline, f"{found.state!r} after {seconds} s" + self.logs()
                assert wanted == "Crashed" or not found.state.is_final(), f"{found.state!r}" + self.logs()
                time.sleep(0.5)
        return found


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    # PostgreSQL's user has to pass, which it may not in pytest's own folders.
    path = Path(tempfile.mkdtemp(prefix="repairlab-stack-"))
    path.chmod(0o711)
    stack = Stack(path)
    try:
        told = stack.call("up")
        assert told.startswith("started PostgreSQL, S3 (SeaweedFS), Dask scheduler, ")
        secrets = [value.get_secret_value() for _, value in stack.credentials]
        assert not [secret for secret in secrets if secret in told]
        yield stack
    finally:
        stack.call("down")
        shutil.rmtree(path)


def ask_without_password(stack: Stack, service: str, path: str) -> int:
    connection = http.client.HTTPConnection(stack.state.host, stack.state.ports[service], timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


def test_every_part_answers_and_listens_on_loopback_alone(stack: Stack):
    assert stack.call("status").count("running ") == 6
    listening: dict[int, str] = {}
    for process in marked(stack.state.mark) + list(stack.state.processes.values()):
        for connection in psutil.Process(process.pid).net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                listening[connection.laddr.port] = connection.laddr.ip
    assert set(listening.values()) == {"127.0.0.1"}
    assert set(stack.state.ports.values()) <= set(listening)


def test_nobody_enters_without_a_password(stack: Stack):
    for path in ("/api/version", "/api/hello", "/api/admin/version"):
        assert ask_without_password(stack, "prefect", path) == 401
        assert parts.get("127.0.0.1", stack.state.ports["prefect"], path, stack.credentials.prefect_auth) is not None
    assert ask_without_password(stack, "s3", "/repairlab?list-type=2") == 403
    address = f"host=127.0.0.1 port={stack.state.ports['postgres']} user=repairlab dbname=prefect"
    login = [str(parts.postgres.find_programs() / "psql"), "--no-password", address, "--command=select 1"]
    for password, code in (("wrong", 2), (stack.credentials.postgres.get_secret_value(), 0)):
        done = subprocess.run(login, env={**os.environ, "PGPASSWORD": password}, capture_output=True, check=False)
        assert done.returncode == code, done.stderr


def test_the_page_in_the_browser_finds_its_server(stack: Stack):
    shown = parts.get("127.0.0.1", stack.state.ports["prefect"], "/ui-settings")
    assert shown is not None
    assert json.loads(shown)["api_url"] == f"http://127.0.0.1:{stack.state.ports['prefect']}/api"


def test_up_again_starts_nothing(stack: Stack):
    before = stack.state
    assert stack.call("up").startswith("up already")
    assert stack.state == before


def test_deployments_name_no_folder_of_this_machine_and_their_form_offers_what_there_is(stack: Stack):
    from flows.presets import PRESETS

    with stack.client() as client:
        found = {name: client.read_deployment_by_name(f"{name}/{name}") for name in ("study", "report")}
        assert client.read_work_pool(parts.POOL).base_job_template == pool_template()
    for deployment in found.values():
        assert not deployment.job_variables
        stored = deployment.model_dump_json()
        assert str(Path.cwd()) not in stored
        assert str(stack.folder.path) not in stored
        assert not deployment.pull_steps
    assert found["study"].entrypoint == "flows.deployed.study"
    form = found["study"].parameter_openapi_schema["definitions"]["StudyForm"]["properties"]
    assert form["study"]["enum"] == list(PRESETS)
    assert all(field["description"] for field in form.values())
    (nightly,) = found["study"].schedules
    assert nightly.active
    assert nightly.schedule.cron == "0 2 * * *"


def test_a_scheduled_run_is_carried_out_by_the_worker_as_one_run_with_its_tasks(stack: Stack):
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    due = datetime.now(UTC) + timedelta(seconds=2)
    run = stack.ask(TINY, due, "scheduled")
    found = stack.wait_for(run, "Completed", 120)
    assert found.start_time >= due - timedelta(seconds=1)
    with stack.client() as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
        assert len(client.read_flow_runs()) == 1 + len(upcoming(client))
    assert {task.name.split()[0] for task in tasks} >= {"train", "align", "repair", "gather", "report"}
    assert {task.state.name for task in tasks} == {"Completed"}
    given = parts.secret_environment(stack.state, stack.credentials)
    files = s3fs.S3FileSystem(
        key=given["AWS_ACCESS_KEY_ID"], secret=given["AWS_SECRET_ACCESS_KEY"], endpoint_url=given["AWS_ENDPOINT_URL"]
    )
    with files.open("repairlab/store/studies/digits-depth/barriers.parquet") as file:
        assert set(pd.read_parquet(file)["width"]) == {16}


def upcoming(client: Any) -> list[Any]:
    """Runs that the nightly schedule has foreseen."""
    return [run for run in client.read_flow_runs() if run.state.name == "Scheduled"]


def test_secrets_stand_in_no_log_command_line_state_artifact_or_parameter(stack: Stack):
    secrets = [value.get_secret_value() for _, value in stack.credentials]
    commands = [" ".join(psutil.Process(process.pid).cmdline()) for process in marked(stack.state.mark)]
    assert len(commands) >= 6
    texts = {str(path): path.read_text(errors="replace") for path in stack.folder.logs.iterdir()}
    texts |= {"state.json": (stack.folder.path / "state.json").read_text(), "ps": "\n".join(commands)}
    with stack.client() as client:
        kept = {"logs": client.read_logs(), "artifacts": client.read_artifacts(), "runs": client.read_flow_runs()}
    assert all(kept.values())
    texts |= {name: "\n".join(item.model_dump_json() for item in items) for name, items in kept.items()}
    for where, text in texts.items():
        assert not [secret for secret in secrets if secret in text], where


def test_a_run_whose_worker_is_killed_is_marked_crashed(stack: Stack):
    run = stack.ask({**TINY, "seeds": 3, "epochs": 100_000}, datetime.now(UTC), "doomed")
    stack.wait_for(run, "Running", 60)
    time.sleep(5)  # It has told once that it lives.
    killed = time.monotonic()
    end(family(stack.state.processes["prefect-worker"]), signal.SIGKILL, 5)
    found = stack.wait_for(run, "Crashed", 100)
    assert 30 < time.monotonic() - killed < 100
    assert "Nothing was heard of this run" in found.state.message


def test_missed_runs_do_not_pile_up_and_up_starts_the_worker_again(stack: Stack):
    """Nor does the run that crashed stand in their way."""
    assert "ended    Prefect worker" in stack.call("status", expected=1)
    missed = [stack.ask(TINY, datetime.now(UTC) - timedelta(hours=hours), "missed") for hours in (3, 2, 1)]
    assert stack.call("up").startswith("started Prefect worker in ")
    deadline = time.monotonic() + 90
    with stack.client() as client:
        while not all(client.read_flow_run(run).state.is_final() for run in missed):
            assert time.monotonic() < deadline, stack.logs()
            time.sleep(0.5)
        names = sorted(client.read_flow_run(run).state.name for run in missed)
    assert names == ["Cancelled", "Cancelled", "Completed"]


DOWN_SECONDS = 25


def kill_database(stack: Stack) -> None:
    end(family(stack.state.processes["postgres"]), signal.SIGKILL, 5)


@pytest.fixture(scope="module")
def environment(stack: Stack) -> dict[str, str]:
    """Of a run that tells the stack's Prefect server, and keeps its store elsewhere."""
    given = parts.secret_environment(stack.state, stack.credentials)
    return {name: given[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> dict[str, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("undisturbed")
    store = Store(str(folder / "store"))
    finish_study(folder, store, **environment)
    return read_tables(store)


def test_a_database_that_is_away_for_a_while_delays_a_run_and_up_brings_it_back(
    stack: Stack, tmp_path: Path, environment: dict[str, str], undisturbed: dict[str, pd.DataFrame]
):
    store = Store(str(tmp_path / "store"))
    with run_study(tmp_path, store, **environment) as run:
        wait_until(lambda: count(store, "endpoints/") or not run.is_running)
        kill_database(stack)
        time.sleep(DOWN_SECONDS)
        assert run.is_running, run.output()
        assert stack.call("up").startswith("started PostgreSQL")
        assert run.wait() == 0, run.output()[-3000:]
        assert "Traceback" not in run.output()
    assert_same_tables(read_tables(store), undisturbed)
    assert stack.call("status").count("running ") == 6


def test_a_database_that_stays_away_ends_a_run_in_a_sentence_and_the_same_command_goes_on(
    stack: Stack, tmp_path: Path, environment: dict[str, str], undisturbed: dict[str, pd.DataFrame]
):
    store = Store(str(tmp_path / "store"))
    # It asks again for seconds instead of minutes.
    with run_study(tmp_path, store, **environment, PREFECT_CLIENT_MAX_RETRIES="2") as run:
        wait_until(lambda: count(store, "endpoints/") or not run.is_running)
        kill_database(stack)
        assert run.wait() == 1
        assert "repairlab: the Prefect server fails (500 Internal Server Error), most likely" in run.output()
        assert "Traceback" not in run.output()
    assert stack.call("up").startswith("started PostgreSQL")
    finish_study(tmp_path, store, **environment)
    assert_same_tables(read_tables(store), undisturbed)


def test_down_leaves_nothing_and_no_stranger_is_touched(stack: Stack):
    state = stack.state
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        try:
            recorded = state.processes["dask-workers"]
            other = Started(pid=stranger.pid, birth="other")
            stack.folder.write_state(state.model_copy(update={"processes": state.processes | {"dask-workers": other}}))
            assert "PostgreSQL; what they kept is kept" in stack.call("down")
            assert stranger.poll() is None
            assert not recorded.is_running
        finally:
            stranger.kill()
    assert marked(state.mark) == []
    assert not [started for started in state.processes.values() if started.is_running]
    assert not [port for port in state.ports.values() if parts.is_listening("127.0.0.1", port)]
    assert "nothing is up" in stack.call("status", expected=1)
