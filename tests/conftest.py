"""What tests share: a tiny data set with something to learn, a cell on it, and a clean environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Servers that tests start stand beside this file.
sys.path.insert(0, str(Path(__file__).parent))

# Read when Prefect is imported: tests neither print its log nor leave a trace in a person's own home.
os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"

import pytest
import torch
from object_storage import ObjectStorage
from s3fs import S3FileSystem

from infra.storage import Store
from tasks.science.data.examples import Dataset, Examples
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream
from tasks.science.specs.recipe import Recipe

torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse a test of a group that is spread over workers: its tests share a server, or build on each other."""
    is_grouped = item.nodeid.rfind("@") > item.nodeid.rfind("]")  # pytest-xdist adds the group to the id.
    if hasattr(item.config, "workerinput") and item.get_closest_marker("xdist_group") and not is_grouped:
        pytest.fail(
            f"pytest {pytest.__version__} spreads groups of tests over workers: add `--dist loadgroup`, and install "
            "what constraints.txt says",
            pytrace=False,
        )


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("REPAIRLAB_")]:
        monkeypatch.delenv(name)
    yield
    # A command leaves its options there for the workers that it starts.
    for name in [name for name in os.environ if name.startswith("REPAIRLAB_")]:
        del os.environ[name]


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture(scope="session")
def object_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStorage]:
    """One S3 server for all tests of a session: it takes seconds to start."""
    with ObjectStorage(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_credentials(object_storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a person who may use the S3 server."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # fsspec remembers the credentials of an earlier bucket.


@pytest.fixture(scope="session")
def blobs() -> Dataset:
    """Four classes of 6x6 images, each a noisy copy of its class' pattern: 240 to train on, 80 to test."""
    rng = stream("test", "blobs")
    patterns = rng.standard_normal((4, 1, 6, 6))

    def draw(n: int) -> Examples:
        labels = rng.integers(0, 4, n)
        images = patterns[labels] + rng.standard_normal((n, 1, 6, 6))
        return Examples(torch.tensor(images, dtype=torch.float32), torch.tensor(labels))

    return Dataset(DataSpec("blobs", "blobs-1", 240, 80, 4, (1, 6, 6)), draw(240), draw(80), black=-1.5)


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return Recipe("quick", batch_size=40, epochs=6, learning_rate=0.05, warmup=0.1)


@pytest.fixture(scope="session")
def cell(blobs: Dataset, recipe: Recipe) -> Cell:
    return Cell(blobs.spec, "mlp", "none", width=16, depth=3, recipe=recipe)
