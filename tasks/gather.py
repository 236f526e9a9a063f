"""Gathers every row that a study's requests name into the tables that people open."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import subprocess
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path as Folder
from typing import Any

import numpy as np
import pandas as pd
import torch
from prefect import task

from infra.paths import request_key, requests_prefix, row_key, table_key
from infra.runners import TASK_OPTIONS, run_logger
from infra.storage import DamagedError, Store
from infra.tables import Table, read_rows, write_table
from tasks import schema
from tasks.ablation import summarise, tabulate_barriers
from tasks.artifacts import as_member, has_match_rows, has_path, read_endpoint
from tasks.comparison import tabulate_comparison
from tasks.contrasts import tabulate_contrasts
from tasks.science.identity import REVISIONS, SCHEMA_VERSION
from tasks.science.request import Request
from tasks.science.specs import Cell, Endpoint, Member, Merge, Path
from tasks.sweep import Sweep
from tasks.width_laws import tabulate_width_laws

NOT_YET = "not trained yet"
"""The message of an endpoint that some request names and nobody has tried to train to the end."""

Frames = dict[str, pd.DataFrame]
Record = dict[str, Any]


@task(**TASK_OPTIONS)
def gather(study: str, store: Store, failures: Mapping[str, str]) -> list[str]:
    """Writes a study's tables; returns where they lie. `failures` tells, by endpoint id, why one is not there."""
    requests = read_requests(store, study)
    while True:
        frames = _write_tables(store, study, requests, failures)
        # A flow that began in the meantime may have gathered before us: what it asked for must not be dropped.
        if (later := read_requests(store, study)).keys() == requests.keys():
            break
        requests = later
    run_logger().info("%s: %d merges from %d requests", study, len(frames["merges"]), len(requests))
    return [store.locate(table_key(study, table.name)) for table in schema.TABLES]


def _write_tables(store: Store, study: str, requests: Mapping[str, Request], failures: Mapping[str, str]) -> Frames:
    provenance = {
        "repairlab": importlib.metadata.version("repairlab"),
        "commit": _commit(),
        "torch": torch.__version__,
        "schema": SCHEMA_VERSION,
        "revisions": dict(REVISIONS),
        "upstream": None if store.upstream is None else store.upstream.url,
        "requests": sorted(requests),
    }
    frames, sweep = build_tables(store, study, list(requests.values()), failures)
    for table in schema.TABLES:
        frame, columns = sweep.stamp(frames[table.name], table), sweep.columns(table)
        write_table(store, table_key(study, table.name), table, frame, provenance, **columns)
    return frames


def read_requests(store: Store, study: str) -> dict[str, Request]:
    """Every request ever made under the study's name in this store, by id. Not those of an upstream: what a colleague
    has asked for under the same name is theirs."""
    store = store.own
    requests: dict[str, Request] = {}
    for name in (name for name in store.names(requests_prefix(study)) if name.endswith(".json")):
        request_id = name.removesuffix(".json")
        key = request_key(study, request_id)
        try:
            requests[request_id] = request = Request.from_json(store.read(key).decode())
            if request.study != study:
                raise ValueError(f"it is of a study {request.study}")
        except ValueError as error:
            raise DamagedError(f"{store.locate(key)} is damaged ({error}): delete it, run the study again") from error
    return requests


def build_tables(
    store: Store, study: str, requests: Sequence[Request], failures: Mapping[str, str]
) -> tuple[Frames, Sweep]:
    """All tables of a study from what the store holds, each thing once, whichever requests name it; and what the
    requests sweep."""
    cells: dict[str, Record] = {}
    endpoints: dict[str, Record] = {}
    merges: dict[str, Merge] = {}
    paths: dict[tuple[str, str, str, str], Path] = {}
    groups: dict[tuple[str, ...], Record] = {}
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
                if record is None and cell.origin is not None:
                    continue  # Not every cell has as many.
                if record is None:
                    record = {"status": "failed", "message": failures.get(endpoint.id, NOT_YET)}
                elif record["status"] == "trained":
                    trained[cell].append(as_member(endpoint, record))
                endpoints[endpoint.id] = columns | _endpoint_columns(endpoint, record)
        for cell in request.cells:
            found, joint = request.merges(cell, trained[cell]), request.joint_cell(cell)
            merges |= {merge.id: merge for merge in found}
            paths |= {
                (path.merge.id, path.method, path.correction, path.measurement.name): path
                for path in request.paths(found, [] if joint is None else trained[joint])
            }
            names = [measurement.name for measurement in request.measurements]
            for key in product(request.matchers, request.corrections_of(cell), names):
                groups[cell.id, *key] = _cell_columns(study, cell) | dict(
                    zip(("matcher", "correction", "measurement"), key, strict=True)
                )
    matched = [merge for merge in merges.values() if merge.matcher != "none" and has_match_rows(store, merge)]
    measured = [path for path in paths.values() if has_path(store, path)]
    pairs = pd.DataFrame([_pair_columns(study, merge) for merge in merges.values()], columns=list(schema.PAIR))
    match_rows, axis_rows = (
        _read(store, rows, [merge.id for merge in matched]) for rows in (schema.MERGE_ROWS, schema.AXIS_ROWS)
    )
    curves, layers = (
        _read(store, rows, [path.id for path in measured], [path.measurement.name for path in measured])
        for rows in (schema.PATH_ROWS, schema.LAYER_ROWS)
    )
    frames: Frames = {
        # Whole numbers beside nulls stay whole.
        "cells": pd.DataFrame(list(cells.values())).astype(dict.fromkeys(schema.TIME, "object")),
        "endpoints": pd.DataFrame(list(endpoints.values())),
        "merges": _with_members(pairs, merges, match_rows),
        "axes": pairs.merge(axis_rows, on="merge_id"),
        "paths": pairs.merge(curves, on="merge_id"),
        "layers": pairs.merge(layers, on="merge_id"),
    }
    frames["barriers"] = tabulate_barriers(frames["paths"])
    of_pairs = frames["barriers"][frames["barriers"]["kind"] == "pair"]
    frames["ablation"] = summarise(list(groups.values()), frames["paths"], frames["barriers"], frames["endpoints"])
    measurements = {path.measurement.name: path.measurement for path in measured}
    # Cells of joint training have no pairs.
    paired = frames["cells"][frames["cells"]["cell_id"].isin({key[0] for key in groups})]
    # What was published was trained to the end, every seed on its own.
    published_alike = paired[list(schema.TIME)].isna().all(axis=1)
    frames["paper"] = tabulate_comparison(paired[published_alike], frames["ablation"], measurements)
    frames["contrasts"] = tabulate_contrasts(paired, of_pairs)
    frames["width_laws"] = tabulate_width_laws(paired, frames["ablation"])
    complete = {table.name: _complete(frames[table.name], table) for table in schema.TABLES}
    return complete, Sweep.of(requests, merges.values())


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


def _pair_columns(study: str, merge: Merge) -> Record:
    return _cell_columns(study, merge.cell) | {
        "merge_id": merge.id,
        "kind": "control" if merge.control else "pair",
        "control": merge.control or None,
        "seed_a": merge.a.seed,
        "seed_b": merge.b.seed,
        "matcher": merge.matcher,
    }


def _with_members(pairs: pd.DataFrame, merges: Mapping[str, Merge], match_rows: pd.DataFrame) -> pd.DataFrame:
    members = {merge.id: f"{merge.a.endpoint_id} {merge.b.endpoint_id}" for merge in merges.values()}
    n_statistics = {merge.id: merge.n_statistics for merge in merges.values()}
    subsets_a = {merge.id: merge.cell.data.train_subset(merge.a.seed) for merge in merges.values()}
    subsets_b = {merge.id: merge.cell.data.train_subset(merge.b.seed) for merge in merges.values()}
    return pairs.assign(
        members=pairs["merge_id"].map(members),
        train_subset_a=pairs["merge_id"].map(subsets_a),
        train_subset_b=pairs["merge_id"].map(subsets_b),
        n_statistics=pairs["merge_id"].map(n_statistics),
    ).merge(match_rows, on="merge_id", how="left")


def _read(store: Store, table: Table, ids: Sequence[str], measurements: Sequence[str] | None = None) -> pd.DataFrame:
    """The row files of these ids, stamped with the name of each one's measurement, where they are of paths."""
    rows, counts = read_rows(store, [row_key(table.name, row_id) for row_id in ids], table)
    frame = rows.to_pandas()
    if measurements is not None:
        frame["measurement"] = np.repeat(np.asarray(measurements, dtype=object), counts)
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
