from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

# What makes tables is shared here; what writes image folders stands beside the tests of what reads them.
for folder in (Path(__file__).parent, Path(__file__).parent.parent / "tasks"):
    sys.path.insert(0, str(folder))

from made_tables import ablation_rows  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker of `pytest -n` runs all tests that need a Prefect server: each starts its own."""
    for item in items:
        if "prefect_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("prefect"))


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a user-defined module into a folder that becomes the current one; returns its name."""

    def write(text: str) -> str:
        name = re.sub(r"\W", "_", f"own_{tmp_path.name}")  # no two tests import the same
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return name

    return write


Call = Callable[..., tuple[int, str, str]]
"""Runs `repairlab` with these words; returns exit code, standard output and standard error."""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command in this process, with the runner `threads` where it has one."""
    from flows.cli import main

    monkeypatch.setenv("REPAIRLAB_RUNNER", "threads")

    def repairlab(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["repairlab", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return repairlab


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One temporary Prefect server and database for all flow runs of a test session: it takes seconds to start."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def ablation() -> pd.DataFrame:
    return pd.DataFrame(ablation_rows()).assign(new_pair_low=float("nan"), new_pair_high=float("nan"))
