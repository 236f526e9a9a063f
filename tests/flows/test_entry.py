"""What the command imports before it can be stopped, and what its workers begin with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import flows.entry


def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(flows.entry.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_that_takes_time_is_imported_before_ctrl_c_is_heard():
    imported = run("import sys; before = set(sys.modules); import flows.entry; print(*(set(sys.modules) - before))")
    heavy = {"logging", "multiprocessing", "subprocess", "typer", "pydantic", "prefect", "torch"}
    assert not heavy & set(imported.split())


def test_a_worker_is_under_its_lifeline_before_it_imports_what_it_is_to_run():
    """Python calls the main module of a worker so."""
    told = run(
        "import os, sys; sys.modules['__mp_main__'] = sys.modules['__main__']\n"
        "import flows.entry; from infra import lifeline\n"
        "print(lifeline._parent == os.getppid(), 'flows.cli' in sys.modules)"
    )
    assert told.split() == ["True", "False"]
