"""Reading of many row files into one frame, with a check that each belongs to its match or path."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from infra.storage import Store
from infra.tables import Table, read_rows
from tasks.stored.expansion import MATCH_TABLES, PATH_TABLES, Artifact, MatchRows, MeasuredPath
from tasks.tables.schema import MERGE_ROWS, PATH_ROWS


def read_measurements(
    store: Store, matched: Sequence[MatchRows], measured: Sequence[MeasuredPath]
) -> dict[str, pd.DataFrame]:
    """Return the rows of matches and paths by the name of their table, those of a path with its measurement's name.

    Raises DamagedError for a file whose rows are of something else, or of no point of a path.
    """
    of_matches = [{"merge_id": match.pairing.id} for match in matched]
    paths = [one.path for one in measured]
    of_paths = [{"merge_id": path.pairing.id, "correction": path.correction, "method": path.method} for path in paths]
    frames = {table.name: _read(store, table, at, matched, of_matches)[0] for at, table in enumerate(MATCH_TABLES)}
    names = np.asarray([path.measurement.name for path in paths], dtype=object)
    for at, table in enumerate(PATH_TABLES):
        rows, positions = _read(store, table, at, measured, of_paths)
        frames[table.name] = rows.assign(measurement=names[positions])
    return frames


def _read(
    store: Store, table: Table, at: int, artifacts: Sequence[Artifact], of: Sequence[dict[str, str]]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the rows in the file `at` this position of each artifact, and the artifact's position for each row.

    Raises DamagedError for rows that differ from `of`, which has a record for each artifact.
    """
    keys = [artifact.keys[at] for artifact in artifacts]
    rows, counts = read_rows(store, keys, table)
    frame = rows.to_pandas()
    positions = np.repeat(np.arange(len(keys)), counts)
    empty = [key for key, count in zip(keys, counts, strict=True) if not count]
    if empty and table in (PATH_ROWS, MERGE_ROWS):
        raise store.damaged(empty[0], "it has no rows")
    if table is PATH_ROWS:
        impossible = ~frame["split"].isin(["train", "test"]) | ~frame["alpha"].between(0, 1) | (frame["n_examples"] < 1)
        if (wrong := np.flatnonzero(impossible)).size:
            raise store.damaged(keys[positions[wrong[0]]], "a row in it is of no point of a path")
    for name in (name for name in ("merge_id", "correction", "method") if name in table.columns):
        wanted = np.asarray([values[name] for values in of], dtype=object)[positions]
        if (wrong := np.flatnonzero(frame[name].to_numpy() != wanted)).size:
            raise store.damaged(keys[positions[wrong[0]]], f"its rows are of another {name}")
    return frame, positions
