"""Processes that outlive the command that started them; a later command ends them, and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

MARK = "REPAIRLAB_STACK_MARK"
"""The environment variable that tells whose a process is."""

_KILL_SECONDS = 10.0

_children: list[subprocess.Popen[bytes]] = []
"""Held, for they outlive this process, which Python would take for a mistake."""


class Started(BaseModel):
    """Process by its id and its birth: an id is used again after a process has ended, the pair never."""

    model_config = ConfigDict(frozen=True)

    pid: int
    birth: str

    @property
    def is_running(self) -> bool:
        return birth_of(self.pid) == self.birth


def birth_of(pid: int) -> str | None:
    """Return when process `pid` began, or None if it has ended, even if its parent has not noticed yet."""
    if sys.platform != "linux":
        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
        except psutil.Error:
            return None
    # Counted from the boot, so that setting the clock changes nothing.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"


def start_detached(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    folder: Path,
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` in `folder`, in a session of its own, so that Ctrl-C in this terminal does not reach it.

    Its output is appended to `log`. `user` has the rights that it runs with; only root can choose.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
    _children.append(process)
    return process


def identify(process: subprocess.Popen[bytes]) -> Started | None:
    """Return the process `pid` with its birth, or None if it has ended already."""
    birth = birth_of(process.pid)
    return None if birth is None else Started(pid=process.pid, birth=birth)


def family(started: Started) -> list[Started]:
    """Return the process and its descendants, as far as these run."""
    if not started.is_running:
        return []
    with suppress(psutil.Error):
        children = psutil.Process(started.pid).children(recursive=True)
        return [started, *_running(child.pid for child in children)]
    return [started]


def marked(mark: str) -> list[Started]:
    """Return every running process whose environment holds `mark`."""
    found: list[int] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                found.append(process.pid)
    return _running(pid for pid in found if pid != os.getpid())


def _running(pids: Iterable[int]) -> list[Started]:
    births = {pid: birth_of(pid) for pid in pids}
    return [Started(pid=pid, birth=birth) for pid, birth in births.items() if birth is not None]


def end(processes: Sequence[Started], how: signal.Signals, patience_seconds: float) -> None:
    """Send the signal `how` to each of `processes`, and kill those that run on after `patience_seconds`."""
    _send(processes, how)
    if left := _wait(processes, patience_seconds):
        _send(left, signal.SIGKILL)
        _wait(left, _KILL_SECONDS)


def _send(processes: Sequence[Started], how: signal.Signals) -> None:
    for process in processes:
        if process.is_running:
            with suppress(ProcessLookupError):
                os.kill(process.pid, how)


def _wait(processes: Sequence[Started], seconds: float) -> list[Started]:
    """Return those of the processes that still run after at most `seconds`."""
    deadline = time.monotonic() + seconds
    while left := [process for process in processes if process.is_running]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.05)
    return []
