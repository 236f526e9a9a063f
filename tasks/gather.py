"""Gathers every row that a study's requests name into the tables that people open."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path as Folder
from typing import Any

import numpy as np
import pandas as pd
import torch
from prefect import task

from infra.paths import endpoint_key, row_key, study_prefix, table_key
from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import Store, StoreError
from infra.tables import Column, Table, read_rows, write_table
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.identity import REVISIONS, SCHEMA_VERSION
from tasks.science.specs.pairing import Member, Pairing, Path
from tasks.science.specs.request import Request
from tasks.stored.artifacts import as_member, has_match_rows, has_path, read_endpoint
from tasks.stored.requests import list_requests, read_requests
from tasks.tables import schema
from tasks.tables.ablation import tabulate_ablation, tabulate_barriers
from tasks.tables.comparison import tabulate_comparison
from tasks.tables.contrasts import tabulate_contrasts
from tasks.tables.sweep import Sweep
from tasks.tables.width_laws import tabulate_width_laws

NOT_YET = "not trained yet"
"""The message of an endpoint that some request names and nobody has tried to train to the end."""

MATCH_TABLES = (schema.MERGE_ROWS, schema.AXIS_ROWS)
PATH_TABLES = (schema.PATH_ROWS, schema.LAYER_ROWS)

Frames = dict[str, pd.DataFrame]
Record = dict[str, Any]


_ROUNDS = 2
"""How often tables are made where rows come while that goes on. Another run that is still measuring gathers them itself
at its end; tables that such a run has written always count."""

_TRIES = 30
"""How often, at most, tables are made where others go on writing them."""

_STILL_SECONDS, _WAIT_SECONDS = 1.0, 30.0
"""For how long tables have to stand still after another run has begun to write them before they are made again, and for
how long that is waited for."""


@task(**TASK_OPTIONS)
def gather(study: str, store: Store, failures: Mapping[str, str]) -> list[str]:
    """Writes a study's tables; returns where they lie. `failures` tells, by endpoint id, why one is not there.

    Tables that another run of the study has written in the meantime are never replaced by older ones: what was read is
    then read again.
    """
    n_written = 0
    for _ in range(_TRIES):
        tables = StudyTables(store, study)
        requests = read_requests(store, study)
        gathered = build_tables(store, study, list(requests.values()), failures)
        if not _write_tables(tables, requests, gathered):
            run_logger().info("%s is gathered by another run too: its tables are made again", study)
            wait_until_still(store, study)
            continue
        n_written += 1
        if n_written == _ROUNDS or not gathered.has_grown(store):
            run_logger().info("%s: %d pairings from %d requests", study, len(gathered.frames["merges"]), len(requests))
            return [store.locate(table_key(study, table.name)) for table in schema.TABLES]
    raise StoreError(
        f"other runs go on writing the tables of {study} in {store.url}: end them, and the same command gathers all"
    )


class StudyTables:
    """The tables of a study as somebody found them, to tell whether others have written them since."""

    def __init__(self, store: Store, study: str) -> None:
        self.store, self.study = store.own, study
        self._versions = self._look()

    def _look(self) -> dict[str, str]:
        found = self.store.versions(study_prefix(self.study))
        names = {f"{table.name}.parquet" for table in schema.TABLES}
        return {name: version for name, version in found.items() if name in names}

    def are_as_found(self) -> bool:
        """Whether nobody else has written one of them."""
        return self._versions == self._look()

    def write(self, table: Table, frame: pd.DataFrame, provenance: Record, extra: Mapping[str, Column]) -> bool:
        """Write one of them, which counts as found from now on, unless somebody else has written one: then False."""
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


def _write_tables(tables: StudyTables, requests: Mapping[str, Request], gathered: Gathered) -> bool:
    """Write the tables, and say whether they still hold all requests and replace no newer ones: as soon as they do not,
    no more of them is written."""
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

    for table in schema.TABLES:
        frame, columns = gathered.sweep.stamp(gathered.frames[table.name], table), gathered.sweep.columns(table)
        if not tables.write(table, frame, provenance, columns):
            return False
    return tables.are_as_found() and list_requests(store, study) == frozenset(requests)


@dataclass(frozen=True)
class Gathered:
    """All tables of a study, and what they were made from: the ids of what was `found`, and the keys, by group, of what
    was `lacking`."""

    frames: Frames
    sweep: Sweep
    found: frozenset[str]
    lacking: tuple[tuple[str, ...], ...]
    upstream: str | None

    def has_grown(self, store: Store) -> bool:
        """Whether something that was lacking has come since."""
        return any(all(store.exists(key) for key in keys) for keys in self.lacking)


def build_tables(store: Store, study: str, requests: Sequence[Request], failures: Mapping[str, str]) -> Gathered:
    """Return all tables of a study from what the store holds, each thing once, whichever requests name it."""
    cells: dict[str, Record] = {}
    endpoints: dict[str, Record] = {}
    pairings: dict[str, Pairing] = {}
    paths: dict[tuple[str, str, str, str], Path] = {}
    groups: dict[tuple[str, ...], Record] = {}
    # The keys of what was looked for, by its id.
    found: dict[str, tuple[str, ...]] = {}
    lacking: dict[str, tuple[str, ...]] = {}
    for request in requests:
        trained: dict[Cell, list[Member]] = {}
        for cell in request.trained_cells:
            columns = _cell_columns(study, cell)
            time = {name: getattr(cell, name) for name in schema.TIME}
            described = _described_recipe(cell) | _described(cell.data, "data")
            cells.setdefault(cell.id, columns | time | described)
            trained[cell] = []
            for endpoint in request.endpoints(cell):
                record = read_endpoint(store, endpoint)
                (lacking if record is None else found)[endpoint.id] = (endpoint_key(endpoint.id),)
                if record is None and cell.origin is not None:
                    continue  # Not every cell has as many.
                if record is None:
                    record = {"status": "failed", "message": failures.get(endpoint.id, NOT_YET)}
                elif record["status"] == "trained":
                    trained[cell].append(as_member(endpoint, record))
                endpoints[endpoint.id] = columns | _endpoint_columns(endpoint, record)
        for cell in request.cells:
            of_cell, joint = request.pairings(cell, trained[cell]), request.joint_cell(cell)
            pairings |= {pairing.id: pairing for pairing in of_cell}
            paths |= {
                (path.pairing.id, path.method, path.correction, path.measurement.name): path
                for path in request.paths(of_cell, [] if joint is None else trained[joint])
            }
            names = [measurement.name for measurement in request.measurements]
            for key in product(request.matchers, request.corrections_of(cell), names):
                groups[cell.id, *key] = _cell_columns(study, cell) | dict(
                    zip(("matcher", "correction", "measurement"), key, strict=True)
                )
    matching = [pairing for pairing in pairings.values() if pairing.matcher != "none"]
    matched = [pairing for pairing in matching if has_match_rows(store, pairing)]
    measured = [path for path in paths.values() if has_path(store, path)]
    for tables, wanted, there in ((MATCH_TABLES, matching, matched), (PATH_TABLES, paths.values(), measured)):
        ids = {one.id for one in there}
        for one in wanted:
            keys = tuple(row_key(table.name, one.id) for table in tables)
            (found if one.id in ids else lacking)[one.id] = keys
    pairs = pd.DataFrame([_pair_columns(study, pairing) for pairing in pairings.values()], columns=list(schema.PAIR))
    ids = [{"merge_id": pairing.id} for pairing in matched]
    match_rows, axis_rows = (_read(store, rows, [pairing.id for pairing in matched], ids) for rows in MATCH_TABLES)
    names = [path.measurement.name for path in measured]
    told = [{"merge_id": path.pairing.id, "correction": path.correction, "method": path.method} for path in measured]
    curves, layers = (_read(store, rows, [path.id for path in measured], told, names) for rows in PATH_TABLES)
    frames: Frames = {
        # Whole numbers beside nulls stay whole.
        "cells": pd.DataFrame(list(cells.values())).astype(dict.fromkeys(schema.TIME, "object")),
        "endpoints": pd.DataFrame(list(endpoints.values())),
        "merges": _with_members(pairs, pairings, match_rows),
        "axes": pairs.merge(axis_rows, on="merge_id"),
        "paths": pairs.merge(curves, on="merge_id"),
        "layers": pairs.merge(layers, on="merge_id"),
    }
    frames["barriers"] = tabulate_barriers(frames["paths"])
    of_pairs = frames["barriers"][frames["barriers"]["kind"] == "pair"]
    frames["ablation"] = tabulate_ablation(
        list(groups.values()), frames["paths"], frames["barriers"], frames["endpoints"]
    )
    measurements = {path.measurement.name: path.measurement for path in measured}
    # Cells of joint training have no pairs.
    paired = frames["cells"][frames["cells"]["cell_id"].isin({key[0] for key in groups})]
    # What was published was trained to the end, every seed on its own.
    published_alike = paired[list(schema.TIME)].isna().all(axis=1)
    frames["paper"] = tabulate_comparison(paired[published_alike], frames["ablation"], measurements)
    frames["contrasts"] = tabulate_contrasts(paired, of_pairs)
    frames["width_laws"] = tabulate_width_laws(paired, frames["ablation"])
    complete = {table.name: _complete(frames[table.name], table) for table in schema.TABLES}
    sweep = Sweep.of(requests, pairings.values())
    upstream = None if store.upstream is None else store.upstream.url
    return Gathered(complete, sweep, frozenset(found), tuple(lacking.values()), upstream)


def _cell_columns(study: str, cell: Cell) -> Record:
    return {
        "study": study,
        "cell_id": cell.id,
        "dataset": cell.data.name,
        "architecture": cell.architecture,
        "normalization": cell.normalization,
        "width": cell.width,
        "depth": cell.depth,
        "recipe": cell.recipe.name,
    }


def _described(spec: Any, prefix: str) -> Record:
    values = {f"{prefix}_{name}": value for name, value in dataclasses.asdict(spec).items() if name != "name"}
    return {name: "x".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}


def _described_recipe(cell: Cell) -> Record:
    """The recipe as columns: of endpoints that were brought in what is known of it, else null."""
    columns = _described(cell.recipe, "recipe")
    if cell.origin is None:
        return columns
    known = {f"recipe_{name}" for name in cell.origin.known}
    return {name: value if name in known else None for name, value in columns.items()}


def _endpoint_columns(endpoint: Endpoint, record: Record) -> Record:
    origin = "trained" if endpoint.cell.origin is None else "imported"
    where = {"endpoint_id": endpoint.id, "seed": endpoint.seed, "train_subset": endpoint.train_subset}
    return where | {"checkpoint_epoch": endpoint.cell.epoch, "origin": origin} | record


def _pair_columns(study: str, pairing: Pairing) -> Record:
    return _cell_columns(study, pairing.cell) | {
        "merge_id": pairing.id,
        "kind": "control" if pairing.control else "pair",
        "control": pairing.control or None,
        "seed_a": pairing.a.seed,
        "seed_b": pairing.b.seed,
        "matcher": pairing.matcher,
    }


def _with_members(pairs: pd.DataFrame, pairings: Mapping[str, Pairing], match_rows: pd.DataFrame) -> pd.DataFrame:
    members = {pairing.id: f"{pairing.a.endpoint_id} {pairing.b.endpoint_id}" for pairing in pairings.values()}
    n_statistics = {pairing.id: pairing.n_statistics for pairing in pairings.values()}
    subsets_a = {pairing.id: pairing.cell.data.train_subset(pairing.a.seed) for pairing in pairings.values()}
    subsets_b = {pairing.id: pairing.cell.data.train_subset(pairing.b.seed) for pairing in pairings.values()}
    return pairs.assign(
        members=pairs["merge_id"].map(members),
        train_subset_a=pairs["merge_id"].map(subsets_a),
        train_subset_b=pairs["merge_id"].map(subsets_b),
        n_statistics=pairs["merge_id"].map(n_statistics),
    ).merge(match_rows, on="merge_id", how="left")


def _read(
    store: Store, table: Table, ids: Sequence[str], told: Sequence[Record], measurements: Sequence[str] | None = None
) -> pd.DataFrame:
    """The row files of these ids, stamped with the name of each one's measurement, where they are of paths.

    DamagedError for a file whose rows have other values than those `told` of it.
    """
    keys = [row_key(table.name, row_id) for row_id in ids]
    rows, counts = read_rows(store, keys, table)
    frame = rows.to_pandas()
    positions = np.repeat(np.arange(len(keys)), counts)
    empty = [key for key, count in zip(keys, counts, strict=True) if not count]
    if empty and table in (schema.PATH_ROWS, schema.MERGE_ROWS):
        raise store.damaged(empty[0], "it has no rows")
    if table is schema.PATH_ROWS:
        impossible = ~frame["split"].isin(["train", "test"]) | ~frame["alpha"].between(0, 1) | (frame["n_examples"] < 1)
        if (wrong := np.flatnonzero(impossible)).size:
            raise store.damaged(keys[positions[wrong[0]]], "a row in it is of no point of a path")
    for name in (name for name in ("merge_id", "correction", "method") if name in table.columns):
        wanted = np.asarray([values[name] for values in told], dtype=object)[positions]
        if (wrong := np.flatnonzero(frame[name].to_numpy() != wanted)).size:
            raise store.damaged(keys[positions[wrong[0]]], f"its rows are of another {name}")
    if measurements is not None:
        frame["measurement"] = np.asarray(measurements, dtype=object)[positions]
    return frame


def _complete(frame: pd.DataFrame, table: Table) -> pd.DataFrame:
    """`frame` in the table's columns: those that nothing fills yet stand as nulls."""
    return frame.reindex(columns=list(table.columns))


def _commit() -> str:
    """The commit this code was checked out at, `-dirty` where files differ; empty where it is not a checkout.

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
