"""The process of a study is killed alone, as the kernel does for want of memory: what it has started ends too."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from processes import Process, count, run_study, wait_until

from infra.stack.processes import Started, birth_of, family
from infra.storage import Store

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]

END_SECONDS = 5

WORKER = "--multiprocessing-fork"
SERVER = "lifeline.py"


def descendants(process: Process) -> list[Started]:
    birth = birth_of(process.pid)
    assert birth is not None, process.output()
    return family(Started(pid=process.pid, birth=birth))[1:]


def find(process: Process, word: str) -> list[psutil.Process]:
    """Descendants that `word` stands in the command line of."""
    found: list[psutil.Process] = []
    for descendant in descendants(process):
        with contextlib.suppress(psutil.Error):
            child = psutil.Process(descendant.pid)
            if word in " ".join(child.cmdline()):
                found.append(child)
    return found


def server_starts(process: Process, _store: Store) -> bool:
    return bool(find(process, SERVER))


def workers_start(process: Process, _store: Store) -> bool:
    return bool(find(process, WORKER))


def a_worker_greets_a_server_that_is_silent(process: Process, _store: Store) -> bool:
    workers = find(process, WORKER)
    if not workers:
        return False
    (server,) = find(process, SERVER)
    server.suspend()
    return any(connection.status == psutil.CONN_ESTABLISHED for connection in workers[0].net_connections("tcp"))


def tasks_run(_process: Process, store: Store) -> bool:
    return count(store, "endpoints/") > 0


@pytest.mark.parametrize(
    ("runner", "moment"),
    [
        ("processes", server_starts),
        ("processes", workers_start),
        ("processes", a_worker_greets_a_server_that_is_silent),
        ("processes", tasks_run),
        ("threads", server_starts),
        ("threads", tasks_run),
        pytest.param("dask", server_starts, marks=pytest.mark.dask),
        pytest.param("dask", workers_start, marks=pytest.mark.dask),
        pytest.param("dask", tasks_run, marks=pytest.mark.dask),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_run_that_is_killed_alone_leaves_no_process(
    tmp_path: Path, store: Store, runner: str, moment: Callable[[Process, Store], bool]
):
    with run_study(tmp_path, store, "--runner", runner, PREFECT_HOME=str(tmp_path)) as process:
        wait_until(lambda: moment(process, store) or not process.is_running)
        left = descendants(process)
        assert left
        named = {child.pid: name(child.pid) for child in left}
        process.send(signal.SIGKILL)
        killed = time.monotonic()
        process.wait()
        # Of what began as the run was killed, too, nothing is left.
        while found := {*group(process.pid), *(child.pid for child in left if child.is_running)}:
            assert time.monotonic() < killed + END_SECONDS, [named.get(pid) or name(pid) for pid in found]
            time.sleep(0.1)


def name(pid: int) -> str:
    """Its command line, and whether it computes, waits or is stopped."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return f"{process.status()} {' '.join(process.cmdline())}"
    return "gone"


def group(leader: int) -> list[int]:
    found: list[int] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found
