"""Ctrl-C, sent as a terminal sends it, at any moment of a command: one sentence, and nothing is left.

A moment is one that can be seen from outside: what the process has loaded, started or written.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import BIN, STUDY, Process, count, run_study, wait_until
from test_orphans import server_starts, tasks_run, workers_start

from flows.entry import GOES_ON, STARTS_OVER
from infra.storage import Store

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the moment")


def first_moment(process: Process, _store: Store) -> bool:
    """SIGINT is blocked: the first thing that the command does."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    blocked = re.search(r"^SigBlk:\s*(\w+)$", status, re.MULTILINE)
    return blocked is not None and bool(int(blocked[1], 16) >> (signal.SIGINT - 1) & 1)


def torch_loads(process: Process, _store: Store) -> bool:
    return "/libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


def assert_said(process: Process, sentence: str) -> None:
    process.send(signal.SIGINT, to_all=True)
    assert process.wait(60) == 130, process.output()
    wait_until(
        lambda: not subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, check=False).stdout, 10
    )
    # Beside how far the study is.
    said = [line for line in process.output().splitlines() if not re.match("(train|align|interpolate|repair): ", line)]
    assert said == [sentence]


@linux
@pytest.mark.parametrize("words", [("run", *STUDY), ("demo",), ("studies",), ("report", "x"), ("du",), ("--help",)])
@pytest.mark.parametrize("command", [("repairlab",), ("python", "-m", "flows.entry")], ids=lambda words: words[0])
def test_the_first_moment_of_any_command(tmp_path: Path, command: tuple[str, ...], words: tuple[str, ...]):
    with Process(tmp_path / "log", *command, *words, REPAIRLAB_STORE=str(tmp_path / "store")) as process:
        wait_until(lambda: first_moment(process, Store(str(tmp_path / "store"))), every=0)
        assert_said(process, GOES_ON if words[0] in ("run", "demo") else STARTS_OVER)


@linux
@pytest.mark.parametrize(
    ("runner", "moment"),
    [
        ("processes", torch_loads),
        ("processes", server_starts),
        ("processes", workers_start),
        ("processes", tasks_run),
        ("threads", tasks_run),
        pytest.param("dask", workers_start, marks=pytest.mark.dask),
        pytest.param("dask", tasks_run, marks=pytest.mark.dask),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_any_moment_of_a_study(tmp_path: Path, store: Store, runner: str, moment: Callable[[Process, Store], bool]):
    with run_study(tmp_path, store, "--runner", runner, PREFECT_HOME=str(tmp_path)) as process:
        wait_until(lambda: moment(process, store) or not process.is_running, every=0.005)
        assert_said(process, GOES_ON)


IN_A_TERMINAL = """
import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
"""


def test_bars_on_a_terminal_end_before_the_sentence(tmp_path: Path, store: Store):
    words = [sys.executable, "-c", IN_A_TERMINAL, str(BIN / "repairlab"), "run", *STUDY, "--store", store.url]
    with (tmp_path / "shown").open("wb") as shown:
        terminal = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=shown, stderr=shown, cwd=tmp_path)
    try:
        wait_until(lambda: count(store, "endpoints/") or terminal.poll() is not None)
        assert terminal.stdin is not None
        terminal.stdin.write(b"\x03")
        terminal.stdin.flush()
        assert terminal.wait(60) == 130
    finally:
        terminal.kill()
        terminal.communicate()
    said = (tmp_path / "shown").read_bytes().decode()
    assert "train" in said
    # ^C is the terminal's own; the last bars end their line, the cursor is there again, and nothing follows.
    before, sentence, after = said.rpartition(f"\r\n{GOES_ON}\r\n")
    assert sentence
    assert after == ""
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")
    assert before.endswith("\r\n\x1b[?25h")
    assert "Traceback" not in said
