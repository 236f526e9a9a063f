"""The tables of a study in its store, written so that none replaces a newer one of another run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pandas as pd

from infra.paths import study_prefix, table_key
from infra.storage import Store
from infra.tables import Column, Table, write_table
from tasks.tables.schema import TABLES

_STILL_SECONDS, _WAIT_SECONDS = 1.0, 30.0
"""The seconds that tables have to stand still once another run writes them, and that this is waited for."""


class StudyTables:
    """The versions of a study's tables as found, to tell whether others have written them since."""

    def __init__(self, store: Store, study: str) -> None:
        self.store, self.study = store.own, study
        self._versions = self._look()

    def _look(self) -> dict[str, str]:
        found = self.store.versions(study_prefix(self.study))
        names = {f"{table.name}.parquet" for table in TABLES}
        return {name: version for name, version in found.items() if name in names}

    def are_as_found(self) -> bool:
        """Return whether nobody else has written one of the tables."""
        return self._versions == self._look()

    def write(self, table: Table, frame: pd.DataFrame, provenance: dict[str, Any], extra: Mapping[str, Column]) -> bool:
        """Write a table unless somebody else has written one since; return whether it was written."""
        before = self._look()
        if before != self._versions:
            return False
        write_table(self.store, table_key(self.study, table.name), table, frame, provenance, **extra)
        name = f"{table.name}.parquet"
        self._versions = {**before, name: self._look().get(name, "")}
        return True


def wait_until_still(store: Store, study: str) -> None:
    """Return once the tables of a study stand still, or after a while."""
    begun = last_change = time.monotonic()
    tables = StudyTables(store, study)
    while time.monotonic() - last_change < _STILL_SECONDS and time.monotonic() - begun < _WAIT_SECONDS:
        time.sleep(_STILL_SECONDS / 4)
        if not tables.are_as_found():
            tables, last_change = StudyTables(store, study), time.monotonic()
