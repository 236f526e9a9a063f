"""Register with a Prefect server: the work pool, the automation that finds dead runs, and the deployments.

Runs with the stack's environment, before its worker takes runs. A second call changes nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from importlib import resources
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from infra.stack.errors import StackError
from infra.stack.parts import HEARTBEAT_SECONDS, POOL

DEAD_AFTER_SECONDS = 75
"""Two beats and a half: a single late one is no death."""

_BEAT = "prefect.flow-run.heartbeat"

_ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")


def dead_runs() -> AutomationCore:
    """Return the automation that marks a run Crashed once its heartbeats stop before it has ended."""
    mark_crashed = ChangeFlowRunState(
        name="Crashed",
        state=StateType.CRASHED,
        message=f"Nothing was heard of this run for {DEAD_AFTER_SECONDS} s (it tells every {HEARTBEAT_SECONDS} s that "
        "it lives): its process is gone. Run it again; it goes on from the store.",
        force=False,
    )
    return AutomationCore(
        name="repairlab: runs that died",
        description=f"Crashed is what a flow run is that has sent no heartbeat for {DEAD_AFTER_SECONDS} s.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            after={_BEAT},
            expect={_BEAT, *(f"prefect.flow-run.{name}" for name in _ENDS)},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=DEAD_AFTER_SECONDS),
        ),
        actions=[mark_crashed],
    )


def pool_template() -> dict[str, Any]:
    """Return the base job template of the work pool, which makes a worker start every run alike.

    The server refuses a run or deployment whose job variables ask for another command, environment or folder. The
    template has no `env`: with one, a worker would add the environment that a run asks for, whatever the variables
    allow.
    """
    template: dict[str, Any] = json.loads(resources.files("infra").joinpath("work-pool.json").read_text())
    return template


def close_pool(client: SyncPrefectClient) -> None:
    """Give the work pool our template, and make the pool if there is none.

    Raises StackError if a pool of another type has its name.
    """
    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=pool_template()))
        return
    if pool.type != "process":
        raise StackError(
            f"the work pool {POOL} is of type {pool.type}, and ours starts processes: remove it from the Prefect server"
        )
    client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=pool_template()))


def main() -> int:
    """Return the exit code of `prefect deploy`, or 1 if the work pool is not ours to mend."""
    automation = dead_runs()
    with get_client(sync_client=True) as client:
        try:
            close_pool(client)
        except StackError as error:
            print(f"repairlab: {error}", file=sys.stderr)
            return 1
        known = client.read_automations_by_name(automation.name)
        if known:
            client.update_automation(known[0].id, automation)
        else:
            client.create_automation(automation)
    with resources.as_file(resources.files("infra").joinpath("prefect.yaml")) as path:
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
