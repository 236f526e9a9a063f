"""Building of a study's tables from the findings in its store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd

from infra.tables import Column, Table
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.pairing import Pairing
from tasks.science.specs.path import Path
from tasks.science.specs.request import Request
from tasks.tables import schema
from tasks.tables.ablation import tabulate_ablation, tabulate_barriers
from tasks.tables.comparison import tabulate_comparison
from tasks.tables.contrasts import tabulate_contrasts
from tasks.tables.frames import Row
from tasks.tables.sweep import Sweep
from tasks.tables.width_laws import tabulate_width_laws

NOT_YET = "not trained yet"
"""The message of an endpoint that is missing though no training of it has failed."""


@dataclass(frozen=True)
class Findings:
    """The contents of a store under the requests of a study."""

    study: str
    requests: Sequence[Request]
    records: Mapping[Endpoint, Mapping[str, Any] | None]
    """The record of every endpoint; None where it is missing."""
    failures: Mapping[str, str]
    """The reasons why endpoints are missing, by id."""
    pairings: Mapping[str, Pairing]
    """All pairings between the endpoints that are there, by id."""
    paths: Sequence[Path]
    """All measured paths."""
    rows: Mapping[str, pd.DataFrame]
    """The rows of matches and paths, by the name of their table."""


@dataclass(frozen=True)
class BuiltTable:
    """A table's rows, in its columns and in `extra` ones for the fields that the study sweeps."""

    table: Table
    frame: pd.DataFrame
    extra: Mapping[str, Column]


def build_tables(findings: Findings) -> list[BuiltTable]:
    """Return all tables of a study, in the order of `schema.TABLES`."""
    frames = _tabulate_findings(findings)
    frames |= _summarise_findings(findings, frames)
    sweep = Sweep.of(findings.requests, findings.pairings.values())
    built: list[BuiltTable] = []
    for table in schema.TABLES:
        # Columns that nothing fills yet are null.
        frame = frames[table.name].reindex(columns=list(table.columns))
        built.append(BuiltTable(table, sweep.stamp(frame, table), sweep.columns(table)))
    return built


def _tabulate_findings(findings: Findings) -> dict[str, pd.DataFrame]:
    """Return the tables that have a row for each thing found."""
    study, pairings, rows = findings.study, findings.pairings, findings.rows
    cells = dict.fromkeys(endpoint.cell for endpoint in findings.records)
    endpoints = [
        _cell_columns(study, endpoint.cell) | _endpoint_columns(endpoint, told)
        for endpoint, record in findings.records.items()
        if (told := _told_of(endpoint, record, findings.failures)) is not None
    ]
    pairs = pd.DataFrame([_pair_columns(study, pairing) for pairing in pairings.values()], columns=list(schema.PAIR))
    frames = {name: pairs.merge(rows[name], on="merge_id") for name in ("axes", "paths", "layers")}
    return frames | {
        # Whole numbers beside nulls stay whole.
        "cells": pd.DataFrame([_described_cell(study, cell) for cell in cells]).astype(
            dict.fromkeys(schema.TIME, "object")
        ),
        "endpoints": pd.DataFrame(endpoints),
        "merges": _with_members(pairs, pairings, rows["merges"]),
        "barriers": tabulate_barriers(frames["paths"]),
    }


def _summarise_findings(findings: Findings, frames: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the tables of means, and of what follows from them."""
    groups = _groups(findings)
    barriers = frames["barriers"]
    ablation = tabulate_ablation(list(groups.values()), frames["paths"], barriers, frames["endpoints"])
    # Cells of joint training have no pairs.
    paired = frames["cells"][frames["cells"]["cell_id"].isin({key[0] for key in groups})]
    # What was published was trained to the end, every seed on its own.
    published_alike = paired[list(schema.TIME)].isna().all(axis=1)
    measurements = {path.measurement.name: path.measurement for path in findings.paths}
    return {
        "ablation": ablation,
        "paper": tabulate_comparison(paired[published_alike], ablation, measurements),
        "contrasts": tabulate_contrasts(paired, barriers[barriers["kind"] == "pair"]),
        "width_laws": tabulate_width_laws(paired, ablation),
    }


def _groups(findings: Findings) -> dict[tuple[str, ...], Row]:
    """Return the columns of every mean over pairs that is asked for, by cell, matcher, correction and measurement."""
    groups: dict[tuple[str, ...], Row] = {}
    for request in findings.requests:
        names = [measurement.name for measurement in request.measurements]
        for cell in request.cells:
            for key in product(request.matchers, request.corrections_of(cell), names):
                told = dict(zip(("matcher", "correction", "measurement"), key, strict=True))
                groups[cell.id, *key] = _cell_columns(findings.study, cell) | told
    return groups


def _told_of(
    endpoint: Endpoint, record: Mapping[str, Any] | None, failures: Mapping[str, str]
) -> Mapping[str, Any] | None:
    """Return an endpoint's record, or one that says why it is missing; None where its cell need not have it."""
    if record is not None:
        return record
    if endpoint.cell.origin is not None:
        return None
    return {"status": "failed", "message": failures.get(endpoint.id, NOT_YET)}


def _described_cell(study: str, cell: Cell) -> Row:
    """Return a cell's columns with all fields of its recipe and data."""
    time = {name: getattr(cell, name) for name in schema.TIME}
    return _cell_columns(study, cell) | time | _described_recipe(cell) | _described(cell.data, "data")


def _cell_columns(study: str, cell: Cell) -> Row:
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


def _described(spec: Any, prefix: str) -> Row:
    values = {f"{prefix}_{name}": value for name, value in dataclasses.asdict(spec).items() if name != "name"}
    return {name: "x".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}


def _described_recipe(cell: Cell) -> Row:
    """Return the recipe as columns; fields that are not known of an imported cell are null."""
    columns = _described(cell.recipe, "recipe")
    if cell.origin is None:
        return columns
    known = {f"recipe_{name}" for name in cell.origin.known}
    return {name: value if name in known else None for name, value in columns.items()}


def _endpoint_columns(endpoint: Endpoint, record: Mapping[str, Any]) -> Row:
    origin = "trained" if endpoint.cell.origin is None else "imported"
    where = {"endpoint_id": endpoint.id, "seed": endpoint.seed, "train_subset": endpoint.train_subset}
    return {**where, "checkpoint_epoch": endpoint.cell.epoch, "origin": origin, **record}


def _pair_columns(study: str, pairing: Pairing) -> Row:
    return _cell_columns(study, pairing.cell) | {
        "merge_id": pairing.id,
        "kind": "control" if pairing.control else "pair",
        "control": pairing.control or None,
        "seed_a": pairing.a.seed,
        "seed_b": pairing.b.seed,
        "matcher": pairing.matcher,
    }


def _with_members(pairs: pd.DataFrame, pairings: Mapping[str, Pairing], match_rows: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs with their members, in the same order as `pairings`, and their match where there is one."""
    of = list(pairings.values())
    return pairs.assign(
        members=[f"{pairing.a.endpoint_id} {pairing.b.endpoint_id}" for pairing in of],
        train_subset_a=[pairing.cell.data.train_subset(pairing.a.seed) for pairing in of],
        train_subset_b=[pairing.cell.data.train_subset(pairing.b.seed) for pairing in of],
        n_statistics=pd.Series([pairing.n_statistics for pairing in of], index=pairs.index, dtype=float),
    ).merge(match_rows, on="merge_id", how="left")
