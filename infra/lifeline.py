"""Child processes that end with their parent, however that ends.

A parent that is killed alone, as the kernel does when memory runs out, leaves children that wait for work which never
comes. Each child therefore compares, in a thread of its own, its parent's process id with the one that it began with: a
process whose parent has died gets another. A child may be busy with something that lets no other thread run, such as
loading a large library: Linux ends it at once, other systems as soon as that is done.

As a script, `lifeline.py PARENT MODULE ARGUMENT...` runs a module in this way, as `python -m MODULE ARGUMENT...` would.
Only the standard library is imported, so that the lifeline holds before anything else is loaded.
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
    """End this process with exit code 1 as soon as the process `parent` is not its parent any more.

    A later call replaces an earlier one.
    """
    global _parent
    is_looking, _parent = _parent is not None, parent
    if not is_looking:
        _ask_the_kernel()
        threading.Thread(target=_look, name="lifeline", daemon=True).start()


def _ask_the_kernel() -> None:
    """Ask Linux to kill this process once the thread that started it ends, or that thread's process.

    Processes are therefore started from threads that outlive them.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _look() -> None:
    while os.getppid() == _parent:
        time.sleep(_LOOK_SECONDS)
    # Nothing that waits for the parent may hold this up.
    os._exit(1)


def begin_worker() -> None:
    """End a process that multiprocessing has started with its parent, and not by Ctrl-C.

    Ctrl-C reaches every process of a terminal; the parent alone decides what it means.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # While the process still imports what it is to run, multiprocessing does not know its parent.
    known = multiprocessing.parent_process()
    end_with(os.getppid() if known is None or known.pid is None else known.pid)


def start(module: str, *arguments: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments` as a process that ends with this one."""
    # Without -P, modules that lie beside this file would hide installed ones of the same name.
    command = [sys.executable, "-P", __file__, str(os.getpid()), module, *arguments]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    _started.append(process)
    return process


def kill_children() -> None:
    """Kill every process that multiprocessing or `start` has started, for a process that is about to end itself.

    A process that another thread is just starting is waited for: it would complain about input that is cut off.
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
    """Return whether a thread is starting a process of multiprocessing's that is not known as a child yet."""
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
