"""Ctrl-C, sent as a terminal sends it: to a process and all that it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra import interrupt

SENTENCE = "repairlab: stopped"

WAITING = "ready(); time.sleep(600)"

LOCKED = "lock = threading.Lock(); lock.acquire(); ready(); lock.acquire()"

CHILD = """
# It is not under the lifeline, and would tell of KeyboardInterrupt.
child = "import time; print('begun', flush=True); time.sleep(600)"
with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    ready()
"""

SEMAPHORE = f"kept = multiprocessing.get_context('spawn').Semaphore(); {WAITING}"

WORKER = f"""
interrupt.prepare_for_workers()
kept = multiprocessing.get_context("spawn").Semaphore()
{CHILD}
"""

CHATTY_THREAD = f"""
def kill_slowly():
    killing.set()
    time.sleep(0.2)
def say():
    killing.wait()
    print("said too late", flush=True)
killing = threading.Event()
interrupt.kill_children = kill_slowly
threading.Thread(target=say, daemon=True).start()
{WAITING}
"""

FAREWELL = f"""
with interrupt.before_the_end(lambda: print("farewell", flush=True)), interrupt.before_the_end(lambda: 1 / 0):
    {WAITING}
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("doing", "expected"),
    [
        (WAITING, f"{SENTENCE}\n"),
        (LOCKED, f"{SENTENCE}\n"),
        (CHILD, f"{SENTENCE}\n"),
        (SEMAPHORE, f"{SENTENCE}\n"),
        (WORKER, f"{SENTENCE}\n"),
        (CHATTY_THREAD, f"{SENTENCE}\n"),
        (FAREWELL, f"farewell\n{SENTENCE}\n"),
    ],
    ids=[
        "waiting",
        "locked",
        "with a child",
        "with a semaphore",
        "with a worker",
        "with a chatty thread",
        "with a farewell",
    ],
)
def test_a_process_that_is_stopped_says_one_sentence(tmp_path: Path, number: signal.Signals, doing: str, expected: str):
    said = tmp_path / "said"
    ready, telling = os.pipe()
    code = (
        "import multiprocessing, os, subprocess, sys, threading, time\n"
        "from infra import interrupt\n"
        f"def ready(): os.write({telling}, b'.')\n"
        f"interrupt.end_when_stopped({SENTENCE!r})\n"
        f"{doing}\n"
    )
    with said.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(Path(interrupt.__file__).parent.parent)},
            stdout=file,
            stderr=file,
            pass_fds=(telling,),
            start_new_session=True,
        )
    os.close(telling)
    try:
        assert os.read(ready, 1), said.read_text()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(20) == interrupt.EXIT_CODE
        # Whoever else could still say something has ended once nobody holds the pipe.
        if doing in (CHILD, WORKER):
            os.killpg(process.pid, signal.SIGKILL)
        assert said.read_text() == expected
    finally:
        os.close(ready)
        if process.poll() is None:
            process.kill()
            process.wait()
