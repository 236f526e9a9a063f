"""Columns for the fields that a study sweeps beside its factors: of recipes, measurements and times of cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
import pyarrow as pa

from infra.tables import Column, Table
from tasks.science.specs.cell import Cell
from tasks.science.specs.measurement import Measurement, Samples
from tasks.science.specs.pairing import Pairing
from tasks.science.specs.request import Request
from tasks.tables.columns import MEASURED, RECIPE, TIME

FIELDS = RECIPE | MEASURED | TIME
SAMPLE_FIELDS = [f.name for f in dataclasses.fields(Samples)]

_PARSERS: dict[pa.DataType, Callable[[str], Any]] = {pa.int64(): int, pa.float64(): float, pa.string(): str}


def parse_value(name: str, word: str) -> Any:
    """Return the value that `word` writes for a field of recipes or measurements, as on a command line.

    `all` stands for no bound on a number of images, `last` for the end of training; an unknown field keeps its word.
    Raises ValueError for an impossible value.
    """
    kind = FIELDS[name].kind if name in FIELDS else None
    if kind == pa.bool_():
        if word.lower() not in ("true", "false"):
            raise ValueError(f"{name} is true or false, got {word}")
        return word.lower() == "true"
    if (name in ("statistics", "evaluation") and word == "all") or (name == "epoch" and word == "last"):
        return None
    try:
        return _PARSERS.get(kind, str)(word) if kind is not None else word
    except ValueError as error:
        raise ValueError(f"{name} takes {'whole ' if kind == pa.int64() else ''}numbers, got {word}") from error


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The fields that the requests of a study sweep, and the values of each cell, pairing and measurement."""

    names: tuple[str, ...]
    cells: dict[str, Cell]
    """By id."""
    samples: dict[str, Samples | None]
    """By pairing id; None where the matcher needs no data."""
    measurements: dict[str, Measurement]
    """By name."""

    @classmethod
    def of(cls, requests: Iterable[Request], pairings: Iterable[Pairing]) -> Sweep:
        """Return the sweep of these requests, which have these pairings."""
        asked = list(requests)
        return cls(
            tuple(dict.fromkeys(name for request in asked for name in request.swept)),
            {cell.id: cell for request in asked for cell in request.trained_cells},
            {pairing.id: pairing.samples if pairing.choice.needs_data else None for pairing in pairings},
            {measurement.name: measurement for request in asked for measurement in request.measurements},
        )

    def columns(self, table: Table) -> dict[str, Column]:
        """Return the columns of swept fields that rows of `table` have a value of.

        These are a cell's recipe and time, a merge's samples, a path's whole measurement; `cells` has all of a cell
        already.
        """
        if table.name == "cells" or "cell_id" not in table.columns:
            return {}
        told = {*RECIPE, *TIME}
        if "measurement" in table.columns:
            told |= MEASURED.keys()
        elif "merge_id" in table.columns:
            told |= set(SAMPLE_FIELDS)
        return {name: FIELDS[name] for name in self.names if name in told}

    def stamp(self, frame: pd.DataFrame, table: Table) -> pd.DataFrame:
        """Return the rows of `table` in `frame` with the columns of swept fields."""
        stamped = frame.copy()
        for name in self.columns(table):
            if name in TIME:
                key, owners = "cell_id", self.cells
            elif name in RECIPE:
                key, owners = "cell_id", {cell_id: cell.recipe for cell_id, cell in self.cells.items()}
            elif "measurement" in table.columns:
                key, owners = "measurement", self.measurements
            else:
                key, owners = "merge_id", self.samples
            # A published figure that was not run has no cell of ours.
            values = [getattr(owners.get(owner), name, None) for owner in frame[key]]
            stamped[name] = pd.Series(values, index=frame.index, dtype=object)
        return stamped
