from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# What writes image folders stands beside the tests of what reads them.
sys.path.insert(0, str(Path(__file__).parent.parent / "tasks"))


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One temporary Prefect server and database for all flow runs of a test session: it takes seconds to start."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
