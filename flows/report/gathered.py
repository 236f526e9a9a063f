"""The tables of a study, as those who read them find them in a store."""

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

TABLES = {table.name: table for table in schema.TABLES}

_WRITING_SECONDS = 20.0
"""For how long no table may be written until a run that writes them counts as gone."""


def has_tables(store: Store, study: str) -> bool:
    return store.exists(table_key(study, "ablation"))


def check_gathered(store: Store, study: str, tables: Iterable[str] = ()) -> None:
    """StoreError where the study has no tables, or has them from before there was one of these; ValueError where its
    name is none."""
    safe_name(study)
    if not has_tables(store, study):
        raise StoreError(f"{store.url} holds no tables of {study}: `repairlab run {study}` makes them")
    for name in tables:
        if not store.exists(table_key(study, name)):
            raise StoreError(
                f"{store.url} holds tables of {study} from before there was one called {name}: the same "
                f"`repairlab run {study}` command again makes it too, and trains nothing that is there"
            )


def read_gathered(store: Store, study: str, name: str) -> pd.DataFrame:
    """Return one table of a study, with all columns that it is declared with. Raises DamagedError where it is not what
    was written."""
    return read_table(store, table_key(study, name), TABLES[name])


def read_gathering(store: Store, study: str) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Return all tables of a study and their provenance, once all of them come from one gathering.

    Raises StoreError where they do not, and stand still: a run was killed as it wrote some.
    """
    versions: dict[str, str] | None = None
    last_change = 0.0
    while True:
        if (found := store.own.versions(study_prefix(study))) != versions:
            versions, last_change = found, time.monotonic()
            read = {name: open_table(store, table_key(study, name), table) for name, table in TABLES.items()}
            gatherings = {provenance.get("gathering"): provenance for _, provenance in read.values()}
            if len(gatherings) == 1:
                return {name: frame for name, (frame, _) in read.items()}, next(iter(gatherings.values()))
        elif time.monotonic() - last_change > _WRITING_SECONDS:
            raise mixed_tables(store, study)
        time.sleep(0.5)


def mixed_tables(store: Store, study: str) -> StoreError:
    """Return the error for tables of which some are of another gathering than the rest."""
    return StoreError(
        f"the tables of {study} in {store.url} come from more than one run, one of which was stopped as it wrote them: "
        f"the same `repairlab run {study}` command again makes them anew, and trains nothing that is there"
    )
