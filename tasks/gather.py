"""The verb that gathers every row that a study's requests name into the tables that people open."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder

import torch
from prefect import task

from infra.paths import table_key
from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store, StoreError
from tasks.science.specs.cell import Endpoint
from tasks.science.specs.identity import REVISIONS, SCHEMA_VERSION
from tasks.science.specs.request import Request
from tasks.stored.expansion import Artifact, EndpointFile, Expansion, MatchRows, MeasuredPath, StoreView
from tasks.stored.requests import list_requests, read_requests
from tasks.stored.rows import read_measurements
from tasks.stored.study_tables import StudyTables, wait_until_still
from tasks.tables.build import BuiltTable, Findings, build_tables
from tasks.tables.schema import TABLES

_ROUNDS = 2
"""The rounds of making tables where rows come meanwhile. Another run that is still measuring gathers its rows at its
end, and tables that it has written always count."""

_TRIES = 30
"""The times, at most, that tables are made while other runs go on writing them."""


@task(**TASK_OPTIONS)
def gather(study: str, store: Store, failures: Mapping[str, str]) -> list[str]:
    """Write a study's tables and return where they lie. `failures` says, by endpoint id, why an endpoint is missing.

    Tables that another run of the study has written in the meantime are never replaced by older ones: everything is
    then read again.
    """
    n_written = 0
    for _ in range(_TRIES):
        tables = StudyTables(store, study)
        requests = read_requests(store, study)
        gathered = collect(store, study, list(requests.values()), failures)
        built = build_tables(gathered.findings)
        if not _write_tables(tables, requests, built, gathered):
            run_logger().info("%s is gathered by another run too: its tables are made again", study)
            wait_until_still(store, study)
            continue
        n_written += 1
        if n_written == _ROUNDS or not gathered.has_grown(store):
            n_pairings = len(gathered.findings.pairings)
            run_logger().info("%s: %d pairings from %d requests", study, n_pairings, len(requests))
            return [store.locate(table_key(study, table.name)) for table in TABLES]
    raise StoreError(
        f"other runs go on writing the tables of {study} in {store.url}: end them, and the same command gathers all"
    )


@dataclass(frozen=True)
class Gathered:
    """The findings in a store, the ids of the artifacts that they come from, and the artifacts that were missing."""

    findings: Findings
    found: frozenset[str]
    missing: tuple[Artifact, ...]
    upstream: str | None

    def has_grown(self, store: Store) -> bool:
        """Return whether something that was missing has been stored since."""
        return any(artifact.is_in(store) for artifact in self.missing)


def collect(store: Store, study: str, requests: Sequence[Request], failures: Mapping[str, str]) -> Gathered:
    """Read all that the store holds of the requests, each artifact once, whichever requests name it."""
    view = StoreView(store)
    expansions = [Expansion(request, view) for request in requests]
    files: dict[Endpoint, EndpointFile] = {}
    matches: dict[str, MatchRows] = {}
    paths: dict[tuple[str, str, str, str], MeasuredPath] = {}
    for expansion in expansions:
        for cell in expansion.request.trained_cells:
            files |= {file.endpoint: file for file in expansion.endpoints(cell)}
        for cell in expansion.request.cells:
            of_cell = expansion.matches(cell)
            matches |= {match.pairing.id: MatchRows(match.pairing) for match in of_cell}
            for one in expansion.paths(cell, of_cell):
                path = one.path
                paths[path.pairing.id, path.method, path.correction, path.measurement.name] = one
    wanted: list[Artifact] = [*files.values(), *(rows for rows in matches.values() if rows.keys), *paths.values()]
    missing = view.missing(wanted)
    matched = [rows for rows in matches.values() if rows.keys and view.has(rows)]
    measured = [one for one in paths.values() if view.has(one)]
    findings = Findings(
        study=study,
        requests=requests,
        records=view.records(files.values()),
        failures=failures,
        pairings={merge_id: rows.pairing for merge_id, rows in matches.items()},
        paths=[one.path for one in measured],
        rows=read_measurements(store, matched, measured),
    )
    trained = [endpoint.id for endpoint, record in findings.records.items() if record is not None]
    found = frozenset([*trained, *(rows.pairing.id for rows in matched), *(path.id for path in findings.paths)])
    upstream = None if store.upstream is None else store.upstream.url
    return Gathered(findings, found, tuple(missing), upstream)


def _write_tables(
    tables: StudyTables, requests: Collection[str], built: Sequence[BuiltTable], gathered: Gathered
) -> bool:
    """Write the tables until one has been written by another run.

    Returns whether all were written, nobody wrote one since, and no request came in the meantime.
    """
    store, study = tables.store, tables.study
    provenance = {
        "repairlab": importlib.metadata.version("repairlab"),
        "commit": _commit(),
        "torch": torch.__version__,
        "schema": SCHEMA_VERSION,
        "revisions": dict(REVISIONS),
        "upstream": gathered.upstream,
        "requests": sorted(requests),
    }
    text = json.dumps([provenance, sorted(gathered.found)], sort_keys=True)
    # Tables of one study that do not agree in this are of two runs, one of which was killed as it wrote them.
    provenance["gathering"] = hashlib.sha256(text.encode()).hexdigest()[:32]
    return (
        all(tables.write(one.table, one.frame, provenance, one.extra) for one in built)
        and tables.are_as_found()
        and list_requests(store, study) == frozenset(requests)
    )


def _commit() -> str:
    """Return the commit that this code was checked out at, `-dirty` where files differ; empty outside a checkout.

    An installed copy may lie inside some other project's repository, whose commit says nothing about this code.
    """
    home = Folder(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=home, capture_output=True, text=True, timeout=10, check=True)
        return found.stdout.strip()

    try:
        if Folder(git("rev-parse", "--show-toplevel")).resolve() != home:
            return ""
        git("ls-files", "--error-unmatch", "tasks/gather.py")
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""
