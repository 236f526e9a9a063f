"""Whether a study has tables in a store."""

from __future__ import annotations

from infra.paths import table_key
from infra.storage import Store, StoreError
from tasks.science.identity import safe_name


def has_tables(store: Store, study: str) -> bool:
    return store.exists(table_key(study, "ablation"))


def check_gathered(store: Store, study: str) -> None:
    """StoreError where the study has no tables, ValueError where its name is none."""
    safe_name(study)
    if not has_tables(store, study):
        raise StoreError(f"{store.url} holds no tables of {study}: `repairlab run {study}` makes them")
