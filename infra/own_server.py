"""Prefect server of this process, which ends with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import prefect
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from infra import lifeline


class OwnServer(SubprocessASGIServer):
    """Prefect's server for a script without one, under a lifeline.

    Prefect keeps one such server per process; its parts that look for a server find this one.
    """

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        """Start the server as Prefect would."""
        return lifeline.start(
            "uvicorn",
            *("--app-dir", str(Path(prefect.__file__).parent.parent)),
            *("--factory", "prefect.server.api.server:create_app"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--log-level", "error", "--lifespan", "on"),
            environment={
                **os.environ,
                "PREFECT_UI_ENABLED": "0",
                "PREFECT__SERVER_EPHEMERAL": "1",
                "PREFECT__SERVER_FINAL": "1",
                **get_current_settings().to_environment_variables(exclude_unset=True),
            },
        )
