"""A Prefect server of this process's own, which ends with it."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import prefect
from prefect.settings import get_current_settings

from infra import lifeline

_HOST = "127.0.0.1"
_STOPPING_SECONDS = 5.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class _Server:
    process: subprocess.Popen[bytes]
    url: str


_server: _Server | None = None


def own_server_url() -> str | None:
    """The API of the server that this process has started; None where it has not, or where that has ended."""
    return _server.url if _server is not None and _server.process.poll() is None else None


def start_own_server(patience_seconds: float) -> str:
    """Starts the server unless it runs, and returns the URL of its API. It has no page, and ends in order once this
    process does, after the last log lines have gone to it. Raises RuntimeError, with the reason, where it does not
    start."""
    global _server
    if (url := own_server_url()) is not None:
        return url
    port = _free_port()
    # As Prefect starts a server for a script that has none, but under our lifeline.
    process = lifeline.start(
        "uvicorn",
        *("--app-dir", str(Path(prefect.__file__).parent)),
        *("--factory", "prefect.server.api.server:create_app"),
        *("--host", _HOST, "--port", str(port), "--log-level", "error", "--lifespan", "on"),
        environment={
            **os.environ,
            **get_current_settings().to_environment_variables(exclude_unset=True),
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        },
    )
    atexit.register(_stop, process)
    server = _Server(process, f"http://{_HOST}:{port}/api")
    try:
        _wait_for(server, patience_seconds)
    except BaseException:
        _stop(process)
        raise
    _server = server
    return server.url


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind((_HOST, 0))
        return listening.getsockname()[1]


def _wait_for(server: _Server, patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
    # A proxy of the person's has no part in what this machine says to itself.
    with httpx.Client(trust_env=False) as client:
        while True:
            try:
                answer = client.get(f"{server.url}/health")
                if answer.is_success:
                    return
                reason = f"it answers {answer.status_code}"
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            if (code := server.process.poll()) is not None:
                raise RuntimeError(f"it ended with exit code {code}")
            if time.monotonic() > deadline:
                raise RuntimeError(reason)
            time.sleep(_POLL_SECONDS)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOPPING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
