"""The work pool of the stack: nobody who asks for a run says what the worker runs, where, or with which environment."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Scheduled
from prefect.utilities.schema_tools import ValidationError, is_valid_schema, validate
from prefect.utilities.templating import find_placeholders
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker
from processes import PrefectServer, Process, wait_until

from infra.stack.errors import StackError
from infra.stack.parts import POOL
from infra.stack.register import close_pool, pool_template

TINY = {"study": "digits-depth", "width": [16], "depth": [2], "seeds": 2, "epochs": 2, "alphas": 3}


def overrides(mark: Path) -> dict[str, dict[str, Any]]:
    """What might be asked of a worker; each leaves a mark where it has an effect."""
    hostile = mark.parent / "hostile"
    return {
        "command": {"command": f"touch {mark}"},
        "environment": {"env": {"PYTHONPATH": str(hostile)}},
        "dotted": {"env.PYTHONPATH": str(hostile)},
        "entrypoint": {"env": {"PREFECT__FLOW_ENTRYPOINT": f"{hostile}/flow.py:study"}},
        "folder": {"working_dir": str(hostile)},
        "unknown": {"image": "theirs"},
        "all": {"command": f"touch {mark}", "working_dir": str(hostile), "env": {"PYTHONPATH": str(hostile)}},
    }


KINDS = list(overrides(Path("/x/mark")))


def configure(template: dict[str, Any], values: dict[str, Any]) -> ProcessJobConfiguration:
    """As a worker does for a run that has these job variables."""
    made = ProcessJobConfiguration.from_template_and_values(template, values, client=object())  # type: ignore[arg-type]
    return asyncio.run(made)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_variable_changes_nothing_of_what_a_worker_does(kind: str):
    values = overrides(Path("/tmp/mark"))[kind]
    found = configure(pool_template(), values)
    assert found == configure(pool_template(), {})
    assert (found.command, found.working_dir, found.env, found.name, found.labels) == (None, None, {}, None, {})
    if kind not in ("unknown", "folder"):  # Prefect looks for the folder at once.
        template = ProcessWorker.get_default_base_job_template()
        assert configure(template, values) != configure(template, {}), "as the pool comes, it has an effect"


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_refuses_every_job_variable(kind: str):
    variables = pool_template()["variables"]
    is_valid_schema(variables, preprocess=False)
    checked = {"raise_on_error": True, "preprocess": True, "ignore_required": False, "allow_none_with_default": True}
    with pytest.raises(ValidationError, match="Additional properties are not allowed"):
        validate(overrides(Path("/tmp/mark"))[kind], variables, **checked)
    validate({}, variables, **checked)


def test_the_template_has_no_place_for_a_variable():
    assert find_placeholders(pool_template()) == set()
    assert "env" not in pool_template()["job_configuration"]


def test_a_pool_of_another_type_is_left_alone_in_a_sentence():
    client = Mock(**{"read_work_pool.return_value": WorkPool(name=POOL, type="kubernetes")})
    with pytest.raises(StackError, match="the work pool repairlab is of type kubernetes, and ours starts processes"):
        close_pool(client)
    client.update_work_pool.assert_not_called()
    client.create_work_pool.assert_not_called()


class Pool:
    """A server with the stack's pool and deployments, and a worker; whatever an override does leaves a mark."""

    def __init__(self, folder: Path, server: PrefectServer) -> None:
        self.folder, self.server, self.mark = folder, server, folder / "mark"
        hostile = folder / "hostile"
        (hostile / "flows").mkdir(parents=True)
        marking = f"import pathlib\npathlib.Path({str(self.mark)!r}).touch()\n"
        for name in ("sitecustomize.py", "flow.py", "flows/__init__.py"):
            (hostile / name).write_text(marking)
        self.environment = {
            **server.environment,
            "REPAIRLAB_STORE": str(folder / "store"),
            "REPAIRLAB_RUNNER": "threads",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }

    def client(self) -> AbstractContextManager[SyncPrefectClient]:
        @contextmanager
        def connected() -> Iterator[SyncPrefectClient]:
            with temporary_settings({PREFECT_API_URL: self.server.url}), get_client(sync_client=True) as client:
                yield client

        return connected()

    def register(self) -> None:
        command = [sys.executable, "-m", "infra.stack.register"]
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def ask(self, job_variables: dict[str, Any] | None = None, seconds_ahead: int = 0) -> Any:
        """A run of the deployment `study`."""
        due = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(seconds=seconds_ahead))
        with self.client() as client:
            deployment = client.read_deployment_by_name("study/study")
            return client.create_flow_run_from_deployment(
                deployment.id, parameters={"options": TINY}, state=due, job_variables=job_variables
            ).id

    def wait_for(self, run: Any) -> Any:
        """Its last state."""
        with self.client() as client:
            wait_until(lambda: client.read_flow_run(run).state.is_final(), 120, every=0.2)
            return client.read_flow_run(run).state


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with PrefectServer(tmp_path_factory.mktemp("server")) as server:
        pool = Pool(tmp_path_factory.mktemp("pool"), server)
        with pool.client() as client:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        pool.register()
        yield pool


@pytest.fixture(scope="module")
def early(pool: Pool) -> list[Any]:
    """Runs that were asked for while the pool took job variables, as one made by a worker alone does."""
    with pool.client() as client:
        template = ProcessWorker.get_default_base_job_template()
        client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))
        deployment = client.read_deployment_by_name("study/study")
        client.update_deployment(deployment.id, DeploymentUpdate(job_variables={"command": f"touch {pool.mark}"}))
    found = [pool.ask(overrides(pool.mark)[kind]) for kind in ("all", "folder")]
    pool.register()
    return found


@pytest.fixture(scope="module")
def worker(pool: Pool, early: list[Any]) -> Iterator[Process]:
    words = ("prefect", "worker", "start", "--pool", POOL, "--type", "process", "--limit", "2")
    with Process(pool.folder / "worker.log", *words, **pool.environment) as process:
        # One at a time: what a test asks for while these go on would be cancelled.
        for run in early:
            pool.wait_for(run)
        yield process


@pytest.mark.slow
@pytest.mark.xdist_group("work-pool")
@pytest.mark.usefixtures("worker")
class TestWithAServerAndAWorker:
    def test_runs_asked_for_while_the_pool_was_open_end_with_a_sentence_and_have_no_effect(
        self, pool: Pool, early: list[Any]
    ):
        states = [pool.wait_for(run) for run in early]
        # One at a time: what comes while another goes on is cancelled.
        assert sorted(state.name for state in states) in (["Failed", "Failed"], ["Cancelled", "Failed"])
        failed = [state.message for state in states if state.name == "Failed"]
        assert all("asked for with job variables, which are not allowed" in message for message in failed)
        assert not pool.mark.exists()

    def test_register_closes_the_pool_and_takes_the_deployments_variables_away(self, pool: Pool):
        with pool.client() as client:
            assert client.read_work_pool(POOL).base_job_template == pool_template()
            for name in ("study", "report"):
                assert client.read_deployment_by_name(f"{name}/{name}").job_variables == {}

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_run_or_deployment_with_job_variables_is_refused_by_the_server(self, pool: Pool, kind: str):
        asked = overrides(pool.mark)[kind]
        with pytest.raises(PrefectHTTPStatusError, match="422") as refused:
            pool.ask(asked)
        assert "Additional properties are not allowed" in refused.value.response.text
        with pool.client() as client:
            deployment = client.read_deployment_by_name("study/study")
            with pytest.raises(PrefectHTTPStatusError, match="422"):
                client.create_deployment(deployment.flow_id, "theirs", work_pool_name=POOL, job_variables=asked)

    def test_a_run_cannot_be_given_job_variables_later(self, pool: Pool):
        with pool.client() as client:
            run = pool.ask(seconds_ahead=86_400)
            with pytest.raises(PrefectHTTPStatusError, match="422"):
                client.update_flow_run(run, job_variables={"command": f"touch {pool.mark}"})
            client.delete_flow_run(run)

    @pytest.mark.parametrize("kind", ["all", "dotted"])
    def test_a_run_made_past_the_servers_check_ends_with_a_sentence(self, pool: Pool, kind: str):
        """The one way in which the server takes job variables unread."""
        with pool.client() as client:
            deployment = client.read_deployment_by_name("study/study")
            fields = {
                "name": "theirs", "flow_id": str(deployment.flow_id), "deployment_id": str(deployment.id),
                "work_pool_name": POOL, "job_variables": overrides(pool.mark)[kind],
                "parameters": {"options": TINY}, "state": {"type": "SCHEDULED"},
            }  # fmt: skip
            answer = client._client.post("/flow_runs/", json=fields)
            answer.raise_for_status()
        state = pool.wait_for(answer.json()["id"])
        assert state.name == "Failed"
        assert "asked for with job variables, which are not allowed" in state.message
        assert not pool.mark.exists()

    def test_job_variables_put_into_a_deployment_have_no_effect_and_its_next_run_is_refused(self, pool: Pool):
        """The server takes them unread, and reads them once a run is asked for."""
        run = pool.ask(seconds_ahead=5)
        with pool.client() as client:
            deployment = client.read_deployment_by_name("study/study")
            client.update_deployment(deployment.id, DeploymentUpdate(job_variables=overrides(pool.mark)["all"]))
            with pytest.raises(PrefectHTTPStatusError, match="422"):
                pool.ask()
            assert pool.wait_for(run).name == "Completed"
            client.update_deployment(deployment.id, DeploymentUpdate(job_variables={}))
        assert not pool.mark.exists()

    def test_an_honest_run_of_the_same_deployment_goes_on(self, pool: Pool, worker: Process):
        state = pool.wait_for(pool.ask())
        assert state.name == "Completed", f"{state!r}\n{worker.output()[-3000:]}"
        assert list((pool.folder / "store" / "studies").iterdir())
        assert not pool.mark.exists()
