"""The files of a store that its studies refer to: all that a run of their requests would look for again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from infra.paths import endpoint_key, table_key
from infra.storage import DamagedError, Entry, Store
from infra.tables import read_provenance, read_table
from tasks.science.specs.cell import Endpoint
from tasks.science.specs.identity import REVISIONS, SCHEMA_VERSION
from tasks.science.specs.request import Request
from tasks.stored.expansion import EndpointFile, Expansion, StoreView
from tasks.stored.imports import read_imports
from tasks.stored.requests import read_requests
from tasks.tables.schema import TABLES

STUDIES = "studies"
KINDS = ("endpoints", "trainings", "permutations", "moments", "rows", STUDIES)
"""The folders of a store. Other files beside them are not garbage."""

_OF_WEIGHTS = ("permutations/", "moments/", "rows/")
"""The folders whose files are named by weights of endpoints, and unknown while these are missing."""

_OF_STUDIES = (".parquet", ".json", ".html", ".png")
"""The endings of the names of files that a study has of its own."""

MIN_AGE = timedelta(days=1)
"""The age from which a file may be garbage: a younger one may be about to be named by a request."""


@dataclass(frozen=True)
class Inventory:
    """The files of a store, and the keys that each study refers to, its own files included.

    Attributes
    ----------
    unfinished
        Studies that name missing endpoints, so that the names of measurements between those are unknown.
    foreign
        Studies that may have files whose names are unknown: gathered under other revisions or from other requests, or
        with a damaged file that says what they refer to.
    requests
        Every request that was there.
    """

    entries: list[Entry]
    studies: dict[str, frozenset[str]]
    unfinished: tuple[str, ...]
    foreign: tuple[str, ...]
    requests: frozenset[tuple[str, str]]

    def bytes_of(self, study: str) -> int:
        """Return the bytes that a study refers to; shared files count with every study."""
        return sum(entry.n_bytes for entry in self.entries if entry.key in self.studies[study])

    def count_kinds(self) -> dict[str, tuple[int, int]]:
        """Return the number of files and of bytes, by top folder."""
        counts, sizes = Counter[str](), Counter[str]()
        for entry in self.entries:
            kind = entry.key.partition("/")[0]
            counts[kind] += 1
            sizes[kind] += entry.n_bytes
        return {kind: (counts[kind], sizes[kind]) for kind in KINDS if kind in counts}

    def garbage(self) -> list[Entry]:
        """Return the files that no study refers to and that are a day old.

        While a study is unfinished, no measurement of a pair is among them. While a study is foreign, or there are no
        requests, only temporary files are.
        """
        kept = frozenset[str]().union(*self.studies.values())
        youngest = datetime.now(UTC) - MIN_AGE
        old = [entry for entry in self.entries if entry.key not in kept and entry.modified < youngest]
        if self.foreign or not self.requests:
            return [entry for entry in old if entry.is_temporary]
        return [e for e in old if e.is_temporary or not (self.unfinished and e.key.startswith(_OF_WEIGHTS))]


def take_inventory(store: Store) -> Inventory:
    """Return the files of a store, and the studies that they are there for.

    `store` is to have the upstream that its studies were run with, if they were.
    """
    # Listed before requests are read: a request is written before anything that it names.
    entries = [entry for entry in store.own.entries() if entry.key.partition("/")[0] in KINDS]
    names = sorted({entry.key.split("/")[1] for entry in entries if re.match(rf"{STUDIES}/[^/]+/", entry.key)})
    studies, unfinished, foreign = dict[str, frozenset[str]](), list[str](), list[str]()
    view = StoreView(store)
    for study in names:
        prefix = f"{STUDIES}/{study}/"
        own = frozenset(entry.key for entry in entries if entry.key.startswith(prefix) and not entry.is_temporary)
        try:
            requests, imports = read_requests(store, study), read_imports(store, study)
            expansions = [Expansion(request, view) for request in requests.values()]
            imported = [endpoint_key(endpoint.id) for endpoint in imports]
            studies[study] = own.union(imported, *(expansion.keys() for expansion in expansions))
            if _is_unfinished(expansions, imports, view):
                unfinished.append(study)
            is_foreign = _is_foreign(store.own, study, requests, imports, own)
        except DamagedError:
            studies[study], is_foreign = own, True
        if is_foreign:
            foreign.append(study)
    return Inventory(entries, studies, tuple(unfinished), tuple(foreign), list_declarations(store))


def list_declarations(store: Store) -> frozenset[tuple[str, str]]:
    """Return every request and every import of a store, by study and name."""
    return frozenset(
        (study, f"{kind}/{name}")
        for study in store.own.folders(STUDIES)
        for kind in ("requests", "imported")
        for name in store.own.names(f"{STUDIES}/{study}/{kind}")
    )


def _is_unfinished(expansions: Sequence[Expansion], imports: Sequence[Endpoint], view: StoreView) -> bool:
    """Return whether endpoints are missing, or imported cells named whose number of endpoints is not known."""
    known = {endpoint.cell for endpoint in imports}
    cells = [(expansion, cell) for expansion in expansions for cell in expansion.request.trained_cells]
    return (
        any(cell.origin is not None and cell not in known for _, cell in cells)
        or any(expansion.missing_endpoints(cell) for expansion, cell in cells)
        or bool(view.missing(map(EndpointFile, imports)))
    )


def _is_foreign(
    store: Store, study: str, requests: Mapping[str, Request], imports: Iterable[Endpoint], own: Set[str]
) -> bool:
    """Return whether the study's `own` files show that it has more than `requests` and `imports` name.

    Raises DamagedError where a table is not as written.
    """
    if not requests:
        return any(key.endswith(_OF_STUDIES) for key in own)
    if table_key(study, "ablation") not in own:
        return True
    # Read one by one: any of them may be of a run that was killed as it wrote them.
    for table, key in ((table, table_key(study, table.name)) for table in TABLES):
        if key in own:
            gathered = read_provenance(store, key)
            same = (gathered.get("schema"), gathered.get("revisions")) == (SCHEMA_VERSION, dict(REVISIONS))
            if not same or sorted(requests) != gathered.get("requests"):
                return True
            if table.name == "endpoints":
                frame = read_table(store, key, table)
                imported = set(frame["endpoint_id"][frame["origin"] == "imported"])
                if not imported <= {endpoint.id for endpoint in imports}:
                    return True
    return False
