"""Ctrl-C: one sentence, and the end of this process with all that it started.

SIGINT is blocked, in every thread and in every process that is started from here on, and a thread waits for it: so it
is heard at once while another thread imports or computes, no child is disturbed by it, and none has words of its own.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType

from infra.lifeline import kill_children

EXIT_CODE = 130
"""The exit code that a shell gives a command that Ctrl-C has ended."""

_SILENT = "ignore:resource_tracker:UserWarning"

_is_heard = threading.Event()

_ending = threading.Lock()
"""Never released: a process ends once."""

_farewells: list[Callable[[], None]] = []


def end_when_stopped(sentence: str) -> None:
    """End this process at once on Ctrl-C or SIGTERM, with `sentence` on standard error and exit code 130.

    Nothing waits for workers or a server. Call it in the main thread, before any other thread is started.
    """
    block()
    # The process in which multiprocessing keeps the names of semaphores removes those that are left, as it should, and
    # would say so after the sentence.
    told = [words for words in (os.environ.get("PYTHONWARNINGS"), _SILENT) if words]
    os.environ["PYTHONWARNINGS"] = ",".join(told)

    def wait() -> None:
        # SIGTERM is for the main thread, which a signal that this one took would not wake.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.sigwait({signal.SIGINT})
        _end(sentence)

    def end(_number: int, _frame: FrameType | None) -> None:
        _end(sentence)

    threading.Thread(target=wait, name="ctrl-c", daemon=True).start()
    # The thread that first makes a semaphore of multiprocessing's has SIGINT unblocked by that.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, end)
    _is_heard.set()


def block() -> None:
    """Block SIGINT in this thread and in what it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def prepare_for_workers() -> None:
    """Block SIGINT again after multiprocessing has unblocked it, which it does once, as it makes its first semaphore.

    Call it before multiprocessing is used, so that no worker is disturbed as it starts.
    """
    if _is_heard.is_set():
        resource_tracker.ensure_running()
        block()


@contextmanager
def before_the_end(farewell: Callable[[], None]) -> Generator[None]:
    """Call `farewell` before a process that is stopped inside ends, so that the terminal is left in order."""
    _farewells.append(farewell)
    try:
        yield
    finally:
        _farewells.remove(farewell)


def _end(sentence: str) -> None:
    if not _ending.acquire(blocking=False):
        return
    for farewell in tuple(_farewells):
        with suppress(Exception):
            farewell()
    # A terminal has written ^C where the cursor stood.
    line = "\n" if os.isatty(2) else ""
    with suppress(OSError):
        os.write(2, f"{line}{sentence}\n".encode())
    # What other threads say of workers that are killed now is not the person's concern.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    with suppress(Exception):
        kill_children()
    os._exit(EXIT_CODE)
