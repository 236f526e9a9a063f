"""What tells a study's cells apart, in as few words as do: of figures and of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tasks.tables.sweep import FIELDS

FACTORS = ["depth", "width"]
NETWORK = ["dataset", "architecture", "normalization"]
SERIES = [*NETWORK, "recipe", "measurement"]


def label_path(matcher: str, correction: str) -> str:
    """A path in words: how B was permuted, and what was done to the interpolated network."""
    aligned = {"none": "direct", "activation": "aligned"}.get(matcher, f"aligned by {matcher}")
    return aligned if correction == "none" else f"{aligned}, {'REPAIR' if correction == 'repair' else correction}"


def swept_factors(ablation: pd.DataFrame) -> list[str]:
    """The fields of recipes and measurements that a study sweeps: those that its table has a column for."""
    return [name for name in ablation.columns if name in FIELDS]


def main_factor(ablation: pd.DataFrame) -> str:
    """What the horizontal axis shows: of depth, width and all that is swept the one with most values."""
    return max([*FACTORS, *swept_factors(ablation)], key=lambda factor: ablation[factor].nunique(dropna=False))


def label_value(value: Any, factor: str = "") -> str:
    """A factor's value on an axis; a number of images that is not bounded is all of them, and an epoch that is not
    given the last."""
    if pd.isna(value):
        return {"epoch": "last", "spawn_seed": "none", "spawn_epoch": "none"}.get(factor, "all")
    return f"{value:g}" if isinstance(value, float) else str(value)


def label_points(frame: pd.DataFrame, aside: str = "") -> pd.Series:
    """One text per row that says what tells its cell and measurement apart, in as few words as do, a factor aside."""
    swept = swept_factors(frame)
    if aside == "depth":
        # A VGG's depth is in its name. ResNets of other depths are other designs, so their names stay.
        frame = frame.assign(architecture=frame["architecture"].replace(r"^vgg\d+$", "vgg", regex=True))
    names = [*NETWORK, *FACTORS, *swept, *([] if swept else ["recipe", "measurement"])]
    return _labels(frame, telling(frame, [name for name in names if name != aside]))


def label_lines(frame: pd.DataFrame) -> pd.Series:
    """One text per row that says which of the fewest lines holds its point, a line being along one factor alone."""
    labels = [label_points(frame, factor) for factor in [*FACTORS, *swept_factors(frame)]]
    return min(labels, key=lambda of_rows: of_rows.nunique())


def telling(frame: pd.DataFrame, names: list[str]) -> list[str]:
    """Those of the columns that tell rows apart; not those that follow from others before them, as the depth of a
    VGG does from its name."""
    chosen: list[str] = []
    for name in names:
        distinct = len(frame[chosen].drop_duplicates()) if chosen else 1
        if len(frame[[*chosen, name]].drop_duplicates()) > distinct:
            chosen.append(name)
    return chosen


def _labels(frame: pd.DataFrame, names: list[str]) -> pd.Series:
    """One text per row of what these columns hold."""
    if not names:
        return pd.Series("", index=frame.index)
    return frame[names].apply(lambda row: _label(row, names), axis=1)


def _label(row: pd.Series, names: Sequence[str]) -> str:
    return ", ".join(str(row[name]) if name in SERIES else f"{name} {label_value(row[name], name)}" for name in names)


def cell_names(frame: pd.DataFrame) -> pd.Series:
    """One text per row that names its cell and measurement, the same in every table."""
    return frame["cell_id"] + "/" + frame["measurement"]


def cells_of(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each cell and measurement with what sets it apart from the others, in the order of network, depth,
    width and what is swept."""
    names = [*NETWORK, *FACTORS, *swept_factors(frame), "cell_id", "measurement"]
    labels = label_points(frame.drop_duplicates(names))
    return [(str(labels[group.index[0]]), group) for _, group in frame.groupby(names, sort=True, dropna=False)]
