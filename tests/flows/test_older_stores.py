"""A store that was made before the code was laid out anew: `tests/stores/before.tar.gz`, by `tests/stores/before.toml`.

It holds everything but the report and its figures.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from flows.report.gathered import TABLES_BY_NAME
from flows.results import open_study

Call = Callable[..., tuple[int, str, str]]
STORES = Path(__file__).parents[1] / "stores"

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def older(tmp_path: Path) -> Path:
    with tarfile.open(STORES / "before.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    for path in tmp_path.rglob("*"):
        os.utime(path, (0, 0))  # `gc` keeps the files of the last day.
    return tmp_path


def digests(store: Path) -> dict[str, str]:
    """What is measured, by file."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.relative_to(store).parts[0] != "studies"
    }


def tables_of(store: Path) -> dict[str, pd.DataFrame]:
    study = open_study(str(store), "before")
    return {name: study.table(name) for name in TABLES_BY_NAME}


def test_every_file_is_whole_and_none_is_garbage(older: Path, call: Call):
    assert call("check", "--store", str(older))[0] == 0
    before = digests(older)
    assert call("gc", "--store", str(older))[0] == 0
    assert digests(older) == before


def test_the_same_study_makes_nothing_again_and_its_tables_say_the_same(older: Path, call: Call):
    files, tables = digests(older), tables_of(older)
    assert len(files) > 150
    assert all(len(table) for name, table in tables.items() if name not in ("paper", "width_laws"))
    assert call("run", str(STORES / "before.toml"), "--store", str(older))[0] == 0
    assert digests(older) == files
    assert (older / "studies/before/report.html").is_file()
    for name, table in tables_of(older).items():
        pd.testing.assert_frame_equal(table, tables[name])


def test_a_network_between_two_endpoints_is_built(older: Path):
    study = open_study(str(older), "before")
    aligned = study.barriers.query("matcher == 'activation' and kind == 'pair'")
    assert study.network(aligned["merge_id"].iloc[0], 0.5, correction="repair")
