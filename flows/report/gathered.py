"""Reading a study's tables from a store."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pandas as pd

from infra.paths import study_prefix, table_key
from infra.storage import Store, StoreError
from infra.tables import open_table, read_table
from tasks.science.specs.identity import safe_name
from tasks.tables import schema

TABLES_BY_NAME = {table.name: table for table in schema.TABLES}

_WRITING_SECONDS = 20.0
"""Time without a table being written after which the run that writes them counts as stopped."""


def has_tables(store: Store, study: str) -> bool:
    """Return whether the study has tables in the store."""
    return store.exists(table_key(study, "ablation"))


def check_gathered(store: Store, study: str, tables: Iterable[str] = ()) -> None:
    """Raise StoreError if the study lacks one of `tables`, or any table; ValueError if its name is invalid."""
    safe_name(study)
    if not has_tables(store, study):
        raise StoreError(f"{store.url} has no tables of {study}; `repairlab run {study}` makes them")
    for name in tables:
        if not store.exists(table_key(study, name)):
            raise StoreError(
                f"the tables of {study} in {store.url} are from a version without the table {name}; running the same "
                f"`repairlab run {study}` command again adds it, without training anything again"
            )


def read_gathered(store: Store, study: str, name: str) -> pd.DataFrame:
    """Return one table of a study, with all of its declared columns.

    Raises DamagedError if it is not what was written.
    """
    return read_table(store, table_key(study, name), TABLES_BY_NAME[name])


def read_gathering(store: Store, study: str) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Return all tables of a study and their provenance, once all of them come from one gathering.

    Raises StoreError if they do not, and no longer change: a run was stopped while it wrote them.
    """
    versions: dict[str, str] | None = None
    last_change = 0.0
    while True:
        if (found := store.own.versions(study_prefix(study))) != versions:
            versions, last_change = found, time.monotonic()
            read = {name: open_table(store, table_key(study, name), table) for name, table in TABLES_BY_NAME.items()}
            gatherings = {provenance.get("gathering"): provenance for _, provenance in read.values()}
            if len(gatherings) == 1:
                return {name: frame for name, (frame, _) in read.items()}, next(iter(gatherings.values()))
        elif time.monotonic() - last_change > _WRITING_SECONDS:
            raise mixed_tables(store, study)
        time.sleep(0.5)


def mixed_tables(store: Store, study: str) -> StoreError:
    """Return the error for tables that come from several gatherings."""
    return StoreError(
        f"the tables of {study} in {store.url} come from more than one run, one of which was stopped while it wrote "
        f"them; running the same `repairlab run {study}` command again rewrites them, without training anything again"
    )
