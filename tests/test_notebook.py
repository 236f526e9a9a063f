"""docs/analysis.ipynb, executed on a small variant of its study, and as it is committed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pyarrow as pa
import pytest
from object_storage import BUCKET, ObjectStorage
from s3fs import S3FileSystem

from infra.paths import table_key
from infra.storage import Store
from infra.tables import Column, open_table, write_table
from tasks.tables.schema import BARRIERS

# One study and one S3 server for all of these tests.
pytestmark = pytest.mark.xdist_group("notebook")

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs/analysis.ipynb"
FIGURES = ("figure", "drawn", "forest")
"""The cells that draw."""

Cells = dict[str, Any]


def code_cells(path: Path) -> Cells:
    return {cell.id: cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"}


def shown(cell: Any) -> str:
    """What a cell shows as text."""
    texts = [output.text for output in cell.outputs if output.output_type == "stream"]
    results = [output.data for output in cell.outputs if "data" in output]
    return "".join(texts + [str(text) for data in results for kind, text in data.items() if kind.startswith("text/")])


def assert_executed(cells: Cells) -> None:
    assert [cell.execution_count for cell in cells.values()] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells.values() for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    assert "stderr" not in {output.get("name") for output in outputs}, "a warning"
    for name in FIGURES:
        (output,) = cells[name].outputs
        assert len(output.data["image/png"]) > 10_000


def run(*words: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """With no settings or credentials but `settings`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("REPAIRLAB_", "AWS_"))}
    return subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=clean | settings, capture_output=True, text=True, timeout=170,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A small variant of the study."""
    folder = tmp_path_factory.mktemp("notebook") / "store"
    command = Path(sys.executable).with_name("repairlab")
    size = ("--epochs", "8", "--seeds", "3", "--width", "16,32", "--depth", "2")
    ran = run(
        command, "run", "docs/factors.toml", *size, "--quiet", REPAIRLAB_STORE=str(folder), REPAIRLAB_RUNNER="threads"
    )
    assert ran.returncode == 0, ran.stderr
    return Store(str(folder))


@pytest.fixture(scope="module")
def on_s3(store: Store, object_storage: ObjectStorage) -> dict[str, str]:
    """The variables that name a copy of the study's tables on S3, and the keys to it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        for name, value in object_storage.environment.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        there = Store(f"s3://{BUCKET}/notebook")
        for name in store.names("studies/factors"):
            if name.endswith(".parquet"):
                there.create(f"studies/factors/{name}", store.read(f"studies/factors/{name}"))
    S3FileSystem.clear_instance_cache()  # Else what comes next would find these keys.
    return {"REPAIRLAB_S3_STORE": there.url, **object_storage.environment}


@pytest.mark.slow
@pytest.mark.s3
def test_the_notebook_shows_the_study_in_a_folder_and_on_s3(store: Store, on_s3: dict[str, str], tmp_path: Path):
    to = tmp_path / "executed.ipynb"
    ran = run(sys.executable, "docs/analysis.py", to, REPAIRLAB_STORE=store.url, **on_s3)
    assert ran.returncode == 0, ran.stderr
    cells = code_cells(to)
    assert_executed(cells)
    assert "All 11 tables are equal in the folder and on S3." in shown(cells["s3"])
    sentence = re.search(r"in (\d+) of (\d+) cells .* raises it in (\d+), .* leaves (\d+)", shown(cells["sentence"]))
    assert sentence is not None
    lower, n_cells, higher, undecided = map(int, sentence.groups())
    assert lower + higher + undecided == n_cells == 4
    computed, tabled = re.findall(r"0\.\d{4}", shown(cells["network"]))
    assert float(computed) == pytest.approx(float(tabled), abs=0.006), "two test images of 360"


@pytest.mark.slow
@pytest.mark.s3
def test_a_table_that_differs_on_s3_stops_the_notebook(store: Store, on_s3: dict[str, str], tmp_path: Path):
    other = Store(str(tmp_path / "other"))
    for name in store.names("studies/factors"):
        if name.endswith(".parquet"):
            other.create(f"studies/factors/{name}", store.read(f"studies/factors/{name}"))
    key = table_key("factors", "barriers")
    frame, provenance = open_table(store, key)
    own = {name: Column(pa.Array.from_pandas(frame[name]).type, "") for name in frame if name not in BARRIERS.columns}
    write_table(other, key, BARRIERS, frame.assign(loss_barrier=frame["loss_barrier"] + 1), provenance, **own)
    to = tmp_path / "executed.ipynb"
    ran = run(sys.executable, "docs/analysis.py", to, REPAIRLAB_STORE=other.url, **on_s3)
    assert ran.returncode != 0
    assert "folder and S3 differ in barriers\n" in ran.stderr
    assert not to.exists()


def test_the_committed_notebook_is_executed_from_top_to_bottom_and_names_no_folder_of_any_machine():
    cells = code_cells(NOTEBOOK)
    assert_executed(cells)
    assert "names no store on S3" in shown(cells["s3"])
    text = "".join(map(shown, cells.values()))
    assert [folder for folder in ("/work", "/root", "/tmp", "/home", "/Users") if folder in text] == []
    assert NOTEBOOK.stat().st_size < 600_000
