"""Whether a study has tables in a store."""

from __future__ import annotations

from collections.abc import Iterable

from infra.paths import table_key
from infra.storage import Store, StoreError
from tasks.science.identity import safe_name


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
