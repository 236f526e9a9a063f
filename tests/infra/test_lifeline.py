"""Children that end with their parent: here small ones, of a parent that is killed alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from processes import wait_until

from infra import lifeline
from infra.stack.processes import birth_of

END_SECONDS = 5

WAITING = "import time; time.sleep(600)"

BUSY = "import re; re.match('(a+)+b', 'a' * 60)"
"""A call into C that lets no other thread of its process run."""

BY_LOOKING = "from infra import lifeline; lifeline._ask_the_kernel = lambda: None"
"""As on a system that is not Linux."""


def orphan(how_it_begins: str, what_it_does: str) -> int:
    """The id of a process whose parent was killed once it had begun."""
    child = f"{how_it_begins}; print('begun', flush=True); {what_it_does}"
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, text=True)\n"
        "assert child.stdout.readline() == 'begun\\n'\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert birth_of(pid) is not None
        process.kill()
    return pid


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(lifeline.__file__).parent.parent))


BEGUN = "import os; from infra import lifeline; lifeline.end_with(os.getppid())"


@pytest.mark.parametrize(
    ("how_it_begins", "what_it_does"),
    [
        (BEGUN, WAITING),
        (f"{BY_LOOKING}; {BEGUN}", WAITING),
        pytest.param(BEGUN, BUSY, marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux can")),
        (f"{BY_LOOKING}; lifeline.begin_worker()", WAITING),
    ],
)
def test_a_child_ends_with_its_parent_whatever_it_is_doing(how_it_begins: str, what_it_does: str):
    pid = orphan(how_it_begins, what_it_does)
    try:
        wait_until(lambda: birth_of(pid) is None, END_SECONDS)
    finally:
        if birth_of(pid) is not None:
            os.kill(pid, signal.SIGKILL)


def test_a_child_whose_parent_was_gone_before_it_looked_ends_too():
    code = "import os; from infra import lifeline; lifeline.end_with(os.getppid() + 1); import time; time.sleep(600)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 1


def test_a_module_runs_under_the_lifeline_as_it_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From any folder, whatever modules lie there or beside the lifeline."""
    (tmp_path / "infra.py").write_text("raise AssertionError")
    (tmp_path / "told.py").write_text(
        "import sys, dask, infra.settings; open('out', 'w').write(repr((__name__, sys.argv[1:])))"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lifeline, "_started", [])
    paths = os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path)])
    process = lifeline.start("told", "--a", "b", environment={**os.environ, "PYTHONPATH": paths})
    assert process.wait(60) == 0
    assert (tmp_path / "out").read_text() == "('__main__', ['--a', 'b'])"


def test_a_worker_that_is_just_started_is_killed_and_not_left_with_half_of_what_it_reads(
    monkeypatch: pytest.MonkeyPatch,
):
    killed: list[str] = []
    starting, known = threading.Event(), threading.Event()

    class Worker:
        def kill(self) -> None:
            killed.append("worker")

    def begin(_process: BaseProcess) -> None:
        starting.set()
        time.sleep(0.1)
        known.set()
        raise OSError("no process, for a test")

    class Slow(BaseProcess):
        _Popen = staticmethod(begin)

    def start() -> None:
        with pytest.raises(OSError, match="for a test"):
            Slow().start()

    monkeypatch.setattr(lifeline, "_started", [])
    monkeypatch.setattr(lifeline.multiprocessing, "active_children", lambda: [Worker()] if known.is_set() else [])
    thread = threading.Thread(target=start)
    thread.start()
    assert starting.wait(10)
    lifeline.kill_children()
    thread.join()
    assert killed


def test_all_children_are_killed_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lifeline, "_started", [])
    monkeypatch.setattr(lifeline.multiprocessing, "active_children", list)
    process = lifeline.start("http.server", "--bind", "127.0.0.1", "0", environment=os.environ)
    lifeline.kill_children()
    assert process.wait(10) == -signal.SIGKILL
