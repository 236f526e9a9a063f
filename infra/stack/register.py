"""Makes what the stack wants a Prefect server to know: the automation that finds dead runs, and our deployments.

Run with the stack's environment, once its worker has made the work pool. Again is as good as once.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from importlib import resources

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from infra.stack.parts import HEARTBEAT_SECONDS

DEAD_AFTER_SECONDS = 75
"""Two beats and a half: a single late one is no death."""

_BEAT = "prefect.flow-run.heartbeat"

_ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")


def dead_runs() -> AutomationCore:
    """Marks a run Crashed that has told that it lives, and then tells nothing more, not even that it ended."""
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


def main() -> int:
    """The exit code of `prefect deploy`."""
    automation = dead_runs()
    with get_client(sync_client=True) as client:
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
