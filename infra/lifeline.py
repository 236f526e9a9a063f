"""Child processes that end with their parent, however that ends.

Whoever kills the parent alone, as the kernel does for want of memory, leaves its children waiting for work that nobody
sends. So each child looks, in a thread of its own, whether its parent's process id is still the one that it began with:
a process whose parent has died gets another. Where a child is busy with what lets no other thread run, as loading a
large library does, Linux ends it; elsewhere it ends as soon as that is done.

As a script, `lifeline.py PARENT MODULE ARGUMENT...` runs any module so, as `python -m MODULE ARGUMENT...` would. It
takes from the standard library alone, so that a child is under its lifeline before what it is there for is imported.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from traceback import walk_stack

_LOOK_SECONDS = 0.5

_STARTING_SECONDS = 2.0
_POLL_SECONDS = 0.005

_PR_SET_PDEATHSIG = 1

_parent: int | None = None
"""The process that this one ends with, once there is one."""

_started: list[subprocess.Popen[bytes]] = []


def end_with(parent: int) -> None:
    """Has this process end at once, with exit code 1, as soon as the process `parent` is not, or is no longer, its
    parent. What is called later stands."""
    global _parent
    is_looking, _parent = _parent is not None, parent
    if not is_looking:
        _ask_the_kernel()
        threading.Thread(target=_look, name="lifeline", daemon=True).start()


def _ask_the_kernel() -> None:
    """Has Linux kill this process once the thread that has started it ends, be it with its process: whoever starts a
    child here does so in a thread that the child does not outlive."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _look() -> None:
    while os.getppid() == _parent:
        time.sleep(_LOOK_SECONDS)
    # Nothing that waits for the parent may hold this up.
    os._exit(1)


def begin_worker() -> None:
    """What a process that multiprocessing has started begins with: it ends with its parent, and no sooner by Ctrl-C,
    which reaches every process of a terminal and of which the parent alone decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # While the process still imports what it is to run, multiprocessing does not know its parent.
    known = multiprocessing.parent_process()
    end_with(os.getppid() if known is None or known.pid is None else known.pid)


def start(module: str, *arguments: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts `python -m module arguments`, which ends with this process."""
    # Without -P, modules that lie beside this file would hide installed ones of the same name.
    command = [sys.executable, "-P", __file__, str(os.getpid()), module, *arguments]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    _started.append(process)
    return process


def kill_children() -> None:
    """Ends every process of multiprocessing's and of `start` at once: for a process that is about to end itself.

    One that another thread is just starting is waited for: without the rest of what it is to read it would say so.
    """
    deadline = time.monotonic() + _STARTING_SECONDS
    is_starting = True
    while is_starting and time.monotonic() < deadline:
        is_starting = _is_starting_a_worker()
        for worker in multiprocessing.active_children():
            worker.kill()
        for process in _started:
            process.kill()
        if is_starting:
            time.sleep(_POLL_SECONDS)


def _is_starting_a_worker() -> bool:
    """Whether some thread is within the start of a process of multiprocessing's, which is not known as a child yet."""
    threads = sys._current_frames().values()  # pyright: ignore[reportPrivateUsage]
    starting = BaseProcess.start.__code__
    return any(frame.f_code is starting for innermost in threads for frame, _ in walk_stack(innermost))


def _run(arguments: list[str]) -> None:
    parent, module = int(arguments[0]), arguments[1]
    end_with(parent)
    sys.argv[:] = arguments[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run(sys.argv[1:])
